"""One descent on a deep factorisation of unit-sized entries, with what it went through."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.factors import Factors, effective_rank
from thalweg.completion.observations import Observations
from thalweg.completion.steps import (
    ADAM,
    DECAY,
    GD,
    LOSS,
    NGD,
    NUM_STATE,
    RATE,
    STEP,
    advance,
    gradient,
    squared_error,
)
from thalweg.errors import NumericalError

__all__ = ["Descended", "Optimizer", "Snapshot", "Stop", "automatic_rate", "descend", "loss_and_gradient"]

Optimizer = Literal["ngd", "gd", "adam"]
Stop = Literal["tolerance", "held-out", "steps", "level"]
_CODES = {"ngd": NGD, "gd": GD, "adam": ADAM}
_Array = NDArray[Any]

_CHUNK = 10  # steps between two looks
_GROWTH = 1.04  # snapshots come at steps that grow by this factor ...
_APART = 10  # ... and are at least so far apart
_KEPT_VALUES = 16  # singular values kept in a snapshot
_OVERFITTED = 1.25  # times the lowest held-out error: nothing better comes after that ...
_LEARNED = 0.9  # ... once that was so much of the first one
_BETTER = 1e-3  # a held-out error must fall by this share to count as better


@dataclass(frozen=True)
class Snapshot:
    """Where a descent stood.

    Attributes:
        step: taken so far.
        loss: mean squared error over the entries descended on.
        heldout: the same over those held out; NaN without any.
        gradient_norm: of the loss by the factors.
        singular_values: of the product, the 16 largest.
        effective_rank: exp of the entropy of all of them.
        imbalance: `Factors.imbalance`.
        rate: the learning rate.
    """

    step: int
    loss: float
    heldout: float
    gradient_norm: float
    singular_values: tuple[float, ...]
    effective_rank: float
    imbalance: float
    rate: float


@dataclass(frozen=True)
class Descended:
    """What a descent came to.

    Attributes:
        factors: those of the best held-out error, or the last ones where nothing was held out.
        step: at which they were reached.
        num_steps: taken in all.
        loss: at ``factors``, over the entries descended on.
        heldout: at ``factors``; NaN without any.
        stopped: what ended it.
        snapshots: along the way, the start and the end included.
    """

    factors: Factors
    step: int
    num_steps: int
    loss: float
    heldout: float
    stopped: Stop
    snapshots: tuple[Snapshot, ...]


class Entries:
    """Observations as the compiled loops take them."""

    def __init__(self, observations: Observations, dtype: Any) -> None:
        self.start, self.columns = observations.starts(), observations.columns
        self.values = observations.values.astype(dtype)

    @property
    def arrays(self) -> tuple[_Array, _Array, _Array]:
        """Where each row begins, columns, values."""
        return self.start, self.columns, self.values

    def mean_squared_error(self, factors: Factors) -> float:
        """Return it over these entries; NaN where there are none."""
        if not len(self.values):
            return math.nan
        outer = np.ascontiguousarray(factors.right @ factors.core().T.astype(factors.right.dtype))
        total = squared_error(factors.left, outer, *self.arrays)
        return float(total) / len(self.values)


def loss_and_gradient(factors: Factors, observations: Observations) -> tuple[float, Factors]:
    """Return the mean squared error over the observed entries and its gradient by each factor.

    Cost: 6·m·h + O((n₁+n₂)·h² + N·h³) multiplications.
    """
    theta = factors.flat()
    slope, entries = np.empty_like(theta), Entries(observations, theta.dtype)
    loss = gradient(theta, slope, factors.sizes, *entries.arrays)
    return float(loss), Factors.of(slope, factors.sizes)


def automatic_rate(optimizer: Optimizer, observations: Observations, depth: int) -> float:
    """Return the learning rate for entries of size 1.

    Normalised steps: a small share of √N·(n₁n₂)^{1/2N}, the distance that the factors have to go when they
    share the matrix's norm equally. Plain steps: a quarter of 2/λmax at a balanced minimum, where λmax is at
    most N·σ₁^{2−2/N}·2/m, with σ₁ estimated by the observed entries, filled up with zeros and scaled.
    """
    n1, n2 = observations.shape
    if optimizer == "ngd":
        return float(2e-3 * math.sqrt(depth) * (n1 * n2) ** (0.5 / depth))
    if optimizer == "adam":
        return 1e-3
    m = len(observations)
    largest = _largest_singular_value(observations) * n1 * n2 / m
    return float(0.25 * 2 / (depth * largest ** (2 - 2 / depth) * 2 / m))


def descend(
    start: Factors,
    observations: Observations,
    *,
    heldout: Observations | None = None,
    optimizer: Optimizer = "ngd",
    learning_rate: float | None = None,
    max_steps: int = 5000,
    tol: float = 1e-6,
    patience: int = 1000,
    level: float = 0.0,
    advanced: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Descended:
    """Descend from ``start`` on the mean squared error over the observed entries, which should be of size 1.

    "ngd" takes g/(√v + 10⁻⁴) times the rate, v the bias-corrected moving average (0.99) of the squared norm
    of the whole gradient: the paper's optimiser ([arora2019b]). "gd" and "adam" are as everywhere. Without a
    ``learning_rate`` one is chosen (`automatic_rate`), and it shrinks whenever the loss has risen over 25
    steps.

    Args:
        start: left as they are.
        observations: to descend on.
        heldout: entries that say when to stop.
        optimizer: see above.
        learning_rate: see above.
        max_steps: at most so many.
        tol: stop at this mean squared error.
        patience: stop when the held-out error has been no better for so many steps, or is a quarter above its
            lowest. On a plateau it may rise by a seventh, and wait 900 steps, before it falls again.
        level: a further error to stop at, reached by "level" instead of "tolerance".
        advanced: told the steps taken, now and then.
        stop: looked at between compiled chunks; when it is set, KeyboardInterrupt is raised.

    Raises:
        NumericalError: when the loss is not finite.

    Cost: per step 6·m·h + O((n₁+n₂)·h² + N·h³) multiplications; memory for the factors three times (Adam:
        five).
    """
    automatic = learning_rate is None
    rate = automatic_rate(optimizer, observations, start.depth) if learning_rate is None else learning_rate
    running = _Running(start, observations, heldout, optimizer, rate, automatic)
    stopped: Stop | None = None
    while True:
        running.look()
        if stopped is None and running.step >= max_steps:
            stopped = "steps"
        if stopped is None and running.is_past_its_best(patience):
            stopped = "held-out"
        if running.step >= running.due or stopped is not None:
            running.take_snapshot()
        if stopped is not None:
            return running.result(stopped)
        reached = running.advance(min(_CHUNK, max_steps - running.step), max(tol, level))
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if reached:
            stopped = "level" if level > tol else "tolerance"
        elif advanced is not None:
            advanced(running.step)


class _Running:
    """A descent under way."""

    def __init__(
        self,
        start: Factors,
        observations: Observations,
        heldout: Observations | None,
        optimizer: Optimizer,
        rate: float,
        automatic: bool,
    ) -> None:
        self.sizes, self.theta, self.code = start.sizes, start.flat(), _CODES[optimizer]
        self.factors = Factors.of(self.theta, self.sizes)
        self.slope = np.empty_like(self.theta)
        moments = len(self.theta) if optimizer == "adam" else 0
        self.first, self.second = (np.zeros(moments, self.theta.dtype) for _ in range(2))
        self.entries = Entries(observations, self.theta.dtype)
        self.check = Entries(heldout, self.theta.dtype) if heldout is not None else None
        self.state = np.zeros(NUM_STATE)
        self.state[RATE], self.state[DECAY] = rate, float(automatic)
        self.rate, self.automatic = rate, automatic
        self.best, self.best_step, self.lowest = self.theta, 0, math.inf
        self.seen, self.first_seen, self.due = math.nan, math.nan, 0
        self.snapshots: list[Snapshot] = []

    @property
    def step(self) -> int:
        return int(self.state[STEP])

    def look(self) -> None:
        """Measure the held-out error and keep the factors where it is lowest."""
        if self.check is None:
            return
        self.seen = self.check.mean_squared_error(self.factors)
        if self.step == 0:
            self.first_seen = self.seen
        if self.seen < self.lowest * (1 - _BETTER):
            self.best, self.best_step, self.lowest = self.theta.copy(), self.step, self.seen

    def is_past_its_best(self, patience: int) -> bool:
        """Say whether going on will not lower the held-out error any more."""
        if self.check is None:
            return False
        learned = self.lowest < _LEARNED * self.first_seen
        return self.step - self.best_step > patience or (learned and self.seen > _OVERFITTED * self.lowest)

    def take_snapshot(self) -> None:
        loss = gradient(self.theta, self.slope, self.sizes, *self.entries.arrays)
        sigma = self.factors.singular_values()
        taken = Snapshot(
            step=self.step,
            loss=float(loss),
            heldout=self.seen,
            gradient_norm=float(np.linalg.norm(self.slope.astype(np.float64))),
            singular_values=tuple(sigma[:_KEPT_VALUES].tolist()),
            effective_rank=effective_rank(sigma),
            imbalance=self.factors.imbalance(),
            rate=float(self.state[RATE]),
        )
        self.snapshots.append(taken)
        self.due = max(self.step + _APART, int(self.step * _GROWTH))

    def advance(self, steps: int, goal: float) -> bool:
        """Take steps; say whether the error has reached ``goal``."""
        begun = self.step
        advance(
            *(self.theta, self.slope, self.first, self.second, self.state, self.sizes),
            *(*self.entries.arrays, self.code, goal, steps),
        )
        loss = float(self.state[LOSS])
        if not math.isfinite(loss):
            raise NumericalError(
                f"the descent diverged after {begun} steps",
                got=f"a loss of {loss}",
                cause=f"a learning rate of {self.rate:.3g}, too large for these entries",
                hint="learning_rate='auto'" if not self.automatic else "optimizer='ngd'",
            )
        return loss <= goal

    def result(self, stopped: Stop) -> Descended:
        kept = Factors.of(self.theta if self.check is None else self.best, self.sizes)
        return Descended(
            factors=kept,
            step=self.step if self.check is None else self.best_step,
            num_steps=self.step,
            loss=self.entries.mean_squared_error(kept),
            heldout=math.nan if self.check is None else self.lowest,
            stopped=stopped,
            snapshots=tuple(self.snapshots),
        )


def _largest_singular_value(observations: Observations) -> float:
    """Return σ₁ of the observed entries filled up with zeros, by power iteration."""
    matrix = observations.sparse()
    v = np.asarray(abs(matrix).sum(axis=0), dtype=np.float64)
    sigma = 0.0
    for _ in range(30):
        v = matrix.T @ (matrix @ (v / np.linalg.norm(v)))
        sigma = float(np.sqrt(np.linalg.norm(v)))
        if sigma == 0:
            return 1.0
    return sigma
