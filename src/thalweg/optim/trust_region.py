"""How far a quadratic model of the loss is trusted, and its minimiser within that radius.

The model is m(p) = f + gᵀp + ½pᵀBp for ‖p‖ ≤ Δ ([nocedal2006], ch. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import InputError, NumericalError

__all__ = [
    "Assessment",
    "Proposal",
    "Region",
    "assess",
    "boundary_root",
    "gain_ratio",
    "next_radius",
    "outcome",
    "steihaug",
]


@dataclass(frozen=True)
class Proposal:
    """A step that the model recommends.

    Attributes:
        step: p (n,).
        predicted: what the model gains by it, m(0) − m(p).
        on_boundary: whether ‖p‖ = Δ.
        lowest_curvature: the smallest dᵀBd/dᵀd among the directions looked at.
    """

    step: Tensor
    predicted: float
    on_boundary: bool
    lowest_curvature: float


@dataclass(frozen=True)
class Region:
    """A trust region and how strict it is.

    Attributes:
        radius: Δ, in units of the parameters.
        max_radius: Δ grows to this at most.
        acceptance: η: a step is taken when the loss falls by more than this share of the prediction.

    Raises:
        InputError: unless 0 < radius ≤ max_radius < ∞ and 0 ≤ acceptance < ¼.
    """

    radius: float
    max_radius: float
    acceptance: float

    def __post_init__(self) -> None:
        if not 0 < self.radius <= self.max_radius < math.inf:
            raise InputError(
                "the trust radius is not usable",
                expected="0 < radius ≤ max_radius, both finite",
                got=f"radius={self.radius}, max_radius={self.max_radius}",
            )
        if not 0 <= self.acceptance < 0.25:
            raise InputError(
                "the share of the predicted decrease that a step must reach is not usable",
                expected="acceptance from 0 to below 0.25, where the radius shrinks",
                got=str(self.acceptance),
            )


@dataclass(frozen=True)
class Assessment:
    """What became of a tried step: whether it is taken, why, the next radius, and the figures behind it."""

    accepted: bool
    reason: str
    radius: float
    details: dict[str, float]


def gain_ratio(loss: float, new_loss: float, predicted: float, *, eps: float) -> float:
    """Return ρ, the measured decrease over the predicted one ([nocedal2006], eq. 4.4).

    Ten roundings of the loss are added to both, so that ρ goes to 1 where neither can be told from rounding
    ([conn2000], §17.4.2); otherwise the last steps, which lower the gradient but no longer the printed loss,
    would all be refused. NaN where the new loss is not finite.
    """
    slack = 10 * eps * max(abs(loss), abs(new_loss))
    if not math.isfinite(new_loss) or predicted + slack <= 0:
        return math.nan
    return (loss - new_loss + slack) / (predicted + slack)


def outcome(loss: float, new_loss: float, ratio: float, acceptance: float) -> tuple[bool, str]:
    """Return whether a step with gain ratio ``ratio`` is taken, and why, in a few words."""
    if not math.isfinite(new_loss):
        return False, "loss not finite at the new point"
    if ratio > acceptance:
        return True, "accepted"
    return False, "loss rose" if new_loss > loss else "loss fell by too little"


def next_radius(region: Region, ratio: float, proposal: Proposal, *, accepted: bool) -> float:
    """Return the radius of the next step ([nocedal2006], algorithm 4.1).

    While a refused step fits into the smaller region it would be proposed again, so the radius is quartered
    until it does not: the points are those of the algorithm, without its repetitions.
    """
    if not ratio >= 0.25:  # NaN too
        norm, radius = float(torch.linalg.vector_norm(proposal.step)), region.radius / 4
        while not accepted and 0 < norm <= radius:
            radius /= 4
        return radius
    if ratio > 0.75 and proposal.on_boundary:
        return min(2 * region.radius, region.max_radius)
    return region.radius


def assess(region: Region, proposal: Proposal, loss: float, new_loss: float) -> Assessment:
    """Judge a tried step by the loss it led to; the rounding is that of the step's dtype."""
    ratio = gain_ratio(loss, new_loss, proposal.predicted, eps=torch.finfo(proposal.step.dtype).eps)
    accepted, reason = outcome(loss, new_loss, ratio, region.acceptance)
    radius = next_radius(region, ratio, proposal, accepted=accepted)
    details = {
        "radius": region.radius,
        "ratio": ratio,
        "predicted": proposal.predicted,
        "lowest_curvature": proposal.lowest_curvature,
    }
    return Assessment(accepted, reason, radius, details)


def boundary_root(point: Tensor, direction: Tensor, radius: float) -> float:
    """Return τ ≥ 0 with ‖point + τ·direction‖ = radius, for a point inside.

    It is the positive root of a quadratic, in the form without cancellation.
    """
    a, b = float(direction @ direction), float(point @ direction)
    c = max(radius**2 - float(point @ point), 0.0)
    root = math.sqrt(b**2 + a * c)
    return c / (b + root) if b > 0 else (root - b) / a


def steihaug(
    matvec: Callable[[Tensor], Tensor],
    gradient: Tensor,
    radius: float,
    *,
    tolerance: float,
    max_products: int,
) -> Proposal:
    """Minimise the model along the path of conjugate gradients, up to the boundary ([steihaug1983]).

    Args:
        matvec: returns B·vector; B is symmetric, and may be indefinite.
        gradient: g (n,), not zero.
        radius: Δ > 0.
        tolerance: the norm of the model's gradient at which to stop.
        max_products: products to spend at most; at least 1. The first makes the Cauchy decrease sure.

    Raises:
        NumericalError: where a product holds NaN or infinity.

    Source: [nocedal2006], algorithm 7.2. Cost: one product an iteration.
    """
    step = torch.zeros_like(gradient)
    residual, direction = gradient, -gradient
    square = float(residual @ residual)
    predicted, lowest = 0.0, math.inf
    for _ in range(max_products):
        product = matvec(direction)
        curvature = float(direction @ product)
        if not math.isfinite(curvature):
            raise NumericalError(
                "a Hessian–vector product holds NaN or infinity",
                cause="the second derivative overflows, or does not exist (a norm or a root at zero)",
                hint="float64 weights, or a small constant inside the norm or root",
            )
        lowest = min(lowest, curvature / float(direction @ direction))
        alpha = square / curvature if curvature > 0 else math.inf
        if curvature <= 0 or float(torch.linalg.vector_norm(step + alpha * direction)) >= radius:
            tau = boundary_root(step, direction, radius)
            # Along the direction the model's slope is −‖r‖², by the construction of conjugate gradients.
            gain = tau * square - tau**2 * curvature / 2
            return Proposal(step + tau * direction, predicted + gain, True, lowest)
        step = step + alpha * direction
        predicted += alpha * square / 2
        residual = residual + alpha * product
        previous, square = square, float(residual @ residual)
        if math.sqrt(square) <= tolerance:
            break
        direction = (square / previous) * direction - residual
    return Proposal(step, predicted, False, lowest)
