"""From evidence to verdict: a pure function and a table of thresholds.

The rules are asked in order; the first that holds gives the verdict. Each threshold is relative: to the
size of the loss, to its rounding, to the largest curvature, or to the noise floor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.line import LineProbe
from thalweg.diagnosis.purse import FULL
from thalweg.diagnosis.verdict import Verdict
from thalweg.estimates import Estimate
from thalweg.problem.cost import HVP_REBUILT
from thalweg.report.document import signed, significant

__all__ = ["Judgement", "Thresholds", "judge"]


@dataclass(frozen=True)
class Thresholds:
    """What counts as how much."""

    steps: int = 100  # a gradient matters if so many steps would buy a practical change
    confidence: float = 0.99  # of every one-sided test
    noisy_floor: float = 0.05  # of |λ|max: above it no sign can be trusted
    flat: float = 1e-3  # of |λ|max: curvature below it is called flat where nothing goes down along it
    lost_signal: float = 1e-3  # the weakest layer's signal relative to the strongest
    open_gap: float = 0.05  # the share of the spread that a certificate may leave open
    at_rest: float = 3.0  # times what is practical: what a minimum may still have to gain
    slow_gain: float = 0.1  # of the scale of the loss: what a plateau could still buy
    slow_steps: float = 1e9  # and within how many steps
    endless_steps: float = 1e15  # the same, where the gradient is no accident
    unstable: float = 1.5  # times the curvature that the steps can take; nets train on a little beyond 1
    higher_order: float = 1e-2  # of the change seen: curvature that explains less is not what acts


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


MOST_FACTOR = 1e4  # times as many examples: beyond it more data is no advice

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
    return Judgement(Verdict.UNDETERMINED, _what_is_missing(evidence, limits), tuple(reasons))


def gradient_matters(e: Evidence, t: Thresholds) -> bool:
    """Whether ordinary steps still buy something, on data that can tell."""
    return e.bought(t.steps)[0] > e.practical and (e.gradient.significant or e.complete)


def gradient_is_silent(e: Evidence, t: Thresholds) -> bool:
    """Whether ordinary steps buy nothing that counts, as far as the interval of the gradient reaches."""
    return e.bought(t.steps)[1] <= e.practical


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
    return confirmed and _falls(line, t, least) and line.heldout.upper(t.confidence) < 0


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
        f"told from sampling noise; {_more(factor, 'training examples', FULL)}"
    )


def _plateau(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if lost := lost_layers(e, t):
        return Verdict.PLATEAU, f"the loss is flat here because {_named(lost)} no signal any more"
    most = t.endless_steps if e.gradient.significant else t.slow_steps
    steps = e.forecast.steps_until(t.slow_gain * e.scale, most=most)
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


def falls_beyond_first_order(e: Evidence, t: Thresholds) -> bool:
    """Whether the training loss falls along the lowest curvature more than gradient and rounding explain."""
    line = e.line("lowest curvature")
    if line is None:
        return False
    for (_, rest), change in zip(line.beyond_first_order(), line.train, strict=True):
        noise = change.upper(t.confidence) - change.value if math.isfinite(change.stderr) else 0.0
        if rest < -4 * e.rounding and rest + noise < 0:
            return True
    return False


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
    if any(_falls(line, t, t.at_rest * e.practical) for line in e.lines) or not _curvature_shows(e):
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


def _falls(line: LineProbe, t: Thresholds, least: float) -> bool:
    """Whether the training loss falls along a line, for whatever reason."""
    return line.best.value < -least and line.best.upper(t.confidence) < 0


def lost_layers(e: Evidence, t: Thresholds) -> list[str]:
    """Return the layers near the input that the signal no longer reaches, in the model's order.

    One weak layer may be weak by design; two in a row, or one that receives nothing at all, are cut off.
    """
    layers = e.gradient.layers
    strongest = max((layer.signal for layer in layers), default=0.0)
    if strongest == 0:
        return []
    lost = list(itertools.takewhile(lambda layer: layer.signal < t.lost_signal * strongest, layers))
    if len(lost) >= 2 or (lost and lost[0].signal == 0):
        return [layer.name for layer in lost]
    return []


def _what_is_missing(e: Evidence, t: Thresholds) -> str:
    """Say what would decide, and what that costs."""
    c, line = e.curvature, e.line("lowest curvature")
    depth = significant(c.lambda_min.value)
    falls = falls_beyond_first_order(e, t)
    if c.lambda_min.value < -c.floor and falls and e.heldout_curvature.upper(t.confidence) >= 0:
        return (
            f"negative curvature ({depth}) was found on the training sample, but {e.heldout_source} do not "
            f"confirm it; {_more_heldout(e, e.heldout_curvature, c.lambda_min.value, t)}"
        )
    if falls and line is not None:
        along = (
            f"there is negative curvature ({depth}), but the step that"
            if c.lambda_min.value < -c.floor
            else ("along a direction without curvature the training loss falls, but the step that")
        )
        return (
            f"{along} lowers the training loss does not lower that of {e.heldout_source}; "
            f"{_more_heldout(e, line.heldout, line.best.value, t)}"
        )
    if c.lambda_min.value < -max(c.floor, t.flat * c.extremes.scale):
        if line is None or line.best.value >= 0:
            return f"there is negative curvature ({depth}), but no step along it lowers the loss"
        noise = line.best.upper(t.confidence) - line.best.value
        return (
            f"there is negative curvature ({depth}), but the fall along it ({signed(line.best.value)}) is "
            f"within its noise ± {significant(noise)}; {_more_heldout(e, line.heldout, line.best.value, t)}"
        )
    if (
        line := next((line for line in e.lines if _falls(line, t, t.at_rest * e.practical)), None)
    ) is not None:
        return f"a step along {line.name} still lowers the training loss by {significant(-line.best.value)}"
    if c.certificate.relative_gap > t.open_gap:
        # What a run leaves open falls with the square of its length.
        run = max(c.num_hvps - 2, 1)
        more = max(math.ceil(run * (math.sqrt(c.certificate.relative_gap / t.open_gap) - 1)), 1)
        return (
            f"nothing negative was found, but {c.num_hvps} products leave {c.certificate.relative_gap:.0%} "
            f"of the spectrum open; at least {more} more would decide, at about "
            f"{significant(more * c.product_cost)} "
            "gradient-equivalents"
        )
    return "the function is constant around this point, as far as its precision tells"


def _more_heldout(e: Evidence, seen: Estimate, expected: float, t: Thresholds) -> str:
    """How much more held-out data would decide, if what the training sample shows is true of them too."""
    if e.heldout_source == "loss differences":
        return "double precision, or a probe of another length, might decide"
    wanted = abs(seen.value) if seen.value < 0 else abs(expected)
    error = seen.upper(t.confidence) - seen.value
    if wanted == 0 or not math.isfinite(error):
        return f"more of {e.heldout_source} would decide"
    factor = max((error / wanted) ** 2, 2.0)
    return _more(factor, "held-out examples", HVP_REBUILT * (e.heldout_share or 1.0))


def _more(factor: float, what: str, cost: float) -> str:
    """Say what ``factor`` times as many examples would cost, ``cost`` being that of the present ones."""
    if factor > MOST_FACTOR:
        return f"no affordable number of {what} would decide"
    return (
        f"about {significant(factor)} times as many {what} would decide, at about "
        f"{significant(factor * cost)} gradient-equivalents"
    )


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
