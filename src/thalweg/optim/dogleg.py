"""Least squares within a trust region, along Powell's dogleg, with a dense Jacobian."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure, residuals
from thalweg.optim.jacobian import Jacobian, jacobian
from thalweg.optim.trust_region import Proposal, Region, boundary_root
from thalweg.optim.trust_step import take_or_leave
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["Dogleg", "dogleg_step"]


class Dogleg(WholeVector):
    """Gauss–Newton method for a sum of squares, within a trust region.

    The loss is F = ‖r‖², its model has g = 2Jᵀr and B = 2JᵀJ. B is never indefinite; where it is singular
    (more parameters than residuals, parameters without effect) the Gauss–Newton point is the shortest of
    the model's minimisers, so that no factorisation can fail. Each step is tried once; a refused one leaves
    the parameters bit for bit and shrinks the radius.

    It takes a **residual closure** (returns outputs − targets, no backward), of the same examples whenever
    it is called within a step. It sees no negative curvature: at a saddle where Jᵀr = 0 it stays.

    Args:
        params: parameters, or groups of them; at most 3,000 coordinates.
        radius: the first trust radius, in units of the parameters.
        max_radius: it grows to this at most.
        acceptance: a step is taken when the loss falls by more than this share of the prediction.
        gradient_tolerance: below this norm of 2Jᵀr the gradient counts as zero.

    Raises:
        InputError: for settings out of range, complex or too many parameters, a Jacobian of more than
            ``most_entries``, or a closure of another kind.

    Cost per step: one loss, and one gradient-equivalent for each of the m residuals (a backward pass each,
    in vectorised blocks); O(mn·min(m, n)) for a singular value decomposition.
    Source: [powell1970]; [nocedal2006], eqs. 4.11–4.16 and algorithm 4.1.
    """

    most_parameters: ClassVar[int | None] = 3000
    #: entries m·n of the Jacobian up to which it is formed
    most_entries: ClassVar[int] = 100_000_000

    def __init__(
        self,
        params: Parameters,
        *,
        radius: float = 1.0,
        max_radius: float = 1000.0,
        acceptance: float = 0.15,
        gradient_tolerance: float = 1e-6,
    ) -> None:
        Region(radius, max_radius, acceptance)
        if gradient_tolerance < 0:
            raise InputError(
                "a norm cannot be below a negative tolerance",
                expected="gradient_tolerance ≥ 0",
                got=str(gradient_tolerance),
            )
        defaults = {
            "max_radius": max_radius,
            "acceptance": acceptance,
            "gradient_tolerance": gradient_tolerance,
        }
        super().__init__(params, defaults, radius=radius)

    def take(self, closure: Closure | None) -> Step:
        """Take one step; see the class."""
        numbers, start = self.numbers, self.position()
        residual = residuals(closure)
        loss = _sum_of_squares(residual)
        if not math.isfinite(loss):
            return Step(*(loss, loss, math.nan, 0.0, False, "loss or gradient not finite"), num_losses=1)
        found = self._jacobian(residual)
        matrix = found.matrix.to(start.dtype)
        offset = residual.detach().to(start.dtype)
        gradient = 2 * (matrix.T @ offset)
        norm = float(gradient.norm())
        reason = "gradient below tolerance" if math.isfinite(norm) else "loss or gradient not finite"
        here = Step(
            *(loss, loss, norm, 0.0, False, reason),
            num_gradients=found.num_gradients,
            num_products=found.num_products,
        )
        if not bool(torch.isfinite(matrix).all()) or norm <= numbers["gradient_tolerance"]:
            return here
        proposal = _propose(matrix, offset, gradient, numbers["radius"])
        self.move_to(start + proposal.step)
        return take_or_leave(self, start, proposal, here, _sum_of_squares(residuals(closure)))

    def _jacobian(self, residual: Tensor) -> Jacobian:
        rows = residual.numel()
        if rows * self.size > self.most_entries:
            raise InputError(
                f"the Jacobian of {rows:,} residuals by {self.size:,} parameters is too large to keep",
                expected=f"at most {self.most_entries:,} entries",
                got=f"{rows * self.size:,}",
                hint="fewer examples a step, or TrustRegionNewtonCG, which keeps no matrix",
            )
        return jacobian(residual, self.parameters())


def dogleg_step(cauchy: Tensor, newton: Tensor, radius: float) -> tuple[Tensor, bool]:
    """Return the point of the dogleg at ``radius``, and whether the boundary cut it.

    Args:
        cauchy: the model's minimiser p_U (n,) along −g.
        newton: its minimiser p_B (n,).
        radius: Δ > 0.

    Source: [nocedal2006], eq. 4.16.
    """
    if float(newton.norm()) < radius:
        return newton, False
    length = float(cauchy.norm())
    if length >= radius:
        return (radius / length) * cauchy, True
    leg = newton - cauchy
    return cauchy + boundary_root(cauchy, leg, radius) * leg, True


def _propose(jacobian: Tensor, offset: Tensor, gradient: Tensor, radius: float) -> Proposal:
    """Return the dogleg step of the model ‖r + Jp‖²."""
    along = jacobian @ gradient
    curvature, square = 2 * float(along @ along), float(gradient @ gradient)
    if curvature > 0:
        newton = _shortest_minimiser(jacobian, offset)
        step, on_boundary = dogleg_step(-(square / curvature) * gradient, newton, radius)
    else:  # Jg underflows
        step, on_boundary = -(radius / math.sqrt(square)) * gradient, True
    change = jacobian @ step
    predicted = -float(gradient @ step) - float(change @ change)
    return Proposal(step, predicted, on_boundary, curvature / square)


def _shortest_minimiser(jacobian: Tensor, offset: Tensor) -> Tensor:
    """Return −J⁺r (n,), by singular values, of which those that are rounding are left out."""
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    known = values > torch.finfo(values.dtype).eps * max(jacobian.shape) * values[0]
    coefficients = torch.where(known, (left.T @ offset) / torch.where(known, values, 1.0), 0.0)
    step: Tensor = -(right.T @ coefficients)
    return step


def _sum_of_squares(residual: Tensor) -> float:
    values = residual.detach()
    return float(values @ values)
