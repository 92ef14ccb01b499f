"""What is told, apart from how it is shown: a document is a title and a list of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thalweg.report.figures import Figure

__all__ = [
    "Block",
    "Curves",
    "Document",
    "Facts",
    "Heading",
    "Headline",
    "Note",
    "Quoted",
    "Table",
    "Tone",
    "signed",
    "significant",
]

Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Headline:
    """The answer: one word and the sentence that explains it.

    Attributes:
        word: the answer.
        sentence: why.
        tone: how it is meant.
        meaning: what the word means, for those who meet it first; on pages.
        sure: how sure it is; on pages.
    """

    word: str
    sentence: str
    tone: Tone = "neutral"
    meaning: str = ""
    sure: str = ""


@dataclass(frozen=True)
class Facts:
    """Labelled lines: what was measured, in words and numbers."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A small table; the first column is text, the others are numbers already written out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Note:
    """A paragraph: what it means, what to do, how it was measured; ``label`` says which, where it matters."""

    text: str
    label: str = ""


@dataclass(frozen=True)
class Heading:
    """Where a part of a page begins; a terminal's text is short and needs none."""

    text: str


@dataclass(frozen=True)
class Quoted:
    """Text to be copied as it stands; on pages."""

    text: str


@dataclass(frozen=True)
class Curves:
    """A few quantities along one axis, on one scale; values that are not finite leave a gap.

    Attributes:
        title: what they are.
        axis: what they run along, with where it ends: "20 epochs".
        series: label and values of each, all of one length.
    """

    title: str
    axis: str
    series: tuple[tuple[str, tuple[float, ...]], ...]


Block = Headline | Facts | Table | Note | Curves | Heading | Quoted | Figure


@dataclass(frozen=True)
class Document:
    """A title and its blocks, in reading order."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The pictures alone."""
        return tuple(block for block in self.blocks if isinstance(block, Figure))


def significant(value: float | None, digits: int = 2) -> str:
    """Write a number with ``digits`` significant digits and a true minus sign; a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    # Between 0.001 and 100,000 people read decimals more easily than powers of ten.
    if 1e-3 <= abs(value) < 1e5:
        exponent = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        decimals = max(digits - exponent, 0) if abs(value) >= 1 else digits + _leading_zeros(abs(value))
        text = f"{value:,.{decimals}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Write a change: always with its sign."""
    return ("+" if value > 0 else "") + significant(value, digits)


def _leading_zeros(value: float) -> int:
    return len(f"{value:.9f}".split(".")[1]) - len(f"{value:.9f}".split(".")[1].lstrip("0"))
