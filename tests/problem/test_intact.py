"""Leave no trace: bit for bit, on success, on an exception, and on Ctrl-C at any moment."""

import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.models import classification, seeded
from tests.selection import some
from thalweg.diagnosis.diagnosis import diagnose
from thalweg.errors import InputError
from thalweg.problem.interrupt import at_safe_points
from thalweg.problem.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Counting(nn.Module):
    """A layer that writes to its buffer on every forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x


def network():
    def build():
        return nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), Counting(), nn.Dropout(0.3), nn.Linear(6, 3)
        )

    model = seeded(build)
    model[1].eval()  # a mixture of modes, which must survive
    model[0].bias.requires_grad_(False)
    for i, p in enumerate(model.parameters()):
        if p.requires_grad and i % 2:
            p.grad = torch.full_like(p, 0.5)
    return model


def state(model, optimizer, loader):
    """Everything of the user's that must not change, as comparable values."""
    backends = (
        torch.get_float32_matmul_precision(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )
    return {
        "parameters": [
            (id(p), p.detach().clone(), p.data_ptr(), p.requires_grad) for p in model.parameters()
        ],
        "buffers": [(id(b), b.clone()) for b in model.buffers()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "optimizer": repr(optimizer.state_dict()),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state(),
        "loader": loader.generator.get_state(),
        "backends": backends,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def setting(loss=None):
    model = network()
    x, y = classification(40, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=generator)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # schedulers wrap optimizer.step
    problem = Problem(model, loss or nn.CrossEntropyLoss(), loader, loader, optimizer=optimizer)
    return problem, model, optimizer, loader


def test_a_diagnosis_leaves_everything_bit_for_bit():
    problem, model, optimizer, loader = setting()
    before = state(model, optimizer, loader)
    diagnose(problem)
    assert same(before, state(model, optimizer, loader))


def test_the_comparison_can_fail():
    _, model, optimizer, loader = setting()
    before = state(model, optimizer, loader)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-7
    assert not same(before, state(model, optimizer, loader))


class Interrupting:
    """A loss that stops the work at its k-th call."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("moments", some([3, 25], now=1))
def test_every_moment_at_which_the_work_can_stop_leaves_everything_bit_for_bit(moments):
    counter = Interrupting(0, None)
    diagnose(setting(counter)[0], budget=30)
    total = counter.calls
    assert total > 50
    for error in (KeyboardInterrupt(), RuntimeError("boom"), ZeroDivisionError("boom")):
        for at in [1, 2, 3, *range(5, total, max(1, total // moments))]:
            problem, model, optimizer, loader = setting(Interrupting(at, error))
            before = state(model, optimizer, loader)
            stopped = False
            try:
                diagnose(problem, budget=30)
            except (KeyboardInterrupt, InputError, ZeroDivisionError):
                stopped = True
            # An ordinary error on a batch that Thalweg cut itself only means: keep the batches as they are.
            assert stopped or isinstance(error, RuntimeError)
            assert same(before, state(model, optimizer, loader)), f"{error!r} at call {at} of {total}"


@pytest.mark.parametrize("times", some([6, 60], now=1))
def test_ctrl_c_at_any_instruction_leaves_everything_bit_for_bit(times):
    begun = time.perf_counter()
    diagnose(setting()[0], budget=30)
    length = time.perf_counter() - begun
    moments = random.Random(0)
    interrupted = 0
    for _ in range(times):
        problem, model, optimizer, loader = setting()
        before = state(model, optimizer, loader)
        ctrl_c = threading.Timer(moments.uniform(1e-4, 0.9 * length), signal.raise_signal, [signal.SIGINT])
        try:
            ctrl_c.start()
            diagnose(problem, budget=30)
            ctrl_c.join()
        except KeyboardInterrupt:
            interrupted += 1
        ctrl_c.join()
        assert same(before, state(model, optimizer, loader))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert interrupted > times / 2


def test_a_second_ctrl_c_is_not_held_back():
    reached = []
    with pytest.raises(KeyboardInterrupt), at_safe_points():
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]


def test_the_caller_may_be_in_no_grad_or_autocast():
    problem, model, optimizer, loader = setting()
    before = state(model, optimizer, loader)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = diagnose(problem, budget=60)
    assert same(before, state(model, optimizer, loader))
    assert inside.evidence.loss.value == diagnose(problem, budget=60).evidence.loss.value


def test_the_same_seed_gives_the_same_answer():
    first, second = (diagnose(setting()[0], seed=4, budget=60).to_dict() for _ in range(2))
    for record in (first, second):
        record["cost"].pop("seconds")
    assert first == second
