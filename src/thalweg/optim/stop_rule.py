"""When a training that runs to the end of its own accord is at its end."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.errors import InputError

__all__ = ["StopRule"]


@dataclass(frozen=True)
class StopRule:
    """What ends a training, whichever comes first; looked at after every epoch.

    Attributes:
        epochs: the most epochs.
        goal: the training loss at which it is good enough.
        min_grad: the norm of the gradient below which it stands still; 0 for never.
        max_fail: how many epochs in a row the held-out loss may fail to get below its best; the weights
            then go back to that best. None for never; without held-out data it cannot hold.
    """

    epochs: int = 1000
    goal: float = 0.0
    min_grad: float = 0.0
    max_fail: int | None = 6

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.min_grad >= 0 or (self.max_fail is not None and self.max_fail < 1):
            raise InputError(
                "a stop rule cannot hold",
                expected="epochs and max_fail of 1 or more, min_grad of 0 or more",
                got=str(self),
            )
