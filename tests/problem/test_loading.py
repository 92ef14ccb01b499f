"""Users' files: problems by name, checkpoints that never run code."""

import pickle
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models import classification, mlp
from thalweg.errors import CheckpointError, InputError
from thalweg.problem.checkpoint import apply_checkpoint, read_checkpoint
from thalweg.problem.loading import load_problem
from thalweg.problem.problem import Problem

TRAIN = """
    import torch, thalweg
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    import neighbour

    def problem():
        model = nn.Linear(neighbour.WIDTH, 3)
        x, y = torch.arange(40.0).view(10, 4) / 40, torch.arange(10) % 3
        return thalweg.Problem(model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(x, y), batch_size=4))

    def nothing():
        pass

    def broken():
        return 1 / 0

    NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAIN))
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "wrong.py").write_text("def problem(:\n")
    (tmp_path / "fails.py").write_text("x = 1\nraise ValueError('on import')\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "inner.py").write_text(
        "import thalweg\n"
        "def problem():\n"
        "    return thalweg.Problem.from_function(lambda t: (t**2).sum(), [1.0])\n"
    )
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    rng = torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(rng)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_function_in_a_file_or_a_package_is_found(folder):
    assert load_problem("train.py:problem").measured().train.examples == 10
    assert load_problem(str(folder / "train.py") + ":problem").name == "Linear"
    assert load_problem("pack.inner:problem").is_function
    assert load_problem("cube").name == "cube"


WRONG = {
    "nowhere.py:problem": "there is no file",
    "train.py": "names a file but no function",
    "train.py:missing": "has no function 'missing'.*problem",
    "train.py:NUMBER": "has no function 'NUMBER'",
    "train.py:nothing": "returned no problem.*missing return",
    "train.py:broken": r"broken\(\) failed at train.py:\d+: ZeroDivisionError",
    "wrong.py:problem": "wrong.py failed.*SyntaxError",
    "fails.py:problem": "fails.py failed at fails.py:2: ValueError: on import",
    "no.such.package:problem": "no module",
    "digits-mpl": "digits-mlp",
    "": "problem",
}


@pytest.mark.parametrize("specification", WRONG)
def test_what_cannot_be_loaded_gets_one_clear_error(folder, specification):
    with pytest.raises(InputError, match=f"(?is){WRONG[specification]}"):
        load_problem(specification)


@pytest.fixture
def problem():
    return Problem(mlp(), nn.CrossEntropyLoss(), classification())


def other_weights():
    return {name: tensor + 1 for name, tensor in mlp(seed=5).state_dict().items()}


SHAPES = {
    "plain": lambda w: w,
    "nested": lambda w: {"epoch": 3, "state_dict": w},
    "model_state_dict": lambda w: {"model_state_dict": w, "loss": 0.1},
    "data parallel": lambda w: {f"module.{k}": v for k, v in w.items()},
    "compiled": lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
    "compiled in parallel": lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
    "lightning": lambda w: {
        "state_dict": {**{f"model.{k}": v for k, v in w.items()}, "loss.weight": torch.ones(3)},
        "optimizer_states": [],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_checkpoints_of_every_usual_shape_are_loaded(problem, tmp_path, shape, suffix):
    weights = other_weights()
    content = SHAPES[shape](weights)
    path = tmp_path / f"last{suffix}"
    if suffix == ".safetensors":
        if not all(isinstance(v, torch.Tensor) for v in content.values()):
            pytest.skip("safetensors holds tensors only")
        save_file(content, path)
    else:
        torch.save(content, path)
    apply_checkpoint(problem, read_checkpoint(path))
    for name, tensor in problem.model.state_dict().items():
        assert torch.equal(tensor, weights[name])


@pytest.mark.parametrize("key", ["optimizer", "optimizer_state_dict", "optimizer_states"])
def test_the_optimiser_and_its_learning_rate_are_read_where_present(problem, tmp_path, key):
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.037, momentum=0.9)
    state = optimizer.state_dict()
    content = {"model": problem.model.state_dict(), key: [state] if key == "optimizer_states" else state}
    torch.save(content, tmp_path / "last.pt")
    apply_checkpoint(problem, read_checkpoint(tmp_path / "last.pt"))
    stepping = problem.stepping()
    assert (stepping.name, stepping.lr, stepping.momentum) == ("SGD", 0.037, 0.9)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    sentinel = tmp_path / "ran"
    for name, save in {
        "pickle.pt": lambda p: p.write_bytes(pickle.dumps(Payload(sentinel))),
        "nested.ckpt": lambda p: torch.save({"state_dict": {"a": Payload(sentinel)}}, p),
        "model.pth": lambda p: torch.save(mlp(), p),
        "disguised.safetensors": lambda p: p.write_bytes(pickle.dumps(Payload(sentinel))),
    }.items():
        path = tmp_path / name
        save(path)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        assert not sentinel.exists()
    with pytest.raises(CheckpointError, match="could run code"):
        read_checkpoint(tmp_path / "nested.ckpt")


def test_files_that_are_no_checkpoint_get_one_clear_error(tmp_path):
    good = tmp_path / "good.pt"
    torch.save(other_weights(), good)
    whole = good.read_bytes()
    cases = {
        "empty.pt": b"",
        "text.pt": b"hello",
        "cut.pt": whole[: len(whole) // 2],
        "empty.safetensors": b"",
        "cut.safetensors": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        "table.csv": b"a,b\n",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path / "missing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    for name in ("list.pt", "epoch.pt"):
        with pytest.raises(CheckpointError, match="holds no weights"):
            read_checkpoint(tmp_path / name)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(problem, tmp_path):
    before = {name: t.clone() for name, t in problem.model.state_dict().items()}
    weights = other_weights()
    cases = {
        "other shape": ({**weights, "0.weight": torch.zeros(9, 4)}, "another shape"),
        "missing": ({k: v for k, v in weights.items() if k != "2.bias"}, "missing"),
        "extra": ({**weights, "4.bias": torch.zeros(2)}, "not the model's"),
    }
    for content, message in cases.values():
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=f"of another model.*{message}"):
            apply_checkpoint(problem, read_checkpoint(tmp_path / "other.pt"))
        assert all(torch.equal(t, before[name]) for name, t in problem.model.state_dict().items())
    with pytest.raises(CheckpointError, match="plain function"):
        torch.save(weights, tmp_path / "fits.pt")
        apply_checkpoint(load_problem("cube"), read_checkpoint(tmp_path / "fits.pt"))
