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
from thalweg.errors import NumericalError

__all__ = ["Krylov", "Ritz", "tridiagonalise"]

Floats = NDArray[np.float64]


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
        first_block: steps before the first breakdown; the quadrature weights belong to these.
        noise: the largest |q_iᵀ A q_j| with |i−j| ≥ 2 relative to ‖T‖. These vanish for an exact symmetric
            operator, so what is seen is rounding, asymmetry and randomness of the products.
    """

    alpha: Floats
    beta: Floats
    remainder: float
    basis: Tensor
    first_block: int
    noise: float

    @property
    def num_steps(self) -> int:
        """The number k of products used."""
        return len(self.alpha)

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space, so that every eigenvalue has been found."""
        return self.num_steps == self.basis.shape[1]

    def ritz(self) -> Ritz:
        """Solve the projected problem in float64."""
        solved = eigh_tridiagonal(self.alpha, self.beta)
        values, vectors = solved[0].astype(np.float64), solved[1].astype(np.float64)
        return Ritz(values, vectors, np.abs(self.remainder * vectors[-1]))

    def vector(self, coefficients: Floats) -> Tensor:
        """Return the unit vector Q·coefficients (n,)."""
        lifted: Tensor = self.basis.T @ torch.as_tensor(coefficients).to(self.basis)
        unit: Tensor = lifted / lifted.norm()
        return unit


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
        NumericalError: when a product holds NaN or infinity.

    Cost: one product a step, O(n·k) memory.
    """
    n, dtype = operator.size, operator.dtype
    max_steps = max(1, min(max_steps, n))
    eps = float(torch.finfo(dtype).eps)
    basis = torch.empty(min(max_steps, 32), n, dtype=dtype, device=operator.device)
    alpha, beta, norm, noise, first_block = np.zeros(max_steps), np.zeros(max_steps), 0.0, 0.0, max_steps
    direction: Tensor | None = start / start.norm()
    k = 0
    while k < max_steps and direction is not None:
        if k == basis.shape[0]:
            basis = torch.cat([basis, torch.empty_like(basis[: max_steps - k])])
        basis[k] = direction
        product = operator.matvec(direction)
        if not bool(torch.isfinite(product).all()):
            raise NumericalError(
                f"the Hessian–vector product number {k + 1} holds NaN or infinity",
                cause="the second derivative overflows, or does not exist (a norm or a root at zero)",
                hint="float64 weights, or a small constant inside the norm or root",
            )
        coefficients, product = _orthogonalise(product, basis[: k + 1])
        alpha[k] = coefficients[-1]
        beta[k] = float(product.norm())
        norm = max(norm, abs(alpha[k]) + beta[k] + (beta[k - 1] if k else 0.0))
        if k >= 2 and norm > 0:
            noise = max(noise, float(np.abs(coefficients[:-2]).max()) / norm)
        k += 1
        # Below this the remainder is rounding, not a direction.
        if beta[k - 1] <= 8 * eps * norm * np.sqrt(k) or k == n:
            first_block = min(first_block, k)
            beta[k - 1] = 0.0
            direction = _restart(fresh, basis[:k]) if k < n else None
        else:
            direction = product / beta[k - 1]
        if enough is not None and (k % every == 0 or direction is None):
            so_far = _krylov(alpha, beta, basis, k, first_block, noise)
            if enough(so_far):
                return so_far
    return _krylov(alpha, beta, basis, k, first_block, noise)


def _krylov(alpha: Floats, beta: Floats, basis: Tensor, k: int, first_block: int, noise: float) -> Krylov:
    return Krylov(
        alpha[:k].copy(), beta[: k - 1].copy(), float(beta[k - 1]), basis[:k], min(first_block, k), noise
    )


def _orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Floats, Tensor]:
    """Gram–Schmidt twice ("twice is enough", [parlett1998], §6.9); return its coefficients and the rest."""
    coefficients = basis @ vector
    vector = torch.addmv(vector, basis.T, coefficients, alpha=-1)
    correction = basis @ vector
    vector = torch.addmv(vector, basis.T, correction, alpha=-1)
    return (coefficients + correction).double().cpu().numpy(), vector


def _restart(fresh: Callable[[], Tensor] | None, basis: Tensor) -> Tensor | None:
    if fresh is None:
        return None
    _, rough = _orthogonalise(fresh(), basis)
    _, vector = _orthogonalise(rough / rough.norm(), basis)
    unit: Tensor = vector / vector.norm()
    return unit
