"""Trials end on disk: a kill, a damaged file, a full disk, another problem."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from thalweg.errors import InputError, ThalwegError
from thalweg.problem.intact import random_state_kept
from thalweg.progress import Silent
from thalweg.studies.execution import require_executor, run_trials
from thalweg.studies.trial_folder import TrialFolder

from .nets import problem

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Square:
    key: str
    number: float
    size: float = 1.0
    problem_seed: int = 0


CALLS = []


def square(_, trial):
    CALLS.append(trial.key)
    if trial.number < 0:
        raise InputError("a negative number")
    return {"value": trial.number**2 + 0.1}


def run(folder, numbers, executor="serial", plan=None):
    CALLS.clear()
    kept = TrialFolder(folder, plan or {"study": "squares"})
    try:
        trials = [Square(f"n-{n}", n) for n in numbers]
        return run_trials(square, problem(), trials, kept, executor, Silent()), kept
    finally:
        kept.close()


def files(folder):
    return sorted((folder / "trials").glob("*.json"))


def test_a_second_start_repeats_nothing_and_gives_the_same(tmp_path):
    first, _ = run(tmp_path / "study", [1, 2, 3])
    second, _ = run(tmp_path / "study", [1, 2, 3, 4])
    assert CALLS == ["n-4"]
    assert {key: second[key] for key in first} == first


def test_what_had_ended_before_a_failure_is_kept(tmp_path):
    with pytest.raises(InputError, match="negative"):
        run(tmp_path / "study", [1, 2, -3, 4])
    run(tmp_path / "study", [1, 2])
    assert CALLS == []


def test_any_executor_of_the_standard_library_gives_the_same(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        threads, _ = run(tmp_path / "a", [1, 2, 3], pool)
    serial, _ = run(tmp_path / "b", [1, 2, 3])
    assert threads == serial


@pytest.mark.parametrize("damage", ["", "{", '{"checksum": "0", "trial": {"key": "n-2", "result": {}}}'])
def test_a_damaged_trial_is_put_aside_told_and_run_again(tmp_path, damage):
    before, _ = run(tmp_path / "study", [1, 2])
    victim = next(path for path in files(tmp_path / "study") if path.name.startswith("n-2"))
    victim.write_text(damage)
    after, kept = run(tmp_path / "study", [1, 2])
    assert CALLS == ["n-2"]
    assert after == before
    assert "damaged" in kept.notes[0]
    assert victim.with_suffix(".damaged").read_text() == damage


def test_a_changed_digit_is_seen(tmp_path):
    run(tmp_path / "study", [2])
    (path,) = files(tmp_path / "study")
    path.write_text(path.read_text().replace("4.1", "4.2"))
    after, kept = run(tmp_path / "study", [2])
    assert after["n-2"] == {"value": 4.1}
    assert kept.notes


def test_other_settings_do_not_go_on_in_the_same_folder(tmp_path):
    run(tmp_path / "study", [1], plan={"study": "squares", "epochs": 30})
    with pytest.raises(InputError, match=r"other settings.*epochs = 30.*got: 20"):
        run(tmp_path / "study", [1], plan={"study": "squares", "epochs": 20})
    run(tmp_path / "study", [1], plan={"study": "squares", "epochs": 30})
    assert CALLS == []


def test_a_problem_that_changed_is_named_and_nothing_is_lost(tmp_path):
    run(tmp_path / "study", [1], plan={"source": "a", "problem": "x"})
    with pytest.raises(InputError, match="the problem has changed"):
        run(tmp_path / "study", [1], plan={"source": "b", "problem": "x"})
    assert len(files(tmp_path / "study")) == 1


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(InputError, match="something else"):
        run(tmp_path, [1])
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".txt"] == ["thesis.txt"]


def test_a_damaged_plan_is_told(tmp_path):
    run(tmp_path / "study", [1])
    (tmp_path / "study" / "plan.json").write_text("[1")
    with pytest.raises(InputError, match=r"plan\.json .* is damaged"):
        run(tmp_path / "study", [1])


def test_two_studies_do_not_share_a_folder_at_the_same_time(tmp_path):
    kept = TrialFolder(tmp_path / "study", {})
    with pytest.raises(InputError, match="running"):
        TrialFolder(tmp_path / "study", {})
    kept.close()
    TrialFolder(tmp_path / "study", {}).close()


def test_a_full_disk_is_told_and_the_trials_before_it_stay(tmp_path, monkeypatch):
    run(tmp_path / "study", [1])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ThalwegError, match=r"No space left.*make room and start again"):
        run(tmp_path / "study", [1, 2])
    monkeypatch.undo()
    assert [path.suffix for path in (tmp_path / "study" / "trials").iterdir()] == [".json"]
    run(tmp_path / "study", [1, 2])
    assert CALLS == ["n-2"]


@pytest.mark.parametrize("choice", ["process", "processes:0", "processes:x", "threads", 3])
def test_an_unknown_executor_is_refused(choice):
    with pytest.raises(InputError, match="dask://"):
        require_executor(choice)


def test_a_dask_scheduler_that_is_not_there_is_told(tmp_path):
    pytest.importorskip("distributed")
    from thalweg.studies import execution

    class Nobody:
        def __init__(self, address, timeout):
            raise OSError("refused")

    with pytest.MonkeyPatch.context() as patch:
        import distributed

        patch.setattr(distributed, "Client", Nobody)
        with (
            pytest.raises(InputError, match=r"no Dask scheduler at '127\.0\.0\.1:1'"),
            execution._dask("dask://127.0.0.1:1"),
        ):
            pass


COMMAND = (
    "from thalweg.cli.main import main; main(['compare', '{file}:problem', '--optimizers', 'sgd,adam,lbfgs', "
    "'--seeds', '2', '--rates', '4', '--epochs', '{epochs}', '--executor', '{executor}', '--output', "
    "'{folder}', '--json', '-'])"
)


def start(folder, executor="processes:2", epochs=30):
    code = COMMAND.format(
        file=REPOSITORY / "tests/studies/nets.py", folder=folder, executor=executor, epochs=epochs
    )
    path = f"{REPOSITORY / 'src'}"
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    script = Path(folder).with_suffix(".py")
    script.write_text(f"if __name__ == '__main__':\n    {code}\n")
    return subprocess.Popen(
        [sys.executable, str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def table(text):
    """What a study found, without what the clock said."""
    record = json.loads(text)
    for method in record["methods"]:
        method.pop("seconds")
    return {key: record[key] for key in ("methods", "epochs", "seeds", "examples")}


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_the_same_table(tmp_path):
    whole, errors = start(tmp_path / "whole").communicate(timeout=280)
    assert whole, errors
    killed = start(tmp_path / "killed")
    trials = tmp_path / "killed" / "trials"
    deadline = time.monotonic() + 200
    while not (trials.is_dir() and len(list(trials.glob("*.json"))) >= 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    assert 4 <= len(done) < 15
    again, errors = start(tmp_path / "killed").communicate(timeout=280)
    assert again, errors
    assert table(again) == table(whole)
    assert all((trials / name).stat().st_mtime_ns == when for name, when in done.items())


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_as_this_process(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        random_state_kept(),  # the cluster draws from python's
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
    ):
        there, _ = run(tmp_path / "a", [1, 2, 3], f"dask://{cluster.scheduler_address}")
    here, _ = run(tmp_path / "b", [1, 2, 3])
    assert there == here
