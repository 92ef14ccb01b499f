"""From evidence to verdict: a pure function and a table of thresholds.

The rules are asked in order; the first that holds gives the verdict. Each threshold is relative: to the
size of the loss, to its rounding, to the largest curvature, or to the noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.missing import more, what_is_missing
from thalweg.diagnosis.purse import FULL
from thalweg.diagnosis.readings import (
    Thresholds,
    falls,
    falls_beyond_first_order,
    gradient_is_silent,
    gradient_matters,
    lost_layers,
)
from thalweg.diagnosis.verdict import Verdict
from thalweg.report.document import significant

__all__ = ["Judgement", "judge"]


@dataclass(frozen=True)
class Judgement:
    """A verdict and why.

    Attributes:
        verdict: the word.
        summary: the sentence that explains it.
        reasons: what the rules saw, in the order they were asked.
    """

    verdict: Verdict
    summary: str
    reasons: tuple[str, ...]


Rule = Callable[[Evidence, Thresholds], tuple[Verdict, str] | None]


def judge(evidence: Evidence, thresholds: Thresholds | None = None) -> Judgement:
    """Return the verdict that ``evidence`` supports. Pure: no measuring, no randomness."""
    limits = thresholds or Thresholds()
    reasons: list[str] = []
    for rule in RULES:
        answer = rule(evidence, limits)
        if answer is not None:
            verdict, summary = answer
            return Judgement(verdict, summary, tuple(reasons))
        reasons.append(f"not {rule.__name__.strip('_').replace('_', ' ')}")
    return Judgement(Verdict.UNDETERMINED, what_is_missing(evidence, limits), tuple(reasons))


def _bouncing(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if not gradient_matters(e, t):
        return None
    c, s = e.continuation, e.stability
    if c is None and s is not None and s.least_ratio > t.unstable:
        return Verdict.BOUNCING, (
            f"there is a way down, but the steps are {significant(s.least_ratio)} times too long for the "
            "steepest direction, so that they grow along it"
        )
    if c is None:
        return None
    stuck = c.as_configured.upper(t.confidence) >= 0
    shorter_helps = c.tenth.upper(t.confidence) < -e.practical / 10 and c.advantage.upper(t.confidence) < 0
    if not (stuck and shorter_helps):
        return None
    return Verdict.BOUNCING, (
        "there is a way down, but the steps jump over it: training as configured does not lower the loss "
        "from here, a tenth of the learning rate does"
    )


def _unclear_steps(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    c = e.continuation
    if c is None or not gradient_matters(e, t) or not c.is_open(t.confidence):
        return None
    margin = c.advantage.upper(t.confidence) - c.advantage.value
    factor = max((margin / abs(c.advantage.value)) ** 2, 2.0)
    return Verdict.UNDETERMINED, (
        "there is a way down, and a tenth of the learning rate takes it; whether the steps as configured do, "
        "or bounce, the batches do not tell: about "
        f"{significant(factor * c.advantage.num_samples)} repetitions of {c.steps} steps would"
    )


def _descending(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if not gradient_matters(e, t):
        return None
    tail, unjudged = "", e.optimizer is not None and e.continuation is None
    if unjudged:
        return Verdict.DESCENDING, (
            "the gradient leads down; whether the steps as configured take that way was not measured"
        )
    if lost := lost_layers(e, t):
        tail = f"; but {_named(lost)} no signal, so only the rest of the model learns"
    elif not e.gradient.significant:
        tail = "; the batches do not agree on the direction, so it may be noise that is being fitted"
    return Verdict.DESCENDING, f"the gradient still leads down: ordinary steps lower the loss{tail}"


def _drowned_in_noise(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    c = e.curvature
    if c.floor <= t.noisy_floor * c.extremes.scale or c.extremes.scale == 0:
        return None
    return Verdict.UNDETERMINED, (
        "the second derivative is too noisy to have a sign: its rounding reaches "
        f"{c.floor / c.extremes.scale:.0%} of the largest curvature; measure in float64"
    )


def _degenerate(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    line = e.line("lowest curvature")
    if line is None or not gradient_is_silent(e, t):
        return None
    seen = [(s, rest) for s, rest in line.beyond_first_order() if abs(rest) > 4 * e.rounding]
    c = e.curvature
    most = c.extremes.scale + max(c.lambda_max.bound, c.lambda_min.bound)
    if not seen or any(0.5 * most * s**2 > t.higher_order * abs(rest) for s, rest in seen):
        return None
    if line.best.value < -4 * e.rounding:
        return Verdict.DEGENERATE, (
            "gradient and curvature are zero, so first and second order say nothing; "
            "the probe finds a way down that only higher orders make"
        )
    if {math.copysign(1.0, s) for s, rest in seen if rest > 0} != {1.0, -1.0}:
        return None
    return Verdict.DEGENERATE, (
        "gradient and curvature are zero, so first and second order say nothing; "
        "the probe goes up both ways, as at a minimum of higher order"
    )


def _goes_down(e: Evidence, t: Thresholds, least: float) -> bool:
    """Negative curvature, found on one sample, confirmed on the other, and a loss that really falls."""
    low, line = e.curvature.lambda_min, e.line("lowest curvature")
    if line is None or low.value >= -e.curvature.floor:
        return False
    confirmed = e.heldout_curvature.upper(t.confidence) < 0
    return confirmed and falls(line, t, least) and line.heldout.upper(t.confidence) < 0


def _saddle(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if e.curvature.lambda_max.value < -e.curvature.floor or not _goes_down(e, t, e.practical):
        return None
    return Verdict.SADDLE, "the gradient is silent, but there is a way down that it does not show"


def _unclear_gradient(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if gradient_is_silent(e, t):
        return None
    # The noise of ‖G‖² falls with the number of examples, and so does what it may hide.
    factor = max(e.bought(t.steps)[1] / e.practical, 2.0)
    return Verdict.UNDETERMINED, (
        "steps along the gradient might buy something, but the batches do not agree on it, so it cannot be "
        f"told from sampling noise; {more(factor, 'training examples', FULL)}"
    )


def _plateau(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if lost := lost_layers(e, t):
        return Verdict.PLATEAU, f"the loss is flat here because {_named(lost)} no signal any more"
    most = t.endless_steps if e.gradient.significant else t.slow_steps
    # A tenth of a loss that comes out as 0 is no change that could be seen.
    steps = e.forecast.steps_until(max(t.slow_gain * e.scale, e.practical), most=most)
    if steps is not None and e.gradient.norm > 0:
        return Verdict.PLATEAU, (
            "the loss is flat here but not at rest: the gradient is small, and steps of first order would "
            f"take about {significant(steps, 1)} to lower the loss by a tenth"
        )
    left = e.bought(t.slow_steps)[0]
    if left <= t.at_rest * e.practical or not (e.gradient.significant or e.complete):
        return None
    half = e.forecast.steps_until(left / 2, most=t.slow_steps) or 0.0
    return Verdict.PLATEAU, (
        f"the loss lies in a long valley and not at rest: about {significant(left)} is still to gain, but "
        f"half of it takes about {significant(half, 1)} steps of first order"
    )


def _named(layers: list[str]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]} receives"
    return (
        f"layers {layers[0]} … {layers[-1]} receive"
        if len(layers) > 2
        else (f"layers {layers[0]} and {layers[1]} receive")
    )


def _slight_saddle(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if e.curvature.lambda_max.value < -e.curvature.floor or not _goes_down(e, t, 4 * e.rounding):
        return None
    return Verdict.SADDLE, (
        "the gradient is silent and there is a way down that it does not show, though it leads down only "
        "a little"
    )


def _higher_order(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    c, line = e.curvature, e.line("lowest curvature")
    known = max(c.certificate.relative_gap, c.lambda_min.bound / (c.extremes.scale or 1.0)) <= t.open_gap
    curved = abs(c.lambda_min.value) > max(c.floor, c.lambda_min.bound)
    if curved or not known or line is None or not falls_beyond_first_order(e, t):
        return None
    if line.heldout.upper(t.confidence) >= 0:
        return None
    return Verdict.DEGENERATE, (
        "the gradient is silent and nothing curves down, but along a direction without curvature the loss "
        "falls: a way down of higher order"
    )


def _maximum(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    c = e.curvature
    closed = c.certificate.relative_gap <= t.open_gap
    if not (closed and c.lambda_max.value + c.floor < 0) or not _falls_both_ways(e):
        return None
    return Verdict.MAXIMUM, "every direction that was found goes down"


def _falls_both_ways(e: Evidence) -> bool:
    """Whether the smallest steps that show at all go down in both directions: on a slope one goes up."""
    line = e.line("lowest curvature")
    if line is None:
        return False
    changes = {step: change.value for step, change in zip(line.steps, line.train, strict=True)}
    seen = [s for s in changes if s > 0 and max(abs(changes[s]), abs(changes[-s])) > 4 * e.rounding]
    return bool(seen) and max(changes[min(seen)], changes[-min(seen)]) < 4 * e.rounding


def _minimum(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    c = e.curvature
    closed = c.certificate.relative_gap <= t.open_gap
    tolerated = max(c.floor, 0.0 if c.complete else t.flat * c.extremes.scale)
    if not closed or c.lambda_max.value <= c.floor or c.lambda_min.value < -tolerated:
        return None
    if falls_beyond_first_order(e, t):  # slight or not, confirmed or not: there is a way down
        return None
    if any(falls(line, t, t.at_rest * e.practical) for line in e.lines) or not _curvature_shows(e):
        return None
    if c.certificate.gap == 0:
        sure = "the whole spectrum was found and holds no way down"
    else:
        below = significant(c.lambda_min.value - c.certificate.gap)
        sure = f"no direction curves below {below}, with {c.certificate.confidence:.0%} confidence"
    flat = ", up to flat directions" if c.lambda_min.value < 1e-3 * c.lambda_max.value else ""
    return Verdict.MINIMUM, f"the gradient is silent and {sure}{flat}"


def _curvature_shows(e: Evidence) -> bool:
    """Whether the largest curvature raises the loss above its rounding within reach."""
    line = e.line("lowest curvature")
    reach = max((abs(step) for step in line.steps), default=0.0) if line is not None else 0.0
    return 0.5 * e.curvature.lambda_max.value * reach**2 > 4 * e.rounding


RULES: tuple[Rule, ...] = (
    _bouncing,
    _unclear_steps,
    _descending,
    _drowned_in_noise,
    _degenerate,
    _saddle,
    _unclear_gradient,
    _plateau,
    _slight_saddle,
    _higher_order,
    _maximum,
    _minimum,
)
