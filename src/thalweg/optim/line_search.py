"""How far to go along a line: strong Wolfe conditions by cubic interpolation, and backtracking.

A line is a function α ↦ (value, slope) of one number, and its value and slope at α = 0, the slope negative.
Nothing here knows parameters or gradients. Where a value or slope is not finite, the step was too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from thalweg.errors import InputError

__all__ = ["Found", "Line", "backtracking", "strong_wolfe"]

Line = Callable[[float], tuple[float, float]]

_GROWTH = 10.0  # the most by which a trial is longer than the one before
_INWARD = 0.1  # the least part of a bracket that a trial leaves at each end


@dataclass(frozen=True)
class Found:
    """Where a line search ended.

    Attributes:
        step: α ≥ 0. Where α > 0 the value fell sufficiently; 0 where no such α was found.
        value: at α.
        slope: at α.
        satisfied: whether all conditions hold at α.
        num_evaluations: of the line.
    """

    step: float
    value: float
    slope: float
    satisfied: bool
    num_evaluations: int


@dataclass(frozen=True)
class _Point:
    step: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.slope)


def strong_wolfe(
    line: Line,
    value: float,
    slope: float,
    *,
    first: float = 1.0,
    c1: float = 1e-4,
    c2: float = 0.9,
    noise: float = 0.0,
    most: int = 30,
) -> Found:
    """Find α with value(α) ≤ value + c1·α·slope and |slope(α)| ≤ c2·|slope|.

    [nocedal2006] algorithms 3.5 and 3.6 as one loop: the bracket has no far end until a trial was too long;
    trials come from the cubic through values and slopes of both ends (3.59), kept inside the bracket, and
    from its middle when it does not shrink fast enough. On a quadratic the second trial is the minimum.

    Args:
        line: α ↦ (value, slope).
        value: at α = 0.
        slope: at α = 0, negative.
        first: the first trial.
        c1: of the sufficient decrease, 0 < c1 < c2.
        c2: of the curvature condition, < 1. Small: close to the minimum along the line.
        noise: rounding error of a value. Differences below it do not count; there the slopes decide, without
            which no search ends near a minimum in float32 ([hager2005], "approximate Wolfe").
        most: evaluations.

    Returns:
        The last α tried where the conditions hold. Otherwise, after ``most`` evaluations or in a bracket of
        no length, the lowest α with sufficient decrease, and ``satisfied`` is false.

    Raises:
        InputError: for a slope that is not negative, or constants out of their order.
    """
    _require(value, slope, first, c1, c2)
    start = low = behind = _Point(0.0, value, slope)
    high: _Point | None = None
    widths = [math.inf, math.inf]
    step = first
    for count in range(1, most + 1):
        trial = _Point(step, *line(step))
        enough = trial.value <= value + c1 * step * slope + noise
        if not trial.finite or not enough or not trial.value < low.value + noise:
            high = trial
        elif abs(trial.slope) <= -c2 * slope:
            return Found(trial.step, trial.value, trial.slope, True, count)
        else:
            if trial.slope * (1.0 if high is None else high.step - low.step) >= 0:
                high = low
            behind, low = low, trial
        if high is None:
            step = _beyond(behind, low, noise)
            continue
        widths.append(abs(high.step - low.step))
        # Two trials that leave more than 2/3 of the bracket call for its middle [more1994].
        slow = high.finite and widths[-1] > 0.66 * widths[-3]
        step = (low.step + high.step) / 2 if slow else _between(low, high, noise)
        if step in {low.step, high.step}:
            break
    if not low.value < value:  # within the noise, and the slopes did not say that it was worth while
        low = start
    return Found(low.step, low.value, low.slope, False, count)


def backtracking(
    line: Line,
    value: float,
    slope: float,
    *,
    first: float = 1.0,
    c1: float = 1e-3,
    c2: float = 0.1,
    noise: float = 0.0,
    shortest: float = 1e-6,
    longest: float = 100.0,
) -> Found:
    """Find α with value(α) ≤ value + c1·α·slope by shortening, or doubling where the slope is still steep.

    [dennis1996] algorithm A6.3.1 with its growth (A6.3.1mod), with the parameters of MATLAB's ``srchbac``: a
    step too long shrinks to between 0.1 and 0.5 of itself, by the parabola through the first trial and the
    cubic through the last two; one with slope(α) < c2·slope doubles as long as the decrease suffices.

    Args:
        line: α ↦ (value, slope).
        value: at α = 0.
        slope: at α = 0, negative.
        first: the first trial.
        c1: of the sufficient decrease.
        c2: of the growth, c1 < c2 < 1.
        noise: rounding error of a value.
        shortest: in units of ``first``; a search that comes below gives up.
        longest: in units of ``first``.

    Returns:
        The α found. ``satisfied`` speaks of the sufficient decrease only.

    Raises:
        InputError: for a slope that is not negative, or constants out of their order.
    """
    _require(value, slope, first, c1, c2)
    start, step, count = _Point(0.0, value, slope), first, 0
    longer: _Point | None = None  # too long
    good: _Point | None = None  # long enough, and perhaps too short
    while shortest * first <= step <= longest * first:
        trial, count = _Point(step, *line(step)), count + 1
        if trial.finite and trial.value <= value + c1 * step * slope + noise:
            if good is not None and trial.value > good.value:
                break
            good = trial
            if longer is not None or trial.slope >= c2 * slope:
                break
            step *= 2
        elif good is not None:
            break
        else:
            step = _shorter(start, trial, longer)
            longer = trial
    if good is None:
        return Found(0.0, value, slope, False, count)
    return Found(good.step, good.value, good.slope, True, count)


def _require(value: float, slope: float, first: float, c1: float, c2: float) -> None:
    if not (math.isfinite(value) and -math.inf < slope < 0):
        raise InputError(
            "a line search needs a finite value and a negative slope where it begins",
            got=f"value {value:g}, slope {slope:g}",
        )
    if not (0 < c1 < c2 < 1 and 0 < first < math.inf):
        raise InputError(
            "the constants of the line search are out of their order",
            expected="0 < c1 < c2 < 1 and a positive first step",
            got=f"c1 {c1:g}, c2 {c2:g}, first {first:g}",
        )


def _beyond(behind: _Point, low: _Point, noise: float) -> float:
    """Return a trial beyond ``low``, which still falls."""
    least, longest = low.step + 0.01 * (low.step - behind.step), _GROWTH * low.step
    guess = _minimum(behind, low, noise)
    return longest if guess is None or guess <= low.step else min(max(guess, least), longest)


def _between(low: _Point, high: _Point, noise: float) -> float:
    """Return a trial in the bracket, away from its ends."""
    width = high.step - low.step
    if not high.finite:
        return low.step + _INWARD * width
    guess = _minimum(low, high, noise)
    part = 0.5 if guess is None else (guess - low.step) / width
    return low.step + min(max(part, _INWARD), 1 - _INWARD) * width


def _minimum(one: _Point, other: _Point, noise: float) -> float | None:
    """Return the minimum of the cubic through values and slopes of two points, None where it has none.

    Values that differ by rounding only say nothing: then of the parabola through the slopes.
    """
    width, a, b = other.step - one.step, one.slope, other.slope
    if abs(other.value - one.value) <= 10 * noise:
        curvature = (b - a) / width
        guess = one.step - a / curvature if curvature > 0 else math.nan
    else:
        d1 = a + b - 3 * (one.value - other.value) / (one.step - other.step)
        inside = d1 * d1 - a * b
        d2 = math.copysign(math.sqrt(inside), width) if inside >= 0 else math.nan
        bottom = b - a + 2 * d2
        guess = other.step - width * (b + d2 - d1) / bottom if bottom else math.nan
    return guess if math.isfinite(guess) else None


def _shorter(start: _Point, trial: _Point, longer: _Point | None) -> float:
    """Return a step of 0.1 to 0.5 of ``trial``, by what the last one or two too long ones say."""
    step = trial.step
    if not math.isfinite(trial.value):
        return _INWARD * step
    rest = trial.value - start.value - start.slope * step  # of the line beyond its tangent
    if longer is None or not math.isfinite(longer.value):
        guess = -start.slope * step**2 / (2 * rest) if rest > 0 else math.inf
    else:
        other = longer.value - start.value - start.slope * longer.step
        one, two = rest / step**2, other / longer.step**2
        a = (one - two) / (step - longer.step)
        b = (step * two - longer.step * one) / (step - longer.step)
        inside = b * b - 3 * a * start.slope
        if a == 0:
            guess = -start.slope / (2 * b) if b > 0 else math.inf
        else:
            guess = (-b + math.sqrt(inside)) / (3 * a) if inside >= 0 else math.inf
    return min(max(guess, 0.1 * step), 0.5 * step) if not math.isnan(guess) else 0.5 * step
