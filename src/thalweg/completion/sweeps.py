"""Many descents in one run: seeds × starts × depths on one pattern or several."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from thalweg.completion.descent import Descended, Optimizer, descend
from thalweg.completion.factors import Start, effective_rank, initial
from thalweg.completion.observations import observed
from thalweg.completion.parallel import Task, run_all
from thalweg.errors import InputError
from thalweg.estimates import Estimate, weighted_mean
from thalweg.progress import Progress
from thalweg.records import Provenance, Record, current_provenance
from thalweg.report.document import Document, Note, Table, significant

__all__ = ["Cell", "Sweep", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One descent of a sweep.

    Attributes:
        depth, init_scale: its settings.
        seed: of its start; with several patterns, which of them it had.
        error: mean squared error against the truth, relative to the mean square of the observed entries; NaN
            without a truth.
        loss: the same over the observed entries.
        effective_rank: of the product.
        nuclear_norm: of the product, in the unit of the data.
        num_steps: taken.
        converged: whether the tolerance was reached.
        seconds: on its thread.
    """

    depth: int
    init_scale: float
    seed: int
    error: float
    loss: float
    effective_rank: float
    nuclear_norm: float
    num_steps: int
    converged: bool
    seconds: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Sweep(Record):
    """What many descents came to.

    Attributes:
        shape: of the matrices.
        num_observed: entries of each.
        optimizer: of all of them.
        width: of the hidden layers.
        cells: one a descent.
        seconds: wall clock.
        provenance: what is needed to repeat it.
    """

    schema: ClassVar[str] = "thalweg/completion-sweep@1"

    shape: tuple[int, int]
    num_observed: int
    optimizer: str
    width: int
    cells: tuple[Cell, ...]
    seconds: float
    provenance: Provenance

    def __repr__(self) -> str:
        return f"Sweep({len(self.cells)} descents, {self.seconds:.1f} s)"

    def over_seeds(self, quantity: str, depth: int, init_scale: float) -> Estimate:
        """Return the mean over the seeds of a quantity of `Cell`, with its error."""
        values = [
            float(getattr(c, quantity)) for c in self.cells if (c.depth, c.init_scale) == (depth, init_scale)
        ]
        return weighted_mean(values, [1.0] * len(values))

    def document(self) -> Document:
        """Describe the sweep for people: a line a depth and start."""
        n1, n2 = self.shape
        settings = dict.fromkeys((c.depth, c.init_scale) for c in self.cells)
        rows = tuple(self._row(*setting) for setting in settings)
        columns = ("depth, start", "error", "lowest … highest", "effective rank", "nuclear norm", "steps")
        seeds = len({c.seed for c in self.cells})
        note = (
            f"Errors are mean squares relative to the entries' own, ± one standard error over {seeds} seeds. "
            f"{len(self.cells)} descents by {self.optimizer}, {self.seconds:.1f} s."
        )
        title = f"Descents on {n1:,} × {n2:,} with {self.num_observed:,} entries, width {self.width}"
        return Document(title, (Table("What they came to", columns, rows), Note(note)))

    def _row(self, depth: int, init_scale: float) -> tuple[str, ...]:
        errors = [c.error for c in self.cells if (c.depth, c.init_scale) == (depth, init_scale)]
        told = [self.over_seeds(name, depth, init_scale) for name in ("effective_rank", "nuclear_norm")]
        steps = self.over_seeds("num_steps", depth, init_scale)
        return (
            f"{depth}, {init_scale:.0e}",
            _with_error(self.over_seeds("error", depth, init_scale)),
            f"{significant(min(errors))} … {significant(max(errors))}",
            *(_with_error(e, 3) for e in told),
            f"{steps.value:,.0f}",
        )


def sweep(
    data: Any,
    *,
    depths: Sequence[int] = (2, 3, 4),
    init_scales: Sequence[float] = (1e-3,),
    seeds: Sequence[int] = (0,),
    truth: Any = None,
    rank_cap: int | None = None,
    init: Start = "balanced",
    optimizer: Optimizer = "ngd",
    learning_rate: float | None = None,
    max_iter: int = 50_000,
    tol: float = 1e-6,
    progress: Progress | None = None,
) -> Sweep:
    """Descend without centring or early stopping from every start at every depth, all in one run.

    Args:
        data: what `observed` takes; or a list of such, one for each of ``seeds``, all of one shape and size.
        depths: every combination of these,
        init_scales: these
        seeds: and these is run; a seed draws the start.
        truth: the whole matrix (n₁, n₂), to measure the error against; a list if ``data`` is one.
        rank_cap: width of the hidden layers; None for the full width.
        init: "balanced" or "gaussian".
        optimizer: "ngd", "gd" or "adam".
        learning_rate: for entries of size 1; None for one that is chosen and shrinks.
        max_iter: steps at most.
        tol: mean squared error, relative to that of the entries, at which to stop.
        progress: told how much is done.

    Raises:
        InputError: for lists of different lengths.

    Cost: each descent on one thread, as many at a time as torch has threads.
    """
    several = isinstance(data, list)
    tables = [observed(d) for d in data] if several else [observed(data)] * len(seeds)
    truths: list[Any] = list(truth) if several and truth is not None else [truth] * len(seeds)
    if not len(tables) == len(truths) == len(seeds):
        raise InputError(
            "the lists do not belong together",
            expected="as many tables and truths as seeds",
            got=f"{len(tables)}, {len(truths)} and {len(seeds)}",
        )
    shape = tables[0].shape
    width = min(*shape, rank_cap or min(shape))
    options: dict[str, Any] = {"optimizer": optimizer, "learning_rate": learning_rate}
    options |= {"max_steps": max_iter, "tol": tol}

    def task(depth: int, scale: float, index: int) -> Task[Cell]:
        def run(share: Callable[[float], None], stop: threading.Event) -> Cell:
            begun, table = time.perf_counter(), tables[index]
            start = initial(shape, width, depth, scale=scale, start=init, seed=seeds[index], dtype="float64")
            unit = table.rms() or 1.0
            found = descend(
                start,
                table.with_values(table.values / unit),
                **options,
                advanced=lambda step: share(step / max_iter),
                stop=stop,
            )
            return _cell(found, depth, scale, seeds[index], unit, truths[index], time.perf_counter() - begun)

        return run

    begun = time.perf_counter()
    tasks = [task(d, s, i) for d in depths for s in init_scales for i in range(len(seeds))]
    cells = run_all(tasks, progress=progress)
    return Sweep(
        shape=shape,
        num_observed=len(tables[0]),
        optimizer=optimizer,
        width=width,
        cells=tuple(cells),
        seconds=time.perf_counter() - begun,
        provenance=current_provenance(torch.empty(0, dtype=torch.float64), seeds[0]),
    )


def _cell(
    found: Descended, depth: int, scale: float, seed: int, unit: float, truth: Any, seconds: float
) -> Cell:
    sigma: NDArray[Any] = found.factors.decomposed()[1]
    error = math.nan
    if truth is not None:
        error = float(np.mean((found.factors.product() - np.asarray(truth) / unit) ** 2))
    return Cell(
        depth=depth,
        init_scale=scale,
        seed=seed,
        error=error,
        loss=found.loss,
        effective_rank=effective_rank(sigma),
        nuclear_norm=float(sigma.sum()) * unit,
        num_steps=found.num_steps,
        converged=found.stopped == "tolerance",
        seconds=seconds,
    )


def _with_error(estimate: Estimate, digits: int = 2) -> str:
    if not math.isfinite(estimate.stderr):
        return significant(estimate.value, digits)
    return f"{significant(estimate.value, digits)} ± {significant(estimate.stderr, 1)}"
