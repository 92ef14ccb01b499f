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
from thalweg.diagnosis.verdict import Verdict
from thalweg.report.document import significant

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
    slow_gain: float = 0.1  # of the scale of the loss: what a plateau could still buy
    slow_steps: float = 1e9  # and within how many steps
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
    return e.forecast.decrease(t.steps) > e.practical and (e.gradient.significant or e.complete)


def _bouncing(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    c = e.continuation
    if c is None or not gradient_matters(e, t):
        return None
    stuck = c.as_configured.upper(t.confidence) >= 0
    shorter_helps = c.tenth.upper(t.confidence) < -e.practical / 10 and c.advantage.upper(t.confidence) < 0
    if not (stuck and shorter_helps):
        return None
    return Verdict.BOUNCING, (
        "there is a way down, but the steps jump over it: training as configured does not lower the loss "
        "from here, a tenth of the learning rate does"
    )


def _descending(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if not gradient_matters(e, t):
        return None
    tail = ""
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
    if line is None or e.forecast.decrease(t.steps) > e.practical:
        return None
    seen = [(s, rest) for s, rest in line.beyond_first_order() if abs(rest) > 4 * e.rounding]
    scale = e.curvature.extremes.scale
    if not seen or any(0.5 * scale * s**2 > t.higher_order * abs(rest) for s, rest in seen):
        return None
    if line.best.value < -4 * e.rounding:
        return Verdict.DEGENERATE, (
            "gradient and curvature are zero, so first and second order say nothing; "
            "the probe finds a way down that only higher orders make"
        )
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
    falls = line.best.value < -least and line.best.upper(t.confidence) < 0
    return confirmed and falls and line.heldout.upper(t.confidence) < 0


def _saddle(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if e.curvature.lambda_max.value <= e.curvature.floor or not _goes_down(e, t, e.practical):
        return None
    return Verdict.SADDLE, "the gradient is silent, but there is a way down that it does not show"


def _unclear_gradient(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if e.forecast.decrease(t.steps) <= e.practical:
        return None
    return Verdict.UNDETERMINED, (
        "the gradient of this sample would buy something, but the batches do not agree on it, so it cannot "
        "be told from sampling noise; measure on more examples"
    )


def _plateau(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    if lost := lost_layers(e, t):
        return Verdict.PLATEAU, f"the loss is flat here because {_named(lost)} no signal any more"
    steps = e.forecast.steps_until(t.slow_gain * e.scale, most=t.slow_steps)
    if steps is None or e.gradient.norm == 0:
        return None
    return Verdict.PLATEAU, (
        "the loss is flat here but not at rest: the gradient is small, and steps of first order would take "
        f"about {significant(steps, 1)} to lower the loss by a tenth"
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
    if e.curvature.lambda_max.value <= e.curvature.floor or not _goes_down(e, t, 4 * e.rounding):
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
    curved = abs(c.lambda_min.value) > max(c.floor, c.lambda_min.bound)
    if curved or line is None or not falls_beyond_first_order(e, t):
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
    if not (closed and c.lambda_max.value + c.floor < 0):
        return None
    return Verdict.MAXIMUM, "every direction that was found goes down"


def _minimum(e: Evidence, t: Thresholds) -> tuple[Verdict, str] | None:
    c = e.curvature
    closed = c.certificate.relative_gap <= t.open_gap
    tolerated = max(c.floor, 0.0 if c.complete else t.flat * c.extremes.scale)
    if not closed or c.lambda_max.value <= c.floor or c.lambda_min.value < -tolerated:
        return None
    if falls_beyond_first_order(e, t):  # slight or not, confirmed or not: there is a way down
        return None
    if c.certificate.gap == 0:
        sure = "the whole spectrum was found and holds no way down"
    else:
        below = significant(c.lambda_min.value - c.certificate.gap)
        sure = f"no direction curves below {below}, with {c.certificate.confidence:.0%} confidence"
    flat = ", up to flat directions" if c.lambda_min.value < 1e-3 * c.lambda_max.value else ""
    return Verdict.MINIMUM, f"the gradient is silent and {sure}{flat}"


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
    c = e.curvature
    if c.lambda_min.value < -c.floor and falls_beyond_first_order(e, t):
        if e.heldout_curvature.upper(t.confidence) >= 0:
            return (
                f"negative curvature ({significant(c.lambda_min.value)}) was found on the training sample, "
                f"but {e.heldout_source} do not confirm it; more held-out data would decide"
            )
        return (
            f"there is negative curvature ({significant(c.lambda_min.value)}), but the step that lowers the "
            f"training loss does not lower that of {e.heldout_source}; more of them would decide"
        )
    if falls_beyond_first_order(e, t):
        return (
            "the training loss falls along a direction without curvature, but that of the "
            f"{e.heldout_source} does not; more of them would decide"
        )
    if c.lambda_min.value < -max(c.floor, t.flat * c.extremes.scale):
        return (
            f"there is negative curvature ({significant(c.lambda_min.value)}), but no step along it lowers "
            "the loss"
        )
    if c.certificate.relative_gap > t.open_gap:
        return (
            f"nothing negative was found, but {c.num_hvps} products leave "
            f"{c.certificate.relative_gap:.0%} of the spectrum open; allow a larger budget"
        )
    return "the function is constant around this point, as far as its precision tells"


RULES: tuple[Rule, ...] = (
    _bouncing,
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
