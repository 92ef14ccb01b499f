"""What was seen on a plane, and what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from thalweg.estimates import Estimate
from thalweg.landscape.critical import CriticalPoint
from thalweg.landscape.directions import Direction
from thalweg.landscape.evaluation import Evaluation
from thalweg.landscape.pictures import (
    kind_of,
    line_alt,
    line_plot,
    marks_of,
    measured_by,
    scale_of,
    title_of,
)
from thalweg.landscape.subject import Line
from thalweg.records import Cost, Provenance, Record
from thalweg.report.document import Block, Document, Facts, Note, signed, significant
from thalweg.report.figures import Axis, ContourPlot, Figure, LinePlot, Mark, SurfacePlot

__all__ = ["Lowest", "Plane", "Way"]

Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Lowest:
    """The lowest place of the grid.

    Attributes:
        at: coordinates.
        loss: the training loss.
        change: from where the weights stand, on the training sample, paired over its batches.
        heldout: the same on held-out data, which had no part in the choice; None without.
    """

    at: tuple[float, float]
    loss: float
    change: Estimate
    heldout: Estimate | None


@dataclass(frozen=True)
class Way:
    """A trajectory in the plane of its principal components.

    Attributes:
        points: coordinates, in order.
        explained: share of the variance in each component.
        random_walk: the share that a long random walk in many dimensions has there.
    """

    points: tuple[tuple[float, float], ...]
    explained: tuple[float, ...]
    random_walk: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Plane(Record):
    """The loss on a plane through a point.

    Attributes:
        name: of the problem.
        num_parameters: n.
        num_examples: of the training sample.
        num_heldout: of the held-out sample; 0 without.
        loss: where the weights stand.
        names: of the two losses, for legends.
        axes: the directions of x and y.
        x: coordinates (m,), in lengths of the first direction; of a function its first variable.
        y: coordinates (k,) along the second.
        training: the loss, k rows of m.
        heldout: the same on held-out data; None without.
        here: where the weights stand.
        lowest: the lowest place of the grid; None for a plain function, whose minima are found exactly.
        critical_points: of a plain function.
        sections: the loss along both axes (of a function: along the eigenvectors) with its error.
        way: of a trajectory; None without.
        why: why to look at this plane.
        evaluation: how many points at once.
        notes: what the reader must know.
        cost: of it all.
        provenance: what is needed to repeat it.
    """

    schema: ClassVar[str] = "thalweg/plane@1"

    name: str
    num_parameters: int
    num_examples: int
    num_heldout: int
    loss: float
    names: tuple[str, str]
    axes: tuple[Direction, Direction]
    x: tuple[float, ...]
    y: tuple[float, ...]
    training: Grid
    heldout: Grid | None
    here: tuple[float, float]
    lowest: Lowest | None
    critical_points: tuple[CriticalPoint, ...]
    sections: tuple[Line, ...]
    way: Way | None
    why: str
    evaluation: Evaluation
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    def __repr__(self) -> str:
        return f"Plane({self.name!r}, {len(self.x)}×{len(self.y)} points, loss {significant(self.loss, 3)})"

    def document(self) -> Document:
        """Describe the plane for people, with its picture."""
        title = title_of(self.name, self.num_parameters, self.num_examples, self.num_heldout)
        return Document(title, tuple(self._blocks()))

    def _blocks(self) -> Iterator[Block]:
        yield Facts(tuple(self._facts()))
        yield Figure("plane", self._title, self._alt(), tuple(self._panels()), self._caption())
        for text in (self.why, *self.notes, measured_by(self.evaluation, self.cost)):
            if text:
                yield Note(text)

    @property
    def _is_function(self) -> bool:
        return self.lowest is None

    @property
    def _title(self) -> str:
        return self.name if self._is_function else f"{self.name}: the loss on a plane"

    def _panels(self) -> Iterator[ContourPlot | SurfacePlot | LinePlot]:
        names = ("", "") if self._is_function else ("x: ", "y: ")
        x_axis, y_axis = (Axis(name + axis.label) for name, axis in zip(names, self.axes, strict=True))
        z_axis = Axis("value") if self._is_function else scale_of(v for row in self.training for v in row)
        title = "level lines" if self._is_function else "training loss"
        way = self.way.points if self.way is not None else ()
        marks = self._marks()
        yield ContourPlot(title, x_axis, y_axis, self.x, self.y, self.training, z_axis, marks, way)
        plain = tuple(Mark(mark.x, mark.y, mark.kind) for mark in marks)
        if not self._is_function:
            x_axis, y_axis = Axis("x"), Axis("y")
        yield SurfacePlot(
            "the same as a surface", x_axis, y_axis, self.x, self.y, self.training, z_axis, plain
        )
        for line in self.sections:
            here = (Mark(0.0, self.loss, "here", "here"),) if self.way is None else ()
            title = f"section along {line.direction.label}"
            yield line_plot(line, self.names, title, here, function=self._is_function)

    def _marks(self) -> tuple[Mark, ...]:
        marks = list(marks_of(self.critical_points, self.here))
        here = self.here
        if not any(
            math.isclose(m.x, here[0], abs_tol=1e-6) and math.isclose(m.y, here[1], abs_tol=1e-6)
            for m in marks
        ):
            marks.append(Mark(*here, "here", f"here {significant(self.loss, 3)}"))
        if self.lowest is not None and self.lowest.at != here:
            marks.append(Mark(*self.lowest.at, "minimum", f"lowest {significant(self.lowest.loss, 3)}"))
        if self.way is not None:
            marks.append(Mark(*self.way.points[0], "start", "start"))
        return tuple(marks)

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self._is_function:
            yield "here", f"{significant(self.loss, 4)} at {_at(self.here)}"
            for point in self.critical_points:
                curved = ", ".join(significant(v, 4) for v in point.eigenvalues)
                yield (
                    kind_of(point),
                    f"{significant(point.value, 4)} at {_at(point.point)}, curvatures {curved}",
                )
            if not self.critical_points:
                yield "critical points", "none found in this rectangle"
            return
        yield "loss", significant(self.loss, 4)
        for name, axis in zip("xy", self.axes, strict=True):
            yield name, f"{axis.label}, ± {significant(axis.reach, 3)}"
        if self.lowest is not None:
            yield "lowest", self._describe_lowest(self.lowest)
        if self.way is not None:
            shares = zip(self.way.explained, self.way.random_walk, strict=True)
            yield "explained", ", ".join(f"{e:.1%} (random walk: {r:.1%})" for e, r in shares)

    def _describe_lowest(self, lowest: Lowest) -> str:
        if lowest.at == self.here:
            return "here: nothing lower in this plane"
        text = f"{significant(lowest.loss, 4)} at {_at(lowest.at)}: {_change(lowest.change)}"
        return text + (f"; held out {_change(lowest.heldout)}" if lowest.heldout is not None else "")

    def _alt(self) -> str:
        seen = [v for row in self.training for v in row if math.isfinite(v)]
        text = [
            f"Level lines of {self.names[0]} over {self.axes[0].label} and {self.axes[1].label}, from "
            f"{significant(min(seen, default=math.nan), 3)} to "
            f"{significant(max(seen, default=math.nan), 3)}; "
            f"{significant(self.loss, 3)} where the weights stand."
        ]
        text += [
            f"{kind_of(p).capitalize()} {significant(p.value, 3)} at {_at(p.point)}."
            for p in self.critical_points
        ]
        if self.lowest is not None:
            text.append(f"Lowest: {self._describe_lowest(self.lowest)}.")
        text += [line_alt(line, self.names) for line in self.sections]
        return " ".join(text)

    def _caption(self) -> str:
        if self._is_function:
            return "Critical points: roots of the exact gradient, classified by the Hessian's eigenvalues."
        return (
            "Bands of the sections: one standard error of the difference from the weights, over the same "
            "batches. Dashed: what slope and curvature at the weights promise."
            if self.sections[0].direction.curvature is not None
            else "Bands of the sections: one standard error of the difference from the weights."
        )


def _at(point: tuple[float, ...]) -> str:
    return "(" + ", ".join(significant(c, 4) for c in point) + ")"


def _change(change: Estimate) -> str:
    return signed(change.value) + (f" ± {significant(change.stderr)}" if math.isfinite(change.stderr) else "")
