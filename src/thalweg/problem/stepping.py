"""How training takes its steps: the user's optimiser, run on a copy of the weights."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InputError

__all__ = ["Stepper", "Stepping", "TensorStepping", "stepping_from_optimizer", "stepping_from_state"]

_KINDS: tuple[tuple[frozenset[str], Callable[..., torch.optim.Optimizer]], ...] = (
    (frozenset({"betas", "amsgrad"}), torch.optim.Adam),
    (frozenset({"momentum", "dampening", "nesterov"}), torch.optim.SGD),
    (frozenset({"alpha", "centered"}), torch.optim.RMSprop),
    (frozenset({"lr_decay", "initial_accumulator_value"}), torch.optim.Adagrad),
)


@dataclass(frozen=True)
class TensorStepping:
    """How the optimiser steps one tensor.

    Attributes:
        size: its number of elements.
        settings: of its group (lr, weight_decay, …); empty where the optimiser does not know the tensor.
        state: what the optimiser keeps for it (moments, step count); empty before the first step.
    """

    size: int
    settings: Mapping[str, Any]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Stepping:
    """The optimiser of a training, with its settings and state, apart from the model.

    Attributes:
        name: the optimiser's class.
        lr: its (largest) learning rate.
        momentum: its momentum or first β, 0 without.
        batch_size: examples per step, None for all of them.
    """

    name: str
    lr: float
    momentum: float
    batch_size: int | None
    _optimizer: torch.optim.Optimizer
    _leaves: tuple[nn.Parameter | None, ...]  # in the order of the parameter space; None: not optimised
    _sizes: tuple[int, ...]

    @property
    def rule(self) -> str | None:
        """The step of torch's that it takes ("SGD", "Adam", …), whatever its class; None for any other."""
        step = type(self._optimizer).step
        module, _, name = str(getattr(step, "__module__", "")).rpartition(".")
        rule = str(getattr(step, "__qualname__", "")).removesuffix(".step")
        return rule if module == "torch.optim" and name == rule.lower() else None

    @property
    def tensors(self) -> tuple[TensorStepping, ...]:
        """Settings and state tensor by tensor, in the order of the parameter space."""
        groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        return tuple(
            TensorStepping(size, {}, {})
            if leaf is None
            else TensorStepping(size, groups[id(leaf)], self._optimizer.state.get(leaf, {}))
            for leaf, size in zip(self._leaves, self._sizes, strict=True)
        )

    @property
    def is_gradient_descent(self) -> bool:
        """Whether a step is lr times the gradient, up to momentum."""
        return isinstance(self._optimizer, torch.optim.SGD)

    @property
    def effective_lr(self) -> float:
        """The learning rate that momentum amounts to in the long run: lr/(1−momentum) for SGD."""
        return self.lr / max(1 - self.momentum, 1e-3) if self.is_gradient_descent else self.lr

    @property
    def num_missing(self) -> int:
        """How many parameter tensors the optimiser does not know."""
        return sum(leaf is None for leaf in self._leaves)

    @property
    def lrs(self) -> tuple[float | None, ...]:
        """The learning rate of each tensor, in the order of theta; None where it is not optimised."""
        of = {id(p): float(g["lr"]) for g in self._optimizer.param_groups for p in g["params"]}
        return tuple(None if leaf is None else of.get(id(leaf)) for leaf in self._leaves)

    @property
    def initial_lr(self) -> float | None:
        """The (largest) learning rate from which a scheduler started; None without one."""
        return max(
            (float(g["initial_lr"]) for g in self._optimizer.param_groups if "initial_lr" in g), default=None
        )

    def start(self, tensors: Sequence[Tensor], *, lr_factor: float = 1.0) -> Stepper:
        """Begin stepping from ``tensors`` (in the order of the parameter space) with lr × ``lr_factor``."""
        memo: dict[int, Any] = {}
        optimizer = _copied(self._optimizer, memo)
        leaves = [
            nn.Parameter(tensor.detach().clone()) if leaf is None else memo[id(leaf)]
            for leaf, tensor in zip(self._leaves, tensors, strict=True)
        ]
        with torch.no_grad():
            for leaf, tensor in zip(leaves, tensors, strict=True):
                leaf.copy_(tensor)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * lr_factor
        return Stepper(optimizer, leaves)


class Stepper:
    """An optimiser on its own copy of the weights."""

    def __init__(self, optimizer: torch.optim.Optimizer, leaves: list[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self.leaves = leaves

    def step(self, evaluate: Callable[[Sequence[Tensor]], tuple[float, Sequence[Tensor]]]) -> None:
        """Take one step; ``evaluate`` gives the loss and the gradient tensors at given weights."""

        def closure() -> float:
            loss, gradient = evaluate(self.leaves)
            for leaf, grad in zip(self.leaves, gradient, strict=True):
                leaf.grad = grad
            return loss

        step: Any = self._optimizer.step
        wanted = inspect.signature(step).parameters.get("closure")  # an optimiser may take none at all
        if wanted is not None and wanted.default is inspect.Parameter.empty:
            step(closure)
        else:
            closure()
            step()


def stepping_from_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    batch_size: int | None,
    *,
    state: Mapping[str, Any] | None = None,
) -> Stepping:
    """Describe how ``optimizer`` steps ``parameters`` (the trainable ones, in order).

    Args:
        optimizer: the user's; it is copied.
        parameters: in the order of theta.
        batch_size: examples per step, None for all of them.
        state: of a checkpoint, which the copy takes over; its learning rate and moments count then.

    Raises:
        InputError: when it is no torch optimiser, optimises other tensors, or cannot be copied.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            "the optimizer is of the wrong type",
            expected="a torch.optim.Optimizer over the model's parameters",
            got=type(optimizer).__name__,
        )
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not known & {id(p) for p in parameters}:
        raise InputError(
            "the optimizer holds none of the model's trainable parameters",
            cause="it was built for another copy of the model",
            hint="build it with model.parameters() of the model in the problem",
        )
    memo: dict[int, Any] = {}
    try:
        own = _copied(optimizer, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"the optimizer {type(optimizer).__name__} cannot be copied", cause=str(error)
        ) from error
    leaves = tuple(memo[id(p)] if id(p) in known else None for p in parameters)
    if state is not None:
        try:
            own.load_state_dict(dict(state))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                "the optimiser state in the checkpoint is not that of the problem's optimizer",
                cause=str(error),
                hint="build the optimizer in problem() as it was in training, or leave it out there",
            ) from error
    return _describe(own, leaves, parameters, batch_size)


def stepping_from_state(
    state: Mapping[str, Any], parameters: Sequence[Tensor], batch_size: int | None
) -> Stepping | None:
    """Rebuild the optimiser that wrote ``state``; None where its kind or its parameters do not fit."""
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not groups or not isinstance(groups[0], Mapping):
        return None
    kind = next((cls for keys, cls in _KINDS if keys <= groups[0].keys()), None)
    sizes = [len(group.get("params", ())) for group in groups]
    # With several groups the order of the parameters is the optimiser's, which only the user's code knows.
    if kind is None or sizes != [len(parameters)] or not _fits(state, parameters):
        return None
    if kind is torch.optim.Adam and groups[0].get("decoupled_weight_decay"):
        kind = torch.optim.AdamW
    leaves = [nn.Parameter(p.detach().clone()) for p in parameters]
    rest = iter(leaves)
    try:
        own = kind([{"params": [next(rest) for _ in range(size)]} for size in sizes])
        own.load_state_dict({"state": state.get("state", {}), "param_groups": groups})
    except (TypeError, ValueError, KeyError, RuntimeError):
        return None
    return _describe(own, tuple(leaves), parameters, batch_size)


def _fits(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> bool:
    """Check that the moments kept for each parameter have its shape."""
    for index, kept in dict(state.get("state", {})).items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(kept, Mapping):
            return False
        tensors = [value for value in kept.values() if isinstance(value, Tensor) and value.dim() > 0]
        if any(value.shape != parameters[index].shape for value in tensors):
            return False
    return True


def _describe(
    optimizer: torch.optim.Optimizer,
    leaves: tuple[nn.Parameter | None, ...],
    parameters: Sequence[Tensor],
    batch_size: int | None,
) -> Stepping:
    group = optimizer.param_groups[0]
    momentum = group.get("momentum") or (group.get("betas") or (0.0,))[0]
    return Stepping(
        name=type(optimizer).__name__,
        lr=max(float(g["lr"]) for g in optimizer.param_groups),
        momentum=float(momentum),
        batch_size=batch_size,
        _optimizer=optimizer,
        _leaves=leaves,
        _sizes=tuple(p.numel() for p in parameters),
    )


def _copied(optimizer: torch.optim.Optimizer, memo: dict[int, Any]) -> torch.optim.Optimizer:
    """Copy an optimiser with its parameters and state; ``memo`` then maps id(parameter) to its copy.

    Not by copy.deepcopy alone, which forgets what an optimiser keeps beside its state (L-BFGS its
    parameters). Left behind are the user's hooks, and the `step` that schedulers put on the instance: it is
    bound to the user's optimiser and would move the user's weights.
    """
    own = object.__new__(type(optimizer))
    contents = {name: value for name, value in vars(optimizer).items() if name != "step"}
    for name in contents:
        if name.endswith("_hooks"):
            contents[name] = OrderedDict()
    vars(own).update(copy.deepcopy(contents, memo))
    return own
