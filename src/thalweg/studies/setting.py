"""What every run of a study shares: the parts of the data, the starts, what is measured on the way."""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import FOREIGN_FAILURES, InputError
from thalweg.problem.batches import Batch, draw_sample, taken, tensors_of
from thalweg.problem.intact import intact, random_state_kept
from thalweg.problem.loss import split_batch, tensor_of
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Problem
from thalweg.rng import generator
from thalweg.training.ensemble import Member, train_ensemble
from thalweg.training.stacked import StackedModel

__all__ = ["Point", "Run", "Setting", "fingerprint", "prepared", "source_digest", "trained"]

VALIDATION = 0.2  # of the training data, on which settings are chosen
LEAST = 20  # examples, below which there is nothing to split
# A step of L-BFGS is up to 20 iterations, too much to be stopped near a cost; it remembers its pairs between.
SHORT_STEPS: dict[str, dict[str, Any]] = {"lbfgs": {"max_iter": 4}}
_EVALUATED = 2048  # training examples on which the training loss is followed


@dataclass(frozen=True)
class Setting:
    """The data of a study, cut once for all its runs.

    Attributes:
        problem: what is trained.
        train: what runs train on.
        followed: the part of it on which the training loss is followed.
        validation: cut from the training data; settings are chosen on it.
        test: the held-out data, on which results are reported; nothing is chosen on them.
        classes: whether outputs and targets are scores and class numbers, so that there is an accuracy.
        space: the trainable weights.
    """

    problem: Problem
    train: Batch
    followed: Batch
    validation: Batch
    test: Batch
    classes: bool
    space: ParameterSpace

    def start(self, seed: int) -> Tensor:
        """Return fresh initial weights (n,): every layer as its ``reset_parameters`` draws it.

        What is no layer's keeps the value that it came with.
        """
        model = copy.deepcopy(self.problem.model)
        assert model is not None
        with random_state_kept(generator(seed, "studies", "start").initial_seed() % 2**31), torch.no_grad():
            for module in reversed(list(model.modules())):  # children first: attention resets a child's bias
                reset = getattr(module, "reset_parameters", None) or getattr(
                    module, "_reset_parameters", None
                )
                if callable(reset) and next(module.parameters(recurse=False), None) is not None:
                    reset()
        return self.space.read(model)


@dataclass(frozen=True)
class Point:
    """Where a run stood; losses are means in evaluation mode, infinite where they are not finite.

    Attributes:
        steps: taken.
        cost: of them, in gradient-equivalents.
        train: the training loss.
        validation: the validation loss; NaN where it was not looked at.
        test: the held-out loss; NaN where it was not looked at.
        right: the share of the held-out examples that are classified rightly; NaN without classes.
        scale: see `thalweg.training.ensemble.Watch`; NaN without.
    """

    steps: int
    cost: float
    train: float
    validation: float = math.nan
    test: float = math.nan
    right: float = math.nan
    scale: float = math.nan


@dataclass(frozen=True)
class Run:
    """One net's training.

    Attributes:
        seed: of its start and of its batches.
        lr: its learning rate; None for the optimiser's own.
        points: from before the first step on.
        whole: whether it came to its end; not where its loss became NaN or infinite.
    """

    seed: int
    lr: float | None
    points: tuple[Point, ...]
    whole: bool

    @property
    def failed(self) -> bool:
        """Whether it diverged, or ended above where it began."""
        return not self.whole or not self.points[-1].train < self.points[0].train

    def last(self, what: str) -> float:
        """Return the last of "train", "validation", "test" or "right"; infinite (0 right) where it failed."""
        if self.failed:
            return 0.0 if what == "right" else math.inf
        return float(getattr(self.points[-1], what))

    def to_plain(self) -> dict[str, Any]:
        """Return the run as JSON can say it."""
        rows = [[_plain(v) for v in vars(point).values()] for point in self.points]
        return {"seed": self.seed, "lr": self.lr, "whole": self.whole, "points": rows}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Run:
        """Read what `to_plain` gave."""
        points = []
        for steps, *rest in plain["points"]:
            numbers = [math.nan if v is None else math.inf if v == "inf" else float(v) for v in rest]
            points.append(Point(steps, *numbers))
        return cls(plain["seed"], plain["lr"], tuple(points), plain["whole"])


def prepared(problem: Problem, seed: int) -> Setting:
    """Cut the data of a problem for a study.

    Raises:
        InputError: for a plain function, a stream, or data that cannot be cut into batches anew.
    """
    if problem.model is None or problem.training_data is None:
        raise InputError(
            "a study needs a model with data",
            got="a plain function",
            hint="`thalweg train` with one optimiser after the other",
        )
    space = ParameterSpace.of(problem.model)
    everything = _whole(problem.training_data, "training", seed).to(space.device)
    rows = torch.randperm(everything.examples, generator=generator(seed, "studies", "split"))
    number = round(VALIDATION * everything.examples)
    parts = [rows[number:], rows[:number]]
    if problem.heldout_data is None:  # then another part of the training data is never trained on
        parts = [rows[2 * number :], rows[:number], rows[number : 2 * number]]
    if everything.examples < LEAST:
        raise InputError(
            "there are too few training examples for a study",
            expected=f"at least {LEAST}, a fifth of them to choose settings on",
            got=str(everything.examples),
        )
    batches = [Batch(taken(everything.data, part), len(part)) for part in parts]
    test = (
        batches[2]
        if problem.heldout_data is None
        else _whole(problem.heldout_data, "held-out", seed).to(space.device)
    )
    followed = batches[0]
    if followed.examples > _EVALUATED:
        followed = Batch(taken(followed.data, torch.arange(_EVALUATED)), _EVALUATED)
    return Setting(problem, batches[0], followed, batches[1], test, _has_classes(problem, test), space)


def trained(
    setting: Setting,
    optimizer: str,
    nets: Sequence[tuple[int, float | None]],
    *,
    batch_size: int,
    at: Sequence[float],
    choosing: bool,
) -> tuple[list[Run], dict[int, Tensor], str | None]:
    """Train nets with an optimiser and follow them.

    Args:
        setting: the data.
        optimizer: a name.
        nets: (seed, learning rate) of each.
        batch_size: examples a step.
        at: costs at which each is measured (see `train_ensemble`).
        choosing: whether settings are to be chosen, and so the validation data are looked at; the held-out
            data are otherwise.

    Returns:
        The runs, their last finite weights, and why they were trained one by one, None where they were not.

    Raises:
        InputError: for an optimiser that cannot take the loss.
    """
    points: dict[int, list[Point]] = {i: [] for i in range(len(nets))}
    final: dict[int, Tensor] = {}
    model = setting.problem.model
    assert model is not None
    looking = StackedModel(setting.problem, setting.space)

    def watch(member: int, steps: int, cost: float, theta: Tensor, scale: float | None) -> bool:
        with _evaluating(model):
            train = _finite(looking.mean_loss(theta, setting.followed.data))
            validation = test = right = math.nan
            if choosing:
                validation = _finite(looking.mean_loss(theta, setting.validation.data))
            else:
                test = _finite(looking.mean_loss(theta, setting.test.data))
                right = _share_right(looking, theta, setting.test) if setting.classes else math.nan
        points[member].append(
            Point(steps, cost, train, validation, test, right, math.nan if scale is None else scale)
        )
        final[member] = theta.clone()
        return not math.isfinite(train)

    starts = {seed: setting.start(seed) for seed in {seed for seed, _ in nets}}
    members = [Member(starts[seed], lr, order=seed) for seed, lr in nets]
    reason = train_ensemble(
        setting.problem,
        optimizer,
        members,
        setting.train,
        batch_size=batch_size,
        at=at,
        watch=watch,
        settings=SHORT_STEPS.get(optimizer),
    )
    runs = []
    for i, (seed, lr) in enumerate(nets):
        last = points[i][-1]
        whole = math.isfinite(last.train) and last.cost >= at[-1] - 1e-6
        runs.append(Run(seed, lr, tuple(points[i]), whole))
    return runs, final, reason


def fingerprint(setting: Setting) -> str:
    """Return a digest of model and data: what must not change under a study."""
    digest = hashlib.blake2b(digest_size=12)
    model = setting.problem.model
    digest.update(repr(model).encode())
    digest.update(
        repr([(n, tuple(s)) for n, s in zip(setting.space.names, setting.space.shapes, strict=True)]).encode()
    )
    for batch in (setting.train, setting.validation, setting.test):
        for tensor in tensors_of(batch.data):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def source_digest(source: str | Problem) -> str | None:
    """Return a digest of the file that defines a problem; None where no file does."""
    place = source.rpartition(":")[0] if isinstance(source, str) else ""
    if not place.endswith(".py") or not Path(place).is_file():
        return None
    return hashlib.blake2b(Path(place).read_bytes(), digest_size=12).hexdigest()


def _whole(data: Any, role: str, seed: int) -> Batch:
    """Return all the examples in one batch."""
    sample = draw_sample(data, limit=sys.maxsize, seed=seed, role=role)
    joined = sample.grouped(1)
    if len(joined) != 1:
        raise InputError(
            f"the batches of the {role} data cannot be cut anew, as a study needs",
            expected="batches whose tensors differ in nothing but their length",
            hint="pad the examples to one length in the dataset",
        )
    return joined[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _has_classes(problem: Problem, batch: Batch) -> bool:
    try:
        inputs, keywords, targets = split_batch(taken(batch.data, torch.arange(min(2, batch.examples))))
        with intact(problem.model), torch.no_grad():
            outputs = tensor_of(_model(problem)(*inputs, **keywords))
    except (InputError, *FOREIGN_FAILURES):
        return False
    return (
        isinstance(targets, Tensor)
        and isinstance(outputs, Tensor)
        and not targets.is_floating_point()
        and targets.dim() == 1
        and outputs.dim() == 2
        and outputs.shape[1] > 1
    )


def _share_right(looking: StackedModel, theta: Tensor, batch: Batch) -> float:
    inputs, keywords, targets = split_batch(batch.data)
    outputs = tensor_of(looking.outputs(theta, inputs, keywords))
    return float((outputs.argmax(dim=1) == targets).float().mean())


def _model(problem: Problem) -> nn.Module:
    assert problem.model is not None
    return problem.model


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _plain(value: float) -> float | str | None:
    return None if math.isnan(value) else "inf" if math.isinf(value) else value
