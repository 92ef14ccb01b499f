"""``thalweg train`` as a user meets it: a curve on the screen, a file at the end, errors in a line."""

import json
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import CrossEntropyLoss, MSELoss

from tests.cli.test_cli import run
from tests.models import mlp
from thalweg.cli.main import main
from thalweg.optim.registry import get
from thalweg.optim.registry import names as optimisers
from thalweg.problem.checkpoint import apply_checkpoint, read_checkpoint
from thalweg.problem.intact import random_state_kept
from thalweg.problem.problem import Problem
from thalweg.problem.saving import save_training
from thalweg.training.loop import train


@pytest.fixture
def thalweg(tmp_path, monkeypatch, capsys):
    """Run the command line in this process; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with random_state_kept(), pytest.raises(SystemExit) as stopped:
            main(["train", *map(str, arguments)])
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_it_shows_the_curve_and_writes_nothing_unasked(tmp_path, thalweg):
    code, out, err = thalweg("xor", "--optimizer", "momentum", "--lr", "0.5", "--epochs", "30")
    assert (code, err) == (0, "")
    assert "TRAINED" in out
    assert "over 30 epochs" in out
    assert "▁" in out
    assert "momentum" in out
    assert names(tmp_path) == []


def test_the_weights_in_the_file_are_those_of_the_same_training_in_python(tmp_path, thalweg):
    arguments = ("elman", "--batch-size", "8", "--lr", "0.01", "--epochs", "2", "--seed", "3")
    code, out, _ = thalweg(*arguments, "--output", "out.safetensors", "--json", "record.json")
    assert code == 0
    assert "out.safetensors" in out
    problem = Problem.builtin("elman", seed=3)
    record = train(problem, "adam", lr=0.01, batch_size=8, epochs=2, seed=3)
    stored = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in problem.model.state_dict().items())
    told = json.loads((tmp_path / "record.json").read_text())
    assert told["epochs"] == record.to_dict()["epochs"]
    assert told["saved_to"] == "out.safetensors"


def test_it_goes_on_from_its_own_file(tmp_path, thalweg):
    assert thalweg("xor", "--epochs", "4", "--lr", "0.02", "--output", "half.pt")[0] == 0
    stored = read_checkpoint(tmp_path / "half.pt")
    assert stored.optimizer is not None
    _, out, _ = thalweg("xor", "--checkpoint", "half.pt", "--epochs", "4", "--output", "whole.pt")
    assert "went on from its state" in out
    thalweg("xor", "--epochs", "8", "--lr", "0.02", "--output", "straight.pt")
    ends = [read_checkpoint(tmp_path / f"{name}.pt").weights for name in ("whole", "straight")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("name", list(optimisers()))
def test_every_optimisers_state_is_written_and_gone_on_from(tmp_path, name):
    inputs = torch.linspace(-1, 1, 8).reshape(-1, 1)
    if get(name).closure == "prediction":
        form, loss, targets = (1, 3, 2), CrossEntropyLoss(), (inputs[:, 0] > 0).long()
    else:
        form, loss, targets = (1, 3, 1), MSELoss(), inputs.sin()
    half, whole = (Problem(mlp(form).float(), loss, (inputs, targets)) for _ in range(2))
    record = train(half, name, batch_size="all", epochs=2)
    save_training(half.model, record.optimizer_state, tmp_path / "half.pt")
    apply_checkpoint(half, read_checkpoint(tmp_path / "half.pt"))
    train(half, name, batch_size="all", epochs=2)
    train(whole, name, batch_size="all", epochs=4)
    assert all(torch.equal(a, b) for a, b in zip(half.parameters(), whole.parameters(), strict=True))


def test_json_on_standard_output_and_nothing_else(thalweg):
    code, out, _ = thalweg("rosenbrock", "--optimizer", "lbfgs", "--epochs", "5", "--json", "-")
    record = json.loads(out)
    assert code == 0
    assert record["schema"] == "thalweg/trajectory@1"
    assert record["point"] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_online_and_batch_learning(thalweg):
    for size, steps in (("1", 8), ("all", 2), ("3", 4)):
        _, out, _ = thalweg("xor", "--epochs", "2", "--batch-size", size, "--json", "-")
        assert json.loads(out)["epochs"][-1]["steps"] == steps


def test_any_other_library_by_its_path(thalweg):
    code, out, _ = thalweg("xor", "--optimizer", "torch.optim:NAdam", "--steps", "3")
    assert code == 0
    assert "torch.optim:NAdam" in out


BAD = {
    ("--optimizer", "adma"): "try: 'adam'",
    ("--optimizer", "nowhere_at_all:Lion"): "no module named 'nowhere_at_all'",
    ("--batch-size", "0"): "neither a number of examples nor all",
    ("--batch-size", "some"): "neither a number of examples nor all",
    ("--epochs", "2", "--steps", "3"): "not both",
    ("--epochs", "-1"): "-1",
    ("--optimizer", "lbfgs", "--lr", "-1"): "Invalid learning rate",
    ("--output", "x.txt"): "ends in",
    ("--output", "no/such/folder/x.pt"): "does not exist",
    ("--json", "no/such/folder/x.json"): "cannot write",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_gets_one_message_and_exit_code_2(tmp_path, thalweg, arguments):
    code, out, err = thalweg("xor", *arguments)
    assert code == 2, err
    assert BAD[arguments] in err
    assert out == ""
    assert "Traceback" not in err
    assert names(tmp_path) == []


def test_nothing_is_written_over_and_a_function_has_no_weights(tmp_path, thalweg):
    (tmp_path / "there.pt").write_text("mine")
    assert "exists already" in thalweg("xor", "--output", "there.pt")[2]
    assert (tmp_path / "there.pt").read_text() == "mine"
    assert "no weights" in thalweg("saddle", "--output", "x.pt")[2]


def test_a_users_own_training_and_the_list_of_optimisers(tmp_path):
    (tmp_path / "train.py").write_text(
        textwrap.dedent(
            """
            import torch, thalweg
            from torch import nn

            def problem():
                x = torch.linspace(-1, 1, 20).reshape(-1, 1)
                return thalweg.Problem(nn.Linear(1, 1), nn.MSELoss(), (x, 3 * x + 1))
            """
        )
    )
    done = run(
        "train", "train.py:problem", "--optimizer", "sgd", "--lr", "0.3", "--epochs", "40", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "TRAINED" in done.stdout
    shown = run("train", "--help").stdout
    assert "matlab:trainlm" in shown
    assert "sharpness-aware" in shown
