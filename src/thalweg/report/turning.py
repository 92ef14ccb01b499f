"""What the script that turns a surface on a page needs to know of it."""

from __future__ import annotations

import json
import math
from importlib import resources

import numpy as np

from thalweg.report.document import significant
from thalweg.report.figures import Plot, SurfacePlot
from thalweg.report.plotting import one_line

__all__ = ["script", "surface"]

_COLOURS = 64


def script() -> str:
    """Return the script; a page that has no surface does without."""
    return (resources.files("thalweg.report") / "templates" / "turn.js").read_text("utf-8")


def surface(panel: Plot) -> str:
    """Return a surface as JSON for the script; "" for any other plot."""
    if not isinstance(panel, SurfacePlot):
        return ""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    z = np.asarray(panel.z, dtype=float)
    seen = z[np.isfinite(z)]
    if not seen.size:
        return ""
    x, y = np.asarray(panel.x), np.asarray(panel.y)
    marks = []
    for mark in panel.marks:
        height = float(z[int(np.abs(y - mark.y).argmin()), int(np.abs(x - mark.x).argmin())])
        if math.isfinite(height):
            marks.append({"at": [mark.x, mark.y, height], "label": one_line(mark.label)})
    spans = ((panel.x_axis, x), (panel.y_axis, y), (panel.z_axis, seen))
    facts = {
        "title": one_line(panel.title, 40),
        "x": list(panel.x),
        "y": list(panel.y),
        "z": [[value if math.isfinite(value) else None for value in row] for row in panel.z],
        "labels": [
            f"{one_line(axis.label, 24)}: {_number(at.min())} … {_number(at.max())}" for axis, at in spans
        ],
        "marks": marks,
        "colours": [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 1, _COLOURS))],
    }
    return json.dumps(facts, allow_nan=False)


def _number(value: float) -> str:
    return significant(float(value), 3)
