"""The record of a descent: singular values one after the other, rank, balance, errors, as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from thalweg.completion.descent import Descended, Snapshot
from thalweg.completion.observations import Observations
from thalweg.records import Record
from thalweg.report.document import Block, Curves, Document, Facts, Headline, significant
from thalweg.report.figures import Axis, Figure, LinePlot, Reference, Series

__all__ = ["Descent"]

_DRAWN = 6  # singular values in the picture
_HAS_GROWN = 0.05  # of the largest one: then a singular value counts as having left its plateau

_REASONS = {
    "tolerance": "the error over the entries descended on reached the tolerance",
    "level": "the error reached the level at which held-out entries were predicted best",
    "held-out": "the error over the entries held out had stopped falling",
    "steps": "all the steps that were allowed are taken",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Descent(Record):
    """What a descent on a product of matrices went through.

    Attributes:
        shape: of the matrix.
        num_observed: entries, those held out included.
        depth: factors.
        width: of the hidden layers.
        optimizer: "ngd", "gd" or "adam".
        scale: root mean square of the centred entries; errors and singular values of ``snapshots`` are in
            this unit.
        snapshots: where it stood, from the start on.
        kept: the step whose factors were the best (the last one where nothing was held out).
        num_steps: taken.
        reason: what ended it, in words.
    """

    schema: ClassVar[str] = "thalweg/descent@1"

    shape: tuple[int, int]
    num_observed: int
    depth: int
    width: int
    optimizer: str
    scale: float
    snapshots: tuple[Snapshot, ...]
    kept: int
    num_steps: int
    reason: str

    @classmethod
    def told(
        cls, run: Descended, entries: Observations, *, depth: int, width: int, optimizer: str, scale: float
    ) -> Descent:
        """Take what a descent came to."""
        return cls(
            shape=entries.shape,
            num_observed=len(entries),
            depth=depth,
            width=width,
            optimizer=optimizer,
            scale=scale,
            snapshots=run.snapshots,
            kept=run.step,
            num_steps=run.num_steps,
            reason=_REASONS[run.stopped],
        )

    @classmethod
    def empty(cls, entries: Observations, depth: int, optimizer: str) -> Descent:
        """Say that there was nothing to descend on."""
        return cls(
            shape=entries.shape,
            num_observed=len(entries),
            depth=depth,
            width=0,
            optimizer=optimizer,
            scale=0.0,
            snapshots=(),
            kept=0,
            num_steps=0,
            reason="nothing is left after centring",
        )

    def __repr__(self) -> str:
        return (
            f"Descent(depth {self.depth}, {self.num_steps:,} steps, effective rank {self._final_rank():.3g})"
        )

    def arrivals(self) -> tuple[int, ...]:
        """Return the step at which each singular value first exceeded 5 % of the largest at the end."""
        if not self.snapshots:
            return ()
        bar = _HAS_GROWN * self.snapshots[-1].singular_values[0]
        steps = []
        for i in range(len(self.snapshots[0].singular_values)):
            grown = [s.step for s in self.snapshots if s.singular_values[i] > bar]
            if not grown:
                break
            steps.append(grown[0])
        return tuple(steps)

    def document(self) -> Document:
        """Describe the descent for people."""
        n1, n2 = self.shape
        title = f"Descent on {self.depth} factors of a {n1:,} × {n2:,} matrix, width {self.width}"
        rank = self._final_rank()
        sentence = f"to effective rank {significant(rank, 3)}: {self.reason}"
        blocks: list[Block] = [Headline("descended", sentence, "good"), Facts(tuple(self._facts()))]
        if self.snapshots:
            blocks += [self._curves(), self.figure()]
        return Document(title, tuple(blocks))

    def figure(self) -> Figure:
        """Return the picture of the descent: the staircase of singular values, and the errors."""
        arrivals = self.arrivals()
        when = ", ".join(f"{step:,}" for step in arrivals[:_DRAWN])
        return Figure(
            name="descent",
            title=f"From saddle to saddle: a descent on {self.depth} factors",
            alt=(
                f"Singular values against steps: {len(arrivals)} leave their start near zero, at {when}; "
                f"the effective rank ends at {significant(self._final_rank(), 3)}. {self._errors_in_words()}"
            ),
            panels=(self._staircase(), self._errors(), self._ranks(), self._slopes()),
            caption=(
                "Each plateau of the error is a saddle, where the gradient is small and one more direction "
                "is about to grow, the largest first. The deeper the product, the sharper they part."
            ),
        )

    def _facts(self) -> list[tuple[str, str]]:
        rows = [("steps", f"{self.num_steps:,} of {self.optimizer}")]
        if not self.snapshots:
            return rows
        last = self.snapshots[-1]
        rows.append(("error", f"{significant(math.sqrt(last.loss) * self.scale, 3)} (root mean square)"))
        held = [(s.heldout, s.step) for s in self.snapshots if math.isfinite(s.heldout)]
        if held:
            best, at = min(held)
            text = f"{significant(math.sqrt(best) * self.scale, 3)} at its lowest, near step {at:,}"
            rows.append(("held out", text))
        values = ", ".join(significant(v * self.scale, 3) for v in last.singular_values[:_DRAWN])
        rows.append(("singular values", values))
        rows.append(("arrived at step", ", ".join(f"{step:,}" for step in self.arrivals()) or "none"))
        rows.append(
            ("balance", f"{significant(last.imbalance)}: gradient flow keeps it; long steps make it drift")
        )
        rows.append(("learning rate", f"{significant(self.snapshots[0].rate)} → {significant(last.rate)}"))
        return rows

    def _final_rank(self) -> float:
        return self.snapshots[-1].effective_rank if self.snapshots else 0.0

    def _curves(self) -> Curves:
        series = [("entries descended on", tuple(s.loss for s in self.snapshots))]
        if math.isfinite(self.snapshots[0].heldout):
            series.append(("entries held out", tuple(s.heldout for s in self.snapshots)))
        return Curves("Mean squared error", f"{self.num_steps:,} steps", tuple(series))

    def _steps(self) -> tuple[float, ...]:
        return tuple(float(s.step) for s in self.snapshots)

    def _staircase(self) -> LinePlot:
        count = min(_DRAWN, len(self.snapshots[0].singular_values))
        series = tuple(
            Series(
                f"σ{i + 1}", self._steps(), tuple(s.singular_values[i] * self.scale for s in self.snapshots)
            )
            for i in range(count)
        )
        return LinePlot(
            "Singular values", Axis("step"), Axis("singular value", "log"), series, references=self._mark()
        )

    def _errors(self) -> LinePlot:
        series = [Series("descended on", self._steps(), self._rms("loss"))]
        if math.isfinite(self.snapshots[0].heldout):
            series.append(Series("held out", self._steps(), self._rms("heldout"), style="dashed"))
        axis = Axis("root mean squared error", "log")
        return LinePlot("Error", Axis("step"), axis, tuple(series), references=self._mark())

    def _ranks(self) -> LinePlot:
        ranks = tuple(s.effective_rank for s in self.snapshots)
        series = (Series("effective rank", self._steps(), ranks),)
        return LinePlot("Effective rank", Axis("step"), Axis("effective rank"), series)

    def _slopes(self) -> LinePlot:
        norms = tuple(s.gradient_norm for s in self.snapshots)
        series = (Series("gradient norm", self._steps(), norms),)
        return LinePlot("Gradient", Axis("step"), Axis("norm of the gradient", "log"), series)

    def _mark(self) -> tuple[Reference, ...]:
        return (Reference(float(self.kept), "kept", "x"),) if self.kept < self.num_steps else ()

    def _rms(self, name: str) -> tuple[float, ...]:
        return tuple(math.sqrt(getattr(s, name)) * self.scale for s in self.snapshots)

    def _errors_in_words(self) -> str:
        first, last = self._rms("loss")[0], self._rms("loss")[-1]
        return f"The error falls from {significant(first, 3)} to {significant(last, 3)}."
