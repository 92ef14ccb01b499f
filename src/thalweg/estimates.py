"""Numbers with their error: what every measurement hands on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

__all__ = ["Estimate", "paired_difference", "weighted_mean"]


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error.

    Attributes:
        value: the estimate.
        stderr: its standard error; 0 where nothing was sampled, infinity where it cannot be known
            (a single batch).
        num_samples: independent samples behind it; intervals use Student's t with one less. 0 where the
            standard error is known from theory instead; intervals are normal then.
    """

    value: float
    stderr: float
    num_samples: int = 0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval that covers the truth with probability ``level``."""
        if self.stderr == 0:
            return self.value, self.value
        half = self._quantile(0.5 + level / 2) * self.stderr
        return self.value - half, self.value + half

    def upper(self, level: float = 0.99) -> float:
        """Return the one-sided bound that lies above the truth with probability ``level``."""
        return self.value if self.stderr == 0 else self.value + self._quantile(level) * self.stderr

    def lower(self, level: float = 0.99) -> float:
        """Return the one-sided bound that lies below the truth with probability ``level``."""
        return self.value if self.stderr == 0 else self.value - self._quantile(level) * self.stderr

    def _quantile(self, level: float) -> float:
        if self.num_samples == 0:
            return float(ndtri(level))
        if self.num_samples == 1:
            return math.inf
        return float(stdtrit(self.num_samples - 1, level))


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Estimate the mean of batch means ``values`` (k,) with true counts ``weights`` (k,).

    The mean is the ratio Σwx/Σw; its standard error is that of a ratio estimator,
    s² = k/(k−1) · Σ w²(x−x̄)² / (Σw)², which is the usual s²/k for equal weights
    ([cochran1977], ch. 6).
    """
    x, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    mean = float(np.sum(w * x) / np.sum(w))
    k = len(x)
    if k < 2:
        return Estimate(mean, math.inf, k)
    variance = k / (k - 1) * np.sum((w * (x - mean)) ** 2) / np.sum(w) ** 2
    return Estimate(mean, float(np.sqrt(variance)), k)


def paired_difference(after: Sequence[float], before: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Estimate the mean change after − before over the same batches."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return weighted_mean(list(change), weights)
