"""Fresh models whose weights come from a generator, never from the global random state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from thalweg.problem.intact import random_state_kept

__all__ = ["initialised", "refill", "uniform_"]

M = TypeVar("M", bound=nn.Module)


def initialised(make: Callable[[], M], rng: torch.Generator) -> M:
    """Return ``make()`` in float32 with PyTorch's default distributions, drawn from ``rng``."""
    with random_state_kept():  # the constructors draw from the global state; their draws are replaced
        model = make().float()
    refill(model, rng)
    return model


@torch.no_grad()
def refill(model: nn.Module, rng: torch.Generator) -> None:
    """Draw the weights of the standard layers anew, with the distributions of ``reset_parameters``.

    Linear and convolution: U(±1/√fan_in) for weights and biases, which is what kaiming_uniform with
    a=√5 amounts to. Recurrent: U(±1/√hidden). Attention: Xavier for the joint projection, zero biases.
    Other parameters stay as constructed.
    """
    for module in reversed(list(model.modules())):  # children first: attention resets a child's bias
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            uniform_([module.weight, *([] if module.bias is None else [module.bias])], bound, rng)
        elif isinstance(module, nn.RNNBase):
            uniform_(list(module.parameters()), 1 / math.sqrt(module.hidden_size), rng)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight, generator=rng)
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)


@torch.no_grad()
def uniform_(tensors: list[Tensor], bound: float, rng: torch.Generator) -> None:
    """Fill each tensor from U(−bound, bound), in place."""
    for tensor in tensors:
        tensor.uniform_(-bound, bound, generator=rng)
