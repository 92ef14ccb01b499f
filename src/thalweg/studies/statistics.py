"""What a handful of paired runs can say: medians, intervals, and when there is no difference to be seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from thalweg.estimates import Estimate, paired_difference

__all__ = [
    "Difference",
    "Spread",
    "compared",
    "geometric_ratio",
    "sign_flip_floor",
    "spread",
    "typical_best",
    "wilson",
]

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a few values; infinite ones (failed runs) count as the worst."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods over the same seeds.

    Attributes:
        mean: of the differences; NaN where a run of either failed.
        lower: of an interval that holds with 95 % for all comparisons of the study together.
        upper: its other end.
        p: of the exact sign-flip test, two-sided; it cannot be below 2/2ⁿ for n seeds.
        detectable: whether the interval excludes 0.
    """

    mean: float
    lower: float
    upper: float
    p: float
    detectable: bool


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles; an interpolation with an infinite value is infinite."""
    ordered = sorted(math.inf if math.isnan(v) else v for v in values)
    if not ordered:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(*(_quantile(ordered, q) for q in (0.5, 0.25, 0.75)))


def compared(values: Sequence[float], reference: Sequence[float], *, comparisons: int = 1) -> Difference:
    """Compare two methods over the same seeds.

    The interval is Student's over the differences, at the level 1 − 0.05/comparisons (Bonferroni). A
    bootstrap would need no normal differences, but of five it covers 82 % where it says 95.

    Args:
        values: of one method, by seed (n,).
        reference: of the other (n,).
        comparisons: that the study makes in all.
    """
    differences = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    if len(differences) < 2 or not np.isfinite(differences).all():
        return Difference(math.nan, -math.inf, math.inf, math.nan, detectable=False)
    if not differences.any():  # the same runs
        return Difference(0.0, 0.0, 0.0, 1.0, detectable=False)
    estimate = paired_difference(list(values), list(reference), [1.0] * len(differences))
    lower, upper = estimate.interval(1 - (1 - LEVEL) / max(comparisons, 1))
    return Difference(
        estimate.value, lower, upper, _sign_flip(differences), detectable=bool(lower > 0 or upper < 0)
    )


def sign_flip_floor(seeds: int) -> float:
    """Return the smallest p that the sign-flip test can give: 2/2ⁿ."""
    return 2.0 ** (1 - seeds)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval for the probability of success ([brown2001], equation (4))."""
    z = float(ndtri(0.5 + LEVEL / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def typical_best(values: Sequence[float], tries: int) -> float:
    """Return the median of the lowest of ``tries`` values drawn without replacement from those given.

    It is what somebody gets who tries that many settings of a grid at random. Infinite values are failures.
    """
    ordered = sorted(math.inf if math.isnan(v) else v for v in values)
    n = len(ordered)
    for rank in range(n):  # the lowest is above rank r where all tries come from the n − 1 − r above it
        if math.comb(n - 1 - rank, tries) <= math.comb(n, tries) / 2:
            return ordered[rank]
    return math.nan


def geometric_ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Return the geometric mean of paired ratios (n,) and its 95 % interval (Student's, over logarithms)."""
    logs = np.log(np.asarray(above, dtype=np.float64)) - np.log(np.asarray(below, dtype=np.float64))
    n = len(logs)
    stderr = float(np.std(logs, ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    low, high = Estimate(float(logs.mean()), stderr, n).interval(LEVEL)
    return tuple(float(np.exp(np.clip(v, -700, 700))) for v in (logs.mean(), low, high))  # type: ignore[return-value]


def _sign_flip(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Return the share of the sign patterns with a mean as far from 0 (all of them up to 12, then 4,096)."""
    n = len(differences)
    if n <= 12:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice([1, -1], size=(4096, n))
    means = np.abs(signs @ differences)
    return float(np.mean(means >= np.abs(differences.sum()) * (1 - 1e-12)))


def _quantile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    if place == low or math.isinf(ordered[low]):
        return ordered[low]
    high = ordered[low + 1]
    return ordered[low] + (place - low) * (high - ordered[low]) if math.isfinite(high) else math.inf
