"""Newton's method with the dense Hessian made positive definite."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.products import LossHessian
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["ModifiedNewton", "modified_direction"]

# Share of the slope's decrease that a step must reach ([nocedal2006], eq. 3.4), and halvings tried.
ARMIJO = 1e-4
MOST_HALVINGS = 40


class ModifiedNewton(WholeVector):
    """Newton's method with |λ|, floored, in place of every eigenvalue λ, and a backtracking line search.

    With H = QΛQᵀ the direction is d = −Q max(|Λ|, δ)⁻¹ Qᵀg. It is Newton's where H is positive definite and
    goes away from saddles elsewhere, since along a negative eigenvalue it still goes down. At a point where
    the gradient is zero it stays, also at a saddle.

    It takes a **loss closure** (returns the loss, no backward), of the same examples whenever it is called
    within a step. A step that lowers the loss in none of 41 lengths leaves the parameters bit for bit.

    Args:
        params: parameters, or groups of them; at most 2,000 coordinates.
        floor: δ relative to the largest |λ|; larger is nearer to gradient descent in flat directions.
        gradient_tolerance: below this norm the gradient counts as zero.

    Raises:
        InputError: for settings out of range, complex or too many parameters, or a closure of another kind.

    Cost per step: a gradient, n products (2 gradient-equivalents each), a loss for each length tried; O(n³).
    Source: [nocedal2006], §3.4 and eq. 3.4.
    """

    most_parameters: ClassVar[int | None] = 2000

    def __init__(self, params: Parameters, *, floor: float = 1e-8, gradient_tolerance: float = 1e-6) -> None:
        if not 0 < floor <= 1 or gradient_tolerance < 0:
            raise InputError(
                "the settings of the Newton step are not usable",
                expected="0 < floor ≤ 1 and gradient_tolerance ≥ 0",
                got=f"floor={floor}, gradient_tolerance={gradient_tolerance}",
            )
        super().__init__(params, {"floor": floor, "gradient_tolerance": gradient_tolerance})

    def take(self, closure: Closure | None) -> Step:
        """Take one step; see the class."""
        start = self.position()
        hessian = LossHessian(closure, self.parameters())
        loss, norm = hessian.loss, float(hessian.gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return Step(*(loss, loss, norm, 0.0, False, "loss or gradient not finite"), num_gradients=1)
        if norm <= self.numbers["gradient_tolerance"]:
            return Step(*(loss, loss, norm, 0.0, False, "gradient below tolerance"), num_gradients=1)
        matrix = hessian.matrix()
        products = hessian.num_products
        if not bool(torch.isfinite(matrix).all()):
            return Step(*(loss, loss, norm, 0.0, False, "Hessian not finite", 0, 1, products))
        direction, lowest = modified_direction(matrix, hessian.gradient, self.numbers["floor"])
        details = {"length": 0.0, "lowest_curvature": lowest}
        slope = float(direction @ hessian.gradient)
        slack = 10 * torch.finfo(start.dtype).eps * abs(loss)  # what cannot be told from rounding
        for halvings in range(MOST_HALVINGS + 1):
            length = 0.5**halvings
            new_loss = self.loss_at(start + length * direction, closure)
            if math.isfinite(new_loss) and new_loss <= loss + ARMIJO * length * slope + slack:
                moved, details["length"] = length * float(direction.norm()), length
                return Step(loss, new_loss, norm, moved, True, "accepted", halvings + 1, 1, products, details)
        self.move_to(start)
        reason, losses = "no length of the step lowers the loss", MOST_HALVINGS + 1
        return Step(loss, loss, norm, 0.0, False, reason, losses, 1, products, details)


def modified_direction(matrix: Tensor, gradient: Tensor, floor: float) -> tuple[Tensor, float]:
    """Return −Q max(|Λ|, δ)⁻¹ Qᵀg (n,) and the lowest eigenvalue.

    Args:
        matrix: H (n, n), symmetric.
        gradient: g (n,).
        floor: δ relative to the largest |λ|. Where all λ are zero the direction is −g.
    """
    values, vectors = torch.linalg.eigh(matrix)
    size = values.abs()
    largest = float(size.max())
    scale = size.clamp_min(floor * largest) if largest > 0 else torch.ones_like(size)
    return -(vectors @ ((vectors.T @ gradient) / scale)), float(values[0])
