"""Curves as a line of characters and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Literal

from thalweg.report.document import Curves, significant
from thalweg.report.figures import Axis, Figure, LinePlot, Scale, Series

__all__ = ["heights", "is_logarithmic", "sparkline", "to_figure"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_DECADES = 2.0  # over more than this, and where all is positive, the scale is logarithmic


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


def to_figure(curves: Curves) -> Figure:
    """Return the curves as a picture."""
    scale: Scale = "log" if is_logarithmic(curves) else "linear"
    series = tuple(
        Series(label, tuple(float(i) for i in range(len(values))), values, style=style)
        for (label, values), style in zip(curves.series, _styles(), strict=False)
    )
    told = "; ".join(f"{label} from {_ends(values)}" for label, values in curves.series)
    return Figure(
        name="curves",
        title=curves.title,
        alt=f"{curves.title} over {curves.axis}: {told}",
        panels=(LinePlot("", Axis(curves.axis), Axis("", scale), series),),
    )


def _styles() -> Iterator[Literal["line", "dashed"]]:
    yield "line"
    yield from repeat("dashed")


def _ends(values: tuple[float, ...]) -> str:
    return " to ".join(significant(value, 3) for value in (values[0], values[-1]))
