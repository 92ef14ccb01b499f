"""Can this be measured? Whether the loss is a fixed function, and its gradient the derivative of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.errors import FOREIGN_FAILURES, InputError, ModelError, ThalwegError
from thalweg.problem.fault import unsteady_module, wrong_module
from thalweg.problem.intact import random_state_kept
from thalweg.problem.memory import memory_share
from thalweg.problem.objective import Objective
from thalweg.rng import gaussian, generator

__all__ = [
    "Comparison",
    "check_gradient",
    "check_products",
    "compare",
    "precise",
    "require_fixed_function",
    "require_right_gradient",
    "stand_in",
    "typical_move",
]

Verdict = Literal["agrees", "disagrees", "rough", "flat"]

# Steps of the central differences, relative to the weights, in float32 and in float64: the best first, then
# those that help where it is drowned in rounding (larger ones) or crosses kinks of ReLU (smaller ones).
LOSS_STEPS = ((1e-2, 3e-3, 3e-2, 1e-3), (1e-6, 1e-5, 1e-7, 1e-4, 1e-3, 1e-2))
# A kink that is crossed moves the gradient by a jump, however small the step: the smaller, the fewer.
SLOPE_STEPS = ((3e-3, 1e-2, 1e-3, 3e-2), (1e-7, 1e-8, 1e-9, 1e-6, 1e-5, 1e-4, 1e-3))
LOSS_TOLERANCE = (3e-3, 1e-5)
SLOPE_TOLERANCE = (1e-2, 1e-4)
ROUNDINGS = 32  # units in the last place that a loss or gradient may be off by
DROWNED = 0.1  # a quotient with more noise than this tells nothing
CONSISTENT = 0.05  # quotients that differ by less than this share of what they miss the claim by: no accident
ALIKE = 0.1  # relative, between a model in its own and in double precision; bfloat16 makes 0.03
NUDGE = 0.1  # how far from θ, relative to the weights, a derivative is looked at that vanishes at θ
HAIR, LEAP = 1e-9, 1e-5  # a step, and a change of the loss that is no rounding
MANY = 16  # random states that a model which draws is run under: one layer dropped in ten must show
COPIES = 64  # bytes a parameter that the checks in double precision hold at once


@dataclass(frozen=True)
class Comparison:
    """A claimed derivative against difference quotients.

    Attributes:
        verdict: "agrees"; "disagrees" (the quotients agree with each other, and not with the claim);
            "rough" (they do not agree with each other); "flat" (they show nothing above rounding).
        error: ‖quotient − claim‖ relative to the larger of them, at the step that comes nearest.
    """

    verdict: Verdict
    error: float


def compare(
    claim: Tensor,
    quotient: Callable[[float], tuple[Tensor, float]],
    steps: Sequence[float],
    *,
    tolerance: float,
    size: float = 0.0,
) -> Comparison:
    """Compare ``claim`` (m,) with difference quotients until one of them decides.

    Args:
        claim: the derivative that is claimed.
        quotient: step -> difference quotient (m,) and what rounding may do to it.
        steps: to try, the best first.
        tolerance: relative, at steps up to it; at larger steps the step itself.
        size: the least that errors are relative to.
    """
    if not bool(torch.isfinite(claim).all()):
        return Comparison("disagrees", float("inf"))
    tried: list[Tensor] = []
    nearest = float("inf")
    for step in steps:
        found, noise = quotient(step)
        scale = max(float(claim.norm()), float(found.norm()), size)
        missed = float((found - claim).norm())
        if scale == 0:
            return Comparison("agrees", 0.0)
        if not math.isfinite(scale) or noise > DROWNED * scale:
            continue
        nearest = min(nearest, missed / scale)
        if missed <= max(tolerance, step) * scale + noise:
            return Comparison("agrees", nearest)
        # Equal quotients of two steps are the true derivative; zeros may be a step lost in rounding.
        if any(float((q - found).norm()) <= CONSISTENT * missed and float(q.norm()) > 0 for q in tried):
            return Comparison("disagrees", nearest)
        tried.append(found)
    if not tried:
        return Comparison("flat", 0.0)
    stairs = all(float(q.norm()) == 0 for q in tried)
    return Comparison("disagrees" if stairs else "rough", nearest)


def typical_move(theta: Tensor) -> Tensor:
    """Return how far each weight may be moved (n,): by its size and a tenth of the usual size."""
    usual = float(theta.norm()) / theta.numel() ** 0.5
    least: Tensor = torch.full_like(theta, 0.1 * min(max(usual, 0.1), 1.0))
    return least + theta.abs()


def check_gradient(objective: Objective, theta: Tensor, *, seed: int = 0) -> Comparison:
    """Compare the gradient with differences of the loss along a random direction near ``theta``.

    Not at ``theta`` itself, where both may vanish. Cost: 2 gradient-equivalents, 5 where they disagree.
    """
    direction = typical_move(theta) * gaussian(theta.numel(), generator(seed, "probe", 0), like=theta)
    there = _nearby(objective, theta, seed)
    gradient = objective.gradient(there)

    def quotient(step: float) -> tuple[Tensor, float]:
        ahead, behind = (objective.value(there + s * step * direction) for s in (1.0, -1.0))
        noise = ROUNDINGS * objective.roundoff * max(abs(ahead), abs(behind)) / step
        return torch.tensor([(ahead - behind) / (2 * step)], dtype=torch.float64), noise

    double = theta.dtype == torch.float64
    return compare(
        (gradient @ direction).double().reshape(1).cpu(),
        quotient,
        LOSS_STEPS[double],
        tolerance=LOSS_TOLERANCE[double],
        size=float((gradient * direction).norm()),
    )


def check_products(objective: Objective, theta: Tensor, *, seed: int = 0) -> Comparison:
    """Compare a Hessian–vector product with differences of the gradient along a random direction.

    At ``theta``; where they disagree there, which a kink at ``theta`` explains, once more near it.
    Cost: 5 gradient-equivalents, up to 34 where they disagree.
    """
    found = _check_products_at(objective, theta, seed)
    if found.verdict == "agrees" or not math.isfinite(found.error):
        return found
    return _check_products_at(objective, _nearby(objective, theta, seed), seed)


def _check_products_at(objective: Objective, theta: Tensor, seed: int) -> Comparison:
    move = typical_move(theta)
    direction = move * gaussian(theta.numel(), generator(seed, "probe", 1), like=theta)

    def quotient(step: float) -> tuple[Tensor, float]:
        ahead, behind = (objective.gradient(theta + s * step * direction) for s in (1.0, -1.0))
        noise = ROUNDINGS * objective.roundoff * float((move * ahead).norm()) / step
        return (move * (ahead - behind)).double() / (2 * step), noise

    double = theta.dtype == torch.float64
    product = (move * objective.hvp(theta, direction)).double()
    return compare(product, quotient, SLOPE_STEPS[double], tolerance=SLOPE_TOLERANCE[double])


def precise(objective: Objective, theta: Tensor, *, seed: int = 0) -> tuple[Objective, Tensor]:
    """Return what to check derivatives on, and where: a few examples, in double precision if that can be.

    Double precision tells rounding and the kinks of ReLU from faults. It is used where the model runs in it
    and gives the value and the gradient that it gives in its own. Cost: 3 gradient-equivalents of the few.
    """
    own = stand_in(objective, theta)
    if objective.roundoff <= torch.finfo(torch.float64).eps:
        return own, theta
    if COPIES * theta.numel() > memory_share(theta.device):
        return own, theta
    there = _nearby(own, theta, seed)
    try:
        double = objective.stand_in(torch.float64)
        value, gradient = double.value(there.double()), double.gradient(there.double())
    except (ThalwegError, *FOREIGN_FAILURES):
        return own, theta
    known = own.gradient(there).double()
    same = float((gradient - known).norm()) <= ALIKE * max(float(gradient.norm()), float(known.norm()))
    if same and abs(value - own.value(there)) <= ALIKE * abs(value):
        return double, theta.double()
    return own, theta


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

    Cost: about 3 gradient-equivalents of a few examples, 2 more where weights are not double.

    Raises:
        ModelError: with the module whose backward pass is wrong, where it is in one.
    """
    theta = objective.theta
    if not math.isfinite(objective.stand_in(None).value(theta)):
        return ()  # whoever reads the loss next will say so
    few, point = precise(objective, theta)
    _require_no_jump(few, point)
    found = check_gradient(few, point)
    if found.verdict == "rough":
        return ("Differences of the loss are too rough to check its gradient by.",)
    if found.verdict != "disagrees":
        return ()
    where = wrong_module(few, point, lambda part: check_gradient(part, part.theta).verdict == "disagrees")
    raise ModelError(
        "the gradient of this model is not the derivative of its loss",
        got=f"a slope that differs by {found.error:.1%} from differences of the loss"
        + (f", because of {where}" if where else ", in the loss itself"),
        cause="a detach() or torch.no_grad() between weights and loss, a straight-through estimator, "
        "reentrant checkpointing, or a custom autograd.Function whose backward is wrong",
        hint="check custom layers with torch.autograd.gradcheck; use checkpoint(..., use_reentrant=False); "
        "where the stop is meant, freeze what lies before it or measure the loss that the gradient is of",
    )


def jumps(objective: Objective, theta: Tensor) -> bool:
    """Return whether the loss jumps at ``theta``, in double precision. Cost: 4/3 gradient-equivalents."""
    if theta.dtype != torch.float64:
        return False
    move = typical_move(theta) * gaussian(theta.numel(), generator(0, "probe", 0), like=theta)
    here, hair, more, far = (objective.value(theta + step * move) for step in (0.0, HAIR, 1e3 * HAIR, NUDGE))
    change = abs(hair - here)  # a thousand times as far is a thousand times as much, if it is no jump
    return change > 0.1 * abs(more - here) and change > LEAP * max(abs(here), abs(far))


def _require_no_jump(objective: Objective, theta: Tensor) -> None:
    if not jumps(objective, theta):
        return
    where = wrong_module(objective, theta, lambda part: jumps(part, part.theta))
    raise ModelError(
        "the loss jumps at these weights: the least change of them is a large change of it",
        got=where,
        cause="numbers that are rounded or cut off, as in orthogonal(..., orthogonal_map='householder')",
        hint="take a smooth form; of orthogonal weights, orthogonal_map='cayley' or 'matrix_exp'",
    )


def stand_in(objective: Objective, theta: Tensor) -> Objective:
    """Return what to check code on: the objective over a few examples, if these give a loss."""
    few = objective.stand_in(None)
    try:
        few.value(theta)
    except InputError:  # all the targets of these few may be padding
        return objective
    return few


def _nearby(objective: Objective, theta: Tensor, seed: int) -> Tensor:
    """Return a point near ``theta`` (n,) where the objective is finite."""
    move = typical_move(theta) * gaussian(theta.numel(), generator(seed, "nearby"), like=theta)
    for factor in (1.0, 0.1, 0.01):
        there = theta + NUDGE * factor * move
        if math.isfinite(objective.value(there)):
            return there
    return theta


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
