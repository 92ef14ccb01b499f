"""What recording may cost, and how often each quantity can be had for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from thalweg.errors import InputError

__all__ = ["Budget", "require_budget", "water_filled"]

MEMORY = 0.9  # of the moving averages of costs
# Of the budget is planned with. Calling the hooks, and training steps that find their data gone from the
# caches after a measurement, cost up to as much again, which no clock here sees
# (benchmarks/bench_recorder.py).
MARGIN = 0.5


class Budget:
    """Keeps the time that recording takes at a share of the time that training takes.

    All times are measured along the run. The quantities together may take ``fraction`` of the
    training time; each gets an equal part of that, and what one does not need goes to the others, so that
    what is cheap is measured as often as it was asked for and what is dear shares the rest.

    Args:
        fraction: of the training time; infinity for no limit.
        guesses: what a measurement of each quantity takes, in steps of training, as long as it is not known.

    Attributes:
        setup: seconds before the first step; reported, and not made up for.
        spent: seconds on recording since.
        trained: seconds on training.
        by_quantity: how often each was measured, and the seconds that took.
    """

    def __init__(self, fraction: float, guesses: Mapping[str, float]) -> None:
        self.fraction = fraction
        self.setup, self.spent, self.trained = 0.0, 0.0, 0.0
        self.by_quantity: dict[str, tuple[int, float]] = {}
        self._guesses, self._costs = dict(guesses), dict[str, float]()
        self._step: float | None = None  # seconds that a step of training takes
        self._steps = 0

    @property
    def overhead(self) -> float:
        """The time spent on recording, setup included, relative to that spent on training, so far."""
        return (self.setup + self.spent) / self.trained if self.trained > 0 else 0.0

    def train(self, seconds: float, steps: int = 1) -> None:
        """Enter what ``steps`` steps of training took together."""
        self.trained += seconds
        self._steps += steps
        one = seconds / steps
        if self._step is None or self._steps == 2:  # the first step warms up
            self._step = one
        elif one < 10 * self._step:  # what lies between may be an evaluation
            memory = MEMORY**steps
            self._step = memory * self._step + (1 - memory) * one

    def spend(self, seconds: float, quantity: str | None = None) -> None:
        """Enter what was spent, on a quantity or on recording as such."""
        self.spent += seconds
        if quantity is None:
            return
        times, total = self.by_quantity.get(quantity, (0, 0.0))
        self.by_quantity[quantity] = times + 1, total + seconds
        old = self._costs.get(quantity, seconds)
        usual = min(seconds, 3 * old)  # another process may have had its turn in between
        self._costs[quantity] = seconds if times < 2 else MEMORY * old + (1 - MEMORY) * usual

    @property
    def purse(self) -> float:
        """Seconds that may be spent now out of what training has earned so far; may be negative."""
        if math.isinf(self.fraction):
            return math.inf
        return MARGIN * self.fraction * (self.trained + (self._step or 0.0)) - self.spent

    def steps_to_earn(self, seconds: float) -> int:
        """Return after how many steps of training so much more may be spent."""
        a_step = MARGIN * self.fraction * (self._step or 0.0)
        return max(1, math.ceil(min(seconds / a_step, 1e9))) if a_step > 0 else 1

    def is_small_change(self, quantity: str) -> bool:
        """Say whether ``quantity`` takes so little that every step can pay for it."""
        return self.cost(quantity) <= 0.15 * min(self.fraction, 1.0) * (self._step or 0.0)

    def has_measured(self, quantity: str) -> bool:
        """Say whether it is known what ``quantity`` takes when all is warm."""
        return self.by_quantity.get(quantity, (0, 0.0))[0] >= 2

    def thinning(self) -> int:
        """Return every how many steps recording can afford to do what it does at every step."""
        if math.isinf(self.fraction) or not self._step or not self._steps:
            return 1
        return max(1, math.ceil(self._as_such / self._steps / (0.4 * MARGIN * self.fraction * self._step)))

    @property
    def _as_such(self) -> float:
        """Seconds that were not spent on a quantity of their own."""
        return self.spent - sum(total for _, total in self.by_quantity.values())

    def cost(self, quantity: str) -> float:
        """Return what a measurement takes, in seconds: the first ones are taken for warming up."""
        cost = self._costs.get(quantity)
        return self._guesses[quantity] * (self._step or 1e-3) if cost is None else cost

    def intervals(self, wanted: Mapping[str, float]) -> dict[str, int]:
        """Return every how many steps each quantity can be measured, at least as many as wanted.

        Args:
            wanted: the intervals that were asked for, by name.
        """
        if math.isinf(self.fraction) or self._step is None:
            return {name: math.ceil(steps) for name, steps in wanted.items()}
        needs = {name: self.cost(name) / steps for name, steps in wanted.items()}
        left = MARGIN * self.fraction * self._step - self._as_such / max(self._steps, 1)
        given = water_filled(needs, max(left, 0.2 * MARGIN * self.fraction * self._step))
        return {
            name: math.ceil(steps if given[name] >= needs[name] else self.cost(name) / given[name])
            for name, steps in wanted.items()
        }


def require_budget(fraction: float) -> None:
    """Raise InputError for a share of the training time that is none."""
    if not fraction > 0:
        raise InputError(
            "the budget cannot be used",
            expected="a share of the training time above 0, such as 0.05; float('inf') for no limit",
            got=str(fraction),
        )


def water_filled(needs: Mapping[str, float], total: float) -> dict[str, float]:
    """Share ``total`` equally; who needs less than an equal part leaves the rest to the others."""
    given: dict[str, float] = {}
    left, waiting = total, len(needs)
    for name, need in sorted(needs.items(), key=lambda item: item[1]):
        given[name] = min(need, max(left, 0.0) / waiting)
        left, waiting = left - given[name], waiting - 1
    return given
