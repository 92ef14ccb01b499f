"""What an attempt to leave a saddle found, did, and says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from thalweg.curvature.spectrum import Extreme
from thalweg.diagnosis.ways_out import WayOut
from thalweg.estimates import Estimate
from thalweg.records import Cost, Provenance, Record
from thalweg.report.document import Block, Document, Facts, Headline, Note, Table, signed, significant

__all__ = ["FUNCTION", "HELD_BACK", "HELD_OUT", "MOST", "Escape", "plain_share"]

# What an escape is judged on.
HELD_OUT = "held-out data"
HELD_BACK = "training data held back"
FUNCTION = "the function itself"
MOST = 0.5  # the share of the gain from which on gradient steps explain it: no saddle held it back
_LOSS = {HELD_OUT: "held-out loss", HELD_BACK: "loss held back", FUNCTION: "function"}


def plain_share(ways: Sequence[WayOut], plain: WayOut | None) -> float:
    """Return the share of the best way's gain that ordinary gradient steps buy; 0 where none were taken."""
    if plain is None or not ways or ways[0].change.value >= 0:
        return 0.0
    return plain.change.value / ways[0].change.value


@dataclass(frozen=True, kw_only=True, repr=False)
class Escape(Record):
    """What an attempt to leave a saddle found and did.

    Attributes:
        name: of the problem.
        applied: whether the weights were moved; if not, they are bit for bit what they were.
        reason: why, in a sentence.
        way: the way that was judged; None where none lowers the training loss.
        step: how far it leads, ‖θ′−θ‖.
        loss: where it was judged, before.
        change: of that loss, paired over batches; None where nothing was judged.
        judged_on: "held-out data", "training data held back", or "the function itself".
        lambda_min: the lowest curvature before; None where the model is too large for Lanczos.
        lambda_min_after: the same where the weights are now; None where they did not move.
        ways: what was tried, the best on the training sample first.
        plain: as many gradient steps from the point itself, for comparison.
        point: where a plain function's point is now, up to 16 coordinates.
        saved_to: the file of the new weights.
        notes: how it was measured.
        num_parameters: trainable coordinates.
        num_examples: training examples on which the ways were found.
        num_judging: examples on which the best was judged.
        cost: what it took.
        provenance: what is needed to repeat it.
    """

    schema: ClassVar[str] = "thalweg/escape@1"

    name: str
    applied: bool
    reason: str
    way: str | None
    step: float | None
    loss: Estimate
    change: Estimate | None
    judged_on: str
    lambda_min: Extreme | None
    lambda_min_after: Extreme | None
    ways: tuple[WayOut, ...]
    plain: WayOut | None
    point: tuple[float, ...] | None
    saved_to: str | None
    notes: tuple[str, ...]
    num_parameters: int
    num_examples: int
    num_judging: int
    cost: Cost
    provenance: Provenance

    def __repr__(self) -> str:
        change = "none" if self.change is None else f"{self.change.value:.2g}±{self.change.stderr:.1g}"
        return f"Escape({self.name!r}: {'applied' if self.applied else 'refused'}, change={change})"

    def document(self) -> Document:
        """Describe the attempt for people."""
        title = f"{self.name} · {self.num_parameters:,} parameter{'' if self.num_parameters == 1 else 's'}"
        if self.num_judging:
            title += f" · {self.num_examples:,} examples to find a way, {self.num_judging:,} to judge it"
        word, tone = ("escaped", "good") if self.applied else ("stayed", "neutral")
        if self.applied and plain_share(self.ways, self.plain) >= MOST:
            word = "moved"  # down, but out of nothing
        blocks: list[Block] = [
            Headline(word, self.reason, tone),  # type: ignore[arg-type]
            Note(self._advice(), "What to do"),
            Facts(tuple(self._facts())),
        ]
        if self.ways:
            blocks.append(self._table())
        blocks.extend(Note(note) for note in self.notes)
        blocks.append(
            Note(
                f"± is one standard error. {self.cost.gradient_equivalents:.0f} gradient-equivalents, "
                f"{self.cost.num_hvps} Hessian–vector products, {self.cost.seconds:.1f} s"
            )
        )
        return Document(title, tuple(blocks))

    def _advice(self) -> str:
        if not self.applied:
            return "the weights are bit for bit as they were; `thalweg diagnose` says where they stand."
        if self.point is not None:
            return "go on from the new point."
        after = self.lambda_min_after
        again = ""
        if after is not None and after.value < -after.bound:
            again = " The curvature is still negative there: if training stalls, escape again."
        return (
            "train on from the new weights, with a fresh optimiser: momentum and moments belong to the old "
            f"ones.{again}"
        )

    def _facts(self) -> list[tuple[str, str]]:
        rows = [(_LOSS[self.judged_on], self._loss())]
        if self.lambda_min is not None:
            text = _pair(self.lambda_min)
            if self.lambda_min_after is not None:
                text += f" → {_pair(self.lambda_min_after)}"
            rows.append(("λmin", text))
        if self.way is not None:
            rows.append(("way", f"{self.way}, {significant(self.step)} from the old weights"))
        if self.point is not None:
            rows.append(("point", ", ".join(significant(x, 4) for x in self.point)))
        if self.saved_to is not None:
            reader = "safetensors.torch.load_file" if self.saved_to.endswith(".safetensors") else "torch.load"
            rows.append(("new weights", f"{self.saved_to}; model.load_state_dict({reader}(…)) takes them"))
        return rows

    def _loss(self) -> str:
        text, change = significant(self.loss.value, 4), self.change
        if change is None:
            return text
        if self.applied:
            text += f" → {significant(self.loss.value + change.value, 4)}, a change of {signed(change.value)}"
        else:
            text += f"; the way down changes it by {signed(change.value)}"
        if change.stderr > 0:
            text += f" ± {significant(change.stderr, 1)} (99 %: below {signed(change.upper(0.99))})"
        return text

    def _table(self) -> Table:
        shown = [*self.ways, *([self.plain] if self.plain is not None else [])]
        rows = tuple(
            (
                way.name + (" (for comparison)" if way is self.plain else ""),
                significant(way.step),
                signed(way.change.value)
                + (f" ± {significant(way.change.stderr, 1)}" if way.change.stderr > 0 else ""),
            )
            for way in shown
        )
        where = "training loss" if self.num_judging else "function"
        return Table(
            f"What was tried   (distance, change of the {where})",
            ("", "distance", "change"),
            rows,
        )


def _pair(end: Extreme) -> str:
    return f"{significant(end.value, 3)} ± {significant(end.bound, 1)}"
