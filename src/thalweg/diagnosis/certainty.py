"""What a verdict means, and how sure it is, for readers who meet Thalweg for the first time."""

from __future__ import annotations

import math

from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.readings import Thresholds, lost_layers
from thalweg.diagnosis.verdict import Verdict
from thalweg.estimates import Estimate
from thalweg.report.document import signed, significant

__all__ = ["MEANING", "how_sure"]

MEANING = {
    Verdict.DESCENDING: "Training is on its way down: the slope still leads to a lower loss.",
    Verdict.BOUNCING: "The steps are too long for the valley: they jump from wall to wall instead of going "
    "down.",
    Verdict.SADDLE: "A saddle is like a mountain pass: level under foot, uphill in most directions, downhill "
    "in at least one. Training stalls there although it is not at the bottom.",
    Verdict.MINIMUM: "At a minimum the loss rises whichever way the weights move a little: the bottom of a "
    "valley, though other valleys may be deeper.",
    Verdict.MAXIMUM: "At a maximum the loss falls whichever way the weights move: the top of a hill.",
    Verdict.PLATEAU: "On a plateau the loss is nearly flat but not at the bottom: ordinary steps hardly "
    "lower it.",
    Verdict.DEGENERATE: "Slope and curvature are both zero, so neither can tell a bottom from a way down.",
    Verdict.UNDETERMINED: "The measurements fit more than one answer, so none is given.",
}


def how_sure(verdict: Verdict, e: Evidence) -> str:
    """Say in a sentence or two what the verdict rests on, with its error; "" where nothing is claimed."""
    match verdict:
        case Verdict.SADDLE:
            return _way_down(e)
        case Verdict.MINIMUM:
            return (
                f"{_certified(e)} No step that was tried, along the gradient or the lowest curvature, lowers "
                "the loss by what counts."
            )
        case Verdict.MAXIMUM:
            top = e.curvature.lambda_max
            return f"The largest curvature is {significant(top.value)} ± {significant(top.bound, 1)}."
        case Verdict.DESCENDING:
            return _slope(e)
        case Verdict.BOUNCING if e.continuation is not None:
            c = e.continuation
            return (
                f"The next {c.steps} steps as configured change the training loss by "
                f"{_interval(c.as_configured)}, with a tenth of the learning rate by {_interval(c.tenth)}."
            )
        case Verdict.PLATEAU:
            return _flatness(e)
        case Verdict.DEGENERATE:
            low = e.curvature.lambda_min
            return f"The lowest curvature is {significant(low.value)} ± {significant(low.bound, 1)}."
    return ""


def _way_down(e: Evidence) -> str:
    line = e.line("lowest curvature")
    if line is None:
        return ""
    change = line.heldout
    if change.stderr == 0:
        return (
            f"The function was evaluated along the way down and changes by {signed(change.value)}; nothing "
            "was sampled, so nothing is left to chance."
        )
    apart = ", which had no part in finding the way," if e.heldout_loss is not None else ""
    return (
        f"The {e.heldout_source}{apart} confirm it: a step along it changes their loss of "
        f"{significant((e.heldout_loss or e.loss).value, 3)} by "
        f"{_interval(change)}, {significant(abs(change.value) / change.stderr)} standard errors from "
        f"nothing, and their curvature along it is {_interval(e.heldout_curvature)}."
    )


def _slope(e: Evidence) -> str:
    g = e.gradient
    bought = significant(e.bought(100)[0])
    if g.stderr == 0 or not math.isfinite(g.interval[1]):
        return f"The slope is {significant(g.norm)}; a hundred well-chosen steps would buy {bought}."
    low, high = g.interval
    text = f"The slope over all such data is {significant(low)} … {significant(high)} (95 %)"
    if g.significant:
        chance = "less than 0.1 %" if g.p_value < 1e-3 else f"{100 * g.p_value:.1f} %"
        text += f"; that the batches agree on it by chance has a probability of {chance}"
    return text + "."


def _flatness(e: Evidence) -> str:
    if lost_layers(e, Thresholds()) and e.fall is not None:
        low, high = e.fall.interval()
        return (
            "From layer to layer towards the input the learning signal falls by a factor of "
            f"{significant(e.fall.factor)} (95 %: {significant(low)} … {significant(high)})."
        )
    return (
        f"A hundred well-chosen steps would lower the loss by {significant(e.bought(100)[0])}; from "
        f"{significant(e.practical, 1)} on it counts."
    )


def _sample(e: Evidence) -> str:
    return "over all the training data" if e.complete else "in the sample that was measured"


def _interval(change: Estimate) -> str:
    low, high = change.interval()
    return f"{signed(change.value)} (95 %: {signed(low)} … {signed(high)})"


def _certified(e: Evidence) -> str:
    certificate, where = e.curvature.certificate, _sample(e)
    if e.curvature.complete or certificate.gap == 0:
        return "Every curvature was found, and none leads down."
    below = e.curvature.lambda_min.value - certificate.gap
    return (
        f"With {100 * certificate.confidence:.0f} % confidence no direction curves below "
        f"{significant(below)}, {where}."
    )
