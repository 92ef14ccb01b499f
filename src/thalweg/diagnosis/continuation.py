"""What the next few training steps do to the loss: the user's optimiser, run on a copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg.diagnosis.line import OVERFLOW
from thalweg.estimates import Estimate
from thalweg.problem.batches import Batch, Sample
from thalweg.problem.cost import FORWARD
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.objective import Objective
from thalweg.problem.stepping import Stepping
from thalweg.rng import generator

__all__ = [
    "MOST_REPLICATES",
    "REPLICATES",
    "Continuation",
    "continuation_cost",
    "continue_training",
    "measure_continuation",
    "shuffled",
    "stream",
    "takes_all",
    "typical_norm",
]

STEPS = 10
REPLICATES = 8
MOST_REPLICATES = 32
NORMS = 9


@dataclass(frozen=True)
class Continuation:
    """The change of the training loss over ``steps`` steps of the user's optimiser, over fresh batch orders.

    Attributes:
        steps: how many.
        as_configured: with the learning rate as it is.
        tenth: with a tenth of it.
        advantage: tenth − as_configured over the same batches; below zero where shorter steps go deeper.
    """

    steps: int
    as_configured: Estimate
    tenth: Estimate
    advantage: Estimate

    def is_open(self, confidence: float = 0.99) -> bool:
        """Whether shorter steps go down and seem to go deeper, but chance may have made the difference."""
        helps = self.tenth.upper(confidence) < 0 and self.as_configured.upper(confidence) >= 0
        return helps and self.advantage.value < 0 <= self.advantage.upper(confidence)


def continuation_cost(objective: Objective, stepping: Stepping, *, replicates: int = REPLICATES) -> float:
    """Return what `measure_continuation` would cost, in gradient-equivalents."""
    share = min(stepping.batch_size or objective.examples, objective.examples) / objective.examples
    runs = 2 * (replicates if share < 1 else 1)
    return runs * (STEPS * share + FORWARD) + FORWARD


def stream(
    objective: Objective, stepping: Stepping, seed: int, name: str, *, together: int = 1
) -> Iterator[Sequence[Batch]]:
    """Yield the batches of step after step, epoch after epoch; everything at once for a plain function.

    Args:
        objective: whose sample is cut into batches.
        stepping: knows the batch size.
        seed: of the order.
        name: of the order; the same name gives the same batches in the same order.
        together: how many batches make one step.
    """
    if not isinstance(objective, EmpiricalRisk):
        while True:
            yield ()
    if takes_all(objective, stepping):
        while True:
            yield objective.chunks
    size = min(stepping.batch_size or objective.examples, objective.examples)
    yield from shuffled(objective.sample, size, seed, name, together=together)


def takes_all(objective: Objective, stepping: Stepping) -> bool:
    """Return whether a step sees all the examples, so that nothing about it is random."""
    if not isinstance(objective, EmpiricalRisk):
        return True
    whole = (stepping.batch_size or objective.examples) >= objective.examples
    return whole and objective.sample.joinable


def shuffled(
    sample: Sample, size: int, seed: int, name: str, *, together: int = 1
) -> Iterator[tuple[Batch, ...]]:
    """Yield ``together`` batches of ``size`` examples at a time, epoch after epoch, each shuffled anew.

    No example comes twice in one step; what is left over at the end of an epoch is dropped.
    """
    epoch = 0
    while True:
        batches = sample.rebatched(size, generator(seed, "order", name, epoch))
        first = tuple(itertools.islice(batches, together))
        yield first
        while len(group := tuple(itertools.islice(batches, together))) == together:
            yield group
        epoch += 1


def typical_norm(objective: Objective, theta: Tensor, batches: Iterator[Sequence[Batch]]) -> float:
    """Return the median norm of the gradients of nine training batches at ``theta``.

    Cost: nine gradients over a training batch.
    """
    norms = [float(_batch_gradient(objective, theta, next(batches))[1].norm()) for _ in range(NORMS)]
    return float(np.median(norms))


def _batch_gradient(objective: Objective, theta: Tensor, batch: Sequence[Batch]) -> tuple[float, Tensor]:
    if isinstance(objective, EmpiricalRisk):
        return objective.training_step(theta, batch)
    return objective.value(theta), objective.gradient(theta)


def continue_training(
    objective: Objective,
    theta: Tensor,
    stepping: Stepping,
    batches: Iterator[Sequence[Batch]],
    *,
    steps: int,
    lr_factor: float = 1.0,
    momentum: float | None = None,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Train a copy of the weights for ``steps`` steps; return the last iterate and the mean of them all.

    Args:
        objective: what is minimised.
        theta: where to start (n,).
        stepping: how.
        batches: of each step.
        steps: how many.
        lr_factor: on the learning rate.
        momentum: in place of the optimiser's own.
        clip: the norm to which a longer gradient is shortened ([pascanu2013], algorithm 1); None: never.

    Cost: one gradient over a training batch a step.
    """
    space = objective.space if isinstance(objective, EmpiricalRisk) else None

    def split(vector: Tensor) -> list[Tensor]:
        return space.unflatten(vector) if space is not None else [vector]

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return space.flatten(list(tensors)) if space is not None else tensors[0].detach().clone()

    stepper = stepping.start(split(theta), lr_factor=lr_factor, momentum=momentum)
    mean = torch.zeros_like(theta)
    for _ in range(steps):
        batch = next(batches)

        def evaluate(tensors: Sequence[Tensor], batch: Sequence[Batch] = batch) -> tuple[float, list[Tensor]]:
            loss, gradient = _batch_gradient(objective, join(tensors), batch)
            if clip is not None:
                gradient = gradient * (clip / gradient.norm()).clamp(max=1.0)
            return loss, split(gradient)

        stepper.step(evaluate)
        mean += join(stepper.leaves) / steps
    return join(stepper.leaves), mean


def measure_continuation(
    objective: Objective,
    theta: Tensor,
    stepping: Stepping,
    *,
    seed: int,
    replicates: tuple[int, int] = (REPLICATES, REPLICATES),
) -> Continuation:
    """Continue training for a few steps, several times over, with the learning rate and with a tenth of it.

    The replicates see different batches, the two learning rates the same; where the batch is the whole
    sample there is nothing random and one replicate is exact.

    Args:
        objective: the training loss.
        theta: where training stands (n,).
        stepping: how it goes on.
        seed: of the batch orders.
        replicates: how many at first, and how many in all where those leave the question open.

    Cost: per replicate, 20 gradients over a training batch and 2/3 gradient-equivalent.
    """
    here = objective.value(theta)

    def change(replicate: int, factor: float) -> float:
        batches = stream(objective, stepping, seed, f"continuation-{replicate}")
        there, _ = continue_training(objective, theta, stepping, batches, steps=STEPS, lr_factor=factor)
        value = objective.value(there)
        return value - here if np.isfinite(value) else OVERFLOW

    least, most = (1, 1) if takes_all(objective, stepping) else replicates
    changes = [(change(i, 1.0), change(i, 0.1)) for i in range(least)]
    found = _continuation(changes)
    if most > least and found.is_open():
        changes += [(change(i, 1.0), change(i, 0.1)) for i in range(least, most)]
        found = _continuation(changes)
    return found


def _continuation(changes: list[tuple[float, float]]) -> Continuation:
    table = np.asarray(changes)
    return Continuation(
        STEPS, _estimate(table[:, 0]), _estimate(table[:, 1]), _estimate(table[:, 1] - table[:, 0])
    )


def _estimate(changes: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Estimate:
    k = len(changes)
    stderr = float(changes.std(ddof=1) / np.sqrt(k)) if k > 1 else 0.0
    return Estimate(float(changes.mean()), stderr, k if k > 1 else 0)
