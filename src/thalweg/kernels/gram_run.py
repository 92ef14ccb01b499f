"""What a run of a kernel matrix found, mended and computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.kernels.identity import short
from thalweg.kernels.room import sized
from thalweg.records import Record
from thalweg.report.document import Document, Facts, Note

__all__ = ["GramRun"]


@dataclass(frozen=True, kw_only=True)
class GramRun(Record):
    """What a call of `Gram.compute` did.

    Attributes:
        kernel: its name and settings.
        shape: of the matrix.
        tiles: of which it consists; of a symmetric one those on and above the diagonal.
        found: how many were there and whole.
        damaged: how many were there and had to be computed again.
        computed: how many this call computed, the damaged ones among them.
        folder: where they are.
        memory: bytes of the whole matrix in float64.
        seconds: wall clock of this call.
    """

    schema: ClassVar[str] = "thalweg/gram@1"

    kernel: str
    shape: tuple[int, int]
    tiles: int
    found: int
    damaged: int
    computed: int
    folder: str
    memory: int
    seconds: float

    def document(self) -> Document:
        """Describe the run for people."""
        n, m = self.shape
        rows = [
            ("matrix", f"{n:,} × {m:,}, {sized(self.memory)} in float64"),
            ("tiles", f"{self.tiles:,}: {self.found:,} were there, {self.computed:,} computed now"),
            ("folder", self.folder),
        ]
        if self.damaged:
            rows.insert(2, ("damaged", f"{self.damaged:,} failed their checksum and were computed again"))
        blocks = (Facts(tuple(rows)), Note(f"{self.seconds:.1f} s"))
        return Document(f"kernel matrix of {short(self.kernel)}", blocks)
