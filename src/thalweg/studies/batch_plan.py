"""What a batch-size study runs, and what its runs choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.optim.factory import Factory
from thalweg.optim.registry import get
from thalweg.studies.batch_fits import CriticalBatch, fit_critical_batch
from thalweg.studies.batch_trials import TimeTrial
from thalweg.studies.runs_trial import RunsTrial
from thalweg.studies.setting import Run
from thalweg.studies.statistics import spread

__all__ = ["BatchPlan", "Tuned", "critical_batch", "fastest", "loss_at", "updates_needed"]

TUNING_SEEDS = 2
STEP = 10**0.5  # from a learning rate to the next
SMALL = 16  # the batch whose rate is kept for all, and whose solutions are called small-batch ones
_MARGIN = 1.05  # on the loss that all sizes reach


@dataclass(frozen=True)
class Tuned:
    """The rates that the validation data chose for one method and size."""

    epochs: float | None
    updates: float | None
    edge: bool


@dataclass(frozen=True)
class BatchPlan:
    """What was asked for, and the trials that follow from it."""

    factory: Factory
    sizes: tuple[int, ...]
    examples: int
    seeds: int
    rates: int
    epochs: float
    updates: int
    seed: int

    @property
    def small(self) -> int:
        """The size whose rate is kept for all."""
        return next((size for size in self.sizes if size >= SMALL), self.sizes[0])

    @property
    def reported(self) -> tuple[int, ...]:
        """The seeds of the runs that are reported."""
        return tuple(1000 * self.seed + i for i in range(self.seeds))

    def cost_of(self, updates: float, size: int) -> float:
        """Return the gradient-equivalents of some updates, whose last batch of an epoch may be smaller."""
        whole, rest = divmod(updates, math.ceil(self.examples / size))
        return float(whole + min(rest * size / self.examples, 1.0))

    def marks(self, size: int) -> tuple[float, float]:
        """Return the costs at which runs are compared: in equal epochs, in equal updates."""
        return float(self.epochs), self.cost_of(self.updates, size)

    def at(self, size: int) -> tuple[float, ...]:
        """Return where runs are measured: at the marks, and at growing numbers of updates between."""
        marks = self.marks(size)
        most = max(marks) * self.examples / size
        steps = {round(math.exp(i / 19 * math.log(max(most, 2)))) for i in range(20)}
        return tuple(sorted({0.0, *marks, *(c for s in steps if (c := self.cost_of(s, size)) < max(marks))}))

    def grid(self, name: str) -> tuple[float, ...]:
        """Return the rates tried: from half a decade below the default upwards."""
        default = get(name).lr
        assert default is not None
        below = min(1, self.rates - 1)
        return tuple(float(f"{default * STEP ** (i - below):.3g}") for i in range(self.rates))

    def trial(self, role: str, name: str, size: int, nets: Sequence[tuple[int, float | None]]) -> RunsTrial:
        """Return the trial of some (seed, rate) pairs."""
        work_done = max(self.marks(size)) * (1 + 40 / size) * len(nets)
        return RunsTrial(
            key=f"{role}-{name}-{size}",
            size=work_done,
            problem_seed=self.seed,
            optimizer=name,
            nets=tuple(nets),
            batch_size=size,
            at=self.at(size),
            choosing=role == "choosing",
        )

    def choosing(self, name: str, size: int) -> RunsTrial:
        """Return the runs that choose rates: all of the grid, with seeds of their own."""
        seeds = [1000 * self.seed + 500 + i for i in range(TUNING_SEEDS)]
        return self.trial("choosing", name, size, [(s, rate) for s in seeds for rate in self.grid(name)])

    def reporting(self, name: str, size: int, tuned: dict[tuple[str, int], Tuned]) -> RunsTrial:
        """Return the runs to report: at the kept rate and at the chosen ones."""
        own = tuned.get((name, size))
        wanted = {own.epochs, own.updates} if own is not None else set()
        if name == self.factory.name and wanted:
            wanted.add(tuned[name, self.small].epochs)
        rates = sorted(rate for rate in wanted if rate is not None)
        return self.trial("reported", name, size, [(s, rate) for s in self.reported for rate in rates])

    def best(self, key: tuple[str, int], runs: Sequence[Run]) -> Tuned:
        """Choose the rates with the lowest median validation loss at both marks."""
        grid = self.grid(key[0])
        chosen = [
            min(
                grid,
                key=lambda rate: (
                    spread([loss_at(r, mark, "validation") for r in runs if r.lr == rate]).median
                ),
            )
            for mark in self.marks(key[1])
        ]
        return Tuned(chosen[0], chosen[1], any(rate in {grid[0], grid[-1]} for rate in chosen))

    def timing(self) -> TimeTrial:
        """Return the timing of updates on 1, 2, 4, … and all examples."""
        ladder = [2**i for i in range(self.examples.bit_length()) if 2**i < self.examples]
        return TimeTrial("time", 1.0, self.seed, self.factory.name, (*ladder, self.examples))


def loss_at(run: Run, cost: float, what: str) -> float:
    """Return what a run had reached at a cost; infinite (0 right) where it had failed before."""
    point = next((p for p in run.points if p.cost >= cost - 1e-6), None)
    if point is None or not point.train < run.points[0].train:
        return 0.0 if what == "right" else math.inf
    return float(getattr(point, what))


def critical_batch(
    asked: BatchPlan, chosen: dict[tuple[str, int], list[Run]]
) -> tuple[CriticalBatch | None, float]:
    """Fit the updates to a loss that every size reaches; return the fit and that loss."""
    lowest = []
    for size in asked.sizes:
        runs = chosen[asked.factory.name, size]
        medians = [
            spread([min(p.train for p in run.points) for run in runs if run.lr == rate]).median
            for rate in asked.grid(asked.factory.name)
        ]
        lowest.append(min(medians))
    target = _MARGIN * max(lowest)
    table = updates_needed(asked, chosen, target)
    return fit_critical_batch(asked.sizes, list(zip(*(row for _, row in table), strict=True)), target), target


def updates_needed(
    asked: BatchPlan, chosen: dict[tuple[str, int], list[Run]], target: float
) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """Return for each size the updates to the target, by seed, at the rate that takes the fewest."""
    found = []
    for size in asked.sizes:
        runs = chosen[asked.factory.name, size]
        by_rate = [
            tuple(_first(run, target) for run in runs if run.lr == rate)
            for rate in asked.grid(asked.factory.name)
        ]
        found.append((size, min(by_rate, key=lambda steps: spread(steps).median)))
    return tuple(found)


def _first(run: Run, target: float) -> float:
    """Return the updates after which the training loss first is at the target, between two points in logs."""
    before = None
    for point in run.points:
        if point.train <= target:
            if before is None or before.steps < 1:
                return float(point.steps)
            share = (before.train - target) / max(before.train - point.train, 1e-30)
            return float(before.steps * (point.steps / before.steps) ** min(max(share, 0.0), 1.0))
        before = point
    return math.inf


def fastest(
    asked: BatchPlan, chosen: dict[tuple[str, int], list[Run]], target: float
) -> tuple[float | None, float]:
    """Return the rate by which all the examples at once reach the target soonest, and the updates."""
    runs = chosen[asked.factory.name, asked.sizes[-1]]
    options = {
        rate: spread([_first(run, target) for run in runs if run.lr == rate]).median
        for rate in asked.grid(asked.factory.name)
    }
    rate = min(options, key=lambda r: options[r])
    return rate, options[rate]
