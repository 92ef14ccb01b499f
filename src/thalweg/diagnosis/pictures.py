"""The evidence as pictures: spectrum, learning signal, loss along lines, moves. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from thalweg.curvature.picture import spectrum_figure
from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.facts import NOTEWORTHY
from thalweg.diagnosis.gradient import LayerSignal
from thalweg.diagnosis.line import OVERFLOW, LineProbe
from thalweg.diagnosis.moves import Move
from thalweg.estimates import Estimate
from thalweg.report.document import Tone, signed, significant
from thalweg.report.figures import (
    Axis,
    Band,
    Bar,
    BarPlot,
    Figure,
    LinePlot,
    Mark,
    Plot,
    Scale,
    Series,
)

__all__ = ["evidence_figures", "moves_figure"]

_BARS = 20  # layers up to which each has a bar with its name
_WIDE = 10.0  # times from which on a scale is logarithmic
_NORMAL = 1.96  # standard errors of a 95 % interval
_WORD = {
    "lowest curvature": "Along the lowest curvature, both ways",
    "−gradient": "Along the gradient, downhill",
}


def evidence_figures(e: Evidence) -> tuple[Figure, ...]:
    """Return the pictures of what was measured; those for which there is nothing to show are left out."""
    figures = [_lines(e), spectrum_figure(e.curvature.extremes), _signal(e)]
    return tuple(figure for figure in figures if figure is not None)


def _lines(e: Evidence) -> Figure | None:
    probes = [probe for name in _WORD if (probe := e.line(name)) is not None]
    if not probes:
        return None
    heldout = e.heldout_loss is not None
    told = "; ".join(_line_in_words(probe, heldout) for probe in probes)
    panels = tuple(_line(probe, e, heldout) for probe in probes)
    return Figure(
        name="lines",
        title="The loss on a walk from the weights",
        alt=f"Change of the loss against the distance walked from the weights. {told}.",
        panels=panels,
        caption=(
            "Within the grey stripe a change is too small to count. " if any(p.bands for p in panels) else ""
        )
        + ("Bars are 95 % intervals." if e.loss.stderr > 0 else "")
        + (
            " The diamond is the loss on held-out data, at the distance that the training data chose."
            if heldout
            else ""
        ),
    )


def _line(probe: LineProbe, e: Evidence, heldout: bool) -> LinePlot:
    unit = max(abs(probe.best.value), e.practical) or max(abs(change.value) for change in probe.train) or 1.0
    low, high = -1.6 * unit, 2.4 * unit
    here = (0.0, Estimate(0.0, 0.0))
    walked = sorted([here, *zip(probe.steps, probe.train, strict=True)], key=lambda pair: pair[0])
    far = max(abs(step) for step, change in walked if low <= change.value <= high)
    begin, end = (1.3 * far if any(step < 0 for step in probe.steps) else 0.0), 1.3 * far
    near = np.linspace(-begin, end, 101)
    curved = probe.name == "lowest curvature"
    model = near * probe.slope + (e.curvature.lambda_min.value * near**2 / 2 if curved else 0.0)
    series = [
        Series(
            "predicted by curvature" if curved else "predicted by the slope",
            tuple(near.tolist()),
            tuple(model.tolist()),
            style="dashed",
        ),
        _measured("training loss", walked),
    ]
    if heldout:
        series.append(_measured("held-out loss", [(probe.best_step, probe.heldout)]))
    return LinePlot(
        _WORD[probe.name],
        Axis("distance walked", limits=(-begin, end)),
        Axis("change of the loss", limits=(low, high)),
        tuple(series),
        marks=(Mark(0.0, 0.0, "here", "the weights"),),
        bands=(Band(-e.practical, e.practical, "too little to count"),) if e.practical > 0.02 * unit else (),
    )


def _measured(label: str, walked: Sequence[tuple[float, Estimate]]) -> Series:
    """Points with 95 % intervals; where the error is unknown without, where the loss overflows with a gap."""
    changes = [change for _, change in walked]
    ends = [change.interval() if math.isfinite(change.stderr) else (change.value,) * 2 for change in changes]
    return Series(
        label,
        tuple(step for step, _ in walked),
        tuple(change.value if change.value < OVERFLOW / 10 else math.nan for change in changes),
        tuple(low for low, _ in ends),
        tuple(high for _, high in ends),
        style="joined",
    )


def _line_in_words(probe: LineProbe, heldout: bool) -> str:
    text = (
        f"{_WORD[probe.name]}: the lowest training loss is {signed(probe.best.value)}, "
        f"at a distance of {significant(abs(probe.best_step))}"
    )
    return text + (f"; the held-out loss changes by {signed(probe.heldout.value)} there" if heldout else "")


def _signal(e: Evidence) -> Figure | None:
    layers = e.gradient.layers
    if len(layers) < 2 or not any(layer.signal > 0 for layer in layers):
        return None
    strongest = max(layers, key=lambda layer: layer.signal)
    weakest = min(layers, key=lambda layer: layer.signal)
    least = min(layer.signal for layer in layers if layer.signal > 0)
    wide = strongest.signal > _WIDE * least
    panels: list[Plot] = [_signal_plot(layers, wide, least / 3 if wide else 0.0, strongest.signal)]
    closed = [(layer.name, max(layer.dead, layer.saturated)) for layer in e.activity]
    if closed and max(share for _, share in closed) >= NOTEWORTHY and len(closed) <= _BARS:
        shares = tuple(Bar(f"layer {name}", 100 * share, note=f"{share:.0%}") for name, share in closed)
        axis = Axis("dead or saturated units, %", limits=(0, 100))
        panels.append(BarPlot("Units that pass nothing on", axis, shares))
    if len(panels) == 1:
        panels = [replace(panels[0], title="")]
    return Figure(
        name="signal",
        title="What each layer learns from",
        alt=f"The learning signal of {len(layers)} layers from input to output: strongest in layer "
        f"{strongest.name}, {significant(strongest.signal)}, weakest in layer {weakest.name}, "
        f"{significant(weakest.signal)}.",
        panels=tuple(panels),
        caption="Layers run from input to output. A layer that gets a thousand times less than another "
        "learns as much slower." + (" The scale is logarithmic." if wide else ""),
    )


def _signal_plot(layers: Sequence[LayerSignal], wide: bool, begin: float, most: float) -> Plot:
    label, title = "gradient of a batch, relative to the weights", "Learning signal"
    scale: Scale = "log" if wide else "linear"
    if len(layers) > _BARS:
        x = tuple(float(i + 1) for i in range(len(layers)))
        y = tuple(layer.signal if layer.signal > 0 or not wide else math.nan for layer in layers)
        series = Series("", x, y, style="points")
        return LinePlot(title, Axis("layer, from input to output"), Axis(label, scale), (series,))
    bars = tuple(
        Bar(
            f"layer {layer.name}",
            layer.signal or math.nan,
            note=significant(layer.signal) if layer.signal else "none",
        )
        for layer in layers
    )
    return BarPlot(title, Axis(label, scale, limits=(begin, most * (2 if wide else 1.1))), bars)


def moves_figure(moves: Sequence[Move], steps: int, where: str, practical: float) -> Figure | None:
    """Return what each remedy did as bars with 95 % intervals; None where none was measured.

    Args:
        moves: the best first.
        steps: that each was given.
        where: whose loss: "held-out" or "training".
        practical: the smallest change that counts.
    """
    tried = [move for move in moves if move.measured is not None]
    if not tried:
        return None
    known = [abs(move.measured or 0.0) for move in tried if abs(move.measured or 0.0) < OVERFLOW / 10]
    counting = [size for size in known if size > practical]
    wide = bool(counting) and max(counting) > 30 * min(counting)
    within = practical or min(counting, default=1.0)
    axis = Axis(f"change of the {where} loss", "symlog" if wide else "linear", within if wide else None)
    best = min(tried, key=lambda move: move.measured or 0.0)
    return Figure(
        name="moves",
        title="What each remedy did",
        alt=f"Change of the {where} loss after {steps} steps of each remedy: "
        + "; ".join(f"{move.name} {_note(move)}" for move in tried)
        + f". Best: {best.name}.",
        panels=(BarPlot("", axis, tuple(_bar(move) for move in tried)),),
        caption=f"{steps} steps on a copy each; left of 0 the {where} loss fell. Lines are 95 % "
        "intervals; grey bars cannot be told from no change.",
    )


def _bar(move: Move) -> Bar:
    value, error = move.measured or 0.0, _NORMAL * (move.stderr or 0.0)
    if value >= OVERFLOW / 10:
        return Bar(move.name, math.nan, note="diverges", tone="bad")
    if move.stderr is None or not math.isfinite(error):
        return Bar(move.name, value, note=_note(move), tone=_tone(value, 0.0))
    return Bar(move.name, value, value - error, value + error, _note(move), _tone(value, error))


def _tone(value: float, error: float) -> Tone:
    if value + error < 0:
        return "good"
    return "bad" if value - error > 0 else "neutral"


def _note(move: Move) -> str:
    if (move.measured or 0.0) >= OVERFLOW / 10:
        return "diverges"
    text = signed(move.measured or 0.0)
    return text if move.stderr is None else f"{text} ± {significant(move.stderr, 1)}"
