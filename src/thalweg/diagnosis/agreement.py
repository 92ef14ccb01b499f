"""What the batch gradients say together: all of it read off their inner products.

With g_i = G + e_i for batches i = 1 … k of equal size and Σ the covariance of e_i, the U-statistic
U = Σ_{i≠j} g_i·g_j / k(k−1) estimates ‖G‖² without bias, and

    Var U = 4 GᵀΣG/k + 2 tr Σ²/k(k−1):

the first term rules where the signal is strong, the second where there is none ([hoeffding1948]).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from thalweg.curvature.lanczos import Floats
from thalweg.rng import generator

__all__ = ["Agreement", "agreement"]

FLIPS = 2000
ALL_FLIPS = 11


@dataclass(frozen=True)
class Agreement:
    """What k batch gradients have in common.

    Attributes:
        square: the estimate U of ‖G‖²; may be negative.
        norm_interval: 95 % interval of ‖G‖; begins at 0 where no signal is certain.
        p_value: P(such an agreement by chance).
        noise: tr Σ of a batch gradient.
        noise_ratio: tr Σ/‖G‖², the number of such batches at which noise and signal balance; None where
            ‖G‖² is not positive.
        ratio_interval: its 95 % interval, by the jackknife on its logarithm; None where leaving out one
            batch can leave no signal.
    """

    square: float
    norm_interval: tuple[float, float]
    p_value: float
    noise: float
    noise_ratio: float | None
    ratio_interval: tuple[float, float] | None


def agreement(gram: Floats, counts: Floats, *, seed: int) -> Agreement:
    """Judge batch gradients by their inner products.

    Args:
        gram: g_i·g_j (k, k), k ≥ 2.
        counts: the examples or tokens in each batch (k,).
        seed: of the random signs.
    """
    square, noise = u_statistic(gram, counts), noise_trace(gram, counts)
    return Agreement(
        square=square,
        norm_interval=_norm_interval(gram, counts, square),
        p_value=sign_flip(gram, counts, seed),
        noise=noise,
        noise_ratio=noise / square if square > 0 else None,
        ratio_interval=_ratio_interval(gram, counts),
    )


def u_statistic(gram: Floats, counts: Floats) -> float:
    """Return Σ_{i≠j} c_i c_j g_i·g_j / Σ_{i≠j} c_i c_j, which the noise does not inflate."""
    weighted = gram * np.outer(counts, counts)
    return float((weighted.sum() - np.trace(weighted)) / (counts.sum() ** 2 - (counts**2).sum()))


def noise_trace(gram: Floats, counts: Floats) -> float:
    """Return tr Σ of a batch gradient."""
    share, k = counts / counts.sum(), len(counts)
    return float(max(k / (k - 1) * (share @ np.diag(gram) - share @ gram @ share), 0.0))


def sign_flip(gram: Floats, counts: Floats, seed: int) -> float:
    """Return P(as large an agreement between batches by chance), by random signs for each batch.

    Up to eleven batches all signs are tried, so the value is exact, and never below 2/2ᵏ.
    """
    weighted = gram * np.outer(counts, counts)
    np.fill_diagonal(weighted, 0.0)
    k = len(counts)
    if k <= ALL_FLIPS:
        flips = np.asarray(list(itertools.product((1.0, -1.0), repeat=k)))
    else:
        rng = np.random.default_rng(generator(seed, "flips").initial_seed() % 2**63)
        flips = np.concatenate([np.ones((1, k)), rng.choice((-1.0, 1.0), size=(FLIPS, k))])
    chance = np.einsum("si,si->s", flips @ weighted, flips)
    # The first row is what was observed; its equals by sign differ from it in rounding only.
    margin = 1e-9 * float(np.abs(weighted).sum())
    return float(np.mean(chance >= chance[0] - margin))


def _norm_interval(gram: Floats, counts: Floats, square: float, level: float = 0.95) -> tuple[float, float]:
    """Return the values of ‖G‖ that the data do not contradict.

    They solve (x − U)² ≤ q²·Var(U | ‖G‖² = x), a quadratic in x, q the quantile of Student's t. The noise
    along G is taken along the mean gradient, Var(g_i·ḡ)/‖ḡ‖²; using the variance at x rather than at the
    estimate is what keeps the coverage where signal and noise are of a size ([wilson1927]).
    """
    share, k = counts / counts.sum(), len(counts)
    length = float(share @ gram @ share)
    if k < 3 or length <= 0:
        return (0.0, math.inf) if k < 3 else (0.0, 0.0)
    quantile = float(stdtrit(k - 1, 0.5 + level / 2)) ** 2
    along = gram @ share
    # Var of the mean of n_i = c_i/c̄ -weighted rows, as in the ratio estimator of a mean.
    slope = k / (k - 1) * float(np.sum((share * (along - length)) ** 2)) / length
    silent = 2 * _square_trace(gram, counts) / (k * (k - 1))
    # Weights fitted to these very data cancel the batch gradients and drive U below what noise would.
    least = max(square, 0.0)
    middle = least + 2 * quantile * slope
    spread = math.sqrt(middle**2 - least**2 + quantile * silent)
    return math.sqrt(max(middle - spread, 0.0)), math.sqrt(max(middle + spread, 0.0))


def _square_trace(gram: Floats, counts: Floats) -> float:
    """Return tr Σ², free of the bias of k draws ([bai1996], §3)."""
    share, k = counts / counts.sum(), len(counts)
    centred = gram - np.add.outer(gram @ share, gram @ share) + share @ gram @ share
    weight = np.sqrt(share * k)
    scatter = centred * np.outer(weight, weight) / (k - 1)
    biased = float((scatter**2).sum() - np.trace(scatter) ** 2 / (k - 1))
    return max((k - 1) ** 2 / ((k - 2) * (k + 1)) * biased, 0.0)


def _ratio_interval(gram: Floats, counts: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Jackknife the logarithm of tr Σ/‖G‖², a ratio of means ([mccandlish2018], app. A.1)."""
    k = len(counts)
    if k < 4 or u_statistic(gram, counts) <= 0 or noise_trace(gram, counts) <= 0:
        return None
    logs = []
    for i in range(k):
        rest = np.arange(k) != i
        square = u_statistic(gram[np.ix_(rest, rest)], counts[rest])
        noise = noise_trace(gram[np.ix_(rest, rest)], counts[rest])
        if square <= 0 or noise <= 0:
            return None
        logs.append(math.log(noise / square))
    stderr = math.sqrt((k - 1) / k * float(np.sum((np.asarray(logs) - np.mean(logs)) ** 2)))
    half = float(stdtrit(k - 1, 0.5 + level / 2)) * stderr
    ratio = noise_trace(gram, counts) / u_statistic(gram, counts)
    return ratio * math.exp(-half), ratio * math.exp(half)
