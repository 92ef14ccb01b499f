"""What a built-in problem is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FunctionRecipe", "ModelRecipe"]


@dataclass(frozen=True)
class ModelRecipe:
    """A model in its state of training, with what trains it."""

    model: nn.Module
    loss: Any
    train: Any
    heldout: Any
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class FunctionRecipe:
    """A plain function and the point in question (float64).

    Attributes:
        function: of a tensor shaped like ``start``.
        start: the point.
        lr: the step size that gradient descent uses on it.
        domain: where to look at it, low and high of each coordinate.
        risk: what the function is an estimate of, drawn beside it.
    """

    function: Callable[[Tensor], Tensor]
    start: Tensor
    lr: float | None = None
    domain: tuple[tuple[float, float], ...] | None = None
    risk: Callable[[Tensor], Tensor] | None = None
