"""Going on from the optimiser state of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["adopt"]

_BESIDE = {"params", "param_names", "initial_lr"}  # what a group holds that is no setting


def adopt(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None, *, keep_lr: bool
) -> tuple[str, ...]:
    """Let a fresh optimiser go on from ``state``, if that is of its kind; say what was done.

    Moments, and what else it keeps between steps, are taken over, and the learning rate unless ``keep_lr``;
    the other settings stay as they were asked for.
    """
    if state is None:
        return ()
    if not _is_of_kind(optimizer, state):
        return (
            "The optimiser state in the checkpoint is of another kind and was not used: "
            f"{type(optimizer).__name__} began afresh.",
        )
    asked = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(copy.deepcopy(dict(state)))
    for group, before in zip(optimizer.param_groups, asked, strict=True):
        for name in before.keys() & optimizer.defaults.keys():
            if name != "lr" or keep_lr:
                group[name] = before[name]
    return ("The optimiser went on from its state in the checkpoint.",)


def _is_of_kind(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> bool:
    groups, own = state.get("param_groups"), optimizer.param_groups
    if not isinstance(groups, list) or len(groups) != len(own) or not isinstance(state.get("state"), Mapping):
        return False
    for group, mine in zip(groups, own, strict=True):
        if group.keys() - _BESIDE != mine.keys() - _BESIDE or len(group["params"]) != len(mine["params"]):
            return False
    parameters = [p for group in own for p in group["params"]]
    total = sum(p.numel() for p in parameters)
    for index, kept in state["state"].items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(kept, Mapping):
            return False
        sizes = {value.numel() for value in kept.values() if isinstance(value, Tensor) and value.dim() > 0}
        own_size = max(parameters[index].numel(), 1)
        if any(size % own_size and size != total for size in sizes):  # rows of a matrix are multiples
            return False
    return True
