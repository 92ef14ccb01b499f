"""What the script that turns a surface on a page needs to know of it."""

from __future__ import annotations

import json
import math
from importlib import resources

import numpy as np

from thalweg.errors import printable
from thalweg.report.document import significant
from thalweg.report.figures import Plot, SurfacePlot

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
            marks.append({"at": [mark.x, mark.y, height], "label": printable(mark.label)})
    axes = (panel.x_axis, panel.y_axis, panel.z_axis)
    span = f"{significant(float(seen.min()), 3)} … {significant(float(seen.max()), 3)}"
    facts = {
        "title": printable(panel.title),
        "x": list(panel.x),
        "y": list(panel.y),
        "z": [[value if math.isfinite(value) else None for value in row] for row in panel.z],
        "labels": [*(printable(axis.label) for axis in axes), span],
        "marks": marks,
        "colours": [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 1, _COLOURS))],
    }
    return json.dumps(facts, allow_nan=False)
