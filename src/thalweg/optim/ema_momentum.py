"""Momentum as a moving average of the gradients, by an identity with torch's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.per_parameter import require
from thalweg.optim.whole import Parameters

__all__ = ["ema_momentum"]


def ema_momentum(params: Parameters, lr: float, beta: float = 0.9) -> torch.optim.SGD:
    """Return the optimiser v = β·v + (1−β)·g from v = 0, w = w − lr·v.

    It is `torch.optim.SGD` with rate lr·(1−β) and momentum β, whose v is 1/(1−β) times this one: the same
    steps, to rounding. SGD with ``dampening=β`` is not, since it leaves the first gradient undamped. The rate
    in the optimiser's groups, and what a scheduler gets to see, is lr·(1−β).

    Cost: 1 gradient-equivalent a step.

    Args:
        params: parameters or groups of them; a group's own ``lr`` is meant like this one.
        lr: rate of the moving average.
        beta: β, how much of the average is kept.

    Raises:
        InputError: for a negative rate, a β outside [0, 1), or a group with a ``momentum`` of its own.
    """
    require(0 <= beta < 1, "beta", expected="from 0 to below 1", got=beta)
    groups = [_rescaled(entry, beta) for entry in params]
    require(lr >= 0, "lr", expected="at least 0", got=lr)
    return torch.optim.SGD(groups, lr=lr * (1 - beta), momentum=beta, dampening=0)  # type: ignore[arg-type]


def _rescaled(entry: Tensor | Mapping[str, Any] | tuple[str, Tensor], beta: float) -> object:
    if not isinstance(entry, Mapping):
        return entry
    for name in ("momentum", "dampening", "nesterov"):
        require(name not in entry, f"{name} of a group", expected="beta for all groups", got=entry.get(name))
    if "lr" not in entry:
        return dict(entry)
    require(entry["lr"] >= 0, "lr", expected="at least 0", got=entry["lr"])
    return {**entry, "lr": entry["lr"] * (1 - beta)}
