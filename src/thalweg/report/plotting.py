"""Each kind of plot onto a matplotlib figure or a part of one."""

from __future__ import annotations

import math
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

__all__ = ["height", "plot"]

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
_TONES = {"good": "blue", "bad": "vermilion", "neutral": "faint"}
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
        axes.set_title(_text(panel.title, 60))
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
        part.legend(handles=handles, loc="outside lower left", ncols=1 if _is_wordy(handles) else 2)


def _is_wordy(handles: list[Any]) -> bool:
    return max(len(str(handle.get_label())) for handle in handles) > 22


def _text(text: str, longest: int = _LONGEST) -> str:
    """Keep a text on one line and within the panel."""
    line = " ".join(printable(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _scale(axes: Any, which: str, axis: Axis) -> None:
    getattr(axes, f"set_{which}label")(_text(axis.label, 70))
    setter = getattr(axes, f"set_{which}scale")
    if axis.scale == "symlog":
        setter("symlog", linthresh=axis.linear_within or 1.0, linscale=0.5)
    elif axis.scale == "log":
        setter("log", nonpositive="mask")


def _lines(panel: LinePlot, axes: Any) -> None:
    _scale(axes, "x", panel.x_axis)
    _scale(axes, "y", panel.y_axis)
    for i, band in enumerate(panel.bands):
        span = axes.axhspan if band.along == "y" else axes.axvspan
        colour = LIGHT["faint"] if i == 0 else LIGHT[SERIES[-i]]
        span(band.lower, band.upper, color=colour, alpha=0.18, lw=0, label=_text(band.label, 60))
    for i, series in enumerate(panel.series):
        _one_series(series, axes, LIGHT[SERIES[i % len(SERIES)]])
    _references(panel.references, axes)
    _marks(panel.marks, axes)


def _one_series(series: Series, axes: Any, colour: str) -> None:
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    label = _text(series.label, 60) or "_"
    errors = None
    if series.lower and series.upper:
        lower, upper = np.asarray(series.lower, dtype=float), np.asarray(series.upper, dtype=float)
        errors = np.nan_to_num(np.maximum([y - lower, upper - y], 0.0), posinf=0.0)
    if series.style in {"line", "dashed"}:
        axes.plot(x, y, color=colour, label=label, ls="-" if series.style == "line" else "--")
        if errors is not None:
            axes.fill_between(x, y - errors[0], y + errors[1], color=colour, alpha=0.2, lw=0)
        return
    if series.style == "stems":
        axes.vlines(x, 0 if axes.get_yscale() != "log" else 1e-30, y, color=colour, lw=1.5)
    axes.errorbar(x, y, yerr=errors, fmt="o", ms=3.5, capsize=2, lw=1, color=colour, label=label)


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
            label=_text(reference.label, 60) or "_",
        )


def _marks(marks: tuple[Mark, ...], axes: Any) -> None:
    for mark in marks:
        shape, colour = _SHAPES[mark.kind]
        axes.plot(
            [mark.x],
            [mark.y],
            shape,
            ms=7,
            color=LIGHT[colour],
            mec=LIGHT["ground"],
            mew=0.8,
            ls="",
            zorder=5,
            label="_",
        )
        if mark.label:
            axes.annotate(
                _text(mark.label),
                (mark.x, mark.y),
                xytext=(6, 6),
                textcoords="offset points",
                size=7.5,
                color=LIGHT["ink"],
                bbox={"boxstyle": "round,pad=0.15", "fc": LIGHT["ground"], "ec": "none", "alpha": 0.8},
                zorder=6,
            )


def _bars(panel: BarPlot, axes: Any) -> None:
    _scale(axes, "x", panel.axis)
    for row, bar in enumerate(panel.bars):
        _one_bar(bar, row, axes)
    _references(panel.references, axes)
    axes.set_ylim(len(panel.bars) - 0.3, -0.75)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    if panel.axis.scale != "log":
        axes.axvline(0, color=LIGHT["ink"], lw=0.8)


def _one_bar(bar: Bar, row: int, axes: Any) -> None:
    colour = LIGHT[_TONES[bar.tone]]
    across = axes.get_yaxis_transform()
    axes.text(0, row - 0.3, _text(bar.label, 44), transform=across, va="center", size=8)
    axes.text(1, row - 0.3, _text(bar.note, 24), transform=across, va="center", ha="right", size=8)
    if not math.isfinite(bar.value):
        return
    axes.barh(row + 0.12, bar.value, height=0.3, color=colour)
    if bar.lower is not None and bar.upper is not None:
        ends = [[max(bar.value - bar.lower, 0.0)], [max(bar.upper - bar.value, 0.0)]]
        axes.errorbar([bar.value], [row + 0.12], xerr=ends, fmt="none", ecolor=LIGHT["ink"], capsize=2, lw=1)


def _contours(panel: ContourPlot, axes: Any, part: Any) -> None:
    _scale(axes, "x", panel.x_axis)
    _scale(axes, "y", panel.y_axis)
    z = np.ma.masked_invalid(np.asarray(panel.z, dtype=float))
    levels, norm = _levels(z, panel.z_axis)
    filled = axes.contourf(panel.x, panel.y, z, levels=levels, norm=norm, cmap="cividis", extend="both")
    axes.contour(panel.x, panel.y, z, levels=levels, norm=norm, colors=LIGHT["ground"], linewidths=0.4)
    part.colorbar(filled, ax=axes, label=_text(panel.z_axis.label, 40))
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
    axes.set_xlabel(_text(panel.x_axis.label))
    axes.set_ylabel(_text(panel.y_axis.label))
    axes.set_zlabel(_text(panel.z_axis.label))
    for mark in panel.marks:
        shape, colour = _SHAPES[mark.kind]
        row = int(np.abs(np.asarray(panel.y) - mark.y).argmin())
        column = int(np.abs(np.asarray(panel.x) - mark.x).argmin())
        axes.plot([mark.x], [mark.y], [z[row, column]], shape, ms=6, color=LIGHT[colour], zorder=9)
        axes.text(mark.x, mark.y, float(z[row, column]), "  " + _text(mark.label), size=7.5, zorder=10)
