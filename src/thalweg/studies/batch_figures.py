"""The pictures of a batch-size study."""

from __future__ import annotations

import math

from thalweg.report.document import significant
from thalweg.report.figures import Axis, Figure, LinePlot, Plot, Reference, Series
from thalweg.studies.batch_findings import BatchFindings
from thalweg.studies.batch_trials import LINE
from thalweg.studies.statistics import spread

__all__ = ["figures"]

_EXAMPLES = Axis("examples in a batch", "log")


def figures(study: BatchFindings) -> tuple[Figure, ...]:
    """Return the pictures of a study."""
    found = [_time(study), _reached(study)]
    if study.critical is not None:
        found.append(_critical(study))
    if study.pairs:
        found.append(_line(study))
    return tuple(found)


def _time(study: BatchFindings) -> Figure:
    sizes = tuple(float(size) for size, _ in study.timed)
    times = tuple(1e3 * seconds for _, seconds in study.timed)
    n = study.examples[0]
    law = tuple(1e3 * study.time.at(size) for size in sizes)
    limit = (Reference(study.time.limit, f"parallel limit {significant(study.time.limit)}", "x"),)
    epoch = tuple(seconds * math.ceil(n / size) for size, seconds in study.timed)
    panels: tuple[Plot, ...] = (
        LinePlot(
            "an update",
            _EXAMPLES,
            Axis("ms", "log"),
            (Series("measured", sizes, times, style="points"), Series("a + b·B", sizes, law, style="dashed")),
            references=limit,
        ),
        LinePlot(
            "an epoch",
            _EXAMPLES,
            Axis("s", "log"),
            (Series("measured", sizes, epoch, style="points"),),
            references=limit,
        ),
    )
    return Figure(
        name="time",
        title="What an update and an epoch cost",
        alt=f"Time of an update from {times[0]:.3g} ms on one example to {times[-1]:.3g} ms on all "
        f"{n}; flat up to "
        f"about {significant(study.time.limit)} examples, then linear. Time of an epoch from "
        f"{epoch[0]:.3g} s to "
        f"{epoch[-1]:.3g} s.",
        panels=panels,
        caption="Left of the limit a larger batch is nearly free, right of it an epoch gets no faster.",
    )


def _reached(study: BatchFindings) -> Figure:
    sizes = tuple(float(r.size) for r in study.sizes)
    labels = (
        "rate kept, equal epochs",
        "rate kept, equal updates",
        "rate chosen, equal epochs",
        "rate chosen, equal updates",
    )
    series, told = [], []
    for i, label in enumerate(labels):
        spreads = [spread(r.right[i] if study.classes else r.loss[i]) for r in study.sizes]
        middle = tuple(s.median if math.isfinite(s.median) else math.nan for s in spreads)
        low, high = (tuple(getattr(s, end) for s in spreads) for end in ("low", "high"))
        series.append(Series(label, sizes, middle, low, high, "dashed" if i < 2 else "line"))
        told.append(f"{label}: {significant(middle[0], 3)} to {significant(middle[-1], 3)}")
    what = "share right" if study.classes else "held-out loss"
    return Figure(
        name="reached",
        title="What is reached, held out",
        alt=f"Held out, {what} against batch size; from the smallest to the largest batch: "
        f"{'; '.join(told)}.",
        panels=(LinePlot(f"held-out {what}", _EXAMPLES, Axis(what), tuple(series)),),
        caption="Medians and quartiles over the seeds.",
    )


def _critical(study: BatchFindings) -> Figure:
    law = study.critical
    assert law is not None
    sizes = tuple(float(size) for size, _ in study.needed)
    spreads = [spread(steps) for _, steps in study.needed]
    fine = tuple(sizes[0] * (sizes[-1] / sizes[0]) ** (i / 40) for i in range(41))
    simple, _ = study.noise_scales
    references = [Reference(law.value, f"critical batch {significant(law.value)}", "x")]
    if math.isfinite(simple):
        references.append(Reference(simple, f"noise scale {significant(simple)}", "x"))
    measured = Series(
        "measured",
        sizes,
        tuple(s.median if math.isfinite(s.median) else math.nan for s in spreads),
        tuple(s.low for s in spreads),
        tuple(s.high if math.isfinite(s.high) else math.nan for s in spreads),
        "points",
    )
    return Figure(
        name="updates",
        title="How many updates a loss takes",
        alt=f"Updates to a training loss of {significant(law.target)} against batch size: they fall to "
        f"{significant(law.fewest_updates)}; the critical batch is {significant(law.value)}.",
        panels=(
            LinePlot(
                f"updates to a training loss of {significant(law.target)}",
                _EXAMPLES,
                Axis("updates", "log"),
                (measured, Series("S·(1 + B_crit/B)", fine, tuple(law.at(b) for b in fine), style="dashed")),
                references=tuple(references),
            ),
        ),
        caption="Left of the critical batch twice the examples halve the updates, right of it they "
        "are wasted.",
    )


def _line(study: BatchFindings) -> Figure:
    series = []
    for i, label in enumerate(("training", "held out")):
        columns = [spread([pair.line[k][i] for pair in study.pairs]) for k in range(len(LINE))]
        series.append(
            Series(
                label,
                LINE,
                tuple(c.median for c in columns),
                tuple(c.low for c in columns),
                tuple(c.high for c in columns),
            )
        )
    barrier = max(series[0].y[8:17])
    return Figure(
        name="line",
        title="On the line through two solutions",
        alt=f"Training and held-out loss on the line from the solution of small batches (0) to that "
        "of large ones "
        f"(1); between them the training loss rises to {significant(barrier, 3)}.",
        panels=(
            LinePlot(
                "loss",
                Axis(f"batches of {study.small} at 0, of {study.sizes[-1].size} at 1"),
                Axis("loss", "log" if 0 < 10 * min(series[0].y) < max(series[1].y) else "linear"),
                tuple(series),
            ),
        ),
        caption="Medians and quartiles over the seeds. How wide a valley looks on such a line depends on the "
        "length of the weights too.",
    )
