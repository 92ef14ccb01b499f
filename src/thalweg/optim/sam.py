"""SAM and ASAM around momentum, made from parameters as other optimisers are."""

from __future__ import annotations

from typing import Any

import torch

from thalweg.optim.sharpness_aware import SharpnessAware

__all__ = ["asam", "sam"]


def sam(
    params: Any, lr: float = 0.01, *, rho: float = 0.05, momentum: float = 0.9, adaptive: bool = False
) -> torch.optim.Optimizer:
    """Make a `SharpnessAware` around `torch.optim.SGD` with momentum.

    Args:
        params: parameters or groups.
        lr: of the base.
        rho: how far to climb.
        momentum: of the base.
        adaptive: measure the distance relative to each weight (ASAM).

    Raises:
        InputError: for settings out of range.
    """
    return SharpnessAware(torch.optim.SGD(params, lr=lr, momentum=momentum), rho=rho, adaptive=adaptive)


def asam(params: Any, lr: float = 0.01, *, rho: float = 0.5, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Make the adaptive one: `sam` with ``adaptive``, and the larger ρ that it needs."""
    return sam(params, lr, rho=rho, momentum=momentum, adaptive=True)
