"""The words for where a training can stand."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Verdict"]


class Verdict(StrEnum):
    """Where on the landscape a point lies. The value is the word in lower case."""

    DESCENDING = "descending"
    BOUNCING = "bouncing"
    SADDLE = "saddle"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    PLATEAU = "plateau"
    DEGENERATE = "degenerate"
    UNDETERMINED = "undetermined"
