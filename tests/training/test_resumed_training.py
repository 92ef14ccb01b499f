"""A training that was interrupted and gone on with ends with the same bits as one that was not."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.models import classification, seeded
from thalweg.errors import InputError
from thalweg.problem.problem import Problem
from thalweg.training.loop import train
from thalweg.training.recorded import read_run
from thalweg.training.recorder import Recorder


def problem(seed=0, widths=(4, 8, 3)):
    def build():
        a, b, c = widths
        return nn.Sequential(
            nn.Linear(a, b), nn.BatchNorm1d(b), nn.Tanh(), nn.Dropout(0.3), nn.Linear(b, c)
        ).double()

    loader = DataLoader(TensorDataset(*classification(38, seed=seed)), batch_size=9, shuffle=True)
    return Problem(seeded(build, 3), nn.CrossEntropyLoss(), loader, classification(20, seed=9))


def state(trained):
    return [t.detach().clone() for t in trained.model.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(state(a), state(b), strict=True))


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("adam", {"lr": 0.05}),
        ("sam", {"lr": 0.05}),
        ("lamb", {}),
        ("one-step-secant", {}),
        ("matlab:trainscg", {}),
    ],
)
def test_going_on_gives_the_bits_of_a_training_without_a_break(tmp_path, optimizer, settings):
    whole, parts = problem(), problem()
    record = train(whole, optimizer, epochs=7, **settings)
    for epochs in (2, 3):
        train(
            problem() if epochs == 2 else parts,
            optimizer,
            epochs=epochs,
            record=tmp_path,
            resume=True,
            **settings,
        )
    parts = problem()
    again = train(parts, optimizer, epochs=7, record=tmp_path, resume=True, **settings)
    assert same(whole, parts)
    assert again.epochs == record.epochs
    assert (again.stopped, again.kept) == (record.stopped, record.kept)
    assert read_run(tmp_path).last_step == record.epochs[-1].steps
    finished = problem()
    assert (
        train(finished, optimizer, epochs=7, record=tmp_path, resume=True, **settings).epochs == record.epochs
    )
    assert same(finished, whole)


def test_recording_does_not_change_what_is_trained(tmp_path):
    plain, recorded = problem(), problem()
    a, b = (
        train(plain, "adam", epochs=4),
        train(recorded, "adam", epochs=4, record=tmp_path, budget=float("inf")),
    )
    assert same(plain, recorded)
    assert a.epochs == b.epochs
    names = set(read_run(tmp_path).names)
    assert {"loss/train", "lr", "grad/norm", "grad/square", "step/critical", "curv/lambda_max"} <= names


def test_a_plain_function_is_recorded_and_gone_on_with(tmp_path):
    def bowl():
        return Problem.from_function(lambda t: (t * t * torch.tensor([1.0, 9.0])).sum(), [1.0, 2.0])

    whole, part = bowl(), bowl()
    train(whole, "momentum", lr=0.02, epochs=9)
    train(bowl(), "momentum", lr=0.02, epochs=4, record=tmp_path, budget=float("inf"))
    train(part, "momentum", lr=0.02, epochs=9, record=tmp_path, resume=True, budget=float("inf"))
    assert torch.equal(whole.parameters()[0], part.parameters()[0])
    run = read_run(tmp_path)
    assert run.series("curv/lambda_max")[1][0] == pytest.approx(18.0)
    assert list(run.series("loss/train")[0]) == list(range(1, 10))


def test_another_training_is_not_gone_on_with(tmp_path):
    train(problem(), "adam", lr=0.05, epochs=2, record=tmp_path)
    with pytest.raises(InputError, match="nothing is ever written over"):
        train(problem(), "adam", lr=0.05, epochs=2, record=tmp_path)
    with pytest.raises(InputError, match=r"was another one.*expected: lr 0\.05.*got: lr 0\.01"):
        train(problem(), "adam", lr=0.01, epochs=3, record=tmp_path, resume=True)
    with pytest.raises(InputError, match=r"was another one.*seed 0.*seed 1"):
        train(problem(), "adam", lr=0.05, epochs=3, record=tmp_path, resume=True, seed=1)
    with pytest.raises(
        InputError, match=r"not the one that the training began with.*data or loss have changed"
    ):
        train(problem(seed=5), "adam", lr=0.05, epochs=3, record=tmp_path, resume=True)
    train(problem(), "adam", lr=0.05, epochs=3, record=tmp_path, resume=True)


def test_a_training_that_is_past_its_new_end_is_not_gone_on_with(tmp_path):
    train(problem(), "adam", lr=0.05, epochs=4, record=tmp_path)
    with pytest.raises(InputError, match=r"longer than 2 epochs already.*4 epochs or more"):
        train(problem(), "adam", lr=0.05, epochs=2, record=tmp_path, resume=True)
    with pytest.raises(InputError, match=r"longer than 7 steps already.*20 steps or more"):
        train(problem(), "adam", lr=0.05, steps=7, record=tmp_path, resume=True)
    assert read_run(tmp_path).last_step == 20  # what was refused has hidden nothing
    assert train(problem(), "adam", lr=0.05, epochs=4, record=tmp_path, resume=True).epochs[-1].steps == 20


def test_a_folder_in_which_nothing_came_to_begin_is_free(tmp_path):
    with pytest.raises(InputError, match="budget"):
        train(problem(), "adam", epochs=1, record=tmp_path, budget=-1)
    train(problem(), "adam", lr=0.05, epochs=1, record=tmp_path)


def test_a_recording_of_another_loop_is_not_gone_on_with(tmp_path):
    model = seeded(lambda: nn.Linear(2, 1), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path, model, optimizer, quantities=["loss"]):
        pass
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"cannot be gone on with.*loop of one's own"):
        train(problem(), "adam", epochs=2, record=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_training_that_was_killed_before_its_first_epoch_begins_again(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("thalweg.training.run.Run.to_its_end", killed)
        train(problem(), "adam", lr=0.05, epochs=2, record=tmp_path)
    again, alone = problem(), problem()
    train(again, "adam", lr=0.05, epochs=2, record=tmp_path, resume=True)
    train(alone, "adam", lr=0.05, epochs=2)
    assert same(again, alone)


def test_a_damaged_state_is_told_and_what_was_recorded_stays(tmp_path):
    train(problem(), "adam", epochs=2, record=tmp_path)
    path = tmp_path / "training.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"state of the training in .* cannot be read"):
        train(problem(), "adam", epochs=3, record=tmp_path, resume=True)
    torch.save({"schema": "thalweg/training@7"}, path)
    with pytest.raises(InputError, match="another version"):
        train(problem(), "adam", epochs=3, record=tmp_path, resume=True)
    assert read_run(tmp_path).last_step == 10


def test_a_disk_too_full_for_the_state_does_not_stop_training(tmp_path, monkeypatch):
    def full(state, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thalweg.training.recorded_training.save_state", full)
    with pytest.warns(UserWarning, match="cannot be saved.*No space left.*training goes on") as told:
        train(problem(), "adam", epochs=3, record=tmp_path)
    assert len(told) == 1


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path):
    from safetensors.torch import load_file

    def command(folder, output):
        train = [sys.executable, "-m", "thalweg", "train", "digits-started", "--epochs", "12", "--resume"]
        return [*train, "--record", str(folder), "--output", str(output)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "a", tmp_path / "a.safetensors"), check=True, env=environment)
    for wait in (0.3, 0.6, 0.9):
        with subprocess.Popen(
            command(tmp_path / "b", tmp_path / "b.safetensors"), env=environment
        ) as process:
            begun = time.monotonic()
            while not (tmp_path / "b" / "training.pt").exists() and time.monotonic() < begun + 60:
                time.sleep(0.02)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
    (tmp_path / "b.safetensors").unlink(missing_ok=True)
    subprocess.run(command(tmp_path / "b", tmp_path / "b.safetensors"), check=True, env=environment)
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
