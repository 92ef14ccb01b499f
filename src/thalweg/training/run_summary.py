"""A recorded run as a result: what happened along the way, in words, numbers and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from thalweg.records import Record
from thalweg.report.document import Block, Document, Facts, Headline, Note, Table, Tone, significant
from thalweg.report.figures import Figure
from thalweg.training.findings import Finding, GradientEnd, findings, gradient_end, trend
from thalweg.training.recorded import Event, RecordedRun
from thalweg.training.run_figures import run_figures
from thalweg.training.windows import PathShape, Window, path_shape, windows

__all__ = ["RunSummary", "summarise"]


_UNMEASURED = (
    "–: not measured in that stretch, since the budget did not allow it more often, or not measurable there. "
    "More comes with a larger one (--budget 0.2, budget=0.2)."
)


@dataclass(frozen=True, kw_only=True, repr=False)
class RunSummary(Record):
    """What a recorded run shows.

    Attributes:
        name: of its folder.
        model: class of the model.
        optimizer: class of the optimiser.
        num_parameters: trainable coordinates; None where that is not known any more.
        steps: the last one recorded.
        seconds: of wall clock.
        sessions: processes that the run took.
        state: "falling", "levelled" or "rising": what the loss does at the end; "short" or "recorded" where
            that cannot be told.
        summary: the same in a sentence.
        gradient_ends: whether the gradient without its noise ends near zero.
        findings: what else is to be seen.
        windows: stretches of the run.
        path: the shape of the weights' way.
        overhead: time of recording over that of training; None for a run that was killed before it said so.
        cost: measurements and seconds by quantity.
        events: what happened.
        notes: what could not be read.
        pictures: what there is to draw.
    """

    schema: ClassVar[str] = "thalweg/run-summary@1"

    name: str
    model: str
    optimizer: str
    num_parameters: int | None
    steps: int
    seconds: float
    sessions: int
    state: str
    summary: str
    gradient_ends: GradientEnd
    findings: tuple[Finding, ...]
    windows: tuple[Window, ...]
    path: PathShape | None
    overhead: float | None
    cost: Mapping[str, tuple[int, float]]
    events: tuple[Event, ...]
    notes: tuple[str, ...]
    pictures: tuple[Figure, ...] = field(metadata={"json": False}, compare=False)
    _tone: Tone = field(metadata={"json": False})

    def __repr__(self) -> str:
        return f"RunSummary({self.name!r}, {self.steps:,} steps of {self.optimizer}: {self.state})"

    def document(self) -> Document:
        """Describe the run for people."""
        count = f" · {self.num_parameters:,} parameters" if self.num_parameters is not None else ""
        blocks: list[Block] = [Headline(self.state, self.summary, self._tone)]
        blocks += [Note(note) for note in self.notes]  # first: what is damaged may be why the rest looks odd
        blocks.append(Facts(tuple((one.topic, _sentence(one)) for one in self.findings)))
        table = self._table()
        if table is not None:
            blocks.append(table)
            if any("–" in row for row in table.rows):
                blocks.append(Note(_UNMEASURED))
        blocks += self.pictures
        blocks += [Note(e.text) for e in self.events if e.kind in {"off", "note", "storage"}]
        blocks.append(Note(self._cost()))
        return Document(
            f"{self.name} · {self.model}{count} · {self.steps:,} steps of {self.optimizer}", tuple(blocks)
        )

    def _table(self) -> Table | None:
        if len(self.windows) < 2:
            return None
        rows = []
        for w in self.windows:
            norm = "–" if w.norm is None else "{} ({} … {})".format(*(significant(x) for x in w.norm))
            rows.append(
                (
                    f"{w.begin:,}–{w.end:,}",
                    significant(w.loss.value if w.loss is not None else None, 3),
                    significant(w.raw_norm),
                    norm,
                    significant(w.noise_scale),
                    significant(w.critical if w.critical is not None and math.isfinite(w.critical) else None),
                )
            )
        columns = (
            "steps",
            "loss",
            "‖g‖ of a batch",
            "without noise (95 %)",
            "noise scale",
            "steps could be × ",
        )
        return Table("Along the run", columns, tuple(rows))

    def _cost(self) -> str:
        text = f"{self.seconds:,.1f} s"
        if self.sessions > 1:
            text += f" in {self.sessions} sessions"
        if self.overhead is None:
            return text + "; the run did not come to its end, and what recording cost is not known"
        parts = sorted(self.cost.items(), key=lambda item: -item[1][1])
        named = ", ".join(f"{name} {seconds:.2g} s ({times:,}×)" for name, (times, seconds) in parts[:4])
        return (
            f"{text}; recording took {100 * self.overhead:.2g} % of the time of training by its own clock"
            + (f", most of it for {named}" if named else "")
        )


def summarise(run: RecordedRun) -> RunSummary:
    """Say what a recorded run shows. Cost: well below a second."""
    stretches, path = windows(run), path_shape(run)
    state, sentence, tone = trend(stretches)
    costs = [event for event in run.events if event.kind == "cost"]
    spent, overhead = _spent(costs)
    _, times = run.series("time")
    size = run.meta.get("num_parameters")
    return RunSummary(
        name=run.path.name,
        model=str(run.meta.get("model", "a model")),
        optimizer=str(run.meta.get("optimizer", "an optimiser")),
        num_parameters=size if isinstance(size, int) else None,
        steps=run.last_step,
        seconds=float(times[-1]) if len(times) else 0.0,
        sessions=run.sessions,
        state=state,
        summary=sentence,
        gradient_ends=gradient_end(stretches),
        findings=findings(stretches, path),
        windows=stretches,
        path=path,
        overhead=overhead,
        cost=spent,
        events=run.events,
        notes=run.notes,
        pictures=run_figures(run, stretches, path),
        _tone=tone,
    )


def _spent(costs: list[Event]) -> tuple[dict[str, tuple[int, float]], float | None]:
    """Add up what the sessions that came to their end say they spent."""
    total: dict[str, tuple[int, float]] = {}
    recording = training = 0.0
    for event in costs:
        try:
            recording += float(event.more["spent"]) + float(event.more["setup"])
            training += float(event.more["trained"])
            for name, (times, seconds) in event.more["by_quantity"].items():
                before = total.get(name, (0, 0.0))
                total[name] = before[0] + int(times), before[1] + float(seconds)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return total, recording / training if training > 0 else None


def _sentence(finding: Finding) -> str:
    first, rest = finding.sentence[0], finding.sentence[1:]
    text = (first.upper() if first.isascii() else first) + rest  # λ stays λ
    return text if finding.since is None else f"{text}, since step {finding.since:,}"
