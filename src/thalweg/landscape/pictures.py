"""How lines and planes are told and drawn: figures as data, titles, alternatives in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from thalweg.estimates import Estimate
from thalweg.landscape.critical import CriticalPoint
from thalweg.landscape.evaluation import Evaluation
from thalweg.landscape.subject import Line
from thalweg.records import Cost
from thalweg.report.document import significant
from thalweg.report.figures import Axis, LinePlot, Mark, Series

__all__ = ["kind_of", "line_alt", "line_plot", "marks_of", "measured_by", "scale_of", "series_of", "title_of"]

FITS = 26  # letters of a label that leave room for "here"
MANY = 4  # critical points; of more, only the lowest is named in full
DECADES = 1.5  # a picture that spans more, all of it positive, is logarithmic


def title_of(name: str, parameters: int, examples: int, heldout: int) -> str:
    """Return the first line of what is told about a problem."""
    text = f"{name} · {parameters:,} parameter{'' if parameters == 1 else 's'}"
    if examples > 1:
        text += f" · {examples:,} training" + (f" and {heldout:,} held-out" if heldout else "") + " examples"
    return text


def measured_by(evaluation: Evaluation, cost: Cost) -> str:
    """Say how it was measured and what it took."""
    products = f", {cost.num_hvps} Hessian–vector products" if cost.num_hvps else ""
    return (
        f"{cost.gradient_equivalents:,.0f} gradient-equivalents{products}, {cost.seconds:.1f} s; "
        f"{evaluation.sentence()}"
    )


def scale_of(values: Iterable[float]) -> Axis:
    """Return the axis of a loss with these values."""
    seen = [v for v in values if math.isfinite(v)]
    if seen and min(seen) > 0 and math.log10(max(seen) / min(seen)) > DECADES:
        return Axis("loss", "log")
    return Axis("loss")


def series_of(
    name: str, x: Sequence[float], estimates: Sequence[Estimate], *, dashed: bool = False
) -> Series:
    """Return the estimates as a curve with a band of one standard error."""
    y = tuple(e.value for e in estimates)
    sure = all(e.stderr == 0 or not math.isfinite(e.stderr) for e in estimates)
    errors = [e.stderr if math.isfinite(e.stderr) else 0.0 for e in estimates]
    lower = () if sure else tuple(v - s for v, s in zip(y, errors, strict=True))
    upper = () if sure else tuple(v + s for v, s in zip(y, errors, strict=True))
    return Series(name, tuple(x), y, lower, upper, "dashed" if dashed else "line")


def line_plot(
    line: Line, names: tuple[str, str], title: str, marks: tuple[Mark, ...], *, function: bool = False
) -> LinePlot:
    """Return the plot of a line, with the losses' names in its legend; of a plain function its values."""
    series = [
        series_of(
            names[0] if line.heldout is not None or not function else "", line.coordinates, line.training
        )
    ]
    if line.heldout is not None:
        series.append(series_of(names[1], line.coordinates, line.heldout, dashed=True))
    if line.direction.curvature is not None and not function:
        series.append(_parabola(line))
    values = [v for s in series[:2] for v in s.y]
    y_axis = Axis("value") if function else scale_of(values)
    x_axis = Axis("x") if line.direction.label == "x" else Axis("distance")
    return LinePlot(title, x_axis, y_axis, tuple(series), marks)


def marks_of(points: Sequence[CriticalPoint], here: Sequence[float], of: str = "") -> tuple[Mark, ...]:
    """Return critical points of a function as marks; of many, only the lowest is named in full."""
    marks = []
    for p in points:
        at = ", ".join(significant(x, 4) for x in p.point)
        text = f"{significant(p.value, 3)} at {at if len(p.point) == 1 else f'({at})'}"
        if p.lowest or len(points) <= MANY:
            text = f"{of}: {text}" if of else f"{kind_of(p)} {text}"
        if all(abs(x - h) < 1e-6 for x, h in zip(p.point, here, strict=True)):
            text = f"here: {text}" if len(text) < FITS else text
        place = (p.point[0], p.value) if len(p.point) == 1 else (p.point[0], p.point[1])
        marks.append(Mark(*place, "point" if p.kind == "degenerate" else p.kind, text))
    return tuple(marks)


def kind_of(point: CriticalPoint) -> str:
    """Return what a critical point is, in words."""
    if point.kind == "minimum":
        return "global minimum" if point.lowest else "local minimum"
    return "local maximum" if point.kind == "maximum" else point.kind


def line_alt(line: Line, names: tuple[str, str]) -> str:
    """Say in words what the picture of a line shows."""
    first, last = line.coordinates[0], line.coordinates[-1]
    best = line.training[line.lowest].value
    text = (
        f"{names[0].capitalize()} along {line.direction.label} from {significant(first, 3)} to "
        f"{significant(last, 3)}: "
        f"{significant(line.training[0].value, 3)} left, lowest {significant(best, 3)} at "
        f"{significant(line.coordinates[line.lowest], 3)}, {significant(line.training[-1].value, 3)} right."
    )
    if line.heldout is not None and line.lowest_heldout is not None:
        lowest = line.heldout[line.lowest_heldout].value
        text += (
            f" {names[1].capitalize()}: lowest {significant(lowest, 3)} at "
            f"{significant(line.coordinates[line.lowest_heldout], 3)}."
        )
    return text


def _parabola(line: Line) -> Series:
    """Return what slope and curvature at the weights promise: L + gᵀv·t + ½ vᵀHv·t², in the curve's range."""
    assert line.direction.curvature is not None
    values = [e.value for e in line.training if math.isfinite(e.value)]
    middle = min(range(len(line.coordinates)), key=lambda i: abs(line.coordinates[i] - line.here))
    base, span = line.training[middle].value, (max(values) - min(values)) or 1.0
    y = []
    for x in line.coordinates:
        t = x - line.here
        promised = base + (line.direction.slope or 0.0) * t + 0.5 * line.direction.curvature * t * t
        y.append(promised if min(values) - 0.2 * span <= promised <= max(values) + 0.2 * span else math.nan)
    return Series("second order", line.coordinates, tuple(y), style="dashed")
