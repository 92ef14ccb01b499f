"""The two laws of the batch size: what an update costs, and how many are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from thalweg.estimates import Estimate

__all__ = ["CriticalBatch", "UpdateTime", "fit_critical_batch", "fit_update_time"]


REACH = 4.0  # how far outside the sizes that were tried the law may bend


@dataclass(frozen=True)
class UpdateTime:
    """Seconds of an update on B examples: t = overhead + per_example·B.

    Attributes:
        overhead: seconds that an update costs however few its examples.
        per_example: seconds that each of them adds.
        limit: overhead/per_example in examples: up to about there an update costs the same, from there on in
            proportion.
        lower: of the 95 % interval of the limit, over the rounds of timing.
        upper: its other end.
        misfit: the largest relative difference between the law and a measured time.
    """

    overhead: float
    per_example: float
    limit: float
    lower: float
    upper: float
    misfit: float

    def at(self, size: float) -> float:
        """Return the seconds of an update."""
        return self.overhead + self.per_example * size


@dataclass(frozen=True)
class CriticalBatch:
    """Updates to a target loss on B examples each: S = S_min·(1 + B_crit/B).

    Attributes:
        value: B_crit, at which twice the fewest updates and twice the fewest examples are needed.
        lower: the lowest of the fits to each seed alone.
        upper: the highest of them.
        fewest_updates: S_min.
        target: the training loss to be reached.
        misfit: the largest factor between the law and the measured updates.
    """

    value: float
    lower: float
    upper: float
    fewest_updates: float
    target: float
    misfit: float

    def at(self, size: float) -> float:
        """Return the updates that are needed."""
        return self.fewest_updates * (1 + self.value / size)


def fit_update_time(sizes: Sequence[float], rounds: Sequence[Sequence[float]]) -> UpdateTime:
    """Fit t = a + b·B, each time with the same relative error.

    Args:
        sizes: B (k,).
        rounds: seconds of an update at each size, round by round (m, k).
    """
    b = np.asarray(sizes, dtype=np.float64)
    middle = np.median(np.asarray(rounds, dtype=np.float64), axis=0)
    overhead, per_example = _line(b, middle)
    limits = [o / max(p, 1e-15) for o, p in (_line(b, np.asarray(times)) for times in rounds)]
    logs = np.log(np.maximum(limits, 1e-3))
    stderr = float(np.std(logs, ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else math.inf
    low, high = Estimate(float(logs.mean()), stderr, len(logs)).interval()
    law = overhead + per_example * b
    return UpdateTime(
        overhead,
        per_example,
        overhead / max(per_example, 1e-15),
        math.exp(min(low, 700)),
        math.exp(min(high, 700)),
        float(np.max(np.abs(law / middle - 1))),
    )


def fit_critical_batch(
    sizes: Sequence[float], updates: Sequence[Sequence[float]], target: float
) -> CriticalBatch | None:
    """Fit S = S_min·(1 + B_crit/B) to the updates that reach a target ([mccandlish2018], equation (2.11)).

    It is (S/S_min − 1)(E/E_min − 1) = 1 with E = B·S examples and B_crit = E_min/S_min. Errors are relative.

    Args:
        sizes: B (k,).
        updates: S by seed and size (m, k); infinite where the target was not reached.
        target: the loss.

    Returns:
        The fit to the medians; None with fewer than three sizes that reach it, and where B_crit would lie so
        far outside them that they cannot show it: the updates hardly differ, or all fall as 1/B.
    """
    table = np.asarray(updates, dtype=np.float64)
    middle = np.median(table, axis=0)
    found = _law(np.asarray(sizes, dtype=np.float64), middle)
    if found is None:
        return None
    fewest, critical, misfit = found
    reached = np.asarray(sizes)[np.isfinite(middle)]
    if not reached.min() / REACH <= critical <= reached.max() * REACH:
        return None
    alone = [law[1] for row in table if (law := _law(np.asarray(sizes, dtype=np.float64), row)) is not None]
    return CriticalBatch(critical, min([critical, *alone]), max([critical, *alone]), fewest, target, misfit)


Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


def _line(b: Vector, times: Vector) -> tuple[float, float]:
    """Return the a, b ≥ 0 that minimise Σ((a + b·B)/t − 1)²."""
    from scipy.optimize import nnls

    matrix = np.stack([1 / times, b / times], axis=1)
    (overhead, per_example), _ = nnls(matrix, np.ones(len(times)))
    return float(overhead), float(per_example)


def _law(b: Vector, s: Vector) -> tuple[float, float, float] | None:
    """Return S_min, B_crit and the worst factor."""
    there = np.isfinite(s) & (s > 0)
    if there.sum() < 3:
        return None
    b, logs = b[there], np.log(s[there])

    def off(x: Vector) -> Vector:
        law: Vector = x[0] + np.log1p(np.exp(x[1]) / b) - logs
        return law

    start = np.array([float(logs.min()), math.log(float(np.median(b)))])
    found = least_squares(off, start, loss="soft_l1", f_scale=0.3)
    return (
        float(np.exp(found.x[0])),
        float(np.exp(found.x[1])),
        float(np.exp(np.max(np.abs(off(found.x))))),
    )
