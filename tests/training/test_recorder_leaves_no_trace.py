"""Recording changes nothing: fifty trainings with and without it, compared bit for bit.

Optimisers, reduced precision, schedulers, clipping, accumulation, dropout, batch normalisation, attention and
recurrence in all mixtures: a configuration is its number's remainders. The default run takes every seventh.
"""

import contextlib
import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import thalweg
from tests.models import seeded
from thalweg import optim
from thalweg.problem.intact import random_state_kept
from thalweg.training.recorded import read_run
from thalweg.training.recorder import Recorder

STEPS = 6


def images():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 3),
    )


def features():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 9), nn.LayerNorm(9), nn.Tanh(), nn.Dropout(0.2), nn.Linear(9, 3)
    )


class Words(nn.Module):
    """Embedding, recurrence and a linear layer applied at every place, in place."""

    def __init__(self):
        super().__init__()
        self.words, self.reads = nn.Embedding(7, 5, padding_idx=0), nn.GRU(5, 6, batch_first=True)
        self.mixes, self.answers = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        seen, _ = self.reads(self.words(x.flatten(1).abs().mul(3).long() % 7))
        return self.answers(torch.relu_(self.mixes(seen)).mean(1))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x.flatten(2).transpose(1, 2).reshape(len(x), 4, 4)).mean(1))


MODELS = (images, features, Words, Attends)
OPTIMIZERS = (
    lambda p: torch.optim.SGD(p, lr=0.05),
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False),
    lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    lambda p: torch.optim.Adagrad(p, lr=1e-2),
    lambda p: torch.optim.NAdam(p, lr=1e-2),
    lambda p: torch.optim.Rprop(p),
    lambda p: torch.optim.ASGD(p, lr=1e-2),
    lambda p: optim.LAMB(p, lr=1e-2),
    lambda p: optim.LARS(p, lr=1e-2),
    lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
    lambda p: optim.get("sam")(p),
)
SCHEDULERS = (
    None,
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=4),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, max_lr=0.05, total_steps=STEPS + 1, cycle_momentum=False
    ),
)


def training(number, folder):
    """Train configuration ``number``, recorded where there is a folder; return all that there is to see."""
    make, build = MODELS[number % 4], OPTIMIZERS[number % len(OPTIMIZERS)]
    reduced, clipped, accumulated = number % 3 == 0, number % 5 < 2, (1, 1, 3)[number % 3]
    rng = torch.Generator().manual_seed(number)
    data = torch.randn(STEPS, 12, 1, 4, 4, generator=rng)
    classes = torch.randint(0, 3, (STEPS, 12), generator=rng)
    model = seeded(make, number)
    seen = []
    with random_state_kept(seed=number), contextlib.ExitStack() as stack:
        optimizer = build(model.parameters())
        scheduler = SCHEDULERS[number % 3](optimizer) if SCHEDULERS[number % 3] else None
        recorder = None
        if folder is not None:
            wanted = dict.fromkeys(("loss", "lr", "gradient", "noise", "update", "path"), 1)
            wanted |= {"critical_sharpness": 2, "curvature": 3, "signal": 2, "rank": 2}
            settings = {"loss": nn.CrossEntropyLoss(), "probe": (data[0], classes[0])}
            made = Recorder(folder, model, optimizer, quantities=wanted, budget=float("inf"), **settings)
            recorder = stack.enter_context(made)

        def loss_of(x, y, share):
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                loss = nn.functional.cross_entropy(model(x), y) / share
            seen.append(loss.detach().clone())
            return recorder.loss(loss) if recorder is not None else loss

        for x, y in zip(data, classes, strict=True):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = loss_of(x, y, 1)
                loss.backward()
                return loss

            if isinstance(optimizer, torch.optim.LBFGS) or type(optimizer).__name__ == "SharpnessAware":
                optimizer.step(closure)
            else:
                optimizer.zero_grad()
                for part, answers in zip(x.chunk(accumulated), y.chunk(accumulated), strict=True):
                    loss_of(part, answers, accumulated).backward()
                if clipped:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
        states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    modes = [module.training for module in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return seen, model.state_dict(), copy.deepcopy(optimizer.state_dict()), gradients, modes, states


def identical(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


ALL = pytest.param(range(50), marks=pytest.mark.slow, id="fifty")


@pytest.mark.filterwarnings("ignore")  # schedulers and half-precision modules have their own opinions
@pytest.mark.parametrize("numbers", [range(0, 50, 7), ALL])
def test_trainings_go_the_same_way_with_the_recorder_on(tmp_path, numbers):
    recorded = set()
    for number in numbers:
        plain, watched = training(number, None), training(number, tmp_path / str(number))
        assert identical(plain, watched), f"configuration {number}"
        run = read_run(tmp_path / str(number))
        assert run.last_step == STEPS
        recorded |= set(run.names)
    assert {"loss/train", "grad/norm", "grad/noise", "update/ratio", "dist/init", "step/cos_prev"} <= recorded
    assert {"step/critical", "curv/lambda_max", "lr"} <= recorded


def test_a_function_of_ones_own_may_draw_random_numbers_but_the_comparison_sees_one_that_writes(tmp_path):
    def draws(moment):
        return float(torch.rand(()))

    def writes(moment):
        with torch.no_grad():
            return moment.parameters[0].add_(1e-6).sum()

    def trained(function):
        model = seeded(features, 1)
        with random_state_kept(seed=1):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            folder = tmp_path / getattr(function, "__name__", function)
            with Recorder(folder, model, optimizer, quantities={function: [1, 2]}):
                for _ in range(2):
                    optimizer.zero_grad()
                    model(torch.ones(4, 16)).square().sum().backward()
                    optimizer.step()
        return model.state_dict()

    plain = trained("loss")
    assert identical(plain, trained(draws))
    assert not identical(plain, trained(writes))


def test_hooks_are_gone_after_closing(tmp_path):
    model = seeded(images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    recorder = thalweg.Recorder(tmp_path / "run", model, optimizer)
    recorder.close()
    recorder.close()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == before
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
