"""The steps of first-order optimisers for many copies of a model at once, each with its own rate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.optim.factory import Factory
from thalweg.optim.lamb import LAMB
from thalweg.optim.lars import LARS
from thalweg.optim.trust_ratio import trust_ratio

__all__ = ["Rule", "rule_for"]


class Rule(ABC):
    """An optimiser over stacked weights θ (K, n): row k is stepped with rate k, as if it were alone.

    Args:
        settings: of the optimiser's group.
        rates: of each copy (K,).
        shapes: of the parameter tensors that a row joins, in order.
    """

    def __init__(self, settings: Mapping[str, Any], rates: Tensor, shapes: Sequence[torch.Size]) -> None:
        self.settings, self.rates, self.shapes = settings, rates[:, None], shapes
        self.taken = 0

    @abstractmethod
    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """Move ``theta`` (K, n) in place along ``gradient`` (K, n), which may be overwritten."""

    def scale(self) -> Tensor | None:
        """Return the median over the weights of what a gradient is multiplied by, besides the rate (K,).

        None for methods that treat all weights alike.
        """
        return None

    def _decayed(self, theta: Tensor, gradient: Tensor) -> Tensor:
        decay = self.settings["weight_decay"]
        return gradient.add_(theta, alpha=decay) if decay else gradient


class _SGD(Rule):
    """`torch.optim.SGD`: plain, heavy-ball or Nesterov momentum."""

    _buffer: Tensor | None = None

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        s = self.settings
        gradient = self._decayed(theta, gradient)
        if s["momentum"]:
            if self._buffer is None:
                self._buffer = gradient.clone()
            else:
                self._buffer.mul_(s["momentum"]).add_(gradient, alpha=1 - s["dampening"])
            gradient = gradient.add_(self._buffer, alpha=s["momentum"]) if s["nesterov"] else self._buffer
        theta.addcmul_(gradient, self.rates, value=-1)


class _Squares(Rule):
    """What methods share that divide by a root of squared gradients."""

    def __init__(self, settings: Mapping[str, Any], rates: Tensor, shapes: Sequence[torch.Size]) -> None:
        super().__init__(settings, rates, shapes)
        self._squares: Tensor | None = None

    def squares(self, like: Tensor) -> Tensor:
        """Return the sum or mean of squares (K, n), zeros at first."""
        if self._squares is None:
            self._squares = torch.full_like(like, self.settings.get("initial_accumulator_value", 0.0))
        return self._squares

    def root(self) -> Tensor:
        """Return what the gradient is divided by (K, n)."""
        assert self._squares is not None
        return self._squares.sqrt().add_(self.settings["eps"])

    def scale(self) -> Tensor | None:
        if self._squares is None:
            return None
        return 1 / self.root().median(dim=1).values


class _Adagrad(_Squares):
    """`torch.optim.Adagrad`."""

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        gradient = self._decayed(theta, gradient)
        rates = self.rates / (1 + self.taken * self.settings["lr_decay"])
        self.squares(theta).addcmul_(gradient, gradient)
        self.taken += 1
        theta.addcmul_(gradient.div_(self.root()), rates, value=-1)


class _RMSprop(_Squares):
    """`torch.optim.RMSprop`, not centred."""

    _buffer: Tensor | None = None

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        s = self.settings
        gradient = self._decayed(theta, gradient)
        self.squares(theta).mul_(s["alpha"]).addcmul_(gradient, gradient, value=1 - s["alpha"])
        move = gradient.div_(self.root())
        if s["momentum"]:
            self._buffer = (
                move.clone() if self._buffer is None else self._buffer.mul_(s["momentum"]).add_(move)
            )
            move = self._buffer
        theta.addcmul_(move, self.rates, value=-1)


class _Adam(_Squares):
    """`torch.optim.Adam` and AdamW."""

    _mean: Tensor | None = None

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        s = self.settings
        if s.get("decoupled_weight_decay"):
            theta.mul_(1 - self.rates * s["weight_decay"])
        else:
            gradient = self._decayed(theta, gradient)
        low, high = s["betas"]
        if self._mean is None:
            self._mean = torch.zeros_like(theta)
        self._mean.lerp_(gradient, 1 - low)
        self.squares(theta).mul_(high).addcmul_(gradient, gradient, value=1 - high)
        self.taken += 1
        move = torch.div(self._mean, self.root(), out=gradient)
        theta.addcmul_(move, self.rates / (1 - low**self.taken), value=-1)

    def root(self) -> Tensor:
        assert self._squares is not None
        correction = (1 - self.settings["betas"][1] ** self.taken) ** 0.5
        return self._squares.sqrt().div_(correction).add_(self.settings["eps"])


class _LAMB(_Adam):
    """`thalweg.optim.LAMB` with φ = identity and bias correction."""

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        s = self.settings
        low, high = s["betas"]
        if self._mean is None:
            self._mean = torch.zeros_like(theta)
        self._mean.lerp_(gradient, 1 - low)
        self.squares(theta).mul_(high).addcmul_(gradient, gradient, value=1 - high)
        self.taken += 1
        move = torch.div(self._mean, self.root(), out=gradient).div_(1 - low**self.taken)
        if s["weight_decay"]:
            move.add_(theta, alpha=s["weight_decay"])
        for part, weights, adapted in _tensors(self.shapes, move, theta, s["adapt_ndim_min"]):
            if adapted:
                part.mul_(trust_ratio(weights.norm(dim=1), part.norm(dim=1))[:, None])
        theta.addcmul_(move, self.rates, value=-1)


class _LARS(Rule):
    """`thalweg.optim.LARS`."""

    _velocity: Tensor | None = None

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        s = self.settings
        if self._velocity is None:
            self._velocity = torch.zeros_like(theta)
        decay = s["weight_decay"]
        slopes = [part.norm(dim=1) for part in gradient.split([x.numel() for x in self.shapes], dim=1)]
        gradient = self._decayed(theta, gradient)
        parts = _tensors(self.shapes, gradient, theta, s["adapt_ndim_min"])
        for (part, weights, adapted), slope in zip(parts, slopes, strict=True):
            if adapted:
                size = weights.norm(dim=1)
                part.mul_(trust_ratio(s["trust"] * size, slope + decay * size)[:, None])
        self._velocity.mul_(s["momentum"]).addcmul_(gradient, self.rates)
        theta.sub_(self._velocity)


_RULES: dict[type[torch.optim.Optimizer], type[Rule]] = {
    torch.optim.SGD: _SGD,
    torch.optim.Adagrad: _Adagrad,
    torch.optim.RMSprop: _RMSprop,
    torch.optim.Adam: _Adam,
    torch.optim.AdamW: _Adam,
    LAMB: _LAMB,
    LARS: _LARS,
}
# Settings with which these rules are not the optimiser's.
_UNLIKE = {
    "maximize": True,
    "amsgrad": True,
    "centered": True,
    "bias_correction": False,
    "differentiable": True,
}
_UNSET = ("phi_clip", "trust_clip")


def rule_for(factory: Factory, rates: Sequence[float | None], shapes: Sequence[torch.Size]) -> Rule | None:
    """Return the rule that steps as the optimisers of ``factory`` do; None where there is none.

    Args:
        factory: what would make the optimiser of one copy alone.
        rates: learning rates (K,); None for the default.
        shapes: of the parameter tensors, in order.
    """
    if factory.closure != "standard" or factory.evaluates:
        return None
    groups = []
    for rate in rates:
        made = factory([nn.Parameter(torch.zeros(1))], **({} if rate is None else {"lr": rate}))
        groups.append(made.param_groups[0])
    rule, settings = _RULES.get(type(made)), groups[0]
    unlike = any(settings.get(name, not value) == value for name, value in _UNLIKE.items())
    if rule is None or unlike or any(settings.get(name) is not None for name in _UNSET):
        return None
    return rule(settings, torch.tensor([float(group["lr"]) for group in groups]), shapes)


def _tensors(
    shapes: Sequence[torch.Size], move: Tensor, theta: Tensor, least: int
) -> list[tuple[Tensor, Tensor, bool]]:
    """Return each parameter tensor's part of the move and the weights (K, size), and if it is adapted."""
    sizes = [shape.numel() for shape in shapes]
    pairs = zip(move.split(sizes, dim=1), theta.split(sizes, dim=1), shapes, strict=True)
    return [(part, weights, len(shape) >= least) for part, weights, shape in pairs]
