"""Finish a factorisation exactly at the rank where its singular values break off."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.factors import Factors
from thalweg.completion.observations import Observations
from thalweg.completion.ridge import alternate

__all__ = ["gap_rank", "polished"]

_LOOKED_AT = 16  # singular values among which the largest gap is sought
_SWEEPS, _TOLERANCE = 200, 1e-12
_RIDGE = 1e-12  # keeps normal equations of rows with few entries solvable


def gap_rank(singular_values: NDArray[Any]) -> int:
    """Return the rank r with the largest ratio σ_r/σ_{r+1} among the first 16."""
    sigma = np.maximum(singular_values[:_LOOKED_AT], 1e-300)
    return int(np.argmax(sigma[:-1] / sigma[1:])) + 1 if len(sigma) > 1 else len(sigma)


def polished(factors: Factors, entries: Observations, heldout: Observations | None) -> Factors | None:
    """Fit a matrix of the rank at the largest gap to the entries by alternating least squares.

    Returns:
        factors of depth 2; None when ``heldout`` is given and fits no better than before.

    Cost: at most 200 sweeps of 2·m·r² + (n₁+n₂)·r³/3 multiplications.
    """
    u, sigma, v = factors.decomposed()
    rank = gap_rank(sigma)
    root = np.sqrt(sigma[:rank])
    left, right = alternate(
        entries, u[:, :rank] * root, v[:, :rank] * root, _RIDGE, max_sweeps=_SWEEPS, tol=_TOLERANCE
    )
    found = Factors(
        left.astype(factors.left.dtype),
        right.astype(factors.left.dtype),
        np.empty((0, rank, rank), factors.left.dtype),
    )
    if heldout is not None and not _error(found, heldout) < _error(factors, heldout):
        return None
    return found


def _error(factors: Factors, entries: Observations) -> float:
    outer = factors.right @ factors.core().T
    predicted = np.einsum("mh,mh->m", factors.left[entries.rows], outer[entries.columns])
    return float(np.mean((predicted - entries.values) ** 2))
