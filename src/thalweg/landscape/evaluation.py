"""The loss at many points of a line or plane: as many at once as fit a stated memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.estimates import Estimate, weighted_mean
from thalweg.problem.batches import Batch
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.intact import intact
from thalweg.problem.memory import memory_share
from thalweg.problem.stacked import choose_runs
from thalweg.progress import Progress, Silent

__all__ = ["Evaluation", "Family", "Losses", "evaluate"]

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

# Stacked points share one pass as long as what they keep fits here. On a processor that is its cache: beyond
# it stacking is slower than one point after the other, whose arithmetic fills the processor already.
CACHE = 16 << 20


@dataclass(frozen=True)
class Family:
    """Points origin + Σ c_i·span_i of weight space, by their coordinates.

    Attributes:
        origin: (n,).
        span: what the coordinates multiply (d, n).
    """

    origin: Tensor
    span: Tensor

    def at(self, coordinates: Floats) -> Tensor:
        """Return the points (k, n) at ``coordinates`` (k, d)."""
        if len(coordinates) == 1:
            point = self.origin.clone()
            for factor, direction in zip(coordinates[0].tolist(), self.span, strict=True):
                point.add_(direction, alpha=factor)
            return point[None]
        factors = torch.as_tensor(coordinates).to(self.origin)
        points = self.origin.repeat(len(factors), 1)
        for i, direction in enumerate(self.span):
            points.addcmul_(factors[:, i : i + 1], direction[None])
        return points


@dataclass(frozen=True)
class Losses:
    """The loss at k points.

    Attributes:
        values: mean of each batch at each point (k, b).
        counts: true counts of the batches (b,).
    """

    values: Floats
    counts: tuple[float, ...]

    def means(self) -> Floats:
        """Return the mean loss at each point (k,)."""
        weights = np.asarray(self.counts)
        means: Floats = self.values @ weights / weights.sum()
        return means

    def estimates(self, reference: int) -> tuple[Estimate, ...]:
        """Return the loss at each point; its error is that of the difference from point ``reference``.

        The batches are the same at all points, so the level of the whole curve is less sure than its shape.
        """
        if self.values.shape[1] == 1 and self.counts == (1.0,):  # a plain function is known exactly
            return tuple(Estimate(float(v), 0.0) for v in self.values[:, 0])
        found = []
        for row, mean in zip(self.values, self.means(), strict=True):
            with np.errstate(invalid="ignore"):
                change = weighted_mean(list(row - self.values[reference]), self.counts)
            error = change.stderr if math.isfinite(mean) else math.inf
            found.append(Estimate(float(mean), error, change.num_samples))
        return tuple(found)


@dataclass(frozen=True)
class Evaluation:
    """How the losses were computed.

    Attributes:
        at_once: the most points that shared a pass.
        memory: bytes that these may keep together.
        reason: why not more of them; empty where the memory alone decided.
    """

    at_once: int
    memory: int
    reason: str = ""

    def sentence(self) -> str:
        """Say it for people."""
        if self.at_once > 1:
            return f"up to {self.at_once:,} points at once, in chunks of {self.memory >> 20} MiB"
        if self.reason:
            return f"one point at a time: {self.reason}"
        return f"one point at a time: two do not fit the chunk of {self.memory >> 20} MiB"


def evaluate(
    objective: EmpiricalRisk | FunctionObjective,
    family: Family,
    coordinates: Floats,
    *,
    by: Literal["groups", "whole"],
    memory: int | None = None,
    progress: Progress | None = None,
    done_before: int = 0,
    total: int | None = None,
) -> tuple[Losses, Evaluation]:
    """Return the losses at ``coordinates`` (k, d) of ``family``.

    Points are stacked and run by `torch.func.vmap`, as many as fit ``memory``; where the model cannot be run
    stacked, or gives other losses then, all are computed alone. The losses are the same either way, up to
    rounding.

    Args:
        objective: the loss.
        family: which points.
        coordinates: where in it.
        by: "groups" keeps the statistical batches apart, for errors; "whole" runs the largest batches there
            are, which is several times faster.
        memory: bytes that stacked points may keep; by default 16 MiB on a processor (its cache) and a quarter
            of what is free on a GPU.
        progress: is told how far the work is.
        done_before: points that were done before, of ``total``.
        total: all points of the work that this is a part of.

    Cost: 1/3 gradient-equivalent a point.
    """
    told, total = progress or Silent(), total or len(coordinates)
    limit = memory if memory is not None else _limit(family.origin.device)
    batches, counts, model = _parts(objective, by)
    largest = max(batch.examples for batch in batches)
    size = min(_stack(objective, family.origin, largest, limit), max(len(coordinates), 1))
    values = np.empty((len(coordinates), len(batches)))

    def points() -> Iterator[Tensor]:
        for at in range(len(coordinates)):
            yield family.at(coordinates[at : at + 1])[0]
            told.advance(done_before + at + 1, total)

    with intact(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vmap, that some operation runs one by one
        runs = choose_runs(objective, batches, family.at(coordinates[:2]), stacked=size > 1)
        size = 1 if runs.reason else size
        if size == 1:
            values = np.array(runs.one_by_one(points())).reshape(values.shape)
        for at in range(0, len(coordinates) if size > 1 else 0, size):
            chunk = runs.together(family.at(coordinates[at : at + size]))
            values[at : at + size] = chunk.double().cpu().numpy()
            told.advance(done_before + at + len(chunk), total)
    return Losses(values, tuple(counts)), Evaluation(size, limit, runs.reason)


def _parts(
    objective: EmpiricalRisk | FunctionObjective, by: Literal["groups", "whole"]
) -> tuple[tuple[Batch, ...], list[float], nn.Module | None]:
    if isinstance(objective, FunctionObjective):
        return (Batch(None, 1),), [1.0], None
    batches = objective.groups if by == "groups" else objective.chunks
    return batches, objective.counts(batches), objective.model


def _stack(objective: EmpiricalRisk | FunctionObjective, origin: Tensor, examples: int, limit: int) -> int:
    weights = 2 * origin.numel() * origin.element_size()
    kept = objective.bytes_per_example * examples if isinstance(objective, EmpiricalRisk) else weights
    return max(1, int(limit // max(weights + kept, 1)))


def _limit(device: torch.device) -> int:
    return CACHE if device.type == "cpu" else memory_share(device)
