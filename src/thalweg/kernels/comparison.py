"""Which kernel suits a data set: several on the same examples, compared pair by pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError
from thalweg.estimates import Estimate, paired_difference
from thalweg.kernels.fitted import squared_errors
from thalweg.kernels.gram import Kernel
from thalweg.kernels.ridge import Criterion, choose_ridge, decompose, solve
from thalweg.kernels.similarity import effective_rank, target_alignment
from thalweg.progress import Progress, Silent
from thalweg.records import Record
from thalweg.report.document import Document, Facts, Headline, Note, Table, signed, significant

__all__ = ["Compared", "KernelComparison", "compare_kernels"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of the kernels.

    Attributes:
        name: as it was given.
        ridge: chosen for it, relative to the mean of its diagonal.
        error: mean squared error by leave-one-out, in units of what the mean alone gets.
        accuracy: by leave-one-out; None for regression.
        behind: how much larger its error is than that of the best, on the same examples.
        alignment: of the centred kernel with the targets.
        rank: effective.
    """

    name: str
    ridge: float
    error: Estimate
    accuracy: float | None
    behind: Estimate
    alignment: float
    rank: float


@dataclass(frozen=True, kw_only=True)
class KernelComparison(Record):
    """Kernels on the same examples, the best first.

    Attributes:
        kernels: in the order of their leave-one-out error.
        num_examples: on which they were compared.
        criterion: what chose each ridge.
        seconds: wall clock.
    """

    schema: ClassVar[str] = "thalweg/kernel-comparison@1"

    kernels: tuple[Compared, ...]
    num_examples: int
    criterion: str
    seconds: float

    def document(self) -> Document:
        """Describe the comparison for people."""
        best, rest = self.kernels[0], self.kernels[1:]
        level = [k.name for k in rest if k.behind.lower(0.975) <= 0]
        said = f"{best.name} errs least"
        if level:
            said += (
                f"; {', '.join(level)} cannot be told from it"
                if len(level) < 4
                else f"; {len(level)} others cannot be told from it"
            )
        elif rest:
            said += ", and no other comes near"
        right = ("right",) if best.accuracy is not None else ()
        columns = ("kernel", "error", "behind the best", *right, "ridge", "alignment")
        rows = tuple(
            (
                k.name,
                significant(k.error.value, 3),
                "–" if k is best else f"{signed(k.behind.value)} ± {significant(_half(k.behind))}",
                *(() if k.accuracy is None else (f"{100 * k.accuracy:.1f} %",)),
                significant(k.ridge),
                f"{k.alignment:.2f}".replace("-", "−"),
            )
            for k in self.kernels
        )
        blocks = (
            Headline("compared", said, "neutral"),
            Table("Leave-one-out", columns, rows),
            Note(
                "error: squared, where predicting the mean gets 1; differences are paired, ± is a 95 % "
                "interval; alignment: how far the kernel points along the targets, 1 at most. The best of "
                "many is a little flattered by being chosen: hold out examples to know its error."
            ),
            Facts((("examples", f"{self.num_examples:,}"), ("time", f"{self.seconds:.1f} s"))),
        )
        return Document(f"{len(self.kernels)} kernels on the same data", blocks)


def compare_kernels(
    kernels: Sequence[tuple[str, Kernel]],
    x: NDArray[Any],
    targets: NDArray[np.float64],
    *,
    labels: NDArray[np.int64] | None = None,
    criterion: Criterion = "loo",
    progress: Progress | None = None,
) -> KernelComparison:
    """Compare kernels by the leave-one-out error of their regressions, each with a ridge of its own.

    Args:
        kernels: names and functions (x) -> (n, n).
        x: (n, …) examples.
        targets: (n, c) centred; one-hot for classes.
        labels: (n,) the column that is right, for classes.
        criterion: what chooses each ridge.
        progress: is told how many are done.

    Cost: each kernel's matrix and 9 n³ operations.
    """
    if not kernels:
        raise InputError("there is nothing to compare", expected="at least one kernel")
    progress, begun = progress or Silent(), time.perf_counter()
    scale = float(np.mean(np.sum(targets**2, axis=1)))
    if scale == 0:
        raise InputError("the targets are all the same", hint="there is nothing to learn from them")
    found: list[tuple[Compared, NDArray[np.float64]]] = []
    for k, (name, function) in enumerate(kernels):
        progress.phase(name)
        progress.advance(k, len(kernels))
        computed = np.asarray(function(x))
        eigen, matrix = decompose(computed), computed.astype(np.float64)
        ridge = choose_ridge(eigen, targets, criterion).ridge
        predicted = solve(eigen, targets, ridge).leave_one_out
        errors = squared_errors(targets, predicted) / scale
        row = Compared(
            name=name,
            ridge=ridge,
            error=_mean(errors),
            accuracy=None if labels is None else float(np.mean(predicted.argmax(axis=1) == labels)),
            behind=Estimate(0.0, 0.0),
            alignment=target_alignment(matrix, targets),
            rank=effective_rank(matrix),
        )
        found.append((row, errors))
    found.sort(key=lambda pair: pair[0].error.value)
    best = found[0][1]
    rows = [_behind(row, errors, best) for row, errors in found]
    return KernelComparison(
        kernels=tuple(rows), num_examples=len(x), criterion=criterion, seconds=time.perf_counter() - begun
    )


def _behind(row: Compared, errors: NDArray[np.float64], best: NDArray[np.float64]) -> Compared:
    return replace(row, behind=paired_difference(list(errors), list(best), [1.0] * len(best)))


def _mean(errors: NDArray[np.float64]) -> Estimate:
    n = len(errors)
    stderr = float(errors.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    return Estimate(float(errors.mean()), stderr, n)


def _half(estimate: Estimate) -> float:
    low, high = estimate.interval()
    return (high - low) / 2
