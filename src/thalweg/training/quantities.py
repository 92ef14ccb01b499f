"""What can be measured at a step of training: the quantities that need no more than the step itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from thalweg.optim.whole import Step
from thalweg.problem.intact import random_state_kept
from thalweg.problem.parameters import ParameterSpace
from thalweg.training.captures import Captures
from thalweg.training.schedule import Every, Schedule

__all__ = [
    "EffectiveRank",
    "GradientNorm",
    "LayerSignal",
    "LearningRate",
    "Loss",
    "Moment",
    "Own",
    "Quantity",
    "UpdateRatio",
    "Values",
    "norm",
]

Values = Mapping[str, float | Tensor]
LARGEST = 512  # rows or columns, whichever are fewer, of a matrix whose singular values are taken


@dataclass
class Moment:
    """A step of training, as quantities see it.

    Attributes:
        step: its number, from 1 on.
        model: what is trained.
        optimizer: that takes the step.
        parameters: the trainable tensors; before the step or after it, as the quantity asks for.
        before: copies of them from before the step, for quantities that ask for them.
        loss: what the step's gradient is of; None where it was not handed over.
        closure: whether the optimiser evaluates the loss by itself, perhaps several times.
        passes: how often the loss was handed over: more than once where gradients are accumulated.
        squares: ‖g‖² after each of several backward passes, where it was asked for.
        rows: examples in the forward passes of the step, as far as they are known.
        captures: what the layers showed, where it was asked for.
        note: tells the reader of the run something, once.
    """

    step: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    note: Callable[[str], None]
    before: list[Tensor] | None = None
    loss: Tensor | None = None
    closure: bool = False
    passes: int = 0
    squares: list[Tensor] = field(default_factory=list)
    rows: int = 0
    captures: Captures | None = None

    @property
    def lr(self) -> float | None:
        """The largest learning rate; None for a method that has none."""
        rates = [group["lr"] for group in self.optimizer.param_groups if "lr" in group]
        return float(max(rates)) if rates else None

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients there are, dense."""
        found = [p.grad for p in self.parameters if p.grad is not None]
        return [g.to_dense() if g.is_sparse else g for g in found]


class Quantity(Protocol):
    """Something that is measured along training.

    Attributes:
        name: what to ask for.
        schedule: when it is measured, as far as the budget allows.
        guess: what a measurement takes, in steps of training, until that is known.
        at_gradient: whether it is measured at the gradient, before the weights move, rather than after the
            step.
        needs_before: whether it needs copies of the weights from before the step.
        needs_captures: whether it needs what the layers show.
    """

    name: str
    schedule: Schedule
    guess: float
    at_gradient: bool
    needs_before: bool
    needs_captures: bool

    def measure(self, moment: Moment) -> Values:
        """Return what is found, by the names it is recorded under; a 0-d tensor is read later."""


@dataclass
class _Plain:
    """A quantity that needs nothing special."""

    name = ""
    schedule: Schedule = field(default_factory=Every)
    guess = 0.0
    at_gradient = True
    needs_before = False
    needs_captures = False


class Loss(_Plain):
    """The loss that the step's gradient is of: what was handed over, added up over accumulated batches."""

    name = "loss"

    def measure(self, moment: Moment) -> Values:
        """Cost: none; the value is read when the recorder writes."""
        return {} if moment.loss is None else {"loss/train": moment.loss.detach()}


class LearningRate(_Plain):
    """The largest learning rate of the parameter groups."""

    name = "lr"

    def measure(self, moment: Moment) -> Values:
        """Cost: none."""
        rate = moment.lr
        return {} if rate is None else {"lr": rate}


class GradientNorm(_Plain):
    """‖g‖ of the step's gradient, as the optimiser gets it: after clipping, where there is some.

    Methods that evaluate the loss by themselves tell it, or leave the gradient of their last evaluation. Of a
    batch it holds the noise too: E‖g‖² = ‖G‖² + tr Σ/B; the noise's share is told by "noise".
    """

    name = "gradient"

    def measure(self, moment: Moment) -> Values:
        """Cost: a pass over the gradients."""
        last = getattr(moment.optimizer, "last", None)
        if isinstance(last, Step) and moment.closure:
            return {"grad/norm": last.gradient_norm}
        return {"grad/norm": norm(moment.gradients)} if moment.gradients else {}


class UpdateRatio(_Plain):
    """‖Δθ‖/‖θ‖: how far a step goes, relative to the weights."""

    name = "update"
    guess = 0.02
    at_gradient = False
    needs_before = True

    def measure(self, moment: Moment) -> Values:
        """Cost: a copy of the weights and two passes over them."""
        assert moment.before is not None
        with torch.no_grad():
            change = norm([p - b for p, b in zip(moment.parameters, moment.before, strict=True)])
            size = norm(moment.before)
        return {"update/norm": change, "update/ratio": change / size}


class LayerSignal(_Plain):
    """‖∂L/∂W‖/‖W‖ layer by layer: how much of the learning signal reaches it, relative to its weights."""

    name = "signal"
    guess = 0.1

    def measure(self, moment: Moment) -> Values:
        """Cost: a pass over gradients and weights."""
        found: dict[str, Tensor] = {}
        for name, parameters in _layers(moment.model).items():
            gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
            if gradients:
                size = norm([p.detach() for p in parameters])
                found[f"signal/{name}"] = norm(gradients) / torch.where(size > 0, size, torch.ones_like(size))
        return found


class EffectiveRank(_Plain):
    """exp H(p) with p_i = σ_i/Σσ of each weight matrix ([roy2007], def. 1): how many directions it uses.

    Convolution kernels count as matrices of outputs by inputs × places. Matrices with more than 512 rows and
    columns are left out.
    """

    name = "rank"
    guess = 1.0
    at_gradient = False

    def measure(self, moment: Moment) -> Values:
        """Cost: the singular values of every matrix."""
        found: dict[str, float] = {}
        large = []
        for name, parameter in moment.model.named_parameters():
            if parameter.dim() < 2 or not parameter.requires_grad:
                continue
            matrix = parameter.detach().flatten(1).float()
            if min(matrix.shape) > LARGEST:
                large.append(name)
                continue
            values = torch.linalg.svdvals(matrix).double()
            share = values / values.sum()
            entropy = -(share * torch.log(share.clamp_min(1e-300))).sum()
            found[f"rank/{name.removesuffix('.weight')}"] = math.exp(float(entropy))
        if large:
            moment.note(
                f"The effective rank of {', '.join(large[:3])} is left out: more than {LARGEST} either way."
            )
        return found


@dataclass
class Own:
    """A function of the user's own: of the moment, after the step; a number or numbers by name."""

    function: Callable[[Moment], float | Tensor | Values]
    name: str
    schedule: Schedule
    guess: float = 0.1
    at_gradient: bool = False
    needs_before: bool = False
    needs_captures: bool = False

    def measure(self, moment: Moment) -> Values:
        """Call it; what it draws from the global random states is put back."""
        with random_state_kept():
            result = self.function(moment)
        return dict(result) if isinstance(result, Mapping) else {self.name: result}


@torch.no_grad()
def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together, not yet read from the device."""
    if not tensors:
        return torch.zeros(())
    parts = torch._foreach_norm(list(tensors))
    total: Tensor = torch.stack([p.float() if p.dtype != torch.float64 else p for p in parts]).norm()
    return total


def _layers(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Group the trainable parameters by the module that owns them, in the model's order."""
    layers: dict[str, list[nn.Parameter]] = {}
    named = dict(model.named_parameters())
    for name in ParameterSpace.of(model).names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(named[name])
    return layers
