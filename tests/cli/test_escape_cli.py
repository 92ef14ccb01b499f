"""``thalweg escape`` as a user meets it: files that appear, files that stay, what is said."""

import hashlib
import json
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.test_cli import run
from tests.selection import some
from thalweg.cli.main import main
from thalweg.problem.intact import random_state_kept
from thalweg.problem.problem import Problem


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def stored(tmp_path, name, suffix=".safetensors"):
    """A checkpoint of a built-in problem."""
    path = tmp_path / f"last{suffix}"
    weights = Problem.builtin(name).model.state_dict()
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"model": weights}, path)
    return path


@pytest.fixture
def thalweg(tmp_path, monkeypatch, capsys):
    """Run the command line in this process; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with random_state_kept(), pytest.raises(SystemExit) as stopped:
            main(["escape", *map(str, arguments)])
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call


@pytest.mark.parametrize("suffix", some([".safetensors", ".pt"], now=1))
def test_the_new_weights_lie_beside_the_checkpoint_which_stays(tmp_path, thalweg, suffix):
    checkpoint = stored(tmp_path, "digits-saddle", suffix)
    before = digest(checkpoint)
    code, out, _ = thalweg("digits-saddle", "--checkpoint", checkpoint, "--json", "record.json")
    assert code == 0
    assert "ESCAPED" in out
    assert digest(checkpoint) == before
    assert names(tmp_path) == sorted(["last.escaped.safetensors", checkpoint.name, "record.json"])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["applied"] is True
    assert record["saved_to"].endswith("last.escaped.safetensors")
    problem = Problem.builtin("digits-saddle")
    problem.model.load_state_dict(load_file(tmp_path / "last.escaped.safetensors"))
    heldout = problem.measured().heldout
    expected = record["loss"]["value"] + record["change"]["value"]
    assert heldout.value(heldout.theta) == pytest.approx(expected, rel=1e-6)


def test_a_minimum_leaves_everything_as_it_was(tmp_path, thalweg):
    checkpoint = stored(tmp_path, "digits-mlp")
    before = digest(checkpoint)
    code, out, _ = thalweg("digits-mlp", "--checkpoint", checkpoint)
    assert code == 0
    assert "STAYED" in out
    assert "nothing to escape from" in out
    assert digest(checkpoint) == before
    assert names(tmp_path) == [checkpoint.name]


def test_a_problem_without_a_checkpoint_writes_here_and_never_twice(tmp_path, thalweg):
    assert thalweg("digits-saddle")[0] == 0
    assert names(tmp_path) == ["digits-saddle.escaped.safetensors"]
    before = digest(tmp_path / names(tmp_path)[0])
    code, out, err = thalweg("digits-saddle")
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert digest(tmp_path / names(tmp_path)[0]) == before
    assert thalweg("digits-saddle", "--output", "onward.pt")[0] == 0
    assert "onward.pt" in names(tmp_path)


def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path, thalweg, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the work was begun")

    monkeypatch.setattr("thalweg.cli.escape.open_problem", never)
    checkpoint = stored(tmp_path, "digits-saddle")
    for output, message in {
        checkpoint: "exists already",
        "no/such/folder/x.pt": "does not exist",
        "x.txt": "ends in",
    }.items():
        code, _, err = thalweg("digits-saddle", "--checkpoint", checkpoint, "--output", output)
        assert code == 2
        assert message in err
    assert names(tmp_path) == [checkpoint.name]


def test_a_function_tells_its_new_point_and_writes_nothing(tmp_path, thalweg):
    code, out, _ = thalweg("saddle", "--json", "-")
    record = json.loads(out)
    assert code == 0
    assert record["applied"] is True
    assert abs(record["point"][1]) > 0.5
    assert record["saved_to"] is None
    code, _, err = thalweg("saddle", "--output", "x.pt")
    assert code == 2
    assert "no weights" in err
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_users_problem_names_the_file(tmp_path):
    (tmp_path / "train.py").write_text(
        textwrap.dedent(
            """
            import thalweg

            def problem():
                return thalweg.Problem.builtin("digits-saddle")
            """
        )
    )
    done = run("escape", "train.py:problem", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train.escaped.safetensors" in done.stdout
    assert (tmp_path / "train.escaped.safetensors").is_file()


def test_it_has_help():
    done = run("escape", "--help")
    assert done.returncode == 0
    said = " ".join(done.stdout.split())
    assert "never over a file" in said
    assert "The weights move only where data that had no part in the search confirm" in said
