"""Can this be measured? Whether the loss is a fixed function, and its gradient the derivative of it."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.errors import ModelError
from thalweg.problem.blur import ROUNDINGS
from thalweg.problem.derivatives import Bench, check_gradient, jumps, precise, stand_in
from thalweg.problem.fault import unsteady_module, wrong_module
from thalweg.problem.intact import random_state_kept
from thalweg.problem.objective import Objective

__all__ = ["require_fixed_function", "require_right_gradient"]

MANY = 16  # random states that a model which draws is run under: one layer dropped in ten must show


def require_fixed_function(objective: Objective) -> None:
    """Refuse a loss that gives several values at one point: its landscape is not there twice.

    Cost: two evaluations of a few examples, or `MANY` where random numbers are drawn.

    Raises:
        ModelError: with the module that draws, where one does.
    """
    theta = objective.theta
    few = stand_in(objective, theta)
    with random_state_kept():
        with _Draws() as draws:
            values = [few.value(theta)]
        for _ in range(MANY if draws.seen else 1):
            _stir(theta.device)
            values.append(few.value(theta))
        first, odd = values[0], max(values, key=lambda value: abs(value - values[0]))
        # The order of sums on a GPU is not fixed, so that neither is their rounding.
        allowed = 0.0 if theta.device.type == "cpu" else ROUNDINGS * objective.roundoff * abs(first)
        if abs(odd - first) <= allowed or not any(math.isfinite(value) for value in values):
            return
        where = unsteady_module(few, theta, lambda: _stir(theta.device), MANY)
    raise ModelError(
        "the loss of this model is not a fixed function of its weights",
        got=f"{first!r} and then {odd!r} for the same weights and data"
        + (f", from {where}" if where else ""),
        cause="a layer that draws random numbers in evaluation mode"
        + (f" ({', '.join(sorted(draws.seen))})" if draws.seen else ", or state that changes between calls"),
        hint="make it deterministic when self.training is False, as nn.Dropout is",
    )


def require_right_gradient(objective: Objective) -> tuple[str, ...]:
    """Refuse a loss whose gradient, as autograd gives it, is not its derivative.

    Returns:
        What the reader must know, where the check could not tell.

    Cost: 5 gradient-equivalents of a few examples, 6 where the weights are not double.

    Raises:
        ModelError: with the module whose backward pass is wrong, where it is in one.
    """
    bench = precise(objective, objective.theta)
    if not math.isfinite(bench.objective.value(bench.theta)):
        return ()  # whoever reads the loss next will say so
    _require_no_jump(bench)
    found = check_gradient(bench)
    if found.verdict == "rough":
        return ("Differences of the loss are too rough to check its gradient by.",)
    if found.verdict != "disagrees":
        return ()
    where = wrong_module(bench, lambda part: check_gradient(part).verdict == "disagrees")
    raise ModelError(
        "the gradient of this model is not the derivative of its loss",
        got=f"a slope that differs by {found.error:.1%} from differences of the loss"
        + (f", because of {where}" if where else ", in the loss itself"),
        cause="a detach() or torch.no_grad() between weights and loss, a straight-through estimator, "
        "reentrant checkpointing, half precision inside the model, or a custom autograd.Function whose "
        "backward is wrong",
        hint="check custom layers with torch.autograd.gradcheck; use checkpoint(..., use_reentrant=False); "
        "where the stop is meant, freeze what lies before it or measure the loss that the gradient is of",
    )


def _require_no_jump(bench: Bench) -> None:
    if not jumps(bench):
        return
    where = wrong_module(bench, jumps)
    raise ModelError(
        "the loss jumps at these weights: the least change of them is a large change of it",
        got=where,
        cause="numbers that are rounded or cut off, as in orthogonal(..., orthogonal_map='householder')",
        hint="take a smooth form; of orthogonal weights, orthogonal_map='cayley' or 'matrix_exp'",
    )


def _stir(device: torch.device) -> None:
    """Move all random states on, by more than a forward pass is likely to."""
    torch.rand(1)
    torch.rand(1, device=device)
    random.random()
    np.random.random()  # noqa: NPY002


class _Draws(TorchDispatchMode):
    """Sees which operations draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.seen.add(str(func.overloadpacket).removeprefix("aten."))
        return func(*args, **(kwargs or {}))
