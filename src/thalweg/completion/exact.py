"""The smallest nuclear norm among the matrices that agree with the observed entries, with a certificate."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from thalweg.completion.observations import Observations

__all__ = ["LeastNorm", "least_nuclear_norm"]

_Array = NDArray[Any]

_RELAXATION = 1.6
_APART, _FACTOR = 10.0, 2.0  # residuals that are further apart than this change the penalty by that


@dataclass(frozen=True)
class LeastNorm:
    """A matrix that agrees with the observed entries.

    Attributes:
        matrix: (n₁, n₂), equal to the observations where there are any.
        norm: its nuclear norm, an upper bound of the smallest one.
        bound: a lower bound of the smallest one, by a feasible point of the dual problem.
        iterations: of the alternating directions.
    """

    matrix: _Array
    norm: float
    bound: float
    iterations: int

    @property
    def gap(self) -> float:
        """(norm − bound)/norm: the norm is at most this share above the smallest."""
        return (self.norm - self.bound) / self.norm if self.norm > 0 else 0.0


def least_nuclear_norm(
    observations: Observations,
    *,
    tol: float = 1e-7,
    max_iterations: int = 5000,
    advanced: Callable[[float], None] | None = None,
    stop: threading.Event | None = None,
) -> LeastNorm:
    """Minimise ‖X‖_* subject to X_ij = y_ij at every observed entry ([candes2009]).

    Alternating directions ([boyd2011], §3 with over-relaxation and adaptive penalty) on ‖Z‖_* + [X agrees], Z
    = X. The multiplier is zero off the observed entries; divided by its spectral norm it is a feasible point
    λ of the dual max ⟨y, λ⟩, ‖λ‖ ≤ 1, and gives the bound.

    Args:
        observations: y; of size about 1.
        tol: of the primal and dual residual, relative to the norms of X and of the multiplier.
        max_iterations: then what was reached is returned, with its gap.
        advanced: told the iterations, as a share of ``max_iterations``.
        stop: when set, KeyboardInterrupt is raised.

    Cost: per iteration an eigendecomposition of the smaller Gram matrix, O(n₁·n₂·min(n₁, n₂)); memory for
    six matrices.
    """
    n1, n2 = observations.shape
    at, y = (observations.rows, observations.columns), observations.values
    X = np.zeros((n1, n2))
    X[at] = y
    rho = 4.0 / max(float(np.linalg.norm(X, 2)), 1e-300)
    U, Z = np.zeros((n1, n2)), np.zeros((n1, n2))
    iteration = 0
    for iteration in range(1, max_iterations + 1):
        before = X
        Z = _shrunk(X - U, 1 / rho)
        mixed = _RELAXATION * Z + (1 - _RELAXATION) * X
        X = mixed + U
        X[at] = y
        U = U + mixed - X
        primal = float(np.linalg.norm(Z - X)) / max(float(np.linalg.norm(X)), 1e-300)
        dual = float(np.linalg.norm(X - before)) / max(float(np.linalg.norm(U)), 1e-300)
        if max(primal, dual) <= tol:
            break
        if iteration % 10 == 0:
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            if advanced is not None:
                advanced(iteration / max_iterations)
            factor = _FACTOR if primal > _APART * dual else 1 / _FACTOR if dual > _APART * primal else 1.0
            rho, U = rho * factor, U / factor
    multiplier = np.zeros((n1, n2))
    multiplier[at] = -rho * U[at]
    size = float(np.linalg.norm(multiplier, 2))
    bound = float(y @ multiplier[at]) / max(size, 1.0) if size > 0 else 0.0
    norm = float(np.linalg.svd(X, compute_uv=False).sum())
    return LeastNorm(X, norm, max(bound, 0.0), iteration)


def _shrunk(A: _Array, threshold: float) -> _Array:
    """Return U·(Σ − threshold)₊·Vᵀ ([cai2010], theorem 2.1), by the eigenvectors of the smaller Gram matrix.

    Only singular values above the threshold matter, and those the Gram matrix gives to full precision.
    """
    wide = A.shape[0] < A.shape[1]
    gram = A @ A.T if wide else A.T @ A
    largest = math.sqrt(max(float(np.trace(gram)), 0.0))
    if largest <= threshold:
        return np.zeros_like(A)
    values, vectors = scipy.linalg.eigh(
        gram, subset_by_value=(threshold**2, np.inf), driver="evr", check_finite=False
    )
    if not len(values):
        return np.zeros_like(A)
    weights = 1 - threshold / np.sqrt(values)
    part = vectors * weights
    return np.asarray(part @ (vectors.T @ A) if wide else (A @ part) @ vectors.T)
