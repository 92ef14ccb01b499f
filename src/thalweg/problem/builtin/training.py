"""The trainings that bring the built-in models where they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["minimise", "polish", "train"]

Criterion = Callable[[Tensor, Tensor], Tensor]


def train(
    model: nn.Module,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    *,
    steps: int,
    batch_size: int,
    rng: torch.Generator,
) -> None:
    """Take ``steps`` optimiser steps over shuffled epochs of ``data`` (inputs, targets)."""
    inputs, targets = data
    for rows in _minibatches(len(inputs), min(batch_size, len(inputs)), steps, rng):
        optimizer.zero_grad()
        criterion(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()


def minimise(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float,
    iterations: int,
) -> Tensor:
    """Return a minimum of a smooth function of a float64 vector (n,), found by L-BFGS.

    Args:
        function: a scalar of the vector.
        start: where the search begins.
        tolerance: the largest gradient component to stop at.
        iterations: the most iterations to take.
    """
    theta = start.clone().requires_grad_()
    # tolerance_change 0: near the minimum the value stands still long before the gradient is small
    search = torch.optim.LBFGS(
        [theta],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def value_and_gradient() -> Tensor:
        value = function(theta)
        (theta.grad,) = torch.autograd.grad(value, theta)
        return value

    search.step(value_and_gradient)
    return theta.detach()


def polish(function: Callable[[Tensor], Tensor], start: Tensor, *, steps: int = 400) -> Tensor:
    """Return a critical point near ``start`` to rounding, by Newton's method on the dense Hessian.

    Each eigenvalue counts with its absolute value, and the step is halved until the value does not rise,
    so that the way leads down from wherever it starts.
    """
    theta = start
    for _ in range(steps):
        value = function(theta)
        gradient = torch.autograd.functional.jacobian(function, theta)
        if float(gradient.abs().max()) < 1e-15:
            break
        curvatures, axes = torch.linalg.eigh(torch.autograd.functional.hessian(function, theta))
        step = axes @ ((axes.T @ gradient) / curvatures.abs())
        while function(theta - step) > value * (1 + 1e-15) and step.norm() > 1e-15 * theta.norm():
            step = step / 2
        theta = theta - step
    return theta


def _minibatches(num: int, size: int, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
    taken = 0
    while True:
        order = torch.randperm(num, generator=rng)
        for start in range(0, num - size + 1, size):
            if taken == steps:
                return
            yield order[start : start + size]
            taken += 1
