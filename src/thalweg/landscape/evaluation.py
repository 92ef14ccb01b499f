"""The loss at many points of a line or plane: as many at once as fit a stated memory."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import FOREIGN_FAILURES, ThalwegError
from thalweg.estimates import Estimate, weighted_mean
from thalweg.problem.batches import Batch
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.intact import intact
from thalweg.problem.memory import memory_share
from thalweg.progress import Progress, Silent

__all__ = ["Evaluation", "Family", "Losses", "evaluate"]

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

# Stacked points share one pass as long as what they keep fits here. On a processor that is its cache: beyond
# it stacking is slower than one point after the other, whose arithmetic fills the processor already.
CACHE = 16 << 20
# A stacked loss may differ from one computed alone by rounding of sums, no more.
ROUNDINGS = 1e4


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
        """Return the points (k, n) at ``coordinates`` (k, d), each the same whoever is beside it."""
        factors = torch.as_tensor(coordinates, dtype=self.origin.dtype, device=self.origin.device)
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

    Points are stacked and run by `torch.func.vmap`, as many as fit ``memory``; the first are computed alone
    too, and where that gives other losses, or the model cannot be run stacked, all are computed alone. The
    losses are the same either way, up to rounding.

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
    if isinstance(objective, FunctionObjective):
        batches: tuple[Batch, ...] = (Batch(None, 1),)
        counts, model = [1.0], None
    else:
        batches = objective.groups if by == "groups" else objective.chunks
        counts, model = objective.counts(batches), objective.model
    largest = max(batch.examples for batch in batches)
    size = _stack(objective, family.origin, largest, limit)
    values = np.empty((len(coordinates), len(batches)))
    reason = ""
    with intact(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vmap, that some operation runs one by one
        if size > 1 and len(coordinates) > 1:
            reason = _cannot_stack(objective, family.at(coordinates[:2]), batches[0])
            size = 1 if reason else min(size, len(coordinates))
        at = 0
        while at < len(coordinates):
            points = family.at(coordinates[at : at + size])
            for b, batch in enumerate(batches):
                values[at : at + size, b] = _values(objective, points, batch).double().cpu().numpy()
            at += len(points)
            told.advance(done_before + at, total)
    return Losses(values, tuple(counts)), Evaluation(min(size, max(len(coordinates), 1)), limit, reason)


def _values(objective: EmpiricalRisk | FunctionObjective, points: Tensor, batch: Batch) -> Tensor:
    if isinstance(objective, FunctionObjective):
        return objective.values_at(points)
    return objective.values_at(points, batch)


def _cannot_stack(objective: EmpiricalRisk | FunctionObjective, points: Tensor, batch: Batch) -> str:
    """Say why two points cannot be run at once, or nothing where they can and give the same losses."""
    try:
        together = _values(objective, points, batch).double()
    except torch.OutOfMemoryError:
        return "two at once do not fit the memory of the device"
    except ThalwegError:
        raise
    except FOREIGN_FAILURES as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return f"the model cannot be run stacked ({first[:120]})"
    alone = torch.stack([_values(objective, point[None], batch)[0].double() for point in points])
    tolerance = ROUNDINGS * objective.roundoff * alone.abs().clamp_min(1.0)
    same = ((together - alone).abs() <= tolerance) | ~(torch.isfinite(together) | torch.isfinite(alone))
    return "" if bool(same.all()) else "the model gives other losses when it is run stacked"


def _stack(objective: EmpiricalRisk | FunctionObjective, origin: Tensor, examples: int, limit: int) -> int:
    weights = 2 * origin.numel() * origin.element_size()
    kept = objective.bytes_per_example * examples if isinstance(objective, EmpiricalRisk) else weights
    return max(1, int(limit // max(weights + kept, 1)))


def _limit(device: torch.device) -> int:
    return CACHE if device.type == "cpu" else memory_share(device)
