"""Plain functions at textbook points.

Source of most: A. Zhang, Z. C. Lipton, M. Li and A. J. Smola, Dive into Deep Learning, section 12.1,
Optimization and Deep Learning.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from thalweg.problem.builtin.recipe import FunctionRecipe

__all__ = ["cube", "empirical_risk", "plain_saddle", "risk", "rosenbrock", "tanh"]


def risk() -> FunctionRecipe:
    """x·cos(πx) at its local maximum between −1 and 2."""
    return FunctionRecipe(_risk, _point(_stationary(_risk, near=0.27)), domain=((-1.0, 2.0),))


def empirical_risk() -> FunctionRecipe:
    """x·cos(πx) + 0.2·cos(5πx) at its deepest minimum between ½ and 1½."""
    start = _point(_stationary(_empirical_risk, near=1.03))
    return FunctionRecipe(_empirical_risk, start, domain=((0.5, 1.5),), risk=_risk)


def cube() -> FunctionRecipe:
    """x³ at 0, where gradient and curvature vanish without a minimum."""
    return FunctionRecipe(lambda x: x.pow(3).sum(), _point(0.0), domain=((-2.0, 2.0),))


def plain_saddle() -> FunctionRecipe:
    """x² − y² at the origin."""
    return FunctionRecipe(
        lambda x: x[0].square() - x[1].square(), _point(0.0, 0.0), domain=((-1.0, 1.0), (-1.0, 1.0))
    )


def tanh() -> FunctionRecipe:
    """The hyperbolic tangent at 4, where its gradient has all but vanished."""
    return FunctionRecipe(lambda x: torch.tanh(x).sum(), _point(4.0), lr=0.1, domain=((-2.0, 5.0),))


def rosenbrock() -> FunctionRecipe:
    """H. H. Rosenbrock's banana valley (1960, The Computer Journal 3) at its usual starting point."""
    return FunctionRecipe(
        lambda x: (1 - x[0]).square() + 100 * (x[1] - x[0].square()).square(),
        _point(-1.2, 1.0),
        domain=((-2.0, 2.0), (-1.0, 3.0)),
    )


def _risk(x: Tensor) -> Tensor:
    return (x * torch.cos(math.pi * x)).sum()


def _empirical_risk(x: Tensor) -> Tensor:
    return _risk(x) + 0.2 * torch.cos(5 * math.pi * x).sum()


def _point(*coordinates: float) -> Tensor:
    return torch.tensor(coordinates, dtype=torch.float64)


def _stationary(function: Callable[[Tensor], Tensor], near: float) -> float:
    """Return where f′ vanishes, by Newton's method (quadratic: a few steps reach rounding)."""
    x = _point(near).requires_grad_()
    for _ in range(20):
        (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x)
        x = (x - slope / curvature).detach().requires_grad_()
    return x.item()
