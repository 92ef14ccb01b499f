"""What was seen between two solutions, and what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from thalweg.estimates import Estimate
from thalweg.landscape.evaluation import Evaluation
from thalweg.landscape.pictures import measured_by, scale_of, series_of, title_of
from thalweg.records import Cost, Provenance, Record
from thalweg.report.document import Block, Document, Facts, Note, signed, significant
from thalweg.report.figures import Axis, Figure, LinePlot, Mark, Series

__all__ = ["Path", "Shape", "Way"]

Shape = Literal["straight", "curved"]

_MEANING = (
    "How to read it: where both curves are lowest at the same place, the solution is as good on new "
    "data as it "
    "looks; a wall between the ends says that they lie in different valleys. How steep the walls are depends "
    "on the scale of the weights too (Dinh et al. 2017): a sharp end need not generalise worse."
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """The loss along one way from the first solution (α = 0) to the second (α = 1).

    Attributes:
        shape: "straight" or "curved".
        alphas: where it was measured (m,), ascending.
        training: the loss at each; the standard error is that of the difference from α = 0.
        heldout: the same on held-out data; None without.
        wrong: share of wrong answers on the training data; None where there are no classes.
        wrong_heldout: the same on held-out data.
        barrier: how far the training loss between the ends lies above the line through their losses, at most;
            0 where nowhere.
        rises: by how much the training loss rises a quarter of the way to both sides of each end (mean of the
            sides); None where that lies outside.
    """

    shape: Shape
    alphas: tuple[float, ...]
    training: tuple[Estimate, ...]
    heldout: tuple[Estimate, ...] | None
    wrong: tuple[float, ...] | None
    wrong_heldout: tuple[float, ...] | None
    barrier: Estimate
    rises: tuple[Estimate | None, Estimate | None]

    def index(self, alpha: float) -> int:
        """Return the place of ``alpha``."""
        return int(np.abs(np.array(self.alphas) - alpha).argmin())


@dataclass(frozen=True, kw_only=True, repr=False)
class Path(Record):
    """The loss between two solutions and beyond.

    Attributes:
        name: of the problem.
        num_parameters: n.
        num_examples: of the training sample.
        num_heldout: of the held-out sample; 0 without.
        names: of the two losses.
        distance: ‖second − first‖.
        ways: the straight and the curved one.
        evaluation: how many points at once.
        notes: what the reader must know.
        cost: of it all.
        provenance: what is needed to repeat it.
    """

    schema: ClassVar[str] = "thalweg/path@1"

    name: str
    num_parameters: int
    num_examples: int
    num_heldout: int
    names: tuple[str, str]
    distance: float
    ways: tuple[Way, ...]
    evaluation: Evaluation
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    def __repr__(self) -> str:
        distance = significant(self.distance, 3)
        return f"Path({self.name!r}, {len(self.ways[0].alphas)} points, distance {distance})"

    def document(self) -> Document:
        """Describe the way for people, with its picture."""
        title = title_of(self.name, self.num_parameters, self.num_examples, self.num_heldout)
        return Document(title, tuple(self._blocks()))

    def _blocks(self) -> Iterator[Block]:
        yield Facts(tuple(self._facts()))
        yield Figure(
            "path",
            f"{self.name}: between two solutions",
            " ".join(f"{way.shape.capitalize()} way. {self._alt(way)}" for way in self.ways),
            tuple(plot for way in self.ways for plot in self._panels(way)),
            "α = 0 is the first solution, α = 1 the second. Bands: one standard error of the difference, "
            "over the same batches.",
        )
        for text in (_MEANING, *self.notes, measured_by(self.evaluation, self.cost)):
            yield Note(text)

    def _facts(self) -> Iterator[tuple[str, str]]:
        way = self.ways[0]
        for label, alpha, rise in (
            ("first (α = 0)", 0.0, way.rises[0]),
            ("second (α = 1)", 1.0, way.rises[1]),
        ):
            yield label, self._end(way, way.index(alpha), rise)
        yield "distance", significant(self.distance, 3)
        for way in self.ways:
            yield f"{way.shape} wall", _wall(way.barrier)
        if self.ways[0].heldout is not None:
            for way in self.ways:
                assert way.heldout is not None
                lowest = [way.alphas[_lowest(curve)] for curve in (way.training, way.heldout)]
                yield (
                    f"{way.shape} lowest",
                    f"training at α = {significant(lowest[0])}, held out at α = {significant(lowest[1])}",
                )

    def _end(self, way: Way, at: int, rise: Estimate | None) -> str:
        text = f"training {significant(way.training[at].value, 3)}"
        if way.heldout is not None:
            text += f", held out {significant(way.heldout[at].value, 3)}"
        if way.wrong is not None and way.wrong_heldout is not None:
            text += f"; wrong {way.wrong[at]:.1%} and {way.wrong_heldout[at]:.1%}"
        if rise is not None:
            text += (
                f"; a quarter of the way off the loss is {signed(rise.value)} ± {significant(rise.stderr)}"
            )
        return text

    def _alt(self, way: Way) -> str:
        first, second = way.index(0.0), way.index(1.0)
        text = (
            f"Training loss {significant(way.training[first].value, 3)} at the first solution, "
            f"{significant(way.training[second].value, 3)} at the second; wall between: {_wall(way.barrier)}."
        )
        if way.heldout is not None:
            text += (
                f" Held-out loss {significant(way.heldout[first].value, 3)} and "
                f"{significant(way.heldout[second].value, 3)}."
            )
        return text

    def _panels(self, way: Way) -> Iterator[LinePlot]:
        series = [series_of(self.names[0], way.alphas, way.training)]
        if way.heldout is not None:
            series.append(series_of(self.names[1], way.alphas, way.heldout, dashed=True))
        marks = tuple(
            Mark(alpha, way.training[way.index(alpha)].value, kind, label)  # type: ignore[arg-type]
            for alpha, kind, label in ((0.0, "start", "first"), (1.0, "end", "second"))
        )
        y_axis = scale_of(v for s in series for v in s.y)
        yield LinePlot(f"loss, {way.shape} way", Axis("α"), y_axis, tuple(series), marks)
        if way.wrong is not None:
            curves = [Series(self.names[0], way.alphas, tuple(100 * w for w in way.wrong))]
            if way.wrong_heldout is not None:
                wrong = tuple(100 * w for w in way.wrong_heldout)
                curves.append(Series(self.names[1], way.alphas, wrong, style="dashed"))
            yield LinePlot(f"wrong answers, {way.shape} way", Axis("α"), Axis("per cent"), tuple(curves))


def _lowest(estimates: tuple[Estimate, ...]) -> int:
    return int(np.argmin([e.value if math.isfinite(e.value) else math.inf for e in estimates]))


def _wall(barrier: Estimate) -> str:
    if barrier.value <= 0:
        return "none"
    error = (
        f" ± {significant(barrier.stderr)}" if math.isfinite(barrier.stderr) and barrier.stderr > 0 else ""
    )
    return f"{significant(barrier.value, 3)}{error} above the line between the ends"
