"""What methods share that move each parameter by its own gradient: checks, and which parameters move."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InputError, NumericalError
from thalweg.optim.closures import Closure, loss_only, require_real

__all__ = ["PerParameter", "evaluated", "moving", "require"]


class PerParameter(torch.optim.Optimizer, ABC):
    """Base class of first-order methods that move each parameter by its own gradient.

    Parameters that are frozen or have no gradient stay as they are. The loss of a closure that is not finite
    raises, and nothing has moved. Without a closure a gradient that is not finite goes into the weights, as
    with the optimisers of torch; `torch.nn.utils.clip_grad_norm_` with ``error_if_nonfinite`` refuses it.
    """

    @abstractmethod
    def check(self, group: dict[str, Any]) -> None:
        """Raise InputError where the settings of a group make no sense; each method writes its own."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            InputError: for settings out of their range, or complex parameters.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check(group)
            for parameter in group["params"]:
                require_real(parameter)
        except InputError:
            self.param_groups.pop()
            raise


def evaluated(closure: Closure | None) -> float:
    """Run a standard closure and return its loss.

    Raises:
        InputError: where there is no closure, or it returns no loss.
        NumericalError: where the loss is not finite.
    """
    loss = loss_only(closure)
    if not math.isfinite(loss):
        raise NumericalError(
            "the loss is not finite, and no step was taken",
            got=str(loss),
            cause="the step before went too far, or a value in the batch is not finite",
            hint="a smaller learning rate, or weights from before it happened",
        )
    return loss


def moving(group: dict[str, Any]) -> list[Tensor]:
    """Return the parameters of a group that are trainable and have a gradient.

    Raises:
        InputError: where a gradient is sparse.
    """
    found = [p for p in group["params"] if p.requires_grad and p.grad is not None]
    if any(p.grad.is_sparse for p in found):
        raise InputError(
            "a gradient is sparse, which this method cannot take",
            hint="sparse=False in the embedding, or torch.optim.SparseAdam",
        )
    return found


def require(holds: bool, name: str, *, expected: str, got: object) -> None:
    """Raise InputError about the setting ``name`` unless ``holds``."""
    if not holds:
        raise InputError(f"{name} is out of its range", expected=expected, got=repr(got))
