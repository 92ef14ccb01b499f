"""How a batch-size study is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from thalweg.records import Record
from thalweg.report.document import Block, Document, Facts, Headline, Note, Table, signed, significant
from thalweg.studies.batch_figures import figures
from thalweg.studies.batch_findings import BatchFindings, SizeResult
from thalweg.studies.statistics import compared, spread

__all__ = ["BatchSizes"]


@dataclass(frozen=True, kw_only=True, repr=False)
class BatchSizes(BatchFindings, Record):
    """What the batch size does to a problem; its numbers are described in `BatchFindings`."""

    schema: ClassVar[str] = "thalweg/batch-sizes@1"

    def __repr__(self) -> str:
        critical = "–" if self.critical is None else f"{self.critical.value:.3g}"
        return (
            f"BatchSizes({self.name!r}, {self.sizes[0].size} … {self.sizes[-1].size}: parallel limit "
            f"{self.time.limit:.3g}, critical batch {critical}, noise scale {self.noise_scales[0]:.3g})"
        )

    def document(self) -> Document:
        """Describe the study for people."""
        train, validation, test = self.examples
        title = (
            f"{self.name} · {self.num_parameters:,} parameters · {train:,} examples to train on, "
            f"{validation:,} to choose on, {test:,} held out"
        )
        blocks: list[Block] = [
            Headline(*self._advice()),
            self._costs(),
            self._accuracy(),
            Note(self._how_to_read()),
            Facts(tuple(self._facts())),
            *([self._rescued()] if self.rescues else []),
            *figures(self),
            *(Note(note) for note in self.notes),
            Note(
                f"{self.optimizer}, {self.seeds} seeds; {self.cost.gradient_equivalents:,.0f} "
                f"gradient-equivalents for the runs, {self.cost.seconds:.0f} s."
            ),
        ]
        return Document(title, tuple(blocks))

    def _advice(self) -> tuple[str, str]:
        best = self.best_size
        if best is None or self.critical is None:
            reached = sum(math.isfinite(spread(steps).median) for _, steps in self.needed)
            return (
                "no size stands out",
                "too few sizes reached a common loss to say how many updates they need"
                if reached < 3
                else "the updates to a common loss do not show where more examples stop paying: other "
                "--sizes or more --epochs would",
            )
        nearest = min(self.sizes, key=lambda r: abs(math.log(r.size / best)))
        rate = significant(nearest.rates[0], 2)
        limit, critical = significant(self.time.limit), significant(self.critical.value)
        kind = "slower" if best > nearest.size else "faster"
        return (
            f"batches of about {significant(best)}",
            f"with a rate of about {rate}: on this machine an update costs the same up to some "
            f"{limit} examples, "
            f"and beyond some {critical} more examples save few updates; the time to a loss is least at "
            f"√({limit}·{critical}). Other hardware moves the first number, longer training the second"
            + (
                ""
                if abs(math.log(nearest.size / best)) < 0.7
                else f" (of the sizes tried {nearest.size} is near, {kind} per update)"
            ),
        )

    def _accuracy(self) -> Table:
        what = "share right" if self.classes else "held-out loss"
        rows = []
        for r in self.sizes:
            rates = " / ".join(dict.fromkeys(significant(rate, 2) for rate in r.rates))
            cells = [self._cell(r, i) for i in range(4)]
            rows.append((f"{r.size}", *cells[:2], rates + (" ◂" if r.edge else ""), *cells[2:]))
        e, u = f"{self.marks.epochs:g} epochs", f"{self.marks.updates} updates"
        return Table(
            f"Held out, {what}   (medians; left with the rate {significant(self.kept_rate, 2)}, the best for "
            f"{self.small}, kept for all, right with rates of their own)",
            ("batch", e, u, "own rate", e, u),
            tuple(rows),
        )

    def _costs(self) -> Table:
        rows = []
        needed = dict(self.needed)
        for r in self.sizes:
            seconds, steps = self.seconds_of(r.size), spread(needed[r.size]).median
            known = math.isfinite(steps)
            rows.append(
                (
                    f"{r.size}",
                    f"{1e3 * seconds:.3g}",
                    f"{seconds * math.ceil(self.examples[0] / r.size):.3g}",
                    f"{steps:,.0f}" if known else "–",
                    f"{seconds * steps:.2g}" if known else "–",
                )
            )
        target = (
            "" if self.critical is None else f"   (to a training loss of {significant(self.critical.target)})"
        )
        columns = ("batch", "ms an update", "s an epoch", "updates to the loss", "s to the loss")
        return Table(f"What it takes{target}", columns, tuple(rows))

    def _cell(self, result: SizeResult, cell: int) -> str:
        values = result.right[cell] if self.classes else result.loss[cell]
        middle = spread(values).median
        found = self.against_small(result, cell)
        star = (
            "*" if found.detectable or (result.size != self.small and not math.isfinite(found.mean)) else ""
        )
        if not math.isfinite(middle):
            return "fails"
        return (f"{middle:.1%}" if self.classes else significant(middle, 3)) + star

    def _how_to_read(self) -> str:
        text = (
            f"* the held-out loss differs detectably from that with batches of {self.small} (paired over the "
            "seeds, 95 % for all comparisons of a column together). At equal epochs a large batch takes few "
            "updates; what is left of its disadvantage at equal updates and with a rate of its own is due to "
            "the batch."
        )
        edges = [str(r.size) for r in self.sizes if r.edge]
        if edges:
            text += (
                f" ◂ the best rate for {', '.join(edges)} lies at an end of the grid: more --rates widen it."
            )
        return text

    def _facts(self) -> list[tuple[str, str]]:
        t = self.time
        rows = [
            (
                "time",
                f"an update takes {1e3 * t.overhead:.3g} ms + {1e6 * t.per_example:.3g} µs an "
                "example: flat up to "
                f"about {significant(t.limit)} examples (95 %: {significant(t.lower)} … "
                f"{significant(t.upper)}), then "
                f"linear; the law is within {t.misfit:.0%} of every time measured",
            )
        ]
        if self.critical is not None:
            c = self.critical
            rows.append(
                (
                    "critical",
                    f"{significant(c.value)} examples ({significant(c.lower)} … "
                    f"{significant(c.upper)} by seed): updates to a "
                    f"training loss of {significant(c.target)} are {significant(c.fewest_updates)}·(1 "
                    f"+ {significant(c.value)}/B), "
                    f"within a factor {c.misfit:.2g} of those measured",
                )
            )
        simple, curved = self.noise_scales
        if math.isfinite(simple):
            ratio = (
                f", {significant(simple / self.critical.value)} of the critical batch"
                if self.critical
                else ""
            )
            rows.append(
                ("noise scale", f"tr Σ/‖G‖² is {significant(simple)} examples on the way there{ratio}")
            )
        if math.isfinite(curved):
            ratio = (
                f", {significant(curved / self.critical.value)} of the critical batch"
                if self.critical
                else ""
            )
            rows.append(("", f"measured in the curvature, tr(HΣ)/GᵀHG, {significant(curved)}{ratio}"))
        return rows + self._sharpness()

    def _sharpness(self) -> list[tuple[str, str]]:
        if not self.pairs:
            return []
        large = self.sizes[-1].size
        loss = spread([pair.train[1] for pair in self.pairs]).median
        rows = []
        for label, what, name in (("sharpness", "keskar", "Keskar's measure"), ("", "lambda_max", "λmax")):
            found = self.ratio(what)
            if found is not None:
                mean, low, high = found
                verdict = "sharper" if low > 1 else "flatter" if high < 1 else "no detectable difference"
                rows.append(
                    (
                        label,
                        f"{name} of solutions with batches of {large} is {significant(mean)} times "
                        f"that with {self.small} "
                        f"(95 %: {significant(low)} … {significant(high)}) at a training loss of "
                        f"{significant(loss)}: {verdict}",
                    )
                )
        gap = compared([p.test[1] for p in self.pairs], [p.test[0] for p in self.pairs])
        if math.isfinite(gap.mean):
            half = significant((gap.upper - gap.lower) / 2)
            told = "" if gap.detectable else ": no detectable difference"
            rows.append(("", f"held out the large-batch ones lose {signed(gap.mean)} ± {half} more{told}"))
        return rows

    def _rescued(self) -> Table:
        e, u = f"{self.marks.epochs:g} epochs", f"{self.marks.updates} updates"
        rows = []
        for r in self.rescues:
            base = next(s for s in self.sizes if s.size == r.size)
            cells = []
            for i in range(2):
                values = r.right[i] if self.classes else r.loss[i]
                found = compared(r.loss[i], base.loss[i + 2], comparisons=2 * len(self.rescues))
                middle = spread(values).median
                shown = "–" if not values else f"{middle:.1%}" if self.classes else significant(middle, 3)
                half = significant((found.upper - found.lower) / 2)
                told = (
                    signed(found.mean) if found.detectable else "none" if math.isfinite(found.mean) else "–"
                )
                cells += [shown, f"{told} ± {half}" if math.isfinite(found.mean) else told]
            rows.append((f"{r.name} {r.size}" + (" ◂" if r.edge else ""), *cells))
        return Table(
            f"LAMB and LARS on large batches, rates chosen   (an illustration; against: the held-out loss of "
            f"{self.optimizer}; ◂ the best rate was at an end of those tried)",
            ("", e, "against", u, "against"),
            tuple(rows),
        )
