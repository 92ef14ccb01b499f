"""What a batch-size study found: the numbers, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thalweg.records import Cost, Provenance
from thalweg.studies.batch_fits import CriticalBatch, UpdateTime
from thalweg.studies.statistics import Difference, compared, geometric_ratio

__all__ = ["BatchFindings", "Marks", "Rescue", "SizeResult", "SolutionPair"]


@dataclass(frozen=True)
class Marks:
    """Where runs are compared: after equal epochs, after equal updates."""

    epochs: float
    updates: int


@dataclass(frozen=True)
class SizeResult:
    """What one batch size reached, four times, each by seed.

    The four are: the kept rate at equal epochs and at equal updates, the chosen ones at the same.

    Attributes:
        size: examples a step.
        rates: the chosen ones, for equal epochs and for equal updates.
        edge: whether one of them lies at the end of the grid.
        loss: held out.
        right: share of the held-out examples that are classified rightly; NaN without classes.
        train: training loss.
    """

    size: int
    rates: tuple[float | None, float | None]
    edge: bool
    loss: tuple[tuple[float, ...], ...]
    right: tuple[tuple[float, ...], ...]
    train: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Rescue:
    """LAMB or LARS on a large batch, at equal epochs and at equal updates, by seed."""

    name: str
    size: int
    rates: tuple[float | None, float | None]
    edge: bool
    loss: tuple[tuple[float, ...], ...]
    right: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SolutionPair:
    """The solutions of small and of large batches from one start, at one training loss.

    Attributes:
        train, test: losses of both.
        lambda_max: the largest curvature of both.
        keskar: Keskar's sharpness of both, ε = 1e-3, all weights.
        distance: from the start, of both.
        line: training and held-out loss on the line through both, from −1 to 2 in 25 points.
    """

    train: tuple[float, float]
    test: tuple[float, float]
    lambda_max: tuple[float, float]
    keskar: tuple[float, float]
    distance: tuple[float, float]
    line: tuple[tuple[float, float], ...]

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SolutionPair:
        """Read what a trial returned."""
        small, large = plain["nets"]

        def both(name: str) -> tuple[float, float]:
            return float(small[name]), float(large[name])

        line = tuple((_number(training), _number(heldout)) for training, heldout in plain["line"])
        return cls(both("train"), both("test"), both("lambda_max"), both("keskar"), both("distance"), line)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass(frozen=True, kw_only=True, repr=False)
class BatchFindings:
    """What the batch size does to a problem.

    Attributes:
        name: of the problem.
        optimizer: whose steps were taken.
        examples: to train on, to choose on, held out.
        num_parameters: trainable coordinates.
        classes: whether there is an accuracy.
        marks: where runs are compared.
        seeds: of the reported runs.
        kept_rate: the rate chosen for batches of ``small``, kept for all sizes.
        small: see there.
        sizes: what each size reached.
        timed: batch sizes and the seconds of an update.
        time: the law fitted to them.
        needed: for each size the updates to the target loss, by seed; infinite where it was not reached.
        critical: the law fitted to them; None where the sizes that reached the target cannot show it.
        noise: (cost, tr Σ, ‖G‖², tr(HΣ), GᵀHG) along runs on all the data; see `NoiseScale`.
        pairs: solutions of small and of large batches.
        rescues: LAMB and LARS on the large batches.
        notes: what the reader must know.
        cost: of all runs together.
        provenance: what is needed to repeat it.
    """

    name: str
    optimizer: str
    examples: tuple[int, int, int]
    num_parameters: int
    classes: bool
    marks: Marks
    seeds: int
    kept_rate: float | None
    small: int
    sizes: tuple[SizeResult, ...]
    timed: tuple[tuple[int, float], ...]
    time: UpdateTime
    needed: tuple[tuple[int, tuple[float, ...]], ...]
    critical: CriticalBatch | None
    noise: tuple[tuple[float, ...], ...]
    pairs: tuple[SolutionPair, ...]
    rescues: tuple[Rescue, ...]
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    @property
    def noise_scales(self) -> tuple[float, float]:
        """The simple and the curved noise scale on the way to the target; NaN where not known.

        Each is a ratio of means over the points, not a mean of ratios, which small signals would decide.
        """
        if not self.noise:
            return math.nan, math.nan
        trace, squared, bent, along = (sum(row[i] for row in self.noise) for i in (1, 2, 3, 4))
        simple = trace / squared if squared > 0 else math.nan
        return simple, bent / along if bent > 0 and along > 0 else math.nan

    @cached_property
    def best_size(self) -> float | None:
        """The batch size that is soonest at the target, √(B_crit·limit), within those there are.

        The time S_min·(1 + B_crit/B)·(a + b·B) is least there.
        """
        if self.critical is None:
            return None
        return min(max(math.sqrt(self.critical.value * self.time.limit), 1.0), float(self.examples[0]))

    def ratio(self, what: str) -> tuple[float, float, float] | None:
        """Return large over small batch of "keskar" or "lambda_max": geometric mean and its 95 % interval."""
        both = [getattr(pair, what) for pair in self.pairs]
        both = [(s, b) for s, b in both if s > 0 and b > 0 and math.isfinite(s) and math.isfinite(b)]
        if len(both) < 2:
            return None
        return geometric_ratio([b for _, b in both], [s for s, _ in both])

    def against_small(self, result: SizeResult, cell: int) -> Difference:
        """Compare a size with the small one in one of the four columns of losses."""
        small = next(r for r in self.sizes if r.size == self.small)
        return compared(result.loss[cell], small.loss[cell], comparisons=len(self.sizes) - 1)

    def seconds_of(self, size: int) -> float:
        """Return the measured seconds of an update, or the law's where the size was not timed."""
        return dict(self.timed).get(size, self.time.at(size))
