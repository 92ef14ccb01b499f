"""The quadratic model of a loss in the Krylov space of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.curvature.lanczos import Krylov, tridiagonalise
from thalweg.optim.products import LossHessian

__all__ = ["KrylovModel", "krylov_model", "line_model"]


@dataclass(frozen=True)
class KrylovModel:
    """The model gᵀs + ½sᵀHs for s in span{g, Hg, …, Hᵏ⁻¹g}, in coordinates where H is diagonal.

    Attributes:
        values: eigenvalues θ (k,) of the projected H, ascending, float64 on the CPU.
        gradient: the coordinates c (k,) of g.
        vectors: eigenvectors (k, k) of the tridiagonal matrix, one a column.
        basis: the Lanczos vectors as rows (k, n).
        remainder: what ties the space to the rest; zero where it is invariant.
    """

    values: Tensor
    gradient: Tensor
    vectors: Tensor
    basis: Tensor
    remainder: float

    def lift(self, coordinates: Tensor) -> Tensor:
        """Return the vector (n,) with these coordinates (k,)."""
        return self.basis.T @ (self.vectors @ coordinates).to(self.basis)

    def outside(self, coordinates: Tensor) -> float:
        """Return the norm of the part of H·s that lies outside the space."""
        return abs(self.remainder * float(self.vectors[-1] @ coordinates))


def krylov_model(
    hessian: LossHessian, *, max_products: int, enough: Callable[[KrylovModel], bool] | None = None
) -> KrylovModel:
    """Project the model of the loss on a Krylov space started at its gradient, which is not zero.

    Args:
        hessian: with the gradient.
        max_products: the dimension k at most; the space ends earlier where it is invariant, since what is
            left has no part of the gradient.
        enough: asked after each product whether to stop.

    Raises:
        NumericalError: where a product holds NaN or infinity.

    Cost: one product a dimension. Source: [parlett1998], ch. 13.
    """
    norm = float(hessian.gradient.norm())

    def stop(krylov: Krylov) -> bool:
        return enough is not None and enough(_diagonal(krylov, norm))

    krylov = tridiagonalise(hessian, hessian.gradient, max_steps=max_products, enough=stop, every=1)
    return _diagonal(krylov, norm)


def line_model(hessian: LossHessian, curvature: float, direction: Tensor) -> KrylovModel:
    """Return the model on the line along a unit direction (n,) of known curvature. Cost: none."""
    slope = (direction @ hessian.gradient).double().cpu().reshape(1)
    one = torch.ones(1, 1, dtype=torch.float64)
    return KrylovModel(torch.full_like(slope, curvature), slope, one, direction[None], 0.0)


def _diagonal(krylov: Krylov, norm: float) -> KrylovModel:
    ritz = krylov.ritz()
    vectors = torch.from_numpy(ritz.vectors)
    return KrylovModel(
        torch.from_numpy(ritz.values), norm * vectors[0], vectors, krylov.basis, krylov.remainder
    )
