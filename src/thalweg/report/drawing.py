"""Figures as SVG and PNG, by matplotlib, which is loaded when the first one is drawn."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from thalweg.report.figures import Figure, Plot
from thalweg.report.palette import LIGHT
from thalweg.report.plotting import height, one_line, plot
from thalweg.report.vector import inline, standalone
from thalweg.report.writing import write_atomically

__all__ = ["panel_svgs", "to_png", "to_svg"]

_WIDTH = 4.2  # inches of a panel: readable without zoom on a phone
_DPI = 200
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "thalweg",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.borderpad": 0.2,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["faint"],
    "axes.facecolor": "none",
    "xtick.color": LIGHT["faint"],
    "ytick.color": LIGHT["faint"],
    "figure.facecolor": LIGHT["ground"],
    "savefig.facecolor": "auto",
}


def to_svg(figure: Figure) -> str:
    """Return ``figure`` as one SVG document, text as text; the same for the same figure."""
    with _style():
        return standalone(_svg(_drawn(figure.panels, figure.title), LIGHT["ground"]), figure.alt)


def panel_svgs(figure: Figure) -> tuple[str, ...]:
    """Return each panel of ``figure`` as an ``<svg>`` element for a page, without ground and title.

    What has a colour of the palette has a class for it: see `thalweg.report.vector.inline`.
    """
    return tuple(_panel(panel, f"{figure.name}-{i}-") for i, panel in enumerate(figure.panels))


@lru_cache(maxsize=32)  # a notebook shows the same record again and again
def _panel(panel: Plot, prefix: str) -> str:
    with _style():
        return inline(_svg(_drawn((panel,), ""), "none"), prefix)


def to_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write ``figure`` with all its panels to ``path`` as PNG.

    Raises:
        InputError: where it cannot be written.
    """
    with _style():
        out = io.BytesIO()
        drawn = _drawn(figure.panels, figure.title)
        drawn.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(Path(path), out.getvalue())


@contextmanager
def _style() -> Iterator[None]:
    """Draw in our style whatever the user's is, and leave the user's as it was."""
    import matplotlib.style

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks is no reason to say anything
        with matplotlib.style.context(["default", _STYLE]):
            yield


def _drawn(panels: Sequence[Plot], title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    heights = [max(height(p) for p in panels[columns * r : columns * (r + 1)]) for r in range(rows)]
    canvas = Canvas(figsize=(_WIDTH * columns, sum(heights) + (0.3 if title else 0)), layout="constrained")
    FigureCanvasAgg(canvas)
    if title:
        canvas.suptitle(one_line(title, 50 * columns), x=0.01, ha="left", size=10, weight="bold")
    if len(panels) == 1:
        plot(panels[0], canvas)
        return canvas
    parts = canvas.subfigures(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for panel, part in zip(panels, parts, strict=False):
        plot(panel, part)
    return canvas


def _svg(drawn: Any, ground: str) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(out, format="svg", metadata=nothing, facecolor=ground)
    return out.getvalue()
