"""What ends a training: pure rules over what has been recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.errors import InputError
from thalweg.optim.stop_rule import StopRule
from thalweg.report.document import significant
from thalweg.training.trajectory import Epoch, Stopped, direction

__all__ = ["End", "Limit", "best_of", "diverged", "ended", "require_not_past"]


@dataclass(frozen=True)
class Limit:
    """How long to train at most, and the rule that may end it before."""

    epochs: int | None
    steps: int | None
    rule: StopRule | None


@dataclass(frozen=True)
class End:
    """What ended a training, in a word and a sentence, and the epoch whose weights are kept."""

    stopped: Stopped
    reason: str
    kept: int


def ended(record: Sequence[Epoch], gradient_norm: float | None, limit: Limit) -> End | None:
    """Say whether training is at its end after what has been recorded; None where it is not.

    Args:
        record: from before the first step on.
        gradient_norm: where the last step began; None where it is not known.
        limit: what holds.
    """
    now, past, rule = record[-1], len(record) - 1, limit.rule
    if rule is not None and now.loss <= rule.goal:
        reason = f"the training loss, {significant(now.loss, 3)}, has reached the goal of {rule.goal:g}"
        return End("goal", f"{reason} after {_many(past, 'epoch')}", past)
    if rule is not None and gradient_norm is not None and gradient_norm < rule.min_grad:
        reason = f"the gradient, {significant(gradient_norm)}, is below {rule.min_grad:g}"
        return End("gradient", f"{reason} after {_many(past, 'epoch')}", past)
    if rule is not None and rule.max_fail is not None and now.heldout is not None:
        best = best_of(record)
        if past - best >= rule.max_fail:
            reason = f"the held-out loss has not got lower for {_many(past - best, 'epoch')}"
            return End("held-out", f"{reason}; the weights are those of epoch {best}", best)
    if past == limit.epochs:
        return End("epochs", f"{_change(record)} in {_many(past, 'epoch')}, {_many(now.steps, 'step')}", past)
    if now.steps == limit.steps:
        return End("steps", f"{_change(record)} in {_many(now.steps, 'step')}", past)
    return None


def require_not_past(record: Sequence[Epoch], limit: Limit) -> None:
    """Refuse to go on with a training that is past its end.

    Raises:
        InputError: where it has taken more epochs or steps than ``limit`` allows.
    """
    for unit, done, most in (
        ("epoch", len(record) - 1, limit.epochs),
        ("step", record[-1].steps, limit.steps),
    ):
        if most is not None and done > most:
            raise InputError(
                f"the training has gone on for longer than {_many(most, unit)} already",
                expected=f"{done:,} {unit}s or more, counted from its beginning",
                got=f"{most:,}",
                hint="more of them, or another folder for a shorter training",
            )


def diverged(loss: float, record: Sequence[Epoch], steps: int) -> End:
    """Say that the loss of a batch became ``loss``, NaN or infinite, after ``steps`` steps."""
    word = "NaN" if math.isnan(loss) else "infinite"
    reason = (
        f"the loss became {word} after {_many(steps, 'step')}: the learning rate is too high, or the data "
        "hold NaN; the weights are the last ones at which it was finite"
    )
    return End("diverged", reason, len(record) - 1)


def best_of(record: Sequence[Epoch]) -> int:
    """Return the first epoch with the lowest held-out loss; NaN is never the lowest."""
    losses = [math.inf if e.heldout is None or math.isnan(e.heldout) else e.heldout for e in record]
    return losses.index(min(losses))


def _change(record: Sequence[Epoch]) -> str:
    first, last = record[0].loss, record[-1].loss
    word = direction(first, last)
    if word == "stayed":
        return f"the training loss stayed at {significant(last, 3)}"
    return f"the training loss {word} from {significant(first, 3)} to {significant(last, 3)}"


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
