"""What a training went through, and what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from thalweg.records import Cost, Provenance, Record
from thalweg.report.document import Block, Curves, Document, Facts, Headline, Note, significant

__all__ = ["Epoch", "Stopped", "Trajectory", "direction"]

Stopped = Literal["epochs", "steps", "goal", "gradient", "held-out", "diverged"]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Where a training stood at the end of an epoch; the first of them is where it began.

    Attributes:
        steps: taken so far.
        loss: over the training examples (at most 4,096 of them), in evaluation mode.
        heldout: the same over the held-out examples; None without any.
        lr: the largest learning rate; None for a method that has none.
        gradient_equivalents: spent on steps so far; one is a forward and a backward pass over an epoch.
    """

    steps: int
    loss: float
    heldout: float | None
    lr: float | None
    gradient_equivalents: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Trajectory(Record):
    """What a training went through.

    Attributes:
        name: of the problem.
        optimizer: its name.
        settings: of the optimiser where training began.
        batch_size: examples per step; None where the data came in batches of their own.
        epochs: where it stood, from before the first step on.
        stopped: what ended it: "epochs" or "steps" where all that were asked for are done.
        reason: the same in a sentence.
        kept: which of ``epochs`` the weights of the model are from.
        point: where a plain function's point is now, up to 16 coordinates.
        saved_to: the file of the new weights.
        notes: what the reader must know.
        num_parameters: trainable coordinates.
        num_examples: training examples in an epoch; None for a stream.
        cost: of training and measuring together.
        provenance: what is needed to repeat it.
        optimizer_state: of the optimiser at the end; `Problem.adopt_optimizer_state` goes on from it.
    """

    schema: ClassVar[str] = "thalweg/trajectory@1"

    name: str
    optimizer: str
    settings: Mapping[str, Any]
    batch_size: int | None
    epochs: tuple[Epoch, ...]
    stopped: Stopped
    reason: str
    kept: int
    point: tuple[float, ...] | None
    saved_to: str | None
    notes: tuple[str, ...]
    num_parameters: int
    num_examples: int | None
    cost: Cost
    provenance: Provenance
    optimizer_state: Mapping[str, Any] = field(metadata={"json": False}, compare=False)

    @property
    def final(self) -> Epoch:
        """The epoch whose weights are kept."""
        return self.epochs[self.kept]

    def __repr__(self) -> str:
        return (
            f"Trajectory({self.name!r}, {self.optimizer}: {self.stopped} after {self.final.steps} steps, "
            f"loss {significant(self.epochs[0].loss, 3)} → {significant(self.final.loss, 3)})"
        )

    def document(self) -> Document:
        """Describe the training for people."""
        title = f"{self.name} · {self.num_parameters:,} parameter{'' if self.num_parameters == 1 else 's'}"
        if self.num_examples is not None and self.epochs[0].heldout is not None:
            title += f" · {self.num_examples:,} training examples"
        word, tone = {
            "diverged": ("diverged", "bad"),
            "held-out": ("stopped early", "good"),
            "goal": ("goal reached", "good"),
            "gradient": ("stands still", "neutral"),
        }.get(self.stopped, self._outcome)
        spent = self.epochs[-1].gradient_equivalents
        blocks: list[Block] = [
            Headline(word, self.reason, tone),  # type: ignore[arg-type]
            Curves("Loss", self._span(), tuple(self._curves())),
            Facts(tuple(self._facts())),
            *(Note(note) for note in self.notes),
            Note(
                f"{self.cost.gradient_equivalents:,.0f} gradient-equivalents, "
                f"{spent:,.0f} of them for the steps, {self.cost.seconds:.1f} s"
            ),
        ]
        return Document(title, tuple(blocks))

    @property
    def _outcome(self) -> tuple[str, str]:
        """What came of a training that went on for as long as it was meant to: a word and its tone."""
        return {
            "fell": ("trained", "good"),
            "rose": ("loss rose", "bad"),
            "stayed": ("trained", "neutral"),
        }[direction(self.epochs[0].loss, self.final.loss)]

    def _span(self) -> str:
        past = len(self.epochs) - 1
        return f"{past} epoch{'' if past == 1 else 's'}"

    def _curves(self) -> list[tuple[str, tuple[float, ...]]]:
        curves = [("training", tuple(epoch.loss for epoch in self.epochs))]
        heldout = tuple(math.nan if e.heldout is None else e.heldout for e in self.epochs)
        if self.epochs[0].heldout is not None:
            curves.append(("held out", heldout))
        return curves

    def _facts(self) -> list[tuple[str, str]]:
        first, last = self.epochs[0], self.final
        loss = f"{significant(first.loss, 3)} → {significant(last.loss, 3)}"
        if first.heldout is not None:
            loss += f", held out {significant(first.heldout, 3)} → {significant(last.heldout, 3)}"
        rows = [("loss", loss), ("steps", self._steps())]
        if last.lr is not None:
            moved = f"{significant(first.lr, 2)} → " if first.lr != last.lr else ""
            rows.append(("learning rate", moved + significant(last.lr, 2)))
        if self.kept != len(self.epochs) - 1:
            rows.append(("weights", f"of epoch {self.kept}, where the held-out loss was lowest"))
        if self.point is not None:
            rows.append(("point", ", ".join(significant(x, 4) for x in self.point)))
        if self.saved_to is not None:
            rows.append(("written to", self.saved_to))
        return rows

    def _steps(self) -> str:
        text = f"{self.epochs[-1].steps:,} of {self.optimizer}"
        if self.batch_size is None:
            return text + ", in the data's own batches"
        if self.num_examples == self.batch_size:
            return text + (", on all the examples at once" if self.batch_size > 1 else "")
        return text + f", {self.batch_size} example{'' if self.batch_size == 1 else 's'} each"


def direction(first: float, last: float) -> Literal["fell", "rose", "stayed"]:
    """Say what a loss did, as far as the three digits that are shown tell."""
    if significant(first, 3) == significant(last, 3):
        return "stayed"
    return "fell" if last < first else "rose"
