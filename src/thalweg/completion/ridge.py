"""Least squares on the rows of a factorisation: the step of alternating least squares, compiled."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.compiled import compiled
from thalweg.completion.observations import Observations

__all__ = ["alternate", "solve_rows"]

_Array = NDArray[Any]


@compiled
def solve_rows(
    start: _Array, columns: _Array, values: _Array, other: _Array, penalty: float, found: _Array
) -> None:
    """Write argmin_u Σ_p (u·other[j_p] − v_p)² + penalty·‖u‖² of each row into ``found`` (n₁, h).

    By Cholesky's factorisation of the h×h normal equations; a row without entries becomes 0. A pivot lost to
    rounding leaves its direction at 0.

    Cost: m·h² + n₁·h³/3 multiplications.
    """
    h = other.shape[1]
    normal, right = np.empty((h, h)), np.empty(h)
    for i in range(len(start) - 1):
        normal[:] = 0
        right[:] = 0
        largest = penalty
        for p in range(start[i], start[i + 1]):
            j = np.uint32(columns[p])
            for a in range(h):
                right[a] += values[p] * other[j, a]
                for b in range(a + 1):
                    normal[a, b] += other[j, a] * other[j, b]
        for a in range(h):
            normal[a, a] += penalty
            largest = max(largest, normal[a, a])
        for a in range(h):
            for b in range(a + 1):
                rest = normal[a, b]
                for c in range(b):
                    rest -= normal[a, c] * normal[b, c]
                if a == b:
                    normal[a, a] = math.sqrt(rest) if rest > 1e-14 * largest else 0.0
                else:
                    normal[a, b] = rest / normal[b, b] if normal[b, b] > 0 else 0.0
        for a in range(h):
            for c in range(a):
                right[a] -= normal[a, c] * right[c]
            right[a] = right[a] / normal[a, a] if normal[a, a] > 0 else 0.0
        for a in range(h - 1, -1, -1):
            for c in range(a + 1, h):
                right[a] -= normal[c, a] * right[c]
            right[a] = right[a] / normal[a, a] if normal[a, a] > 0 else 0.0
            found[i, a] = right[a]


def alternate(
    observations: Observations,
    left: _Array,
    right: _Array,
    penalty: float,
    *,
    max_sweeps: int,
    tol: float,
    swept: Callable[[], None] | None = None,
    stop: threading.Event | None = None,
) -> tuple[_Array, _Array]:
    """Minimise ½Σ(left_i·right_j − y)² + penalty/2·(‖left‖² + ‖right‖²) in turns.

    Where the rank of the solution is less than the width, that is ½Σ(W − y)² + penalty·‖W‖_*
    ([mazumder2010], lemma 6).

    Args:
        observations: y.
        left: (n₁, h); it is solved for first, so that its values do not matter.
        right: (n₂, h) to begin with.
        penalty: at least 0.
        max_sweeps: at most so many turns.
        tol: stop when a sweep changes the product's norm at the observed entries by less than this share.
        swept: called after each sweep.
        stop: when set, KeyboardInterrupt is raised after the sweep.

    Cost: per sweep 2·m·h² + (n₁+n₂)·h³/3 multiplications.
    """
    ahead, back = observations, observations.transposed()
    ways = [(way.starts(), way.columns, way.values) for way in (ahead, back)]
    left, right = left.copy(), right.copy()
    before = np.zeros(len(observations))
    for _ in range(max_sweeps):
        solve_rows(*ways[0], right, penalty, left)
        solve_rows(*ways[1], left, penalty, right)
        now = np.einsum("mh,mh->m", left[ahead.rows], right[ahead.columns])
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if swept is not None:
            swept()
        if np.linalg.norm(now - before) <= tol * np.linalg.norm(now):
            break
        before = now
    return left, right
