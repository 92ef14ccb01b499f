"""Which quantities are due at a step: as often as was asked for, as far as the budget goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from thalweg.training.budget import Budget
from thalweg.training.quantities import Quantity
from thalweg.training.schedule import AtSteps, Every

__all__ = ["Agenda"]

_NOTHING: list[Quantity] = []
SHORTEST_WAIT, LONGEST_WAIT = 8, 1000  # steps until it is looked again whether something can be paid for


class Agenda:
    """Knows what is due.

    Between two looks at the whole list only the steady quantities are measured: those that are wanted at
    every step and cost next to nothing. So a step at which nothing else is due takes a few microseconds.

    Args:
        quantities: what is recorded.
        budget: what that may cost.
        step: the last one that was taken.

    Attributes:
        steady: the steady quantities.
    """

    def __init__(self, quantities: Sequence[Quantity], budget: Budget, step: int) -> None:
        self.quantities, self._budget = list(quantities), budget
        self._next = {q.name: q.schedule.next_after(step) for q in quantities}
        self._intervals: dict[str, int] = {}
        self.steady: list[Quantity] = []
        self._thinned = 1  # steady quantities are measured every so many steps
        self._look_at = step + 1

    def due(self, step: int) -> list[Quantity]:
        """Return what to measure at ``step``, the one that comes."""
        if step < self._look_at:
            return self.steady if self._thinned == 1 or step % self._thinned == 0 else _NOTHING
        found, purse, wake = [], self._budget.purse, step + LONGEST_WAIT
        for quantity in self.quantities:
            at = self._next[quantity.name]
            steady = quantity in self.steady
            if steady and step % self._thinned:
                continue
            if at is None or at > step:
                wake = wake if at is None or steady else min(wake, at)
                continue
            if not steady and not isinstance(quantity.schedule, AtSteps):
                cost = self._budget.cost(quantity.name)
                if cost > purse and not self._budget.is_small_change(quantity.name):
                    wait = max(self._budget.steps_to_earn(cost - purse), SHORTEST_WAIT)
                    wake = min(wake, step + wait)
                    continue
                purse -= cost
            found.append(quantity)
        self._look_at = max(wake, step + 1)
        return found if len(found) > len(self.steady) or found != self.steady else self.steady

    def is_steady(self, quantity: Quantity) -> bool:
        """Say whether ``quantity`` is measured as a matter of course, without a look at what it costs."""
        return quantity in self.steady

    def measured(self, quantity: Quantity, step: int) -> None:
        """Note that ``quantity`` was measured at ``step``, and when it will be next."""
        schedule = quantity.schedule
        if getattr(quantity, "again", False):
            asked: int | None = step + 1
        else:
            asked = schedule.next_after(step)
            if asked is not None and isinstance(schedule, Every):
                planned = self._intervals.get(quantity.name, 1)
                asked = asked if planned <= schedule.steps else step + planned
        self._next[quantity.name] = asked
        if asked is not None:
            self._look_at = min(self._look_at, asked)

    def drop(self, quantity: Quantity) -> None:
        """Measure ``quantity`` no more."""
        self.quantities = [q for q in self.quantities if q is not quantity]
        self.steady = [q for q in self.steady if q is not quantity]
        del self._next[quantity.name]

    def plan(self, step: int) -> None:
        """Find out, from what things cost, how often each can be had.

        Args:
            step: the last one that was taken.
        """
        budget = self._budget
        self.steady = [
            q
            for q in self.quantities
            if q.schedule == Every(1) and budget.has_measured(q.name) and budget.is_small_change(q.name)
        ]
        self._thinned = budget.thinning()
        wanted = {
            q.name: float(q.schedule.steps)
            if isinstance(q.schedule, Every)
            else float((q.schedule.next_after(step) or math.inf) - step)
            for q in self.quantities
            if not isinstance(q.schedule, AtSteps) and q not in self.steady
        }
        self._intervals = budget.intervals(wanted)
        self._look_at = step + 1
