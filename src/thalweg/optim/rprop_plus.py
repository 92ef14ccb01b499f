"""RPROP with weight backtracking: steps whose length only the signs of the gradient decide."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor

from thalweg.optim.closures import Closure
from thalweg.optim.per_parameter import PerParameter, evaluated, moving, require
from thalweg.optim.whole import Parameters

__all__ = ["RpropPlus"]


@final
class RpropPlus(PerParameter):
    """Resilient propagation that takes a step back where a gradient changed its sign.

    Each weight has a step length Δ of its own. With g and g′ its gradients before and now::

        g·g′ > 0    Δ = min(η⁺Δ, Δmax)    w = w − sign(g′)Δ
        g·g′ < 0    Δ = max(η⁻Δ, Δmin)    w = where it was before the last move; g′ counts as 0 next time
        g·g′ = 0                          w = w − sign(g′)Δ

    "rprop+" ([riedmiller1993]) always takes the weight back; "irprop+" ([igel2003]) only where the loss rose,
    and otherwise leaves it where it is. `torch.optim.Rprop` never does (iRprop−). The first is the method of
    1993, which needs no loss; the second needed fewer steps or as many on what was tried (to fit a sine: 278
    against 485, the median of 15 starts). For full batches: the signs of one say little about the next.

    Closure: standard; optional for "rprop+". Cost: 1 gradient-equivalent a step. Memory: two numbers a
    parameter.

    Args:
        params: parameters or groups of them; real.
        lr: the first Δ of every weight; a scheduler has no effect on it later.
        etas: η⁻ and η⁺.
        step_sizes: Δmin and Δmax.
        variant: "irprop+" or "rprop+".
        maximize: go up.

    Raises:
        InputError: for settings out of their range, complex parameters, sparse gradients, and "irprop+"
            without a closure.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.07,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        variant: Literal["irprop+", "rprop+"] = "irprop+",
        maximize: bool = False,
    ) -> None:
        settings = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "variant": variant,
            "maximize": maximize,
            "previous_loss": None,
        }
        super().__init__(params, settings)  # type: ignore[arg-type]

    def check(self, group: dict[str, Any]) -> None:
        """Raise InputError where the settings of a group make no sense."""
        etas, bounds, variant = group["etas"], group["step_sizes"], group["variant"]
        sound = len(etas) == 2 and 0 < etas[0] < 1 < etas[1]
        require(sound, "etas", expected="one number between 0 and 1, one above 1", got=etas)
        ordered = len(bounds) == 2 and 0 < bounds[0] <= bounds[1]
        require(ordered, "step_sizes", expected="0 < smallest ≤ largest", got=bounds)
        within = bounds[0] <= group["lr"] <= bounds[1]
        require(within, "lr", expected="the first step length, within step_sizes", got=group["lr"])
        require(variant in {"irprop+", "rprop+"}, "variant", expected="'irprop+' or 'rprop+'", got=variant)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step; return the closure's loss, None where there is no closure.

        Args:
            closure: standard; None where the gradients are there already and every group is "rprop+".

        Raises:
            InputError: for a sparse gradient, a closure that returns no loss, or one that is missing.
            NumericalError: for a closure whose loss is not finite; the parameters are as before.
        """
        needed = any(group["variant"] == "irprop+" for group in self.param_groups)
        loss = None if closure is None and not needed else evaluated(closure)
        for group, parameters in [(group, moving(group)) for group in self.param_groups]:
            self._move(group, parameters, loss)
            group["previous_loss"] = loss
        return None if loss is None else torch.tensor(loss, dtype=torch.float64)

    def _move(self, group: dict[str, Any], parameters: list[Tensor], loss: float | None) -> None:
        """Move the parameters of a group; ``loss`` is the one at which their gradients were taken."""
        before, back = group["previous_loss"], True
        if group["variant"] == "irprop+" and loss is not None:
            back = before is not None and (loss < before if group["maximize"] else loss > before)
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step_size"] = torch.full_like(parameter, group["lr"])
                state["sign"] = torch.zeros_like(parameter)  # of the gradient before; 0 after a step back
            last_move = -state["sign"] * state["step_size"]
            sign = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.sign()
            if group["maximize"]:
                sign.neg_()
            agreement = sign * state["sign"]  # of the signs: a product of gradients may underflow
            turned = agreement < 0
            shrink, grow = group["etas"]
            factor = torch.ones_like(parameter).masked_fill_(turned, shrink).masked_fill_(agreement > 0, grow)
            state["step_size"].mul_(factor).clamp_(*group["step_sizes"])
            sign.masked_fill_(turned, 0.0)
            parameter.addcmul_(sign, state["step_size"], value=-1)
            if back:
                parameter.sub_(last_move.mul_(turned))
            state["sign"] = sign
