"""Ways out of a saddle: directions that lead down, and how far to follow them on the finding sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.lanczos import Krylov, tridiagonalise
from thalweg.curvature.operators import Operator
from thalweg.curvature.spectrum import Extreme
from thalweg.diagnosis.line import finite, probe_line
from thalweg.estimates import Estimate, paired_difference
from thalweg.problem.objective import Objective
from thalweg.rng import gaussian, generator

__all__ = ["Bordered", "WayOut", "combined_direction", "descend", "follow", "perturbed", "reach"]

# Rungs of the ladder of step lengths, three decades of them, and of the finer one around the best.
RUNGS = 9
SHORTEST = 1e-3
FINER = 4
# Twelve decide in practice: the start holds v and e, the next products g, Hg, …
COMBINED_PRODUCTS = 24
# The radius of a random perturbation, and the first step of a descent, relative to the weights.
RADIUS = 0.01


@dataclass(frozen=True)
class WayOut:
    """Where a way leads: found on one sample, to be judged on another.

    Attributes:
        name: of the way.
        step: ‖θ′−θ‖.
        slope: gᵀd, what the gradient explains of the change per unit step; None for a path of many steps.
        change: of the loss on the finding sample, paired over batches.
        theta: the weights it leads to, θ′ (n,).
    """

    name: str
    step: float
    slope: float | None
    change: Estimate
    theta: Tensor = field(repr=False, metadata={"json": False})


class Bordered:
    """The matrix [[H, g], [gᵀ, −δ]] as an operator on (n+1,) ([zhang2022]).

    Its leftmost vector (v, t) combines curvature and gradient: from Hv + tg = λv and gᵀv − δt = λt follows
    d = v/t = −(H − λ)⁻¹g with gᵀd = λ + δ ≤ 0. The nearer λ lies to λmin, the more d turns from the
    gradient to the lowest curvature.
    """

    def __init__(self, hessian: Operator, gradient: Tensor, delta: float) -> None:
        self._hessian, self._gradient, self._delta = hessian, gradient, delta
        self.size, self.dtype, self.device = hessian.size + 1, hessian.dtype, hessian.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product (n+1,). Cost: one Hessian–vector product."""
        v, t = vector[:-1], vector[-1:]
        upper = self._hessian.matvec(v) + t * self._gradient
        lower = (self._gradient @ v).reshape(1) - self._delta * t
        return torch.cat([upper, lower])


def combined_direction(
    hessian: Operator, gradient: Tensor, lowest: Extreme, *, max_products: int = COMBINED_PRODUCTS
) -> Tensor | None:
    """Return the unit direction (n,) that combines gradient and negative curvature; None where there is none.

    Lanczos starts from (±v_min, 1)/√2, whose Krylov space holds both at once. δ = |λmin|/2: below |λmin|, so
    that without a gradient the answer is v_min.

    Args:
        hessian: H.
        gradient: g (n,).
        lowest: λmin, below zero, with its vector.
        max_products: to spend at most.

    Cost: at most ``max_products`` products.
    Source: [zhang2022], algorithm 1.
    """
    uphill = float(gradient.double() @ lowest.vector.double()) > 0
    toward = -lowest.vector if uphill else lowest.vector
    bordered = Bordered(hessian, gradient, -lowest.value / 2)
    start = torch.cat([toward, torch.ones_like(toward[:1])])
    krylov = tridiagonalise(bordered, start, max_steps=max_products, enough=_settled)
    leftmost = krylov.vector(krylov.ritz().vectors[:, 0])
    direction, t = leftmost[:-1], float(leftmost[-1])
    size = float(direction.double().norm())
    if size < 1e-6:  # t is all there is: neither gradient nor curvature
        return None
    # Where g is orthogonal to v the sign of t is rounding; the gradient's own counts then.
    if abs(t) < float(torch.finfo(direction.dtype).eps) ** 0.5:
        t = -float(gradient.double() @ direction.double())
    unit: Tensor = direction * (math.copysign(1.0, t) / size)
    return unit


def reach(theta: Tensor) -> float:
    """Return how far from ``theta`` a way may lead: half the norm of the weights, at least a half."""
    return 0.5 * max(float(theta.double().norm()), 1.0)


def follow(
    objective: Objective, theta: Tensor, direction: Tensor, gradient: Tensor, *, name: str, farthest: float
) -> WayOut:
    """Search the step with the lowest loss along ±``direction``: a ladder of lengths, then a finer one.

    Along negative curvature the best step has nothing to do with 1/|λ| ([alain2019]), so it is measured.

    Args:
        objective: over the finding sample.
        theta: the point (n,).
        direction: a unit vector (n,).
        gradient: at the point (n,), for the record.
        name: of the way.
        farthest: the longest rung of the first ladder.

    Cost: 24 forward passes, 8 gradient-equivalents.
    """
    slope = float(gradient.double() @ direction.double())
    rungs = np.geomspace(SHORTEST * farthest, farthest, RUNGS)
    probe = probe_line(
        objective, None, theta, direction, rungs.tolist(), name=name, slope=slope, both_ways=True
    )
    ratio = rungs[1] / rungs[0]
    between = (probe.best_step * ratio ** np.linspace(-0.75, 0.75, FINER)).tolist()
    finer = probe_line(objective, None, theta, direction, between, name=name, slope=slope, both_ways=False)
    best = min((probe, finer), key=lambda one: one.best.value)
    step = best.best_step
    return WayOut(name, abs(step), math.copysign(1.0, step) * slope, best.best, theta + step * direction)


def perturbed(theta: Tensor, *, seed: int) -> Tensor:
    """Return ``theta`` (n,) plus a vector that is uniform in the ball of radius 1 % of its norm.

    Source: [jin2017], algorithm 1.
    """
    rng = generator(seed, "perturbation")
    noise = gaussian(theta.numel(), rng, like=theta)
    share = float(torch.rand(1, generator=rng, dtype=torch.float64)) ** (1 / theta.numel())
    radius = 2 * RADIUS * reach(theta)
    moved: Tensor = theta + noise * (radius * share / noise.norm())
    return moved


def descend(objective: Objective, theta: Tensor, start: Tensor, *, steps: int, name: str) -> WayOut:
    """Take steps of gradient descent from ``start``, and compare where they end with ``theta``.

    The step length is halved until the loss falls by a quarter at least of what the slope promises (Armijo's
    rule, [nocedal2006], §3.1), and grows again after each success; the loss never rises. Ends early where no
    step lowers it beyond rounding, and before it would go farther than the reach.

    Args:
        objective: over the finding sample.
        theta: the point in question (n,).
        start: where to begin (n,).
        steps: the most to take.
        name: of the way.

    Cost: one gradient and at least one forward pass a step, about 1.5 gradient-equivalents.
    """
    here, value, gradient = start, objective.value(start), objective.gradient(start)
    limit, lr = reach(theta), 0.0
    resolved = float(torch.finfo(theta.dtype).eps) * (1.0 + float(theta.double().norm()))
    for _ in range(steps):
        norm = float(gradient.double().norm())
        if norm == 0 or not math.isfinite(norm):
            break
        lr = min(lr, 0.1 * limit / norm) if lr else 2 * RADIUS * limit / norm
        ahead = here - lr * gradient
        while not (reached := objective.value(ahead)) <= value - 0.25 * lr * norm**2:
            lr /= 2
            if lr * norm < resolved:
                break
            ahead = here - lr * gradient
        if lr * norm < resolved or float((ahead - start).double().norm()) > limit:
            break
        here, value, gradient, lr = ahead, reached, objective.gradient(ahead), 1.5 * lr
    before, counts = objective.batch_values(theta)
    after, _ = objective.batch_values(here)
    change = paired_difference(finite(after), before, counts)
    if objective.examples == 1:
        change = Estimate(change.value, 0.0)
    return WayOut(name, float((here - theta).double().norm()), None, change, here)


def _settled(krylov: Krylov) -> bool:
    """Whether the leftmost pair is known well enough for a direction whose length is searched."""
    ritz = krylov.ritz()
    return bool(ritz.residuals[0] <= 1e-3 * abs(ritz.values[0]))
