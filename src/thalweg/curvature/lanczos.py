"""Lanczos tridiagonalisation with a random start and full two-pass reorthogonalisation.

After k steps AQ = QT + β_k q_{k+1} e_kᵀ with Q (n, k) orthonormal and T tridiagonal
([parlett1998], ch. 13). Both ends of the spectrum converge in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from thalweg.curvature.operators import Operator
from thalweg.errors import InputError, NumericalError

__all__ = ["ROUNDINGS", "Krylov", "Ritz", "checked_product", "length", "orthogonalise", "tridiagonalise"]

Floats = NDArray[np.float64]

# Rounding of a product and its orthogonalisation, in units of eps·‖A‖·√k. It is also measured
# (``Krylov.noise``), but in spaces of few dimensions there is little to measure.
ROUNDINGS = 8
# Projections are summed in float64, this many elements at a time to stay in the cache. In float32, a million
# terms cost a basis of 40 vectors half of its digits: ‖QQᵀ−I‖ was 6e-4 instead of 2e-7.
PIECE = 1 << 14


@dataclass(frozen=True)
class Ritz:
    """The eigenvalues of T and how well each is known."""

    values: Floats  # (k,) ascending
    vectors: Floats  # (k, k) eigenvectors of T, one a column
    residuals: Floats  # (k,) |β_k s_ki| = ‖A y_i − θ_i y_i‖ in exact arithmetic


@dataclass(frozen=True)
class Krylov:
    """A Lanczos decomposition.

    Attributes:
        alpha: diagonal of T (k,), float64.
        beta: off-diagonal of T (k−1,); zero where the run broke down and began anew.
        remainder: β_k, zero when the space is invariant.
        basis: Q as rows (k, n), in the operator's dtype.
        first_block: steps before the first breakdown; what follows from the random start belongs to these.
        first_remainder: what was left after ``first_block`` steps: β, or the rounding at which the run broke
            down.
        rounding: for each vector of the basis the largest |q_iᵀ A q_j| with |i−j| ≥ 2 (k,). These vanish
            for an exact symmetric operator: what is seen is rounding, asymmetry, randomness of the products.
        noise: the largest of them relative to ‖T‖ at its time.
    """

    alpha: Floats
    beta: Floats
    remainder: float
    basis: Tensor
    first_block: int
    first_remainder: float
    rounding: Floats
    noise: float

    @property
    def num_steps(self) -> int:
        """The number k of products used."""
        return len(self.alpha)

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space, so that every eigenvalue has been found."""
        return self.num_steps == self.basis.shape[1]

    @property
    def scale(self) -> float:
        """A bound on ‖T‖, and so about the norm of the operator, of the same size as it."""
        return float(np.abs(self.alpha).max() + 2 * np.abs(self.beta).max(initial=0.0))

    def opening(self) -> Krylov:
        """Return the part before the first breakdown, which the start vector determines."""
        k, left = self.first_block, self.first_remainder
        return Krylov(
            self.alpha[:k], self.beta[: k - 1], left, self.basis[:k], k, left, self.rounding[:k], self.noise
        )

    def ritz(self) -> Ritz:
        """Solve the projected problem in float64."""
        solved = eigh_tridiagonal(self.alpha, self.beta)
        values, vectors = solved[0].astype(np.float64), solved[1].astype(np.float64)
        return Ritz(values, vectors, np.abs(self.remainder * vectors[-1]))

    def vector(self, coefficients: Floats) -> Tensor:
        """Return the unit vector Q·coefficients (n,)."""
        lifted: Tensor = self.basis.T @ torch.as_tensor(coefficients).to(self.basis)
        return lifted / length(lifted)


def length(vector: Tensor) -> float:
    """Return the Euclidean norm, summed in float64, without overflow or underflow of the squares."""
    largest = float(vector.abs().max())
    return largest * float((vector.double() / largest).norm()) if 0 < largest < np.inf else largest


def tridiagonalise(
    operator: Operator,
    start: Tensor,
    *,
    max_steps: int,
    fresh: Callable[[], Tensor] | None = None,
    enough: Callable[[Krylov], bool] | None = None,
    every: int = 4,
) -> Krylov:
    """Run at most ``max_steps`` Lanczos steps from ``start`` (n,).

    Args:
        operator: symmetric.
        start: any nonzero vector; random for statements about the whole spectrum.
        max_steps: products to spend at most; never more than n are needed.
        fresh: draws a new direction after a breakdown (an invariant subspace), to go on in its orthogonal
            complement, where repeated eigenvalues show up again; None stops there.
        enough: asked now and then whether to stop.
        every: how many steps lie between two such questions.

    Raises:
        InputError: for an operator of size zero.
        NumericalError: when a product holds NaN or infinity; it says which.

    Cost: one product a step, O(n·k) memory.
    """
    n, eps = operator.size, float(torch.finfo(operator.dtype).eps)
    max_steps = max(1, min(max_steps, n))
    basis = _rows(operator, min(max_steps, 32))
    alpha, beta, rounding = np.zeros((3, max_steps))
    k, norm, noise, first = 0, 0.0, 0.0, (0, 0.0)
    direction: Tensor | None = start / length(start)

    def so_far() -> Krylov:
        opened, left = first if first[0] else (k, float(beta[k - 1]))
        t = alpha[:k].copy(), beta[: k - 1].copy(), float(beta[k - 1])
        return Krylov(*t, basis[:k], opened, left, rounding[:k].copy(), noise)

    while k < max_steps and direction is not None:
        if k == basis.shape[0]:
            basis = torch.cat([basis, _rows(operator, min(k, max_steps - k))])
        basis[k] = direction
        product = checked_product(operator, direction, k + 1)
        coefficients, product = orthogonalise(product, basis[: k + 1])
        alpha[k] = coefficients[-1]
        beta[k] = length(product)
        norm = max(norm, abs(alpha[k]) + beta[k] + (beta[k - 1] if k else 0.0))
        if k >= 2 and norm > 0:
            noise = max(noise, _note(rounding, np.abs(coefficients[:-2])) / norm)
        k += 1
        # Below this the remainder is rounding, not a direction.
        if beta[k - 1] <= ROUNDINGS * eps * norm * np.sqrt(k) or k == n:
            first = first if first[0] else (k, float(beta[k - 1]))
            beta[k - 1] = 0.0
            direction = _restart(fresh, basis[:k]) if k < n else None
        else:
            direction = product / beta[k - 1]
        if enough is not None and (k % every == 0 or direction is None) and enough(so_far()):
            break
    return so_far()


def _rows(operator: Operator, num: int) -> Tensor:
    if operator.size == 0:
        raise InputError("the operator is empty", expected="at least one parameter", got="size 0")
    return torch.empty(num, operator.size, dtype=operator.dtype, device=operator.device)


def _note(rounding: Floats, seen: Floats) -> float:
    """Note what a product shows along all vectors but its own and the one before; return the largest."""
    others, largest = len(seen), float(seen.max())
    rounding[:others] = np.maximum(rounding[:others], seen)
    rounding[others + 1] = largest
    return largest


def checked_product(operator: Operator, vector: Tensor, number: int) -> Tensor:
    """Return A·vector, or say which product failed.

    Raises:
        NumericalError: when it holds NaN or infinity.
    """
    product = operator.matvec(vector)
    if not bool(torch.isfinite(product).all()):
        raise NumericalError(
            f"the Hessian–vector product number {number} holds NaN or infinity",
            cause="the second derivative overflows, or does not exist (a norm or a root at zero)",
            hint="float64 weights, or a small constant inside the norm or root",
        )
    return product


def orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Floats, Tensor]:
    """Take out of ``vector`` (n,) what lies along the rows of ``basis`` (k, n).

    Gram–Schmidt twice ("twice is enough", [parlett1998], §6.9); returns its coefficients (k,) and the rest.
    """
    coefficients = _projections(basis, vector)
    vector = torch.addmv(vector, basis.T, coefficients.to(vector), alpha=-1)
    correction = _projections(basis, vector)
    vector = torch.addmv(vector, basis.T, correction.to(vector), alpha=-1)
    return (coefficients + correction).cpu().numpy(), vector


def _projections(basis: Tensor, vector: Tensor) -> Tensor:
    """Return basis·vector (k,) in float64."""
    total = torch.zeros(basis.shape[0], dtype=torch.float64, device=basis.device)
    for rows, piece in zip(basis.split(PIECE, dim=1), vector.split(PIECE), strict=True):
        total += rows.double() @ piece.double()
    return total


def _restart(fresh: Callable[[], Tensor] | None, basis: Tensor) -> Tensor | None:
    if fresh is None:
        return None
    _, rough = orthogonalise(fresh(), basis)
    _, vector = orthogonalise(rough / length(rough), basis)
    return vector / length(vector)
