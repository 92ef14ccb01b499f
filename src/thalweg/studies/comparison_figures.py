"""The pictures of a comparison: curves, sensitivity to the rate, held-out losses with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from thalweg.report.document import significant
from thalweg.report.figures import Axis, Bar, BarPlot, Figure, LinePlot, Series
from thalweg.studies.method import Method
from thalweg.studies.setting import Point
from thalweg.studies.statistics import spread

__all__ = ["figures"]


def figures(methods: Sequence[Method], reference: Method, *, classes: bool) -> tuple[Figure, ...]:
    """Return the pictures of a comparison."""
    return (_curves(methods), _sensitivity(methods), _held_out(methods, reference, classes=classes))


def _curves(methods: Sequence[Method]) -> Figure:
    ends = ", ".join(f"{m.name} {significant(_end(m), 3)}" for m in methods)
    return Figure(
        name="curves",
        title="Loss against cost",
        alt=f"Median training and held-out loss of each optimiser against cost; held out they end at {ends}.",
        panels=(
            _panel("training loss", methods, lambda p: p.train),
            _panel("held-out loss", methods, lambda p: p.test),
        ),
        caption="Medians over the seeds at the chosen rate; the bands run from the lower to the "
        "upper quartile. "
        "Methods whose steps differ in cost share an axis only because it counts gradients, not steps.",
    )


def _panel(title: str, methods: Sequence[Method], value: Callable[[Point], float]) -> LinePlot:
    series = []
    for m in methods:
        columns = [point for point in zip(*(run.points for run in m.reported), strict=False)]  # noqa: C416
        spreads = [spread([value(point) for point in column]) for column in columns]
        series.append(
            Series(
                m.name,
                tuple(spread([p.cost for p in column]).median for column in columns),
                tuple(_gap(s.median) for s in spreads),
                tuple(_gap(s.low) for s in spreads),
                tuple(_gap(s.high) for s in spreads),
            )
        )
    axis = _axis(title, series)
    return LinePlot(title, Axis("gradient-equivalents", "symlog", 1.0), axis, tuple(series))


def _sensitivity(methods: Sequence[Method]) -> Figure:
    tuned = [m for m in methods if len(m.rates) > 1]
    series = tuple(
        Series(m.name, tuple(float(r or math.nan) for r in m.rates), tuple(_gap(v) for v in m.losses))
        for m in tuned
    )
    best = ", ".join(f"{m.name} at {significant(m.rate, 2)}" for m in tuned) or "none has a rate"
    return Figure(
        name="sensitivity",
        title="How much the learning rate matters",
        alt=f"Median held-out loss at the end against the learning rate; chosen were {best}.",
        panels=(
            LinePlot(
                "held-out loss at the end",
                Axis("learning rate", "log"),
                _axis("held-out loss", series),
                series,
            ),
        ),
        caption="A wide flat bottom means that the rate needs no care; gaps are rates at which "
        "training fails.",
    )


def _held_out(methods: Sequence[Method], reference: Method, *, classes: bool) -> Figure:
    bars = []
    for m in sorted(methods, key=_end):
        found = spread([run.last("test") for run in m.reported])
        right = spread([run.last("right") for run in m.reported]).median
        tone = "good" if m is reference else "neutral"
        note = f"{right:.1%} right" if classes else ""
        if not math.isfinite(found.median):
            bars.append(Bar(m.name, math.nan, note="fails", tone="bad"))
            continue
        upper = found.high if math.isfinite(found.high) else None
        bars.append(Bar(m.name, found.median, found.low, upper, note, tone))  # type: ignore[arg-type]
    return Figure(
        name="held-out",
        title="Held-out loss at the end",
        alt="Median held-out loss with quartiles: "
        + ", ".join(f"{bar.label} {significant(bar.value, 3)}" for bar in bars if bar.value == bar.value),
        panels=(BarPlot("median and quartiles", Axis("held-out loss"), tuple(bars)),),
    )


def _end(method: Method) -> float:
    return spread([run.last("test") for run in method.reported]).median


def _axis(label: str, series: Sequence[Series]) -> Axis:
    """Return a logarithmic axis where the values span a decade."""
    values = [v for s in series for v in s.y if math.isfinite(v)]
    wide = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    return Axis(label, "log" if wide else "linear")


def _gap(value: float) -> float:
    return value if math.isfinite(value) else math.nan
