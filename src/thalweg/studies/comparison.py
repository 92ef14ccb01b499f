"""What a comparison of optimisers found, and how it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from thalweg.records import Cost, Provenance, Record
from thalweg.report.document import Block, Document, Facts, Headline, Note, Table, signed, significant
from thalweg.studies.comparison_figures import figures
from thalweg.studies.method import NEAR, Method
from thalweg.studies.statistics import Difference, compared, sign_flip_floor, spread, wilson

__all__ = ["Comparison", "Method"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Record):
    """Optimisers side by side on one problem.

    Attributes:
        name: of the problem.
        methods: what each went through, in the order in which they were asked for.
        epochs: the budget of a run, in gradient-equivalents.
        batch_size: examples a step of the methods that are not meant for all of them at once.
        seeds: of the runs that are reported.
        tuning_seeds: of the runs by which learning rates were chosen.
        examples: to train on, to choose on, held out.
        classes: whether there is an accuracy.
        own_heldout: whether the held-out data are the problem's; otherwise a part of its training data.
        num_parameters: trainable coordinates.
        notes: what the reader must know.
        cost: of all runs together; that of runs which an earlier start had finished counts too.
        provenance: what is needed to repeat it.
    """

    schema: ClassVar[str] = "thalweg/comparison@1"

    name: str
    methods: tuple[Method, ...]
    epochs: float
    batch_size: int
    seeds: int
    tuning_seeds: int
    examples: tuple[int, int, int]
    classes: bool
    own_heldout: bool
    num_parameters: int
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    @cached_property
    def able(self) -> tuple[Method, ...]:
        """The methods that can train the problem."""
        return tuple(method for method in self.methods if method.refused is None)

    @cached_property
    def reference(self) -> Method:
        """The method that was best on the validation data, so that no reported number chose it."""
        return min(self.able, key=lambda method: method.validation[method.chosen])

    def difference(self, method: Method) -> Difference:
        """Compare the held-out loss of a method with the reference's, seed by seed."""
        reference = [run.last("test") for run in self.reference.reported]
        values = [run.last("test") for run in method.reported]
        return compared(values, reference, comparisons=len(self.able) - 1)

    def __repr__(self) -> str:
        return f"Comparison({self.name!r}, {len(self.methods)} optimisers: {self._sentence()})"

    def document(self) -> Document:
        """Describe the comparison for people."""
        train, validation, test = self.examples
        title = (
            f"{self.name} · {self.num_parameters:,} parameters · {train:,} examples to train on, "
            f"{validation:,} to choose on, {test:,} held out"
        )
        word = self.reference.name if self._worse() or self._better() else "no detectable difference"
        blocks: list[Block] = [
            Headline(word, self._sentence(), "good" if self._worse() else "neutral"),
            self._heldout(),
            self._training(),
            Note(self._how_to_read()),
            self._tuning(),
            *self._remarks(),
            *figures(self.able, self.reference, classes=self.classes),
            *(Note(note) for note in self.notes),
            Note(
                f"{self.seeds} paired seeds, {self.tuning_seeds} others to choose the rates with, "
                f"{self.epochs:g} gradient-equivalents a run, batches of {self.batch_size}; "
                f"{self.cost.gradient_equivalents:,.0f} gradient-equivalents in all, "
                f"{self.cost.seconds:.0f} s."
            ),
        ]
        return Document(title, tuple(blocks))

    def _worse(self) -> list[str]:
        found = [(m, self.difference(m)) for m in self.able if m is not self.reference]
        return [
            m.name for m, d in found if (d.detectable and d.mean > 0) or m.failures > self.reference.failures
        ]

    def _better(self) -> list[str]:
        found = [(m, self.difference(m)) for m in self.able if m is not self.reference]
        return [m.name for m, d in found if d.detectable and d.mean < 0]

    def _sentence(self) -> str:
        worse, better = self._worse(), self._better()
        same = [m.name for m in self.able if m is not self.reference and m.name not in worse + better]
        parts = [f"{self.reference.name} was best on the validation data"]
        if not same and not worse and not better:
            return parts[0] + "; it had no rival"
        if worse:
            parts.append(f"held out it does better than {', '.join(worse)}")
        if better:
            parts.append(f"held out {', '.join(better)} do{'es' if len(better) == 1 else ''} better")
        if same:
            parts.append(f"there is no detectable difference between it and {', '.join(same)}")
        return "; ".join(parts)

    def _heldout(self) -> Table:
        columns = ["", "rate", "held-out loss", "against the best"]
        if self.classes:
            columns.insert(3, "right")
        rows = []
        for m in self.methods:
            if m.refused is not None:
                rows.append((m.name, "cannot", *[""] * (len(columns) - 2)))
                continue
            rate = "–" if m.rate is None else significant(m.rate, 2) + (" ◂" if m.edge else "")
            cells = [m.name, rate, _with_quartiles([run.last("test") for run in m.reported])]
            if self.classes:
                cells.append(f"{spread([run.last('right') for run in m.reported]).median:.1%}")
            cells.append("best" if m is self.reference else _difference(self.difference(m)))
            rows.append(tuple(cells))
        title = "Held out, with the rate chosen on validation data   (median, quartiles over the seeds)"
        return Table(title, tuple(columns), tuple(rows))

    def _training(self) -> Table:
        rows = []
        for m in self.able:
            train = spread([run.last("train") for run in m.reported]).median
            rows.append(
                (
                    m.name,
                    _finite(train),
                    f"{m.failures} of {len(m.reported)}" if m.failures else "none",
                    significant(m.cost_to(self._goal()), 2),
                    significant(m.seconds * self.epochs, 2),
                )
            )
        columns = ("", "training loss", "failed", "cost to the goal", "s a run")
        return Table("Training, and what it takes   (medians)", columns, tuple(rows))

    def _goal(self) -> float:
        best = min(spread([run.last("test") for run in m.reported]).median for m in self.able)
        return best * (1 + NEAR) if best > 0 else best

    def _how_to_read(self) -> str:
        floor = sign_flip_floor(self.seeds)
        text = (
            "Against the best: the mean paired difference of the held-out loss from the method that the "
            "validation data chose, with an interval that holds for all comparisons together (95 %); ‘none’ "
            "where it covers 0, which is no proof that there is none. The intervals take the "
            "differences to be "
            f"normal; without that, {self.seeds} seeds could not show any at p < {floor:.2g}. The "
            "goal: within "
            f"{NEAR:.0%} of the best held-out loss; its cost in gradient-equivalents, epochs of a "
            "first-order "
            "method. s a run: of one net alone, on one thread."
        )
        edges = [f"{m.name} ({m.edge})" for m in self.able if m.edge]
        if edges:
            text += (
                f" ◂ under-tuned: the best rate lies at an end of its grid, {', '.join(edges)}; more --rates "
                "widen the grids."
            )
        return text

    def _tuning(self) -> Table:
        rows = []
        for m in self.able:
            if len(m.rates) == 1:
                rows.append((m.name, "no rate to choose", "", "", _finite(m.typical(1))))
                continue
            near = sum(loss <= (1 + NEAR) * min(m.losses) for loss in m.losses)
            low, high = significant(m.rates[0], 1), significant(m.rates[-1], 1)
            rows.append(
                (
                    m.name,
                    f"{near} of {len(m.rates)} ({low} … {high})",
                    _finite(m.typical(1)),
                    _finite(m.typical(min(3, len(m.rates)))),
                    _finite(m.typical(len(m.rates))),
                )
            )
        return Table(
            f"How much the rate matters   (held-out loss; rates within {NEAR:.0%} of the best, and "
            "what is to "
            "be had with some of them tried at random)",
            ("", "good rates", "one tried", "three", "all"),
            tuple(rows),
        )

    def _remarks(self) -> list[Block]:
        rows = [(m.name, f"cannot train this: {m.refused}") for m in self.methods if m.refused is not None]
        for m in self.able:
            if m.failures:
                low, high = wilson(m.failures, len(m.reported))
                rows.append((m.name, f"failed in {low:.0%} … {high:.0%} of such runs (95 %)"))
        rows += [(m.name, text) for m in self.able if (text := m.shrinking(self.epochs)) is not None]
        alone = [m.name for m in self.able if m.alone is not None]
        if alone:
            rows.append(("one by one", f"{', '.join(alone)}; the others were trained many nets at once"))
        if not self.own_heldout:
            rows.append(("held out", "the problem has no held-out data: a fifth of its training data"))
        return [Facts(tuple(rows))] if rows else []


def _with_quartiles(values: list[float]) -> str:
    found = spread(values)
    if not math.isfinite(found.median):
        return "fails"
    high = significant(found.high, 3) if math.isfinite(found.high) else "∞"
    return f"{significant(found.median, 3)} ({significant(found.low, 3)}–{high})"


def _difference(found: Difference) -> str:
    if not math.isfinite(found.mean):
        return "–"
    half = significant((found.upper - found.lower) / 2)
    return f"{signed(found.mean)} ± {half}" if found.detectable else f"none ± {half}"


def _finite(value: float) -> str:
    return significant(value, 3) if math.isfinite(value) else "fails"
