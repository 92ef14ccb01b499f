"""What is taken off before the matrix is factorised: nothing, the mean, or effects of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.observations import Observations

__all__ = ["Centre", "Centring", "centre_of"]

Centring = Literal["bias", "mean"]
_DAMPING = 5.0  # entries that a row or column must have before half of its own effect is believed
_SWEEPS, _ENOUGH = 100, 1e-10


@dataclass(frozen=True)
class Centre:
    """The additive part of a matrix: overall + row[i] + column[j].

    Attributes:
        overall: the mean of the observed entries, or 0.
        row: (n₁,), 0 where nothing was observed.
        column: (n₂,), likewise.
    """

    overall: float
    row: NDArray[np.float64]
    column: NDArray[np.float64]

    def at(self, rows: Any, columns: Any) -> NDArray[np.float64]:
        """Return it at positions (m,); what lies outside of the matrix has no effect of its own."""
        own = [_held(effect, index) for effect, index in ((self.row, rows), (self.column, columns))]
        return np.asarray(self.overall + own[0] + own[1], dtype=np.float64)

    def dense(self) -> NDArray[np.float64]:
        """Return it as a matrix (n₁, n₂)."""
        return np.asarray(self.overall + self.row[:, None] + self.column[None, :], dtype=np.float64)


def centre_of(observations: Observations, kind: Centring | None) -> Centre:
    """Fit the additive part.

    "bias" minimises Σ(y − μ − bᵢ − cⱼ)² + d·(Σbᵢ² + Σcⱼ²) with d = 5 by alternation: a row with few entries
    keeps near the mean ([koren2009], eq. 3). Multiplying the values by a constant multiplies the result.

    Cost: at most 100 passes over the entries.
    """
    n1, n2 = observations.shape
    row, column = np.zeros(n1), np.zeros(n2)
    if kind is None:
        return Centre(0.0, row, column)
    overall = float(np.mean(observations.values))
    if kind == "mean":
        return Centre(overall, row, column)
    rows, columns, rest = observations.rows, observations.columns, observations.values - overall
    in_rows, in_columns = np.bincount(rows, minlength=n1), np.bincount(columns, minlength=n2)
    scale = float(np.abs(rest).max())
    for _ in range(_SWEEPS):
        before = row
        row = np.bincount(rows, rest - column[columns], n1) / (in_rows + _DAMPING)
        column = np.bincount(columns, rest - row[rows], n2) / (in_columns + _DAMPING)
        if np.abs(row - before).max() <= _ENOUGH * scale:
            break
    return Centre(overall, row, column)


def _held(effect: NDArray[np.float64], index: Any) -> NDArray[np.float64]:
    index = np.asarray(index)
    inside = (index >= 0) & (index < len(effect))
    return np.where(inside, effect[np.where(inside, index, 0)], 0.0)
