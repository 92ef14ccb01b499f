"""The gradient flow of a deep factorisation in closed form: what the descent is held to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["end_to_end_velocity", "escape_time", "logistic_growth", "singular_value_velocity"]

_Array = NDArray[Any]


def end_to_end_velocity(W: _Array, slope: _Array, depth: float) -> _Array:
    """Return Ẇ = −Σ_{j=1}^N [WWᵀ]^{(j−1)/N}·∇ℓ(W)·[WᵀW]^{(N−j)/N} ([arora2018], theorem 1).

    That is how the product of balanced factors moves under gradient flow on each of them. In the basis of W's
    singular vectors the sum is the geometric one, so that the depth may be fractional.

    Args:
        W: the product (n₁, n₂).
        slope: ∇ℓ(W), (n₁, n₂).
        depth: N, at least 1.

    Cost: a singular value decomposition.
    """
    u, sigma, vt = np.linalg.svd(W, full_matrices=True)
    rows, columns = np.zeros(W.shape[0]), np.zeros(W.shape[1])
    rows[: len(sigma)], columns[: len(sigma)] = sigma, sigma
    inner = u.T @ slope @ vt.T
    return np.asarray(-u @ (_weights(rows, columns, depth) * inner) @ vt)


def singular_value_velocity(W: _Array, slope: _Array, depth: float) -> _Array:
    """Return σ̇_r = −N·σ_r^{2−2/N}·⟨∇ℓ(W), u_r v_rᵀ⟩, the largest σ first ([arora2019b], theorem 3)."""
    u, sigma, vt = np.linalg.svd(W, full_matrices=False)
    along = np.einsum("ir,ij,rj->r", u, slope, vt)
    return np.asarray(-depth * sigma ** (2 - 2 / depth) * along)


def logistic_growth(time: _Array, target: float, start: float) -> _Array:
    """Return σ(t) = σ*/(1 + (σ*/σ₀ − 1)e^{−2σ*t}): depth 2 on ½(σ − σ*)² from σ₀ ([saxe2014])."""
    return np.asarray(target / (1 + (target / start - 1) * np.exp(-2 * target * np.asarray(time))))


def escape_time(target: float, start: float, depth: int, *, share: float = 0.5) -> float:
    """Return how long gradient flow on ½(σ − σ*)² takes from σ₀ to ``share``·σ*.

    The integral of dσ / (N·σ^{2−2/N}·(σ* − σ)): for depth 2 it grows with the logarithm of 1/σ₀, for N ≥ 3
    with its power 1 − 2/N, so that the largest singular values part from the others more sharply.

    Args:
        target: σ*, more than ``start``.
        start: σ₀.
        depth: N, at least 2.
        share: of the target that is reached.
    """
    # In s = log σ the integrand σ^{2/N−1}/(N(σ* − σ)) is smooth over many decades.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = math.log(start), math.log(share * target)
    sigma = np.exp(0.5 * (high - low) * nodes + 0.5 * (high + low))
    values = sigma ** (2 / depth - 1) / (depth * (target - sigma))
    return float(0.5 * (high - low) * np.dot(weights, values))


def _weights(rows: _Array, columns: _Array, depth: float) -> _Array:
    """Return Σ_j a^{j−1}·b^{N−j} with a = σ_r^{2/N}, b = σ_c^{2/N}: (a^N − b^N)/(a − b), or N·a^{N−1}."""
    power = 2 / depth
    a, b = np.meshgrid(rows**power, columns**power, indexing="ij")
    if float(depth).is_integer():
        return np.asarray(sum(a ** (j - 1) * b ** (depth - j) for j in range(1, int(depth) + 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (a**depth - b**depth) / (a - b)
    return np.where(np.isclose(a, b, rtol=1e-9, atol=0), depth * a ** (depth - 1), ratio)
