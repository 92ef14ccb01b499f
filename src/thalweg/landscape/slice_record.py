"""What was seen along lines through a point, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from thalweg.landscape.critical import CriticalPoint
from thalweg.landscape.evaluation import Evaluation
from thalweg.landscape.pictures import (
    kind_of,
    line_alt,
    line_plot,
    marks_of,
    measured_by,
    title_of,
)
from thalweg.landscape.subject import Line
from thalweg.records import Cost, Provenance, Record
from thalweg.report.document import Block, Document, Facts, Note, signed, significant
from thalweg.report.figures import Figure, LinePlot, Mark

__all__ = ["Slice"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Slice(Record):
    """The loss on lines through a point.

    Attributes:
        name: of the problem.
        num_parameters: n.
        num_examples: of the training sample.
        num_heldout: of the held-out sample; 0 without.
        loss: where the weights stand.
        names: of the two losses, for legends.
        lines: what was measured.
        why: why to look along these.
        slope: f′ where a plain function of one variable stands; None else.
        critical_points: of a plain function of one variable in its domain, ascending.
        risk_critical_points: of the risk beside it.
        evaluation: how many points at once.
        notes: what the reader must know.
        cost: of it all.
        provenance: what is needed to repeat it.
    """

    schema: ClassVar[str] = "thalweg/slice@1"

    name: str
    num_parameters: int
    num_examples: int
    num_heldout: int
    loss: float
    names: tuple[str, str]
    lines: tuple[Line, ...]
    why: str
    slope: float | None
    critical_points: tuple[CriticalPoint, ...]
    risk_critical_points: tuple[CriticalPoint, ...]
    evaluation: Evaluation
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    def __repr__(self) -> str:
        return f"Slice({self.name!r}, {len(self.lines)} lines of {len(self.lines[0].coordinates)} points)"

    def document(self) -> Document:
        """Describe the lines for people, with their picture."""
        return Document(
            title_of(self.name, self.num_parameters, self.num_examples, self.num_heldout),
            tuple(self._blocks()),
        )

    def _blocks(self) -> Iterator[Block]:
        yield Facts(tuple(self._facts()))
        yield Figure(
            "slice",
            f"{self.name}: the loss along {len(self.lines)} lines"
            if len(self.lines) > 1
            else self._curve_title(),
            " ".join([*(line_alt(line, self.names) for line in self.lines), *self._critical_sentences()]),
            tuple(self._panel(line) for line in self.lines),
            self._caption(),
        )
        for text in (self.why, *self.notes, measured_by(self.evaluation, self.cost)):
            if text:
                yield Note(text)

    @property
    def is_curve(self) -> bool:
        """Whether it is a plain function of one variable over its domain."""
        return self.slope is not None and self.lines[0].direction.label == "x"

    def _curve_title(self) -> str:
        return self.name if self.is_curve else f"{self.name}: the loss along {self.lines[0].direction.label}"

    def _panel(self, line: Line) -> LinePlot:
        own, other = self.names if self.risk_critical_points else ("", "")
        marks = [
            *marks_of(self.critical_points, (line.here,), own),
            *marks_of(self.risk_critical_points, (line.here,), other),
        ]
        label = (
            f"here: {significant(self.loss, 4)}, slope {significant(self.slope)}"
            if self.slope is not None
            else "here"
        )
        taken = any(abs(mark.x - line.here) < 1e-6 for mark in marks)
        if not taken:
            marks.append(Mark(line.here, self.loss, "here", label))
        title = "" if self.is_curve else f"along {line.direction.label}"
        return line_plot(line, self.names, title, tuple(marks), function=self.slope is not None)

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self.is_curve:
            yield "here", f"{self.names[0]} {significant(self.loss, 4)}, slope {significant(self.slope)}"
            for name, points in zip(
                self.names, (self.critical_points, self.risk_critical_points), strict=True
            ):
                for point in points:
                    yield (
                        kind_of(point),
                        f"of {name}: {significant(point.value, 4)} at {significant(point.point[0], 6)}",
                    )
            if not self.critical_points:
                yield "critical points", "none found in this interval"
            return
        yield "loss", significant(self.loss, 4)
        for line in self.lines:
            yield line.direction.label, _describe(line)

    def _critical_sentences(self) -> Iterator[str]:
        for name, points in zip(self.names, (self.critical_points, self.risk_critical_points), strict=True):
            for p in points:
                at = f"{significant(p.value, 4)} at {significant(p.point[0], 4)}"
                yield f"{kind_of(p).capitalize()} of {name} {at}."

    def _caption(self) -> str:
        if self.is_curve:
            return "Critical points: roots of the exact gradient, classified by the curvature."
        return (
            "Bands: one standard error of the difference from the weights, over the same batches. "
            "Distances are "
            "multiples of the direction's vector."
        )


def _describe(line: Line) -> str:
    best = line.training[line.lowest]
    here = line.training[
        min(range(len(line.coordinates)), key=lambda i: abs(line.coordinates[i] - line.here))
    ]
    change = best.value - here.value
    at = significant(line.coordinates[line.lowest], 3)
    text = f"lowest at {at}, a change of {signed(change)}"
    text += f" ± {significant(best.stderr)}" if best.stderr > 0 and change != 0 else ""
    if line.heldout is not None and line.lowest_heldout is not None:
        text += f"; held out lowest at {significant(line.coordinates[line.lowest_heldout], 3)}"
    return text
