"""Pictures as plain data: what is drawn, apart from how; `thalweg.report.drawing` draws it.

Numbers that are not finite leave a gap. All text is data of the user's and shown as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "Axis",
    "Band",
    "Bar",
    "BarPlot",
    "ContourPlot",
    "Figure",
    "LinePlot",
    "Mark",
    "Plot",
    "Reference",
    "Scale",
    "Series",
    "SurfacePlot",
    "together",
]

Scale = Literal["linear", "log", "symlog"]


@dataclass(frozen=True)
class Axis:
    """What runs along an axis, and how.

    Attributes:
        label: the quantity with its unit.
        scale: "symlog" is logarithmic both ways and linear within ±``linear_within`` (1 by default).
        linear_within: see ``scale``.
        limits: where it begins and ends, of curves and bars; None for what there is to show.
    """

    label: str
    scale: Scale = "linear"
    linear_within: float | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Mark:
    """A place worth a sign in the picture; every kind has a shape of its own.

    ``here`` is where the weights stand, ``start`` and ``end`` are those of a path.
    """

    x: float
    y: float
    kind: Literal["here", "minimum", "maximum", "saddle", "inflection", "start", "end", "point"] = "point"
    label: str = ""


@dataclass(frozen=True)
class Series:
    """A quantity along x, with its error where it has one.

    Attributes:
        label: for the legend; "" for none.
        x: places (m,).
        y: values (m,).
        lower: where the error interval of each begins (m,), empty without.
        upper: where it ends.
        style: "line" and "dashed" draw the error as a band; "points", "joined" ones and "stems", which stand
            on the axis, as bars.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()
    style: Literal["line", "dashed", "points", "joined", "stems"] = "line"


@dataclass(frozen=True)
class Reference:
    """A labelled line across the picture at ``value`` of the axis ``along``."""

    value: float
    label: str
    along: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Band:
    """A labelled stripe across the picture from ``lower`` to ``upper`` of the axis ``along``."""

    lower: float
    upper: float
    label: str
    along: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class LinePlot:
    """Curves and points over one axis."""

    title: str
    x_axis: Axis
    y_axis: Axis
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    references: tuple[Reference, ...] = ()
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A named value with its error interval; ``note`` is written behind it.

    ``tone`` says how it is meant: good and bad have a colour of their own, neutral is grey.
    """

    label: str
    value: float
    lower: float | None = None
    upper: float | None = None
    note: str = ""
    tone: Literal["plain", "good", "bad", "neutral"] = "plain"


@dataclass(frozen=True)
class BarPlot:
    """Named values side by side, lying, the first on top."""

    title: str
    axis: Axis
    bars: tuple[Bar, ...]
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class ContourPlot:
    """A function of two coordinates as lines of equal value.

    Attributes:
        title: what it is.
        x_axis: of the columns.
        y_axis: of the rows.
        x: places of the columns (m,), ascending.
        y: places of the rows (k,), ascending.
        z: values, k rows of m.
        z_axis: of the values; "log" spaces the lines by decades.
        marks: critical points found, where the weights stand.
        path: (x, y) of a way through it, in order.
    """

    title: str
    x_axis: Axis
    y_axis: Axis
    x: tuple[float, ...]
    y: tuple[float, ...]
    z: tuple[tuple[float, ...], ...]
    z_axis: Axis
    marks: tuple[Mark, ...] = ()
    path: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class SurfacePlot:
    """The same as a surface in three dimensions; on a page it can be turned.

    Attributes: see `ContourPlot`. A mark stands at the nearest value of the grid.
    """

    title: str
    x_axis: Axis
    y_axis: Axis
    x: tuple[float, ...]
    y: tuple[float, ...]
    z: tuple[tuple[float, ...], ...]
    z_axis: Axis
    marks: tuple[Mark, ...] = ()


Plot = LinePlot | BarPlot | ContourPlot | SurfacePlot


@dataclass(frozen=True)
class Figure:
    """One picture of one or more plots that belong together; a block of a document.

    Attributes:
        name: of the file it is saved in, without suffix: lower case, digits, hyphens.
        title: what it shows.
        alt: the same for those who cannot see it: what it shows and what there is to be seen, with numbers.
        panels: the plots, in reading order; on a page they flow beside or below each other.
        caption: how to read it and what it means.
    """

    name: str
    title: str
    alt: str
    panels: tuple[Plot, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a figure needs a text alternative")
        if not self.name or not set(self.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"):
            raise ValueError(f"{self.name!r} names no file: lower case, digits and hyphens only")


def together(name: str, title: str, figures: Sequence[Figure]) -> Figure:
    """Return all of ``figures``, at least one, as one."""
    panels = tuple(
        panel if panel.title else replace(panel, title=figure.title)
        for figure in figures
        for panel in figure.panels
    )
    return Figure(name, title, "; ".join(figure.alt for figure in figures), panels)
