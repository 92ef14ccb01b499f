"""Curves as a line of characters and as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from thalweg.report.document import Curves

__all__ = ["colour", "heights", "is_logarithmic", "sparkline", "to_svg"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_DECADES = 2.0  # over more than this, and where all is positive, the scale is logarithmic
_WIDTH, _HEIGHT = 640.0, 160.0
_COLOURS = ("#0550ae", "#bc4c00", "#1a7f37", "#8250df")


def is_logarithmic(curves: Curves) -> bool:
    """Say whether the curves span so much that only a logarithmic scale shows them."""
    seen = [value for _, values in curves.series for value in values if math.isfinite(value)]
    return bool(seen) and min(seen) > 0 and math.log10(max(seen) / min(seen)) > _DECADES


def heights(curves: Curves) -> list[list[float | None]]:
    """Return the values of each series between 0 and 1 on the common scale; None where there is a gap."""
    logarithmic = is_logarithmic(curves)
    scaled = [
        [(math.log10(v) if logarithmic else v) if math.isfinite(v) else None for v in values]
        for _, values in curves.series
    ]
    seen = [value for values in scaled for value in values if value is not None]
    low, high = (min(seen), max(seen)) if seen else (0.0, 0.0)
    span = high - low
    return [
        [None if value is None else ((value - low) / span if span > 0 else 0.0) for value in values]
        for values in scaled
    ]


def sparkline(series: Sequence[float | None], width: int) -> str:
    """Draw heights between 0 and 1 in ``width`` characters at most, each the mean of what it stands for."""
    columns = min(width, len(series))
    line = ""
    for i in range(columns):
        part = series[i * len(series) // columns : (i + 1) * len(series) // columns]
        seen = [value for value in part if value is not None]
        line += _BLOCKS[min(int(sum(seen) / len(seen) * len(_BLOCKS)), len(_BLOCKS) - 1)] if seen else " "
    return line


def to_svg(curves: Curves) -> str:
    """Return the lines alone, without text, as an ``<svg>`` element."""
    parts = []
    for i, series in enumerate(heights(curves)):
        step = _WIDTH / max(len(series) - 1, 1)
        pen, path = "M", ""
        for k, value in enumerate(series):
            if value is None:
                pen = "M"
                continue
            path += f"{pen}{k * step:.1f} {4 + (1 - value) * (_HEIGHT - 8):.1f}"
            pen = "L"
        parts.append(f'<path d="{path}" fill="none" stroke="{colour(i)}" stroke-width="2"/>')
    box = f'viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img"'
    return f'<svg class="curves" {box}>{"".join(parts)}</svg>'


def colour(index: int) -> str:
    """Return the colour in which `to_svg` draws the series ``index``."""
    return _COLOURS[index % len(_COLOURS)]
