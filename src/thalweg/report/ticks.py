"""Numbers along an axis, written in plain text: 0.02, 5,000, 3·10⁻⁵."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

__all__ = ["formatted", "labels", "powers"]

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL, _LARGE = 1e-3, 1e5  # beyond these, powers of ten are easier to read


def labels(values: Sequence[float]) -> list[str]:
    """Write evenly spaced ``values`` with as many digits as tell them apart, all in one form."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return [f"{value:g}" for value in values]
    step = min((b - a for a, b in itertools.pairwise(values) if b > a), default=largest)
    exponent = 0 if _SMALL <= largest < _LARGE else math.floor(math.log10(largest) + 1e-9)
    unit = 10.0**exponent
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    if round(step / unit, decimals) != round(step / unit, decimals + 1):
        decimals += 1  # steps of 0.25
    tail = f"·10{_raised(exponent)}" if exponent else ""
    return [_signed(f"{value / unit:,.{decimals}f}", tail) for value in values]


def powers(value: float) -> str:
    """Write a place on a logarithmic axis: a power of ten, plain where that is short; "" for the others."""
    if value == 0:
        return "0"
    exponent = round(math.log10(abs(value)))
    if not math.isclose(abs(value), 10.0**exponent, rel_tol=1e-6):
        return ""
    sign = "−" if value < 0 else ""
    return f"{sign}{10.0**exponent:g}" if -2 <= exponent <= 3 else f"{sign}10{_raised(exponent)}"


def formatted(logarithmic: bool) -> Any:
    """Return a matplotlib formatter that writes like `powers` or like `labels`."""
    from matplotlib.ticker import Formatter, FuncFormatter

    if logarithmic:
        return FuncFormatter(lambda value, _: powers(value))

    class Plain(Formatter):
        def __call__(self, value: float, _: int | None = None) -> str:
            return labels([value])[0]

        def format_ticks(self, values: Sequence[float]) -> list[str]:
            return labels([float(value) for value in values])

    return Plain()


def _raised(exponent: int) -> str:
    return str(exponent).translate(_RAISED)


def _signed(digits: str, tail: str) -> str:
    if float(digits.replace(",", "")) == 0:
        return "0"
    return digits.replace("-", "−") + tail
