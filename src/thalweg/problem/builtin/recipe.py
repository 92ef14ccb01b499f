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
    """A plain function and the point in question (float64)."""

    function: Callable[[Tensor], Tensor]
    start: Tensor
    lr: float | None = None
