"""Complete a table: methods held against each other on entries held out, the best one fitted to all."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from thalweg.completion.centring import Centring, centre_of
from thalweg.completion.deep import DeepMatrixFactorization
from thalweg.completion.descent_record import Descent
from thalweg.completion.estimator import Completion
from thalweg.completion.folds import EntryKFold, mean_over_entries
from thalweg.completion.graph import ObservationGraph
from thalweg.completion.nuclear import NuclearNormCompletion
from thalweg.completion.observations import Observations, observed
from thalweg.completion.parallel import Task, run_all
from thalweg.errors import InputError
from thalweg.estimates import Estimate
from thalweg.progress import Progress, Silent
from thalweg.records import Provenance, Record, current_provenance
from thalweg.report.document import Block, Document, Facts, Headline, Note, Table, signed, significant

__all__ = ["Candidate", "TableCompletion", "complete"]

STARTS = 5  # of the last fit at most
POOR = 1.5  # times the upper end of the error: more than the last fit's few held-out entries show by chance
_EXACT_UP_TO = 40_000  # entries of a matrix for which the exact nuclear norm is held against the rest
_BASELINES = {"bias": "effects of rows and columns", "mean": "mean", None: "zero"}
_Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method and its error at entries that it was not fitted to.

    Attributes:
        name: of the method.
        depth: of a deep factorisation; None for others.
        mse: mean squared error, with its standard error over rows and columns.
        against_chosen: mean difference of squared errors from those of the chosen depth at the same entries;
            positive is worse.
        against_baseline: mean difference of squared errors from the baseline's at the same entries; negative
            is better.
    """

    name: str
    depth: int | None
    mse: Estimate
    against_baseline: Estimate
    against_chosen: Estimate

    @property
    def rmse(self) -> float:
        """Root mean squared error, in the unit of the data."""
        return math.sqrt(self.mse.value)

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the root mean squared error."""
        low, high = self.mse.interval()
        return math.sqrt(max(low, 0.0)), math.sqrt(high)


@dataclass(frozen=True, kw_only=True, repr=False)
class TableCompletion(Record):
    """A completed table: how good it is, and by what.

    Attributes:
        name: of the table.
        graph: the pattern of the observed entries.
        unit: root mean square of the entries about their mean.
        candidates: the methods, the baseline first.
        error: of depth chosen by cross-validation: each fold's error is that of the depth that was best on
            the other folds, so that the choice is paid for.
        depth: the one that was chosen on all folds.
        rank: of the completed matrix after centring.
        effective_rank: likewise.
        descent: on all entries but those held out to say when to stop.
        folds: of the cross-validation.
        saved_to: the file of the completed table.
        notes: what the reader must know.
        seconds: it took.
        provenance: what is needed to repeat it.
        model: fitted to all the entries.
    """

    schema: ClassVar[str] = "thalweg/completion@1"

    name: str
    graph: ObservationGraph
    unit: float
    candidates: tuple[Candidate, ...]
    error: Estimate
    depth: int
    rank: int
    effective_rank: float
    descent: Descent
    folds: int
    saved_to: str | None
    notes: tuple[str, ...]
    seconds: float
    provenance: Provenance
    model: DeepMatrixFactorization = field(metadata={"json": False}, compare=False)

    def __repr__(self) -> str:
        return f"TableCompletion({self.name!r}, depth {self.depth}, error {significant(self.rmse, 3)})"

    @property
    def rmse(self) -> float:
        """Root mean squared error at held-out entries, in the unit of the data."""
        return math.sqrt(self.error.value)

    def document(self) -> Document:
        """Describe the completion for people."""
        n1, n2 = self.graph.shape
        word, sentence, tone = self._verdict()
        low, high = (math.sqrt(max(x, 0.0)) for x in self.error.interval())
        facts = (
            (
                "held-out error",
                f"{significant(self.rmse, 3)} ({significant(low, 3)} … {significant(high, 3)}, 95 %), "
                f"{self.rmse / self.unit:.1%} of the entries' spread of {significant(self.unit, 3)}"
                if self.unit > 0
                else significant(self.rmse, 3),
            ),
            ("depth", f"{self.depth}, chosen by {self.folds}-fold cross-validation over entries"),
            ("rank", f"{self.rank} after centring, effective rank {significant(self.effective_rank, 3)}"),
            *self.graph.document().blocks[1].rows[1:],  # type: ignore[union-attr]
        )
        blocks: list[Block] = [Headline(word, sentence, tone), Facts(facts), self._table()]  # type: ignore[arg-type]
        if self.saved_to:
            blocks.append(Note(f"The completed table is in {self.saved_to}."))
        blocks += [Note(note) for note in (*self.notes, *self.graph.warnings(self.rank))]
        blocks.append(
            Note(
                "Errors are root mean squares at entries that the method was not fitted to, with 95 % "
                "intervals for new rows and columns like these. The last column is paired, in mean squares, "
                "positive where the method is worse; "
                f"± is one standard error. {self.seconds:.1f} s"
            )
        )
        if self.descent.snapshots:
            blocks.append(self.descent.figure())
        missing = n1 * n2 - self.graph.num_observed
        title = f"{self.name} · {n1:,} × {n2:,} · {self.graph.num_observed:,} observed, {missing:,} missing"
        return Document(title, tuple(blocks))

    def _verdict(self) -> tuple[str, str, str]:
        base = self.candidates[0]
        chosen = next(c for c in self.candidates if c.depth == self.depth)
        if self.rank == 0:
            return "completed", "centring explains every entry; there was nothing to factorise", "good"
        if chosen.against_baseline.upper(0.975) < 0:
            times = f"{base.rmse / self.rmse:.1f} times" if self.rmse > 0 else "infinitely"
            return (
                "completed",
                f"held-out entries are predicted {times} as closely as by the {base.name} alone",
                "good",
            )
        return (
            "no better",
            f"a matrix of low rank predicts held-out entries no better than the {base.name} alone",
            "bad",
        )

    def _table(self) -> Table:
        def row(c: Candidate) -> tuple[str, ...]:
            low, high = c.interval()
            mark = " ←" if c.depth == self.depth else ""
            change = c.against_chosen
            told = "–" if mark else f"{signed(change.value)} ± {significant(change.stderr, 1)}"
            return (
                c.name + mark,
                significant(c.rmse, 3),
                f"{significant(low, 3)} … {significant(high, 3)}",
                told,
            )

        columns = ("method", "error", "95 %", "against the chosen")
        return Table("Methods at held-out entries", columns, tuple(row(c) for c in self.candidates))


def complete(
    data: Any,
    *,
    name: str = "table",
    depths: Sequence[int] = (2, 3),
    folds: int = 5,
    compare: bool = False,
    center: Centring | None = "bias",
    rank_cap: int | None = 32,
    clip: tuple[float, float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TableCompletion:
    """Complete what ``data`` holds, with the depth that predicts held-out entries best.

    Args:
        data: what `observed` takes.
        name: for the record.
        depths: to choose from by cross-validation over entries.
        folds: of the cross-validation.
        compare: hold the nuclear norm against it too: with a penalty chosen on held-out entries and, on
            matrices of up to 40,000 entries, exact.
        center: as in `DeepMatrixFactorization`, and the baseline.
        rank_cap: likewise.
        clip: likewise.
        seed: of folds and starts.
        progress: told how much is done.

    Raises:
        InputError: when the data cannot be used, or are fewer than two entries a fold.

    Cost: ``folds`` fits of each method, and one more.
    """
    begun, told = time.perf_counter(), progress or Silent()
    entries = observed(data)
    if len(entries) < 2 * folds:
        raise InputError(
            "too few entries to hold any out", expected=f"at least {2 * folds}", got=str(len(entries))
        )
    options: dict[str, Any] = {"center": center, "rank_cap": rank_cap, "clip": clip, "random_state": seed}
    methods: dict[str, Callable[[], Completion]] = {
        f"depth {depth}": lambda depth=depth: DeepMatrixFactorization(depth, **options)  # type: ignore[misc]
        for depth in depths
    }
    if compare:
        methods["nuclear norm, penalty chosen"] = lambda: NuclearNormCompletion("auto", **options)
        if entries.shape[0] * entries.shape[1] <= _EXACT_UP_TO:
            methods["nuclear norm, exact"] = lambda: NuclearNormCompletion(0, **options)
    for make in methods.values():
        make()._check()
    told.phase(f"{folds}-fold cross-validation of {len(methods)} methods")
    fold = EntryKFold(folds, random_state=seed).assigned(entries.rows)
    squared = {_BASELINES[center]: _baseline_errors(entries, fold, center, clip)}
    squared |= _held_out_errors(entries, fold, methods, told)
    chosen = _choices(squared, depths, fold)
    best = min(depths, key=lambda depth: float(squared[f"depth {depth}"].mean()))
    candidates = _candidates(entries, squared, depths, best)
    error = _error_of_choice(entries, squared, chosen, fold)
    expected = POOR * math.sqrt(max(error.upper(0.975), 0.0))
    models = _from_starts(best, options, entries, expected, told)
    model = min(models, key=lambda m: m.validation_rmse_)  # NaN only alone
    centred = entries.with_values(entries.values - float(entries.values.mean()))
    return TableCompletion(
        name=name,
        graph=model.graph_,
        unit=centred.rms(),
        candidates=candidates,
        error=error,
        depth=best,
        rank=model.rank_,
        effective_rank=model.effective_rank_,
        descent=model.descent_,
        folds=folds,
        saved_to=None,
        notes=(*_notes(chosen, best, squared, error), *_notes_of(model, models, expected)),
        seconds=time.perf_counter() - begun,
        provenance=current_provenance(torch.empty(0, dtype=torch.float64), seed),
        model=model,
    )


def _from_starts(
    depth: int, options: Mapping[str, Any], entries: Observations, expected: float, told: Progress
) -> list[DeepMatrixFactorization]:
    """Fit to all entries, from other starts too while the own held-out error is not what is to be expected.

    A descent from a small start can end in a place of too low a rank, which its own validation shows.
    """
    models: list[DeepMatrixFactorization] = []
    for k in range(STARTS):
        told.phase(f"depth {depth} on all entries" + (", from another start" if k else ""))
        start = {**options, "random_state": options["random_state"] + k}
        models.append(DeepMatrixFactorization(depth, **start).fit(entries, progress=told))
        if not models[-1].validation_rmse_ > expected:
            break
    return models


def _baseline_errors(
    entries: Observations, fold: _Array, center: Centring | None, clip: tuple[float, float] | None
) -> _Array:
    errors = np.empty(len(entries))
    for k in range(int(fold.max()) + 1):
        out = fold == k
        found = centre_of(entries.part(~out), center).at(entries.rows[out], entries.columns[out])
        if clip is not None:
            found = np.clip(found, *clip)
        errors[out] = (found - entries.values[out]) ** 2
    return errors


def _held_out_errors(
    entries: Observations, fold: _Array, methods: Mapping[str, Callable[[], Completion]], told: Progress
) -> dict[str, _Array]:
    """Return the squared error at every entry (m,) of each method, fitted without that entry's fold."""

    def task(make: Callable[[], Completion], k: int) -> Task[_Array]:
        def run(share: Callable[[float], None], stop: threading.Event) -> _Array:
            out = entries.part(fold == k)
            model = make().learn(entries.part(fold != k), share, stop)
            return (model.predict(np.stack([out.rows, out.columns], axis=1)) - out.values) ** 2

        return run

    count = int(fold.max()) + 1
    # The longest first, so that no thread is left with them at the end.
    names = list(methods)[::-1]
    found = run_all([task(methods[name], k) for name in names for k in range(count)], progress=told)
    errors = {}
    for i, name in enumerate(names):
        errors[name] = np.empty(len(entries))
        for k in range(count):
            errors[name][fold == k] = found[i * count + k]
    return {name: errors[name] for name in methods}


def _candidates(
    entries: Observations, squared: Mapping[str, _Array], depths: Sequence[int], best: int
) -> tuple[Candidate, ...]:
    base = next(iter(squared.values()))
    depth_of = {f"depth {depth}": depth for depth in depths}
    return tuple(
        Candidate(
            name=name,
            depth=depth_of.get(name),
            mse=mean_over_entries(errors, entries.rows, entries.columns),
            against_baseline=mean_over_entries(errors - base, entries.rows, entries.columns),
            against_chosen=mean_over_entries(
                errors - squared[f"depth {best}"], entries.rows, entries.columns
            ),
        )
        for name, errors in squared.items()
    )


def _choices(squared: Mapping[str, _Array], depths: Sequence[int], fold: _Array) -> list[int]:
    """Return for each fold the depth that is best on all the others."""
    return [
        min(depths, key=lambda depth: float(squared[f"depth {depth}"][fold != k].mean()))
        for k in range(int(fold.max()) + 1)
    ]


def _error_of_choice(
    entries: Observations, squared: Mapping[str, _Array], chosen: Sequence[int], fold: _Array
) -> Estimate:
    """Return the mean squared error of the depth that was chosen without the fold it is measured on."""
    errors = np.empty(len(entries))
    for k, depth in enumerate(chosen):
        errors[fold == k] = squared[f"depth {depth}"][fold == k]
    return mean_over_entries(errors, entries.rows, entries.columns)


def _notes(
    chosen: Sequence[int], best: int, squared: Mapping[str, _Array], error: Estimate
) -> tuple[str, ...]:
    if len(set(chosen)) == 1:
        return ()
    alone = float(squared[f"depth {best}"].mean())
    text = "The folds do not agree on the depth: " + ", ".join(map(str, chosen)) + "."
    if error.value > 1.05 * alone:
        text += (
            f" The error at the top, {significant(math.sqrt(error.value), 3)}, pays for that choice; depth "
            f"{best} alone has {significant(math.sqrt(alone), 3)}, which is too good as it was chosen for it."
        )
    return (text,)


def _notes_of(
    model: DeepMatrixFactorization, models: Sequence[DeepMatrixFactorization], expected: float
) -> tuple[str, ...]:
    notes = []
    if len(models) > 1:
        first, kept = models[0].validation_rmse_, model.validation_rmse_
        text = f"The first start ended in a poor place, with {significant(first, 3)} at entries held out; of "
        text += f"{len(models)} starts the best was kept, with {significant(kept, 3)}."
        if kept > expected:
            text += (
                " That is still more than the cross-validation gives: do not rely on the table, try --seed."
            )
        notes.append(text)
    if model.rank_cap is not None and model.rank_ >= min(model.rank_cap, *model.graph_.shape) > 0:
        cap = min(model.rank_cap, *model.graph_.shape)
        if cap < min(model.graph_.shape):
            notes.append(f"The rank comes up to its cap of {cap}: try a larger --rank-cap.")
    if not math.isfinite(model.validation_rmse_) and model.rank_ > 0:
        notes.append(
            "There are too few entries to hold any out for stopping: it ended by its tolerance alone."
        )
    return tuple(notes)
