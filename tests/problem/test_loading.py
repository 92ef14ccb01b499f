"""Users' files: problems by name, checkpoints that never run code."""

import collections
import pickle
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models import classification, mlp
from thalweg.errors import CheckpointError, InputError, ThalwegError
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
    "train.py:probelm": "has no function 'probelm'.*try: train.py:problem$",
    "train.py:nothing": "returned no problem.*missing return",
    "no.such.package:problem": "no module",
    "digits-mpl": "digits-mlp",
    "": "problem",
}


@pytest.mark.parametrize("specification", WRONG)
def test_what_cannot_be_loaded_gets_one_clear_error(folder, specification):
    with pytest.raises(InputError, match=f"(?is){WRONG[specification]}"):
        load_problem(specification)


def test_a_name_like_none_is_not_guessed(folder):
    with pytest.raises(InputError) as caught:
        load_problem("train.py:xyzzy")
    assert "try" not in str(caught.value)


FAILING = {
    "train.py:broken": r"broken\(\) failed at train.py:\d+: ZeroDivisionError",
    "wrong.py:problem": "wrong.py failed.*SyntaxError",
    "fails.py:problem": "fails.py failed at fails.py:2: ValueError: on import",
}


@pytest.mark.parametrize("specification", FAILING)
def test_code_of_the_users_that_fails_is_not_wrong_usage(folder, specification):
    with pytest.raises(ThalwegError, match=FAILING[specification]) as caught:
        load_problem(specification)
    assert not isinstance(caught.value, InputError)
    assert caught.value.exit_code == 3


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


def parts():
    """Weights and everything that people save beside them."""
    model = mlp()
    inputs = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    optimizers = {
        "sgd": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "adam": torch.optim.AdamW(model.parameters(), amsgrad=True),
        "rmsprop": torch.optim.RMSprop(model.parameters(), centered=True),
        "adagrad": torch.optim.Adagrad(model.parameters()),
        "lbfgs": torch.optim.LBFGS(model.parameters()),
        "adafactor": torch.optim.Adafactor(model.parameters()),
    }
    for optimizer in optimizers.values():

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(inputs).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    schedules = torch.optim.lr_scheduler
    sgd = optimizers["sgd"]
    schedulers = {
        "steps": schedules.StepLR(sgd, 3),
        "milestones": schedules.MultiStepLR(sgd, [2, 5, 5]),
        "cosine": schedules.CosineAnnealingLR(sgd, 10),
        "plateau": schedules.ReduceLROnPlateau(sgd),
        "lambda": schedules.LambdaLR(sgd, lambda epoch: 0.9**epoch),
        "cycle": schedules.OneCycleLR(sgd, 0.1, total_steps=10),
    }
    return model, optimizers, schedulers


def lightning(model, optimizer, scheduler):
    return {
        "epoch": 4,
        "global_step": 120,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5, "done": 4}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.3), "dirpath": "x"}
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "layers": [4, 8], "name": None, "flags": {"amp": True}},
    }


def benign():
    """Checkpoints as people save them: name -> content whose weights are found."""
    model, optimizers, schedulers = parts()
    weights = model.state_dict()
    cases = {name: shape(weights) for name, shape in SHAPES.items()}
    cases |= {f"with {n}": {"model": weights, "optimizer": o.state_dict()} for n, o in optimizers.items()}
    cases |= {f"with {n}": {"model": weights, "scheduler": s.state_dict()} for n, s in schedulers.items()}
    dtypes = "float16 bfloat16 float32 float64 float8_e4m3fn float8_e5m2 complex64 complex128"
    for name in (dtypes + " int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool").split():
        cases[name] = {"weight": torch.tensor([[0, 1], [2, 3]]).to(getattr(torch, name))}
    base = torch.arange(24.0)
    tensors = {
        "zero size": torch.empty(0, 3),
        "no dimension": torch.tensor(2.5),
        "slice": base[3:9],
        "stride": base[::5],
        "transposed": base.view(4, 6).t(),
        "channels last": base.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "expanded by one": base.expand(1, -1),
        "windows": base.as_strided((2, 3), (2, 1)),
        "parameter": nn.Parameter(base),
        "with gradient": base.clone().requires_grad_(),
        "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
        "negative": torch.ones(3, dtype=torch.complex64).conj().imag,
        "not finite": torch.tensor([float("nan"), float("inf")]),
    }
    cases |= {name: {"weight": tensor} for name, tensor in tensors.items()}
    cases["tied"] = {"a": base, "b": base}
    cases["views of one storage"] = {"a": base[:12], "b": base[12:], "c": base.view(2, 12)}
    cases["parameters"] = dict(model.named_parameters())
    cases["strange names"] = {"größe.权重": base, "a b/c\\d": base, "x" * 5000: base, "": base}
    cases["many"] = {f"layers.{i}.weight": torch.zeros(1) for i in range(600)}
    beside = {
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "ema": torch.optim.swa_utils.AveragedModel(model).state_dict(),
        "generators": {"torch": torch.Generator().get_state(), "python": (3, tuple(range(625)), None)},
        "history": [{"loss": 0.1 * i, "step": i} for i in range(2000)],
        "values": [
            None,
            True,
            -1,
            2**60,
            2**200,
            1.5,
            float("nan"),
            "text",
            b"bytes\xff",
            bytearray(b"x"),
            1j,
        ],
        "torch's values": [torch.float32, torch.device("cuda", 1), torch.device("cpu"), torch.Size([2, 3])],
        "containers": [
            (),
            (1,),
            (1, 2),
            (1, 2, 3),
            (1, 2, 3, 4),
            {1, 2},
            {},
            [],
            {3: "a", None: 1, 0.5: 2, True: 3},
        ],
        "nested": {"a": {"b": {"c": [[[[[[1]]]]]]}}},
        "counter": collections.Counter("abracadabra"),
        "the same twice": [shared := {"lr": 0.1}, shared, shared],
    }
    cases |= {f"beside {name}": {"state_dict": weights, name: value} for name, value in beside.items()}
    cases["averaged"] = torch.optim.swa_utils.AveragedModel(model).state_dict()
    cases["lightning whole"] = lightning(model, optimizers["adam"], schedulers["milestones"])
    return cases


def test_what_people_save_is_loaded_as_torch_loads_it(tmp_path):
    cases = benign()
    assert len(cases) >= 60
    refused = {}
    for name, content in cases.items():
        torch.save(content, tmp_path / "a.pt")
        expected = torch.load(tmp_path / "a.pt", weights_only=True)
        inner = [expected, *(expected.get(key) for key in ("model", "state_dict", "model_state_dict"))]
        expected = next(c for c in inner if c and all(isinstance(t, torch.Tensor) for t in c.values()))
        try:
            found = read_checkpoint(tmp_path / "a.pt")
        except CheckpointError as error:
            refused[name] = str(error)
            continue
        assert list(found.weights) == list(expected), name
        for key, tensor in expected.items():
            got = found.weights[key]
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
            bits = [t.detach().resolve_conj().resolve_neg().clone().contiguous() for t in (got, tensor)]
            assert bytes(bits[0].untyped_storage()) == bytes(bits[1].untyped_storage()), name
        assert found.optimizer is not None or "optimizer" not in content, name
    assert refused == {}


def test_safetensors_of_every_type_are_loaded(tmp_path):
    names = "float16 bfloat16 float32 float64 float8_e4m3fn float8_e5m2 complex64"
    for name in (names + " int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool").split():
        one = torch.tensor([[0, 1], [2, 3]]).to(getattr(torch, name))
        weights = {
            "weight": one,
            "odd": torch.ones(3, dtype=torch.int8),
            "empty": one[:0],
            "n": one[0, 1].clone(),
        }
        save_file(weights, tmp_path / "a.safetensors", metadata={"format": "pt", "note": "{[größe"})
        found = read_checkpoint(tmp_path / "a.safetensors").weights
        assert found.keys() == weights.keys()
        for key, tensor in weights.items():
            assert found[key].dtype == tensor.dtype
            assert bytes(found[key].untyped_storage()) == bytes(tensor.clone().untyped_storage()), (name, key)


def test_the_content_decides_and_not_the_name(tmp_path):
    weights = {"weight": torch.arange(3.0)}
    for name in ("model_best.pth.tar", "weights", "weights.safetensors", "weights.npz"):
        torch.save(weights, tmp_path / name)
        assert torch.equal(read_checkpoint(tmp_path / name).weights["weight"], weights["weight"])
    save_file(weights, tmp_path / "pytorch_model.bin")
    assert torch.equal(read_checkpoint(tmp_path / "pytorch_model.bin").weights["weight"], weights["weight"])


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_what_torch_loads_and_we_do_not_is_refused_with_what_to_do(tmp_path):
    """The price of looking first, written down: none of these is what a state_dict of a dense model holds."""
    base, path = torch.arange(4.0), tmp_path / "a.pt"
    marked = nn.Parameter(base.clone())
    marked.sharded = True
    cases = {
        "sparse": ({"weight": torch.eye(3).to_sparse()}, "save dense tensors"),
        "expanded": ({"weight": base.expand(5, 4)}, "clone"),
        "marked": ({"weight": marked}, "save dense tensors"),
        "tuple as key": ({"model": {"weight": base}, "seen": {(0, 1): 2}}, "a key that is no text"),
    }
    for content, said in cases.values():
        torch.save(content, path)
        torch.load(path, weights_only=True)
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(path)
    torch.save({"weight": base}, path, _use_new_zipfile_serialization=False)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"before 1.6.*weights_only=True"):
        read_checkpoint(path)


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
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
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
        "integers": ({**weights, "2.bias": weights["2.bias"].to(torch.int8)}, "other numbers"),
        "complex": ({**weights, "2.bias": weights["2.bias"].to(torch.complex64)}, "other numbers"),
    }
    for content, message in cases.values():
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=f"of another model.*{message}"):
            apply_checkpoint(problem, read_checkpoint(tmp_path / "other.pt"))
        assert all(torch.equal(t, before[name]) for name, t in problem.model.state_dict().items())
    with pytest.raises(CheckpointError, match="plain function"):
        torch.save(weights, tmp_path / "fits.pt")
        apply_checkpoint(load_problem("cube"), read_checkpoint(tmp_path / "fits.pt"))
