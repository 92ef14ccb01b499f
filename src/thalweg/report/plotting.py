"""Each kind of plot onto a matplotlib figure or a part of one."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import numpy as np

from thalweg.errors import printable
from thalweg.report.figures import (
    Axis,
    Bar,
    BarPlot,
    ContourPlot,
    LinePlot,
    Mark,
    Plot,
    Reference,
    Series,
    SurfacePlot,
)
from thalweg.report.palette import LIGHT, SERIES
from thalweg.report.placing import place
from thalweg.report.ticks import formatted

__all__ = ["height", "one_line", "plot"]

_LONGEST = 34  # characters of a name that a panel has room for
_SHAPES = {
    "here": ("o", "ink"),
    "minimum": ("v", "green"),
    "maximum": ("^", "vermilion"),
    "saddle": ("X", "purple"),
    "inflection": ("D", "amber"),
    "start": ("s", "blue"),
    "end": ("P", "blue"),
    "point": (".", "ink"),
}
_DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
_LINES = ("-", ":", "-.")  # where the colours come round again
_TONES = {"plain": "sky", "good": "blue", "bad": "vermilion", "neutral": "faint"}
_LEVELS = 14


def height(panel: Plot) -> float:
    """Return how many inches high ``panel`` wants to be."""
    if isinstance(panel, BarPlot):
        return 0.75 + 0.36 * max(len(panel.bars), 1)
    return 3.3 if isinstance(panel, ContourPlot | SurfacePlot) else 2.7


def plot(panel: Plot, part: Any) -> None:
    """Draw ``panel`` on the empty (sub)figure ``part``."""
    axes = part.add_subplot(projection="3d" if isinstance(panel, SurfacePlot) else None)
    if panel.title:
        axes.set_title(one_line(panel.title, 60))
    match panel:
        case LinePlot():
            _lines(panel, axes)
        case BarPlot():
            _bars(panel, axes)
        case ContourPlot():
            _contours(panel, axes, part)
        case SurfacePlot():
            _surface(panel, axes)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        part.legend(handles=handles, loc="outside lower left", ncols=_columns(handles))


def _columns(handles: list[Any]) -> int:
    """Two columns where both have room."""
    sizes = [len(str(handle.get_label())) for handle in handles]
    middle = (len(sizes) + 1) // 2
    return 2 if max(sizes[:middle]) + max(sizes[middle:], default=0) <= 46 else 1


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Keep a text on one line and within the panel."""
    line = " ".join(printable(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _scale(axes: Any, which: str, axis: Axis) -> None:
    from matplotlib.ticker import NullLocator

    getattr(axes, f"set_{which}label")(one_line(axis.label, 70))
    setter = getattr(axes, f"set_{which}scale")
    if axis.scale == "symlog":
        within = 10.0 ** math.ceil(math.log10(axis.linear_within or 1.0))  # so that ticks fall on its ends
        setter("symlog", linthresh=within, linscale=0.5)
    elif axis.scale == "log":
        setter("log", nonpositive="mask")
    if axis.scale == "linear":
        axes.locator_params(axis=which, nbins=5)
    getattr(axes, f"{which}axis").set_major_formatter(formatted(axis.scale != "linear"))
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())


def _limits(axes: Any, panel: LinePlot | BarPlot) -> None:
    both = (panel.axis, None) if isinstance(panel, BarPlot) else (panel.x_axis, panel.y_axis)
    for which, axis in zip("xy", both, strict=True):
        if axis is not None and axis.limits is not None:
            getattr(axes, f"set_{which}lim")(axis.limits)


def _lines(panel: LinePlot, axes: Any) -> None:
    _scale(axes, "x", panel.x_axis)
    _scale(axes, "y", panel.y_axis)
    _limits(axes, panel)
    for i, band in enumerate(panel.bands):
        span = axes.axhspan if band.along == "y" else axes.axvspan
        colour = LIGHT["faint"] if i == 0 else LIGHT[SERIES[-i]]
        span(band.lower, band.upper, color=colour, alpha=0.18, lw=0, label=one_line(band.label, 60))
    shapes = cycle("oDs^")
    for i, series in enumerate(panel.series):
        shape = "" if series.style in {"line", "dashed"} else next(shapes)
        line = _LINES[i // len(SERIES) % len(_LINES)] if series.style == "line" else "--"
        _one_series(series, axes, LIGHT[SERIES[i % len(SERIES)]], shape, line)
    _references(panel.references, axes)
    _marks(panel.marks, axes)


def _one_series(series: Series, axes: Any, colour: str, shape: str, drawn: str) -> None:
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    label = one_line(series.label, 60) or "_"
    errors = None
    if series.lower and series.upper:
        lower, upper = np.asarray(series.lower, dtype=float), np.asarray(series.upper, dtype=float)
        errors = np.nan_to_num(np.maximum([y - lower, upper - y], 0.0), posinf=0.0)
    if series.style in {"line", "dashed"}:
        axes.plot(x, y, color=colour, label=label, ls=drawn)
        if errors is not None:
            axes.fill_between(x, y - errors[0], y + errors[1], color=colour, alpha=0.2, lw=0)
        return
    if series.style == "stems":
        bottom = axes.get_ylim()[0] if axes.get_yscale() == "log" else 0.0
        for place_x, value in zip(x, y, strict=True):
            axes.plot([place_x] * 3, np.linspace(bottom, value, 3), color=colour, lw=1.5)
    line = "-" if series.style == "joined" else ""
    axes.errorbar(x, y, yerr=errors, fmt=shape + line, ms=3.5, capsize=2, lw=0.9, color=colour, label=label)


def _references(references: tuple[Reference, ...], axes: Any) -> None:
    for i, reference in enumerate(references):
        if not math.isfinite(reference.value):
            continue
        line = axes.axhline if reference.along == "y" else axes.axvline
        line(
            reference.value,
            color=LIGHT["faint"],
            ls=_DASHES[i % len(_DASHES)],
            lw=1,
            label=one_line(reference.label, 60) or "_",
        )


def _marks(marks: tuple[Mark, ...], axes: Any) -> None:
    axes.autoscale_view()  # matplotlib puts it off until somebody asks, which nobody does once it is disabled
    axes.autoscale(enable=False)  # what is told beside the marks does not move them
    for mark in marks:
        shape, colour = _SHAPES[mark.kind]
        look = {"color": LIGHT[colour], "mec": LIGHT["ground"], "mew": 0.8, "ms": 7}
        axes.plot([mark.x], [mark.y], shape, ls="", zorder=5, label="_", **look)
    told = [mark for mark in marks if mark.label]
    words = [one_line(mark.label) for mark in told]
    to_fraction = axes.transData + axes.transAxes.inverted()
    at = [tuple(to_fraction.transform((mark.x, mark.y))) for mark in told]
    drawn = _drawn_points(axes, to_fraction)
    for word, box in zip(words, place(at, [_size(word) for word in words], drawn), strict=True):
        axes.text(
            box.x + box.width / 2,
            box.y + box.height / 2,
            word,
            transform=axes.transAxes,
            ha="center",
            va="center",
            size=7.5,
            bbox={"boxstyle": "round,pad=0.12", "fc": LIGHT["ground"], "ec": "none", "alpha": 0.8},
            zorder=6,
        )


def _drawn_points(axes: Any, to_fraction: Any) -> list[tuple[float, float]]:
    """Return points along the curves of ``axes``, in fractions of it."""
    points: list[tuple[float, float]] = []
    for line in axes.get_lines():
        if len(line.get_xdata()) < 3:  # a mark or a straight line across
            continue
        x, y = to_fraction.transform(line.get_xydata()).T
        seen = np.isfinite(x) & np.isfinite(y)
        dense = np.linspace(0, max(seen.sum() - 1, 0), 100)
        index = np.arange(seen.sum())
        points += zip(np.interp(dense, index, x[seen]), np.interp(dense, index, y[seen]), strict=True)
    return points


def _size(word: str) -> tuple[float, float]:
    """Return about how much of a panel a word takes, as fractions of width and height."""
    return 0.0155 * len(word) + 0.02, 0.085


def _bars(panel: BarPlot, axes: Any) -> None:
    _scale(axes, "x", panel.axis)
    _limits(axes, panel)
    for row, bar in enumerate(panel.bars):
        _one_bar(bar, row, axes)
    _references(panel.references, axes)
    axes.set_ylim(len(panel.bars) - 0.3, -0.75)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    if panel.axis.scale != "log":
        axes.axvline(0, color=LIGHT["faint"], lw=0.8, zorder=0.5)


def _one_bar(bar: Bar, row: int, axes: Any) -> None:
    colour = LIGHT[_TONES[bar.tone]]
    across = axes.get_yaxis_transform()
    ground = {"boxstyle": "square,pad=0.1", "fc": LIGHT["ground"], "ec": "none"}
    axes.text(0, row - 0.3, one_line(bar.label, 44), transform=across, va="center", size=8, bbox=ground)
    axes.text(
        1, row - 0.3, one_line(bar.note, 24), transform=across, va="center", ha="right", size=8, bbox=ground
    )
    if not math.isfinite(bar.value):
        return
    start = axes.get_xlim()[0] if axes.get_xscale() == "log" else 0.0
    axes.barh(row + 0.12, bar.value - start, left=start, height=0.3, color=colour)
    if bar.lower is not None and bar.upper is not None:
        ends = [[max(bar.value - bar.lower, 0.0)], [max(bar.upper - bar.value, 0.0)]]
        axes.errorbar([bar.value], [row + 0.12], xerr=ends, fmt="none", ecolor=LIGHT["ink"], capsize=2, lw=1)


def _contours(panel: ContourPlot, axes: Any, part: Any) -> None:
    _scale(axes, "x", panel.x_axis)
    _scale(axes, "y", panel.y_axis)
    z = np.ma.masked_invalid(np.asarray(panel.z, dtype=float))
    if not z.count():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center")
        return
    levels, norm = _levels(z, panel.z_axis)
    filled = axes.contourf(panel.x, panel.y, z, levels=levels, norm=norm, cmap="cividis", extend="both")
    axes.contour(panel.x, panel.y, z, levels=levels, norm=norm, colors=LIGHT["ground"], linewidths=0.4)
    scale = part.colorbar(filled, ax=axes, label=one_line(panel.z_axis.label, 40))
    scale.ax.yaxis.set_major_formatter(formatted(False))
    axes.grid(visible=False)
    if panel.path:
        x, y = zip(*panel.path, strict=True)
        axes.plot(x, y, "-", color=LIGHT["vermilion"], lw=1.5, marker=".", ms=3)
    _marks(panel.marks, axes)


def _levels(z: Any, axis: Axis) -> tuple[Any, Any]:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    low, high = float(z.min()), float(z.max())
    if not low < high:
        return [low - 0.5, low + 0.5], None
    if axis.scale == "log" and low > 0:
        return np.geomspace(low, high, _LEVELS), LogNorm(low, high)
    return MaxNLocator(_LEVELS).tick_values(low, high), None


def _surface(panel: SurfacePlot, axes: Any) -> None:
    x, y = np.meshgrid(panel.x, panel.y)
    z = np.asarray(panel.z, dtype=float)
    axes.plot_surface(x, y, z, cmap="cividis", rcount=51, ccount=51, lw=0.1, edgecolor=LIGHT["ground"])
    axes.set_xlabel(one_line(panel.x_axis.label))
    axes.set_ylabel(one_line(panel.y_axis.label))
    axes.set_zlabel(one_line(panel.z_axis.label))
    for mark in panel.marks:
        shape, colour = _SHAPES[mark.kind]
        row = int(np.abs(np.asarray(panel.y) - mark.y).argmin())
        column = int(np.abs(np.asarray(panel.x) - mark.x).argmin())
        axes.plot([mark.x], [mark.y], [z[row, column]], shape, ms=6, color=LIGHT[colour], zorder=9)
        axes.text(mark.x, mark.y, float(z[row, column]), "  " + one_line(mark.label), size=7.5, zorder=10)
