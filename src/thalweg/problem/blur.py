"""How much of a loss is rounding: the least change of it that is one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.problem.objective import Objective
from thalweg.rng import generator, signs

__all__ = ["ROUNDINGS", "blur", "largest_number"]

ROUNDINGS = 32  # units in the last place that a loss or gradient may be off by
NUDGES = 4
MASK = 1e8  # larger numbers shut entries out of a softmax or a maximum, and enter no sum


def blur(objective: Objective, theta: Tensor) -> float:
    """Return by how much rounding may change f(theta).

    Not u·|f|: the cross-entropy of logits that lie 60 apart is 1e-26. As a difference of numbers of order 60
    it comes out as a multiple of u, or as 0. What counts is the largest number on the way, and what nudging
    each weight by one unit in the last place does. Only the first sees that a loss has been rounded to 0.

    Cost: 5/3 gradient-equivalents.
    """
    unit = objective.roundoff
    value, largest = largest_number(objective, theta)
    rng = generator(0, "nudges")
    moved = [
        objective.value(theta * (1 + unit * signs(theta.numel(), rng, like=theta))) for _ in range(NUDGES)
    ]
    spread = max(abs(other - value) for other in moved)
    rounded = ROUNDINGS * max(unit * max(largest, abs(value)), spread)
    return rounded if math.isfinite(rounded) else math.inf


def largest_number(objective: Objective, theta: Tensor) -> tuple[float, float]:
    """Return f(theta), and the largest number met while it was computed: what it is a difference of.

    Cost: 1/3 gradient-equivalent.
    """
    with _Largest() as seen:
        value = objective.value(theta)
    return value, seen.size


class _Largest(TorchDispatchMode):
    """Sees the largest number that any operation returns, masks left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel() and not part.is_sparse:
                sizes = part.detach().abs()
                self.size = max(self.size, float(torch.where(sizes <= MASK, sizes, 0.0).max()))
        return result
