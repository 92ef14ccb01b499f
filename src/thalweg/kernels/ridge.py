"""Kernel regression in float64 from one eigendecomposition: every ridge and its cross-validated error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from thalweg.errors import InputError, NumericalError
from thalweg.kernels.room import require_memory

__all__ = ["Criterion", "Eigen", "RidgeChoice", "RidgeSolution", "choose_ridge", "decompose", "solve"]

Floats = NDArray[np.float64]
Criterion = Literal["loo", "gcv"]
# Relative to the mean of the diagonal. Half a decade apart: the error is flat around its lowest point.
RIDGES: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-20, 5))
_LAPACK_LIMIT = 32766  # the workspace 2n² of syevd overflows a 32-bit integer above


@dataclass(frozen=True)
class Eigen:
    """A kernel matrix K = V diag(l) Vᵀ.

    Attributes:
        values: (n,) ascending; those below ``floor`` are rounding and set to zero.
        vectors: (n, n) V, one a column.
        scale: tr K / n, the unit of a ridge.
        floor: what cannot be told from zero: n·ε·l_max, with the ε of the kernel's dtype, or as far as the
            lowest eigenvalue lies below zero.
    """

    values: Floats
    vectors: Floats
    scale: float
    floor: float


@dataclass(frozen=True)
class RidgeChoice:
    """How a ridge was chosen.

    Attributes:
        ridge: the chosen one, relative to tr K / n.
        criterion: "loo" or "gcv".
        ridges: (g,) all that were tried.
        errors: (g,) mean squared error of each by that criterion.
    """

    ridge: float
    criterion: Criterion
    ridges: Floats
    errors: Floats

    @property
    def at_edge(self) -> bool:
        """Whether it is the largest that was tried, so that a larger one may serve better."""
        return bool(self.ridge >= self.ridges[-1])


@dataclass(frozen=True)
class RidgeSolution:
    """The solution of (K + λI) α = y.

    Attributes:
        coefficients: α (n, c).
        leave_one_out: (n, c) what is predicted for each example from all the others.
        ridge: relative to tr K / n.
        inverse_diagonal: (n,) of (K + λI)⁻¹.
    """

    coefficients: Floats
    leave_one_out: Floats
    ridge: float
    inverse_diagonal: Floats


def decompose(kernel: NDArray[np.floating]) -> Eigen:
    """Decompose a symmetric kernel matrix (n, n), in float64.

    Raises:
        InputError: for a matrix that is not square or not symmetric, too large for LAPACK or for the memory.
        NumericalError: for NaN, for eigenvalues further below zero than rounding explains, or a zero matrix.

    Cost: about 9 n³ operations, 3·8·n² bytes.
    """
    n = len(kernel)
    if kernel.shape != (n, n) or n == 0:
        raise InputError("a kernel matrix is square", expected="(n, n)", got=str(kernel.shape))
    if n > _LAPACK_LIMIT:
        raise InputError(
            "the matrix is too large for an eigendecomposition",
            expected=f"at most {_LAPACK_LIMIT:,} examples",
            got=f"{n:,}",
            hint="solve with one fixed ridge by scipy.linalg.cho_factor",
        )
    require_memory(3 * 8 * n * n, f"the eigendecomposition of {n:,} examples", hint="fewer examples")
    if not np.isfinite(kernel).all():
        raise NumericalError("the kernel matrix holds NaN or infinity")
    epsilon = float(np.finfo(kernel.dtype).eps) if kernel.dtype.kind == "f" else float(np.finfo(float).eps)
    dense = kernel.astype(np.float64)
    scale = float(np.trace(dense) / n)
    largest = float(np.abs(dense).max())
    if scale <= 0:
        raise NumericalError("the kernel is zero for every example", cause="all features are zero")
    if float(np.abs(dense - dense.T).max()) > 1e-4 * largest:
        raise InputError("a kernel matrix is symmetric", got="a matrix that differs from its transpose")
    values, vectors = scipy.linalg.eigh(dense, check_finite=False, overwrite_a=True, driver="evd")
    floor = max(n * epsilon * float(values[-1]), -float(values[0]))
    if floor > max(1e-3, n * epsilon) * float(values[-1]):
        raise NumericalError(
            "the kernel matrix is not positive semidefinite",
            got=f"eigenvalues from {values[0]:.3g} to {values[-1]:.3g}",
            cause="the function is not a kernel, or it is computed too coarsely",
        )
    return Eigen(np.where(values < floor, 0.0, values), vectors, scale, floor)


def solve(eigen: Eigen, targets: Floats, ridge: float) -> RidgeSolution:
    """Solve (K + λI) α = y with λ = ridge·tr K/n; with λ = 0 by the pseudo-inverse.

    The error without example i is α_i / ((K + λI)⁻¹)_ii, without solving again ([rasmussen2006], eq. 5.12).

    Args:
        eigen: of K (n, n).
        targets: y (n, c).
        ridge: λ relative to tr K / n, at least 0.
    """
    if not ridge >= 0 or not np.isfinite(ridge):
        raise InputError("the ridge cannot be used", expected="a number of at least 0", got=str(ridge))
    inverse = _inverse(eigen, ridge)
    coefficients = eigen.vectors @ (inverse[:, None] * (eigen.vectors.T @ targets))
    diagonal = eigen.vectors**2 @ inverse
    # An example that no other one says anything about has diagonal 1/λ; where λ = 0 and K is singular it can
    # be zero, and then the others say everything.
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(diagonal[:, None] > 0, coefficients / diagonal[:, None], 0.0)
    return RidgeSolution(coefficients, targets - errors, ridge, diagonal)


def choose_ridge(eigen: Eigen, targets: Floats, criterion: Criterion = "loo") -> RidgeChoice:
    """Choose the ridge with the lowest mean squared error, by leave-one-out or generalised cross-validation.

    Tried are half decades from the rounding of the kernel (at least 1e-10) to 100, relative to tr K / n.
    GCV is (1/n)|A⁻¹y|² / ((1/n) tr A⁻¹)² with A = K + λI ([golub1979], eq. 1.4), which knows nothing of
    single examples; leave-one-out is the mean of their squared errors.

    Cost: O(n²) a ridge.
    """
    if criterion not in {"loo", "gcv"}:
        raise InputError("there is no such criterion", expected="'loo' or 'gcv'", got=repr(criterion))
    n = len(targets)
    ridges = np.array([r for r in RIDGES if r * eigen.scale >= eigen.floor] or [RIDGES[-1]])
    inverses = np.stack([_inverse(eigen, r) for r in ridges])  # (g, n)
    rotated = eigen.vectors.T @ targets  # (n, c)
    if criterion == "gcv":
        errors = ((inverses**2) @ (rotated**2)).sum(1) / n / inverses.mean(1) ** 2
    else:
        squares = eigen.vectors**2
        errors = np.array(
            [
                float(np.mean(np.sum((eigen.vectors @ (w[:, None] * rotated)) ** 2, 1) / (squares @ w) ** 2))
                for w in inverses
            ]
        )
    best = int(np.flatnonzero(errors <= errors.min() * (1 + 1e-12))[-1])  # of equals the largest ridge
    return RidgeChoice(float(ridges[best]), criterion, ridges, errors)


def _inverse(eigen: Eigen, ridge: float) -> Floats:
    shifted = eigen.values + ridge * eigen.scale
    return np.divide(1.0, shifted, out=np.zeros_like(shifted), where=shifted > 0)
