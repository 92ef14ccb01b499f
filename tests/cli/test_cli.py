"""The command line as a user meets it: a process with arguments, streams and an exit code."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from tests.models import seeded
from tests.selection import some
from thalweg.cli.complete import command as complete_command
from thalweg.cli.main import main
from thalweg.completion.centring import Centring
from thalweg.completion.observations import Duplicates
from thalweg.completion.table import Layout
from thalweg.problem.intact import random_state_kept

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "110"}


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "thalweg", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )


def test_the_help_of_every_verb_answers_without_torch():
    code = (
        "import sys, thalweg.cli.main as m\n"
        "for verb in ['', *m._VERBS, 'kernel fit', 'kernel gram', 'kernel compare']:\n"
        "    try: m.main([*verb.split(), '--help'])\n"
        "    except SystemExit: print('loaded by', verb, [n for n in ('torch', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded by")]
    assert len(loaded) == done.stdout.count("Usage: ") > 10
    assert all(line.endswith("[]") for line in loaded), loaded
    plain = subprocess.run(
        [sys.executable, "-c", "import thalweg, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout == "False\n"


def test_what_complete_offers_is_what_it_can_do():
    options = {option.name: option.type for option in complete_command.params}
    assert list(options["layout"].choices) == list(get_args(Layout))
    assert list(options["duplicates"].choices) == list(get_args(Duplicates))
    assert list(options["center"].choices) == [*get_args(Centring), "none"]


@pytest.mark.slow
def test_help_answers_within_half_a_second():
    def seconds():
        begun = time.perf_counter()
        run("--help")
        return time.perf_counter() - begun

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize("verb", ["diagnose", "spectrum", "train", "problems", "doctor"])
def test_every_verb_has_help(verb):
    done = run(verb, "--help")
    assert done.returncode == 0
    assert "Usage: thalweg " + verb in done.stdout


def test_a_misspelt_verb_gets_the_right_one_without_torch():
    code = (
        "import sys, thalweg.cli.main as m\n"
        "try: m.main(['sharpnes'])\n"
        "except SystemExit as stopped: print(stopped.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "did you mean 'sharpness'?" in done.stderr
    assert done.stdout == "2 False\n"
    far = run("frobnicate")
    assert far.returncode == 2
    assert "did you mean" not in far.stderr


def test_the_help_tells_the_exit_codes():
    said = " ".join(run("--help").stdout.split())
    assert "2 wrong usage, 3 could not answer (or code of yours failed), 130 interrupted" in said


@pytest.mark.parametrize("package", ["thalweg", "thalweg.optim", "thalweg.kernels", "thalweg.completion"])
def test_no_name_moves_pythons_random_numbers_when_it_is_first_used(package):
    code = (
        "import random\n"
        "random.seed(0); before = random.getstate()\n"
        f"import {package} as package\n"
        "moved = ['the import'] if random.getstate() != before else []\n"
        "for name in package.__all__:\n"
        "    random.setstate(before)\n"
        "    getattr(package, name)\n"
        "    moved += [name] if random.getstate() != before else []\n"
        "print(moved)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["density", "diagnose", "escape", "sharpness", "spectrum", "trace"])
def test_a_first_measurement_leaves_pythons_random_numbers(verb):
    code = (
        "import random\n"
        "random.seed(0); before = random.getstate()\n"
        "import thalweg\n"
        f"str(thalweg.{verb}(thalweg.Problem.from_function(lambda t: t[0]**2 - t[1]**2, [0.0, 0.0])))\n"
        "print(random.getstate() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_names_that_need_no_torch_load_none():
    code = "import sys, thalweg; thalweg.InputError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_json_on_standard_output_and_nothing_else():
    done = run("diagnose", "saddle", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "saddle"
    assert json.loads(run("spectrum", "saddle", "--json", "-").stdout)["schema"] == "thalweg/spectrum@1"
    assert "digits-mlp" in json.loads(run("problems", "--json").stdout)


def test_the_default_is_a_demonstration(tmp_path):
    pictures = ("--figures", tmp_path / "pictures")
    done = run(
        *("diagnose", "--html", tmp_path / "report.html", "--json", tmp_path / "report.json"), *pictures
    )
    assert done.returncode == 0, done.stderr
    assert "PLATEAU" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "plateau"
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page.replace("http-equiv", "")
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert drawn == {
        f"{name}.{form}"
        for name in ("plane", "lines", "spectrum", "signal", "moves")
        for form in ("svg", "png")
    }


def test_a_page_shows_the_loss_around_the_weights_and_a_budget_spares_it(tmp_path):
    assert run("diagnose", "cube", "--html", tmp_path / "page.html").returncode == 0
    assert "inflection" in (tmp_path / "page.html").read_text()
    assert run("diagnose", "cube", "--budget", "30", "--html", tmp_path / "page.html").returncode == 0
    assert "inflection" not in (tmp_path / "page.html").read_text()


def test_fail_on_turns_a_verdict_into_an_exit_code():
    assert run("diagnose", "cube", "--fail-on", "degenerate").returncode == 1
    assert run("diagnose", "cube", "--fail-on", "plateau", "--fail-on", "saddle").returncode == 0


def test_doctor_and_problems_tell():
    assert "torch" in run("doctor").stdout
    assert "digits-deep-sigmoid" in run("problems").stdout


TRAIN = """
    import torch, thalweg
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    print("a line that the user's code prints")

    def problem():
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(200, 4, generator=rng)
        y = (x[:, 0] > 0).long()
        loader = DataLoader(TensorDataset(x[:160], y[:160]), batch_size=32, shuffle=True)
        heldout = DataLoader(TensorDataset(x[160:], y[160:]), batch_size=32)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        return thalweg.Problem(model, nn.CrossEntropyLoss(), loader, heldout=heldout)

    def three():
        return 3

    def frozen():
        p = problem()
        p.model.requires_grad_(False)
        return p

    def empty():
        return thalweg.Problem(nn.Linear(4, 2), nn.CrossEntropyLoss(), [])

    def broken():
        return {}["weights"]

    def form():
        return thalweg.Problem(nn.Linear(4, 2), nn.CrossEntropyLoss(), [torch.zeros(8, 4)])

    def nan():
        p = problem()
        with torch.no_grad():
            p.model[0].weight.fill_(float("nan"))
        return p
"""


def network():
    from torch import nn

    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("user")
    (path / "train.py").write_text(textwrap.dedent(TRAIN))
    model = seeded(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path / "last.pt")
    save_file(model.state_dict(), path / "last.safetensors")
    torch.save({"other.weight": torch.zeros(3)}, path / "other.pt")
    torch.save(model, path / "code.pt")
    return path


@pytest.mark.parametrize("checkpoint", some(["last.pt", "last.safetensors"], now=1))
def test_a_users_own_training_is_diagnosed(folder, checkpoint):
    done = run("diagnose", "train.py:problem", "--checkpoint", checkpoint, "--json", "-", cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["verdict"] == "descending"
    assert record["evidence"]["heldout_loss"]["value"] > 0
    assert "a line that the user's code prints" in done.stderr
    names = {move["name"] for move in record["moves"]}
    assert ("learning rate × 0.1" in names) == (checkpoint == "last.pt")


BAD = {
    ("nowhere.py:problem",): (2, "there is no file"),
    ("train.py:three",): (2, "returned no problem"),
    ("train.py:frozen",): (2, "no trainable parameters"),
    ("train.py:empty",): (2, "empty"),
    ("train.py:form",): (2, "wrong form"),
    ("train.py:broken",): (3, "broken() failed at train.py"),
    ("train.py:probelm",): (2, "try: train.py:problem"),
    ("train.py:nan",): (3, "NaN or infinity"),
    ("train.py:problem", "--checkpoint", "missing.pt"): (2, "there is no checkpoint"),
    ("train.py:problem", "--checkpoint", "other.pt"): (2, "of another model"),
    ("train.py:problem", "--checkpoint", "code.pt"): (2, "could run code"),
    ("digits-mpl",): (2, "digits-mlp"),
    ("cube", "--budget", "1"): (2, "the least is 30"),
    ("cube", "--json", "no/such/folder/x.json"): (2, "cannot write"),
    ("cube", "--fail-on", "nonsense"): (2, "nonsense"),
    ("cube", "--seed", "x"): (2, "not a valid integer"),
}


@pytest.mark.parametrize("arguments", some(BAD, now=6), ids=" ".join)
def test_bad_input_gets_one_message_and_its_exit_code(folder, arguments, monkeypatch, capsys):
    code, message = BAD[arguments]
    monkeypatch.chdir(folder)
    with random_state_kept(), pytest.raises(SystemExit) as stopped:
        main(["diagnose", *arguments])
    said = capsys.readouterr()
    assert stopped.value.code == code, said.err
    assert message in said.err
    assert len(said.err.strip().splitlines()) <= 6
    assert "Traceback" not in said.err
    assert said.out == ""


def test_an_error_in_a_process_of_its_own_is_one_line_too(folder):
    done = run("diagnose", "train.py:nan", cwd=folder)
    assert done.returncode == 3
    assert done.stderr.startswith("a line that the user's code prints\nthalweg: 1 of the parameters")
    assert done.stderr.count("\n") == 2
