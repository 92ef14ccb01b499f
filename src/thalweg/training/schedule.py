"""When a quantity is measured: every so many steps, ever more rarely, or at given steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thalweg.errors import InputError

__all__ = ["AtSteps", "Every", "LogSpaced", "Schedule", "as_schedule"]


@dataclass(frozen=True)
class Every:
    """Every ``steps`` steps, from the first on."""

    steps: int = 1

    def __post_init__(self) -> None:
        if not self.steps >= 1:
            raise InputError("the interval cannot be used", expected="1 step or more", got=str(self.steps))

    def next_after(self, step: int) -> int | None:
        """Return the first step after ``step`` at which to measure."""
        return step + 1 if step < 1 else step + self.steps - (step - 1) % self.steps


@dataclass(frozen=True)
class LogSpaced:
    """``per_decade`` times between each power of ten and the next: often at first, ever more rarely."""

    per_decade: int = 10

    def __post_init__(self) -> None:
        if not self.per_decade >= 1:
            raise InputError(
                "the schedule cannot be used", expected="1 a decade or more", got=str(self.per_decade)
            )

    def next_after(self, step: int) -> int | None:
        """Return the first step after ``step`` at which to measure."""
        index = 0
        while (there := round(10 ** (index / self.per_decade))) <= step:
            index += 1
        return there


@dataclass(frozen=True)
class AtSteps:
    """At these steps and no others; they are kept whatever the budget."""

    steps: tuple[int, ...]

    def next_after(self, step: int) -> int | None:
        """Return the first step after ``step`` at which to measure; None where there is none."""
        return min((s for s in self.steps if s > step), default=None)


Schedule = Every | LogSpaced | AtSteps


def as_schedule(given: Schedule | int | Iterable[int]) -> Schedule:
    """Take an interval or a list of steps for the schedule that it means.

    Raises:
        InputError: for anything else.
    """
    if isinstance(given, Every | LogSpaced | AtSteps):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return Every(given)
    if isinstance(given, Iterable):
        steps = tuple(given)
        if all(isinstance(step, int) and step >= 1 for step in steps):
            return AtSteps(steps)
    raise InputError(
        "this is no schedule",
        expected="Every(k), LogSpaced(k), AtSteps(steps), a number of steps, or a list of steps from 1 on",
        got=repr(given),
    )
