"""The base of methods that treat all parameters as one vector: line searches, conjugate and Newton steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure, loss_and_gradient, loss_only, require_real

__all__ = ["Step", "WholeVector"]

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """What one step did, and what it cost.

    Attributes:
        loss: before the step.
        new_loss: after it; the same where the step was not taken, NaN where it was not evaluated.
        gradient_norm: before the step.
        step_norm: how far the parameters moved.
        accepted: whether they moved.
        reason: what was done, in a few words: "accepted", "loss rose", "gradient below tolerance", …
        num_losses: losses evaluated without gradient.
        num_gradients: gradients evaluated.
        num_products: Hessian–vector products, or columns of a Jacobian.
        details: what is particular to the method: damping, radius, lowest curvature, …
    """

    loss: float
    new_loss: float
    gradient_norm: float
    step_norm: float
    accepted: bool
    reason: str
    num_losses: int = 0
    num_gradients: int = 0
    num_products: int = 0
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def gradient_equivalents(self) -> float:
        """What it cost: a loss is 1/3 of a gradient, a Hessian–vector product 2."""
        return self.num_losses / 3 + self.num_gradients + 2 * self.num_products


class WholeVector(torch.optim.Optimizer, ABC):
    """Base class of methods that treat all parameters, of every group, as one vector.

    What a method keeps between steps lies in ``state`` parameter by parameter (vectors) and in the first
    parameter group (numbers), so that ``state_dict`` holds all of it and resuming is exact. Parameters that
    do not require a gradient stay as they are. The learning rate of a group scales nothing here: most of
    these methods find their step length; those that have one multiply by `rates`.

    After each step ``last`` says what it did.
    """

    #: number of parameters up to which a method with a dense matrix is willing to work
    most_parameters: ClassVar[int | None] = None

    def __init__(self, params: Parameters, defaults: dict[str, Any], **counters: float) -> None:
        super().__init__(params, defaults)  # type: ignore[arg-type]
        self.last: Step | None = None
        for name, value in counters.items():
            self.param_groups[0].setdefault(name, value)
        for parameter in self.parameters():
            require_real(parameter)
        size = self.size
        if self.most_parameters is not None and size > self.most_parameters:
            raise InputError(
                f"{type(self).__name__} keeps a matrix of {size:,} × {size:,}, which is too large",
                expected=f"at most {self.most_parameters:,} parameters",
                got=f"{size:,}",
                hint="a method without a matrix: ScaledConjugateGradient, OneStepSecant, TrustRegionNewtonCG",
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.last = None

    def parameters(self) -> list[Tensor]:
        """Return the trainable parameters of all groups, in order."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    @property
    def size(self) -> int:
        """The number n of coordinates."""
        return sum(p.numel() for p in self.parameters())

    @property
    def numbers(self) -> dict[str, Any]:
        """The group that holds settings and the numbers kept between steps."""
        return self.param_groups[0]

    def evaluate(self, closure: Closure | None) -> tuple[float, Tensor]:
        """Run a standard closure; return the loss and its gradient (n,)."""
        loss, parts = loss_and_gradient(closure, self.parameters())
        return loss, self.join(parts)

    def at(self, point: Tensor, closure: Closure | None) -> tuple[float, Tensor]:
        """Move to ``point`` (n,) and evaluate there."""
        self.move_to(point)
        return self.evaluate(closure)

    def loss_at(self, point: Tensor, closure: Closure | None) -> float:
        """Move to ``point`` (n,) and return the loss there."""
        self.move_to(point)
        return loss_only(closure)

    def position(self) -> Tensor:
        """Return the parameters as a vector (n,), copied."""
        return self.join([p.detach() for p in self.parameters()])

    @torch.no_grad()
    def move_to(self, point: Tensor) -> None:
        """Write a vector (n,) into the parameters."""
        for parameter, part in zip(self.parameters(), self.split(point), strict=True):
            parameter.copy_(part)

    def join(self, parts: list[Tensor]) -> Tensor:
        """Return tensors shaped like the parameters as one vector (n,)."""
        return torch.cat([part.reshape(-1) for part in parts]) if parts else torch.zeros(0)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return a vector (n,) in the shapes of the parameters."""
        parameters = self.parameters()
        pieces = vector.split([p.numel() for p in parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]

    def rates(self) -> Tensor:
        """Return the learning rate of each coordinate (n,), for methods that have one."""
        pairs = [(p, group["lr"]) for group in self.param_groups for p in group["params"] if p.requires_grad]
        return self.join([torch.full_like(p, float(lr)) for p, lr in pairs])

    def keep(self, **vectors: Tensor | None) -> None:
        """Keep vectors (n,) in the state for the next step; None forgets one."""
        for name, vector in vectors.items():
            parts = [None] * len(self.parameters()) if vector is None else self.split(vector)
            for parameter, part in zip(self.parameters(), parts, strict=True):
                if part is None:
                    self.state[parameter].pop(name, None)
                else:
                    self.state[parameter][name] = part.clone()

    def kept(self, name: str) -> Tensor | None:
        """Return a vector (n,) kept under ``name``, None where there is none."""
        parts = [self.state[p].get(name) for p in self.parameters()]
        if not parts or any(part is None for part in parts):
            return None
        return self.join(parts)

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step; return the loss where it began.

        Args:
            closure: of the kind that the class names; evaluated several times.

        Raises:
            InputError: for a closure that is missing or of another kind.
        """
        with torch.no_grad():
            start = self.position()
            try:
                self.last = self.take(closure)
            except BaseException:
                self.move_to(start)  # nobody is left half way
                raise
        return torch.tensor(self.last.loss, dtype=torch.float64)

    @abstractmethod
    def take(self, closure: Closure | None) -> Step:
        """Take one step and say what it did; each method writes its own."""
