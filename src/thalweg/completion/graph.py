"""What the pattern of observed entries allows: connected parts, empty rows, entries per degree of freedom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from thalweg.completion.observations import observed
from thalweg.records import Record
from thalweg.report.document import Document, Facts, Headline, Note, significant

__all__ = ["ObservationGraph", "degrees_of_freedom", "observation_graph"]

# Measured on Gaussian factors without noise: below, no method recovers; from about three times on, the
# nuclear norm alone is exact (docs/completion.md).
WINDOW = (1.5, 3.0)


def degrees_of_freedom(rank: int, shape: tuple[int, int]) -> int:
    """Return r(n₁+n₂−r), the dimension of the matrices of that rank."""
    return rank * (shape[0] + shape[1] - rank)


@dataclass(frozen=True, kw_only=True)
class ObservationGraph(Record):
    """The bipartite graph of rows and columns with an edge for each observed entry.

    Attributes:
        shape: of the matrix.
        num_observed: entries m.
        num_parts: connected parts, rows and columns without entries not counted. Between two parts nothing is
            known, and descent falls back to something like the smallest nuclear norm ([bai2024]).
        largest_part: rows and columns of the largest part, as a share of those with entries.
        empty_rows, empty_columns: how many have no entry; only centring says anything about them.
        row_entries, column_entries: fewest, median and most entries of a row or column that has any.
        attainable_rank: the largest rank r with m ≥ 1.5·r(n₁+n₂−r) (rows and columns with entries counted).
    """

    schema: ClassVar[str] = "thalweg/observation-graph@1"

    shape: tuple[int, int]
    num_observed: int
    num_parts: int
    largest_part: float
    empty_rows: int
    empty_columns: int
    row_entries: tuple[int, float, int]
    column_entries: tuple[int, float, int]
    attainable_rank: int

    def entries_per_freedom(self, rank: int) -> float:
        """Return m / r(n₁+n₂−r): below about 1.5 no method can be expected to recover that rank."""
        n1, n2 = self.shape[0] - self.empty_rows, self.shape[1] - self.empty_columns
        return self.num_observed / max(degrees_of_freedom(min(rank, n1, n2), (n1, n2)), 1)

    def warnings(self, rank: int | None = None) -> tuple[str, ...]:
        """Say in sentences what of the pattern stands in the way, at the ``rank`` if one is given."""
        said = []
        if self.num_parts > 1:
            said.append(
                f"The observed entries fall into {self.num_parts:,} parts that share no row or column "
                f"(the largest holds {self.largest_part:.0%}): entries that join two parts cannot be known."
            )
        if self.empty_rows or self.empty_columns:
            said.append(
                f"{self.empty_rows:,} rows and {self.empty_columns:,} columns have no entry; "
                "they are filled with what centring says, the mean of the rest."
            )
        if rank is not None and rank > 0:
            per = self.entries_per_freedom(rank)
            if per < WINDOW[0]:
                said.append(
                    f"There are {significant(per)} entries per degree of freedom of rank {rank}; below "
                    f"{WINDOW[0]} no method can be expected to recover it. Trust the held-out error alone."
                )
            if min(self.row_entries[0], self.column_entries[0]) < rank:
                said.append(
                    f"Some row or column has fewer entries than the rank {rank}: its values rest on the rest."
                )
        return tuple(said)

    def document(self) -> Document:
        """Describe the pattern for people."""
        n1, n2 = self.shape
        share = self.num_observed / (n1 * n2)
        whole = self.num_parts == 1 and not (self.empty_rows or self.empty_columns)
        word = "connected" if whole else "in parts" if self.num_parts > 1 else "with gaps"
        sentence = (
            "every row is linked to every other by observed entries"
            if whole
            else "some entries cannot be inferred from the others"
        )
        rows = (
            ("entries", f"{self.num_observed:,} of {n1:,} × {n2:,}, {share:.2%}"),
            ("per row", _spread(self.row_entries, self.empty_rows)),
            ("per column", _spread(self.column_entries, self.empty_columns)),
            ("attainable rank", self._attainable()),
        )
        notes = (Note(text) for text in self.warnings())
        head = Headline(word, sentence, "good" if whole else "neutral")
        return Document(f"Observation graph of {n1:,} × {n2:,}", (head, Facts(rows), *notes))

    def _attainable(self) -> str:
        rank = self.attainable_rank
        if rank == 0:
            return "none: too few entries for rank 1"
        return f"{rank}: {significant(self.entries_per_freedom(rank))} entries per degree of freedom"


def observation_graph(data: Any) -> ObservationGraph:
    """Report on the pattern of what ``data`` (anything that `observed` takes) holds.

    Cost: proportional to the observed entries.
    """
    found = observed(data)
    n1, n2 = found.shape
    in_rows, in_columns = np.bincount(found.rows, minlength=n1), np.bincount(found.columns, minlength=n2)
    links = sparse.coo_array(
        (np.ones(len(found), dtype=np.int8), (found.rows, found.columns.astype(np.int64) + n1)),
        shape=(n1 + n2, n1 + n2),
    )
    _, label = connected_components(links, directed=False)
    label = label[np.concatenate([in_rows, in_columns]) > 0]
    sizes = np.bincount(label)
    sizes = sizes[sizes > 0]
    used = (int((in_rows > 0).sum()), int((in_columns > 0).sum()))
    ranks = np.arange(1, min(used) + 1)
    enough = WINDOW[0] * ranks * (sum(used) - ranks) <= len(found)
    return ObservationGraph(
        shape=found.shape,
        num_observed=len(found),
        num_parts=len(sizes),
        largest_part=float(sizes.max() / sizes.sum()),
        empty_rows=n1 - used[0],
        empty_columns=n2 - used[1],
        row_entries=_summary(in_rows),
        column_entries=_summary(in_columns),
        attainable_rank=int(enough.sum()),
    )


def _summary(counts: Any) -> tuple[int, float, int]:
    held = counts[counts > 0]
    return int(held.min()), float(np.median(held)), int(held.max())


def _spread(entries: tuple[int, float, int], empty: int) -> str:
    low, middle, high = entries
    text = f"{low:,} … {high:,}, half of them at most {significant(middle, 3)}"
    return text + (f"; {empty:,} have none" if empty else "")
