"""Are the derivatives right? Gradients and Hessian–vector products against difference quotients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from thalweg.errors import FOREIGN_FAILURES, InputError, ThalwegError
from thalweg.problem.blur import ROUNDINGS, blur
from thalweg.problem.memory import memory_share
from thalweg.problem.objective import Objective
from thalweg.rng import gaussian, generator

__all__ = [
    "Bench",
    "Comparison",
    "check_gradient",
    "check_products",
    "compare",
    "jumps",
    "precise",
    "stand_in",
]

Verdict = Literal["agrees", "disagrees", "rough", "flat"]

# Steps of the central differences, relative to the weights, in float32 and in float64: the best first, then
# those that help where it is drowned in rounding (larger ones) or crosses kinks of ReLU (smaller ones).
LOSS_STEPS = ((1e-2, 3e-3, 3e-2, 1e-3), (1e-6, 1e-5, 1e-7, 1e-4, 1e-3, 1e-2))
# A kink that is crossed moves the gradient by a jump, however small the step: the smaller, the fewer.
SLOPE_STEPS = ((3e-3, 1e-2, 1e-3, 3e-2), (1e-7, 1e-8, 1e-9, 1e-6, 1e-5, 1e-4, 1e-3))
LOSS_TOLERANCE = (3e-3, 1e-5)
SLOPE_TOLERANCE = (1e-2, 1e-4)
DROWNED = 0.1  # a quotient with more noise than this tells nothing
CONSISTENT = 0.05  # quotients that differ by less than this share of what they miss the claim by: no accident
ALIKE = 0.1  # relative, between a model in its own and in double precision; bfloat16 makes 0.03
MILDER = (0.5, 0.25, 0.1, 0.03, 0.01)  # of the weights, where at full size the loss is flat from saturation
NUDGE = 0.1  # how far from θ, relative to the weights, a derivative is looked at that vanishes at θ
HAIR, LEAP = 1e-9, 1e-5  # a step, and a change of the loss that is no rounding
COPIES = 64  # bytes a parameter that the checks in double precision hold at once


@dataclass(frozen=True)
class Bench:
    """What derivatives are checked on.

    Attributes:
        objective: a few examples of the objective in question, in double precision if that can be.
        theta: the point in question (n,), in the precision of ``objective``.
    """

    objective: Objective
    theta: Tensor

    @property
    def direction(self) -> Tensor:
        """A random direction (n,) that moves each weight by about its size."""
        return typical_move(self.theta) * gaussian(self.theta.numel(), generator(0, "probe"), like=self.theta)

    @cached_property
    def nearby(self) -> Tensor:
        """A point (n,) where the objective is finite, no derivative vanishes and no kink lies by design."""
        away = gaussian(self.theta.numel(), generator(0, "nearby"), like=self.theta)
        for share in (NUDGE, 0.1 * NUDGE, 0.01 * NUDGE):
            there = self.theta + share * typical_move(self.theta) * away
            if math.isfinite(self.objective.value(there)):
                return there
        return self.theta

    @cached_property
    def saturated(self) -> bool:
        """Whether rounding hides how the loss changes, also away from the point."""
        return not self._shows(self.nearby)

    def milder(self) -> Iterator[Tensor]:
        """Yield points (n,) with smaller weights where changes of the loss stand out from its rounding."""
        for share in MILDER:
            there = share * self.nearby
            if math.isfinite(self.objective.value(there)) and self._shows(there):
                yield there

    def rounded_share(self, theta: Tensor) -> float:
        """Return which part of the loss's change along weights of their size is rounding; so of its gradient.

        The gradient of a certain classifier is made of 1 − p, as blurred by rounding as its loss.
        """
        change = float((self.objective.gradient(theta) * self.direction).norm())
        return blur(self.objective, theta) / change if change > 0 else math.inf

    def _shows(self, theta: Tensor) -> bool:
        return self.rounded_share(theta) < max(LOSS_STEPS[theta.dtype == torch.float64])


@dataclass(frozen=True)
class Comparison:
    """A claimed derivative against difference quotients.

    Attributes:
        verdict: "agrees"; "disagrees" (the quotients agree with each other, and not with the claim);
            "rough" (they do not agree with each other); "flat" (they show nothing above rounding).
        error: ‖quotient − claim‖ relative to the larger of them, at the step that comes nearest.
    """

    verdict: Verdict
    error: float


def compare(
    claim: Tensor,
    quotient: Callable[[float], tuple[Tensor, float]],
    steps: Sequence[float],
    *,
    tolerance: float,
    size: float = 0.0,
) -> Comparison:
    """Compare ``claim`` (m,) with difference quotients until one of them decides.

    Args:
        claim: the derivative that is claimed.
        quotient: step -> difference quotient (m,) and what rounding may do to it.
        steps: to try, the best first.
        tolerance: relative, at steps up to it; at larger steps the step itself.
        size: the least that errors are relative to.
    """
    if not bool(torch.isfinite(claim).all()):
        return Comparison("disagrees", float("inf"))
    tried: list[Tensor] = []
    nearest = float("inf")
    for step in steps:
        found, noise = quotient(step)
        scale = max(float(claim.norm()), float(found.norm()), size)
        missed = float((found - claim).norm())
        if scale == 0:
            return Comparison("agrees", 0.0)
        if not math.isfinite(scale) or not noise <= DROWNED * scale:  # also where the noise is not a number
            continue
        nearest = min(nearest, missed / scale)
        if missed <= max(tolerance, step) * scale + noise:
            return Comparison("agrees", nearest)
        # Equal quotients of two steps are the true derivative; zeros may be a step lost in rounding.
        if any(float((q - found).norm()) <= CONSISTENT * missed and float(q.norm()) > 0 for q in tried):
            return Comparison("disagrees", nearest)
        tried.append(found)
    if not tried:
        return Comparison("flat", 0.0)
    stairs = all(float(q.norm()) == 0 for q in tried)
    return Comparison("disagrees" if stairs else "rough", nearest)


def typical_move(theta: Tensor) -> Tensor:
    """Return how far each weight may be moved (n,): by its size and a tenth of the usual size."""
    usual = float(theta.norm()) / theta.numel() ** 0.5
    least: Tensor = torch.full_like(theta, 0.1 * min(max(usual, 0.1), 1.0))
    return least + theta.abs()


def check_gradient(bench: Bench) -> Comparison:
    """Compare the gradient with differences of the loss along a random direction.

    Not at the point in question, where both may vanish, but near it. Where they disagree by no more than
    rounding may do, as it does where a classifier is certain of everything, at smaller weights.

    Cost: 2 gradient-equivalents, 7 where they disagree, up to 50 where that may be rounding.
    """
    found = _compare_gradient(bench, bench.nearby)
    if found.verdict != "disagrees" or not math.isfinite(found.error):
        return found
    beyond = _compare_gradient(bench, bench.nearby, blur(bench.objective, bench.nearby))
    if beyond.verdict == "disagrees":
        return beyond
    return _first_told(
        _compare_gradient(bench, there, blur(bench.objective, there)) for there in bench.milder()
    )


def _first_told(comparisons: Iterable[Comparison]) -> Comparison:
    """Return the first of ``comparisons`` that says yes or no; "rough" where none does."""
    told = (found for found in comparisons if found.verdict in ("agrees", "disagrees"))
    return next(told, Comparison("rough", 1.0))


def _compare_gradient(bench: Bench, there: Tensor, rounding: float = 0.0) -> Comparison:
    objective, direction = bench.objective, bench.direction
    gradient = objective.gradient(there)

    def quotient(step: float) -> tuple[Tensor, float]:
        ahead, behind = (objective.value(there + s * step * direction) for s in (1.0, -1.0))
        noise = max(ROUNDINGS * objective.roundoff * max(abs(ahead), abs(behind)), rounding) / step
        return torch.tensor([(ahead - behind) / (2 * step)], dtype=torch.float64), noise

    double = there.dtype == torch.float64
    return compare(
        (gradient @ direction).double().reshape(1).cpu(),
        quotient,
        LOSS_STEPS[double],
        tolerance=LOSS_TOLERANCE[double],
        size=float((gradient * direction).norm()),
    )


def check_products(bench: Bench, product: Tensor | None = None) -> Comparison:
    """Compare a Hessian–vector product with differences of the gradient along a random direction.

    At the point in question; where they disagree there, which a kink at that very point explains, once more
    near it; where a loss that rounding flattens explains that too, at smaller weights.

    Cost: 5 gradient-equivalents, up to 34 where they disagree, and 100 where that may be rounding.

    Args:
        bench: where.
        product: H·``bench.direction`` (n,), where it is known; that saves 3 gradient-equivalents.
    """
    if product is None:
        product = bench.objective.hvp(bench.theta, bench.direction)
    found = _compare_product(bench, bench.theta, product)
    if found.verdict == "agrees" or not math.isfinite(found.error):
        return found
    near = _compare_product(bench, bench.nearby)
    if near.verdict != "disagrees" or not math.isfinite(near.error):
        return near
    beyond = _compare_product(bench, bench.nearby, share=bench.rounded_share(bench.nearby))
    if beyond.verdict == "disagrees":
        return beyond
    milder = _first_told(
        _compare_product(bench, there, share=bench.rounded_share(there)) for there in bench.milder()
    )
    # Right code whose products are all rounding here: how much, the point itself says.
    return milder if milder.verdict == "disagrees" else Comparison("rough", found.error)


def _compare_product(
    bench: Bench, theta: Tensor, product: Tensor | None = None, share: float = 0.0
) -> Comparison:
    objective, move, direction = bench.objective, typical_move(theta), bench.direction
    if product is None:
        product = objective.hvp(theta, direction)

    def quotient(step: float) -> tuple[Tensor, float]:
        ahead, behind = (objective.gradient(theta + s * step * direction) for s in (1.0, -1.0))
        noise = max(ROUNDINGS * objective.roundoff, share) * float((move * ahead).norm()) / step
        return (move * (ahead - behind)).double() / (2 * step), noise

    double = theta.dtype == torch.float64
    claim = (move * product).double()
    return compare(claim, quotient, SLOPE_STEPS[double], tolerance=SLOPE_TOLERANCE[double])


def jumps(bench: Bench) -> bool:
    """Return whether the loss jumps at the point, which shows in double precision only.

    Cost: 2 gradient-equivalents.
    """
    objective, theta = bench.objective, bench.theta
    if theta.dtype != torch.float64:
        return False
    steps = (HAIR, -HAIR, 1e3 * HAIR, -1e3 * HAIR)
    ahead, behind, far_ahead, far_behind = (objective.value(theta + s * bench.direction) for s in steps)
    change = abs(ahead - behind)  # a thousand times as far is a thousand times as much, if it is no jump
    size = max(abs(ahead), abs(objective.value(bench.nearby)))
    return change > 0.1 * abs(far_ahead - far_behind) and change > LEAP * size


def precise(objective: Objective, theta: Tensor) -> Bench:
    """Return what to check derivatives on: a few examples, in double precision if that can be.

    Double precision tells rounding and the kinks of ReLU from faults. It is used where the model runs in it
    and gives the value that it gives in its own.

    Cost: 1/3 gradient-equivalent of the few, 1 where the weights are not double, 3 where the values differ.
    """
    own = Bench(stand_in(objective, theta), theta)
    exact = torch.finfo(torch.float64).eps
    if objective.roundoff <= exact or COPIES * theta.numel() > memory_share(theta.device):
        return own
    try:
        double = Bench(objective.stand_in(torch.float64), theta.double())
        value = double.objective.value(double.nearby)
    except (ThalwegError, *FOREIGN_FAILURES):
        return own
    there = double.nearby.to(theta.dtype)
    off = abs(value - own.objective.value(there))
    return double if off <= ALIKE * abs(value) or off <= blur(own.objective, there) else own


def stand_in(objective: Objective, theta: Tensor) -> Objective:
    """Return what to check code on: the objective over a few examples, if these give a loss."""
    few = objective.stand_in(None)
    try:
        few.value(theta)
    except InputError:  # all the targets of these few may be padding
        return objective
    return few
