"""How much longer a step could be before the loss goes up: sharpness from forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Crossing", "crossing"]

TOLERANCE = 0.05  # of the critical length
MOST = 9  # evaluations beside that at the start
FARTHEST = 1e6


@dataclass(frozen=True)
class Crossing:
    """Where the loss along a step comes back to what it was.

    Attributes:
        scale: the critical length, in steps: the loss is lower before it and higher behind it. NaN where the
            loss goes up from the start, infinity where it never does within reach.
        lower: a length at which the loss is still lower.
        upper: a length at which it is higher already.
        evaluations: of the loss.
    """

    scale: float
    lower: float
    upper: float
    evaluations: int

    def sharpness(self, lr: float) -> float:
        """Return λ_c = 2/η_c with η_c = scale·lr ([kalra2026]).

        On a quadratic that is |ΔᵀHΔ / (g·Δ)|/lr: for gradient descent the Rayleigh quotient of the Hessian
        along the gradient, and so at most λmax.
        """
        return 2.0 / (self.scale * lr)


def crossing(loss: Callable[[float], float], *, start: float = 2.0, rounding: float = 0.0) -> Crossing:
    """Find the smallest s > 0 at which ``loss(s)``, the loss after s times the step, is above ``loss(0)``.

    First by factors of four from ``start``, then on (loss(s) − loss(0))/s, which on a quadratic is linear in
    s, by regula falsi with the Illinois rule, to 5 % or ten evaluations. A loss that is not finite counts as
    higher.

    Args:
        loss: of the length of the step, in steps as they were taken.
        start: where to look first: twice the last result is a good one.
        rounding: relative to the loss; changes below it say nothing, and longer steps are tried.

    Cost: ten forward passes at most; about five from a good start.
    """
    base = loss(0.0)
    evaluations = 1

    def slope(s: float) -> float:
        nonlocal evaluations
        evaluations += 1
        change = loss(s) - base
        if abs(change) <= rounding * abs(base):
            return -0.0
        return change / s if math.isfinite(change) else math.inf

    low, low_slope, high, high_slope, evaluated = _bracket(slope, start)
    if math.isnan(low) or math.isinf(high):
        return Crossing(math.nan if math.isnan(low) else math.inf, low, high, evaluations)
    side = 0
    while high - low > TOLERANCE * high and evaluated < MOST:
        finite = math.isfinite(high_slope) and low_slope < 0
        weight = low_slope / (low_slope - high_slope) if finite else 0.5
        # A little beyond the secant's root, so that a linear function is bracketed from both sides at once.
        middle = low + min(max(weight, 0.02), 0.98) * (high - low)
        middle *= 1 + (TOLERANCE / 3 if side <= 0 else -TOLERANCE / 3)
        middle = min(max(middle, low + 0.01 * (high - low)), high - 0.01 * (high - low))
        there = slope(middle)
        evaluated += 1
        if there > 0:
            high, high_slope = middle, there
            low_slope, side = (low_slope / 2 if side > 0 else low_slope), 1
        else:
            low, low_slope = middle, there
            high_slope, side = (high_slope / 2 if side < 0 else high_slope), -1
    return Crossing(math.sqrt(low * high) if low > 0 else high / 2, low, high, evaluations)


def _bracket(slope: Callable[[float], float], start: float) -> tuple[float, float, float, float, int]:
    """Return a length where the loss is lower and one where it is higher, with their slopes."""
    here = slope(start)
    evaluated, s, factor = 1, start, 0.25 if here > 0 else 4.0
    while evaluated < MOST - 2:
        s *= factor
        there = slope(s)
        evaluated += 1
        if (there > 0) != (here > 0):
            if here > 0:
                return s, there, s / factor, here, evaluated
            return s / factor, here, s, there, evaluated
        here = there
        if s > FARTHEST:
            break
    return (math.nan, here, s, here, evaluated) if here > 0 else (s, here, math.inf, here, evaluated)
