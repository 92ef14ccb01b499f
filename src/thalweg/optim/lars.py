"""LARS: momentum, with a step as long as a share of the weights it moves."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from thalweg.optim.layer_wise import Bite, LayerWise, Scratch
from thalweg.optim.per_parameter import require
from thalweg.optim.trust_ratio import norms, trust_ratio
from thalweg.optim.whole import Parameters

__all__ = ["LARS"]


@final
class LARS(LayerWise):
    r"""Layer-wise adaptive rate scaling for large batches ([you2017], Algorithm 1).

    ::

        λ = trust·‖w‖ / (‖g‖ + weight_decay·‖w‖)           1 where numerator or denominator is 0
        v = momentum·v + lr·λ·(g + weight_decay·w)         from 0
        w = w − v

    An adapted tensor's first step is at most lr·trust·‖w‖ long, and just that without decay.

    Closure: standard, and optional. Cost: 1 gradient-equivalent a step. Memory: one number a parameter.

    Args:
        params: parameters or groups of them; real.
        lr: for adapted tensors times ``trust``; for the others the rate of plain momentum: where it is large,
            they need a group of their own with a smaller one.
        momentum: of v, which holds the rate, so that a change of rate acts on new gradients only.
        weight_decay: added to the gradient and to its norm.
        trust: η, the share of a tensor's norm that a step of rate 1 moves it.
        adapt_ndim_min: tensors of fewer dimensions (with 2: biases, scales of norms) keep λ = 1.
        maximize: go up.
        foreach: one call for many tensors, more memory; None: on a GPU.

    Raises:
        InputError: for settings out of their range, complex parameters, sparse gradients.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        *,
        adapt_ndim_min: int = 2,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt_ndim_min": adapt_ndim_min,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, settings)  # type: ignore[arg-type]

    def check(self, group: dict[str, Any]) -> None:
        """Raise InputError where the settings of a group make no sense."""
        super().check(group)
        momentum, trust = group["momentum"], group["trust"]
        require(0 <= momentum < 1, "momentum", expected="from 0 to below 1", got=momentum)
        require(trust > 0, "trust", expected="above 0", got=trust)

    def update(self, group: dict[str, Any], bite: Bite, scratch: Scratch) -> None:
        """Move the tensors of one bite."""
        rate, decay = float(group["lr"]), float(group["weight_decay"])
        velocities = [self._velocity(p) for p in bite.parameters]
        decayed = bite.gradients
        if decay != 0:
            decayed = scratch.like(velocities)
            torch._foreach_copy_(decayed, bite.gradients)
            torch._foreach_add_(decayed, bite.parameters, alpha=decay)
        torch._foreach_mul_(velocities, group["momentum"])
        if not bite.adapted:
            torch._foreach_add_(velocities, decayed, alpha=rate)
        else:
            sizes, slopes = norms([*bite.parameters, *bite.gradients]).chunk(2)
            ratios = trust_ratio(group["trust"] * sizes, slopes + decay * sizes)
            # the ratios stay tensors: as numbers they would make a GPU wait
            torch._foreach_addcmul_(velocities, decayed, (rate * ratios).unbind())
        torch._foreach_sub_(bite.parameters, velocities)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        velocity: Tensor = state["momentum_buffer"]
        return velocity
