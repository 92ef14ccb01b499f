"""What the evidence says by itself, against the thresholds: what several rules ask. Pure."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.line import LineProbe

__all__ = [
    "Thresholds",
    "falls",
    "falls_beyond_first_order",
    "gradient_is_silent",
    "gradient_matters",
    "lost_layers",
]


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


def gradient_matters(e: Evidence, t: Thresholds) -> bool:
    """Whether ordinary steps still buy something, on data that can tell."""
    return e.bought(t.steps)[0] > e.practical and (e.gradient.significant or e.complete)


def gradient_is_silent(e: Evidence, t: Thresholds) -> bool:
    """Whether ordinary steps buy nothing that counts, as far as the interval of the gradient reaches."""
    return e.bought(t.steps)[1] <= e.practical


def falls(line: LineProbe, t: Thresholds, least: float) -> bool:
    """Whether the training loss falls along a line, for whatever reason."""
    return line.best.value < -least and line.best.upper(t.confidence) < 0


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
