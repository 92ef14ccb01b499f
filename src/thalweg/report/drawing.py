"""Figures as SVG and PNG, by matplotlib, which is loaded when the first one is drawn."""

from __future__ import annotations

import io
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thalweg.report.figures import Figure, Plot
from thalweg.report.palette import LIGHT
from thalweg.report.plotting import height, plot

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
        return _svg(_drawn(figure.panels, figure.title))


def panel_svgs(figure: Figure) -> tuple[str, ...]:
    """Return each panel of ``figure`` as an SVG document of its own, on a clear ground, without the title."""
    with _style():
        return tuple(_svg(_drawn((panel,), "")) for panel in figure.panels)


def to_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write ``figure`` with all its panels to ``path`` as PNG, beside it first and then renamed."""
    with _style():
        out = io.BytesIO()
        drawn = _drawn(figure.panels, figure.title)
        drawn.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    target = Path(path)
    descriptor, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(out.getvalue())
        Path(draft).replace(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


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
        canvas.suptitle(title, x=0.01, ha="left", size=10, weight="bold")
    if len(panels) == 1:
        plot(panels[0], canvas)
        return canvas
    parts = canvas.subfigures(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for panel, part in zip(panels, parts, strict=False):
        plot(panel, part)
    return canvas


def _svg(drawn: Any) -> str:
    out = io.StringIO()
    drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()
