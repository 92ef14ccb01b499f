"""Many small nets trained at once: copies of a model that differ in start, learning rate and batch order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from thalweg.errors import InputError, NumericalError
from thalweg.optim.factory import Factory
from thalweg.optim.registry import get
from thalweg.problem.batches import Batch, taken
from thalweg.problem.intact import random_state_kept
from thalweg.problem.interrupt import safe_point
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Problem
from thalweg.rng import generator
from thalweg.training.stacked import StackedModel
from thalweg.training.stacked_rules import Rule, rule_for
from thalweg.training.steps import NotFiniteError, Steps

__all__ = ["Member", "Watch", "train_ensemble", "why_one_by_one"]


@dataclass(frozen=True)
class Member:
    """One net of an ensemble.

    Attributes:
        start: its initial weights (n,).
        lr: its learning rate; None for the optimiser's own.
        order: the seed of its batches, which come as in `thalweg.train` under the same seed.
    """

    start: Tensor
    lr: float | None
    order: int


class Watch(Protocol):
    """Is shown where a member stands."""

    def __call__(
        self, member: int, steps: int, cost: float, theta: Tensor, scale: float | None
    ) -> bool | None:
        """Look at one member.

        Args:
            member: which.
            steps: it has taken.
            cost: of them, in gradient-equivalents.
            theta: its weights (n,), which the next step overwrites.
            scale: the median factor by which the optimiser lengthens a gradient; None where it has none.

        Returns:
            True where that member has been trained enough; it stays where it is.
        """


def train_ensemble(
    problem: Problem,
    optimizer: str,
    members: Sequence[Member],
    data: Batch,
    *,
    batch_size: int,
    at: Sequence[float],
    watch: Watch,
    settings: Mapping[str, Any] | None = None,
) -> str | None:
    """Train copies of the model of ``problem``, side by side where that can be done.

    Each member goes the way that it would go alone, to rounding: the same batches, the same rule. Those that
    can be stacked are evaluated by `torch.func.vmap` in groups that fit into the cache, and what that does is
    written down once as plain operations. The others are trained one after the other. The problem's own model
    is left as it is.

    Args:
        problem: the model, in training mode here, and its loss.
        optimizer: a name of `thalweg.optim`.
        members: the nets (K).
        data: all the training examples in one batch.
        batch_size: examples a step; as many as there are for all of them.
        at: costs in gradient-equivalents, ascending, at which ``watch`` is called, after the first step that
            reaches them; 0 is before the first step. Training ends at the last one.
        settings: of the optimiser, in place of its own.
        watch: is shown each member at each of them. One whose loss is not finite is not shown any more.

    Returns:
        Why the members were trained one after the other; None where they were not.

    Raises:
        InputError: for an optimiser that cannot take the loss, or a model without trainable weights.

    Cost: per member and step what the optimiser evaluates.
    """
    factory = get(optimizer)
    factory = replace(factory, settings={**factory.settings, **(settings or {})})
    model = problem.model
    if model is None:
        raise InputError("a plain function has no copies to train", expected="a model with data")
    own = copy.copy(problem)
    own.model = copy.deepcopy(model).train()
    space = ParameterSpace.of(own.model)
    first = _batch(data, _order(data.examples, batch_size, 0, 1)[0])
    reason = why_one_by_one(own, factory, first)
    if reason is not None:
        for i, member in enumerate(members):
            _Alone(own, factory, member, data, batch_size).train(at, lambda *place, i=i: watch(i, *place))
        return reason
    stacked = StackedModel(own, space)
    size = stacked.together_at_most(first)
    for begin in range(0, len(members), size):
        group = members[begin : begin + size]
        rule = rule_for(factory, [member.lr for member in group], space.shapes)
        assert rule is not None
        run = _Together(stacked, rule, group, data, batch_size)
        run.train(at, lambda i, *place, begin=begin: watch(begin + i, *place))
    return None


def why_one_by_one(problem: Problem, factory: Factory, batch: Batch) -> str | None:
    """Say why copies of a model cannot be trained side by side; None where they can.

    Args:
        problem: with the model in training mode.
        factory: of the optimiser.
        batch: any training batch.
    """
    assert problem.model is not None
    space = ParameterSpace.of(problem.model)
    if rule_for(factory, [None], space.shapes) is None:
        return f"{factory.name} is not a first-order method with a rule for stacked weights"
    return StackedModel(problem, space).why_not(space.read(problem.model), batch)


class _Together:
    """Members that take each step together."""

    def __init__(
        self, stacked: StackedModel, rule: Rule, members: Sequence[Member], data: Batch, batch_size: int
    ) -> None:
        self._stacked, self._rule, self._members = stacked, rule, members
        self._data, self._batch_size = data, batch_size
        self._theta = torch.stack([member.start for member in members])
        self._live = set(range(len(members)))

    def train(self, at: Sequence[float], watch: Callable[..., bool | None]) -> None:
        total = self._data.examples
        seen, steps, due = 0, 0, list(at)
        if due and due[0] <= 0:
            self._show(watch, steps, 0.0)
            due = [cost for cost in due if cost > 0]
        for rows in self._batches():
            if not due or not self._live:
                return
            safe_point()
            gradient, _ = self._stacked.gradients(self._theta, taken(self._data.data, rows))
            self._rule.step(self._theta, gradient)
            steps, seen = steps + 1, seen + rows.shape[1]
            if seen >= due[0] * total - 1e-6:
                self._show(watch, steps, seen / total)
                due = [cost for cost in due if seen < cost * total - 1e-6]

    def _show(self, watch: Callable[..., bool | None], steps: int, cost: float) -> None:
        scales = self._rule.scale()
        for i in sorted(self._live):
            theta = self._theta[i]
            scale = None if scales is None else float(scales[i])
            if not bool(torch.isfinite(theta).all()) or watch(i, steps, cost, theta, scale):
                self._live.discard(i)

    def _batches(self) -> Iterator[Tensor]:
        """Yield the rows (K, B) of each step."""
        epoch = 0
        while True:
            epoch += 1
            orders = [
                _order(self._data.examples, self._batch_size, member.order, epoch) for member in self._members
            ]
            for rows in zip(*orders, strict=True):
                yield torch.stack(rows)


class _Alone:
    """One member, trained as `thalweg.train` trains."""

    def __init__(
        self, problem: Problem, factory: Factory, member: Member, data: Batch, batch_size: int
    ) -> None:
        self._problem = copy.copy(problem)
        self._problem.model = copy.deepcopy(problem.model)
        assert self._problem.model is not None
        self._space, self._model = ParameterSpace.of(self._problem.model), self._problem.model
        self._space.write(self._model, member.start)
        self._optimizer = factory(
            self._problem.parameters(), **({} if member.lr is None else {"lr": member.lr})
        )
        self._steps = Steps(self._problem, self._optimizer, factory.closure, data.examples)
        self._member, self._data, self._batch_size = member, data, batch_size

    def train(self, at: Sequence[float], watch: Callable[..., bool | None]) -> None:
        due = list(at)
        if due and due[0] <= 0:
            if watch(0, 0.0, self._space.read(self._model), None):
                return
            due = [cost for cost in due if cost > 0]
        taken_steps = 0
        with random_state_kept(self._member.order), torch.inference_mode(False), torch.enable_grad():
            for batch in self._batches():
                if not due:
                    return
                safe_point()
                try:
                    self._steps.step(batch)
                except (NotFiniteError, NumericalError):
                    return
                taken_steps += 1
                cost = self._steps.gradient_equivalents
                if cost >= due[0] - 1e-6:
                    theta = self._space.read(self._model)
                    if not bool(torch.isfinite(theta).all()) or watch(taken_steps, cost, theta, None):
                        return
                    due = [point for point in due if cost < point - 1e-6]

    def _batches(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            epoch += 1
            for rows in _order(self._data.examples, self._batch_size, self._member.order, epoch):
                yield _batch(self._data, rows)


def _order(examples: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Return the rows of the batches of an epoch, as `thalweg.problem.epochs` cuts them."""
    if batch_size >= examples:
        return (torch.arange(examples),)
    order = torch.randperm(examples, generator=generator(seed, "epoch", epoch))
    return tuple(torch.split(order, batch_size))


def _batch(data: Batch, rows: Tensor) -> Batch:
    return Batch(taken(data.data, rows), len(rows))
