"""The function that training minimises, over one flat vector theta: what every objective offers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from thalweg.errors import ModelError, NumericalError
from thalweg.problem.cost import Ledger
from thalweg.problem.interrupt import safe_point

__all__ = ["GradientGraph", "Objective", "differentiate", "require_finite", "require_graph"]


@dataclass(frozen=True)
class GradientGraph:
    """The gradient of a part of the objective with the graph that made it, to be differentiated again.

    Attributes:
        leaves: the parameters that it is the gradient by.
        gradient: by each of them; None where the part does not depend on it.
        weight: this part's share of the whole.
        examples: how many it is a mean over.
        within: calls a function inside `intact`, where the model holds ``leaves``: gradient checkpointing
            runs it again during every differentiation, the second one too.
    """

    leaves: list[Tensor]
    gradient: list[Tensor | None]
    weight: float
    examples: int
    within: Callable[[Callable[[], Any]], Any]


class Objective(Protocol):
    """A twice differentiable function of ``theta`` (n,), with its parts where it is a mean over data."""

    ledger: Ledger

    @property
    def theta(self) -> Tensor:
        """A copy of the point in question (n,)."""

    @property
    def examples(self) -> int:
        """How many examples the objective is a mean over; 1 for a plain function."""

    @property
    def roundoff(self) -> float:
        """The unit in the last place of its weights, relative to them."""

    def value(self, theta: Tensor) -> float:
        """Return f(theta). Cost: 1/3 gradient-equivalent."""

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇f(theta) (n,). Cost: 1 gradient-equivalent."""

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²f(theta)·vector (n,) by double backward. Cost: 3 gradient-equivalents."""

    def gradient_graphs(self, theta: Tensor) -> Iterator[GradientGraph]:
        """Yield the gradient part by part, each with its graph."""

    def in_precision(self, dtype: torch.dtype) -> Objective:
        """Return the same function, computed in ``dtype``, with the same ledger."""

    def stand_in(self, dtype: torch.dtype | None) -> Objective:
        """Return the same function over a few examples, for checks, with a ledger of its own.

        Args:
            dtype: to compute in; None is the precision of the weights.
        """

    def batch_values(self, theta: Tensor) -> tuple[list[float], list[float]]:
        """Return the means of the statistical batches (k,) and their true counts (k,)."""

    def batch_gradients(self, theta: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield gradient (n,) and true count of each statistical batch."""

    def batch_curvatures(self, theta: Tensor, vector: Tensor) -> tuple[list[float], list[float]]:
        """Return vᵀH_b v of the statistical batches (k,) and their true counts (k,)."""


def differentiate(
    graph: GradientGraph, vector: Sequence[Tensor], *, keep: bool = False
) -> list[Tensor | None]:
    """Return the derivative of gradientᵀvector: this part's Hessian–vector product, tensor by tensor."""
    safe_point()
    live = [(g, v) for g, v in zip(graph.gradient, vector, strict=True) if g is not None and g.requires_grad]
    if not live:  # the gradient does not depend on the parameters: a linear function
        return [None] * len(graph.leaves)

    def work() -> tuple[Tensor | None, ...]:
        # As the derivative of a scalar rather than with grad_outputs, whose first use makes torch import its
        # symbolic shapes: half a second before the first answer.
        directional = torch.stack([(g * v).sum() for g, v in live]).sum()
        return torch.autograd.grad(directional, graph.leaves, retain_graph=keep, allow_unused=True)

    parts = graph.within(work)
    return [part.to_dense() if part is not None and part.is_sparse else part for part in parts]


def require_graph(loss: Tensor) -> None:
    """Raise ModelError when ``loss`` cannot be differentiated."""
    if not loss.requires_grad:
        raise ModelError(
            "the loss does not depend on the trainable parameters in a way that can be differentiated",
            cause="a detach(), .item(), numpy or torch.no_grad() between the parameters and the loss",
        )


def require_finite(value: float, what: str) -> None:
    """Raise NumericalError when ``value`` is NaN or infinite."""
    if not math.isfinite(value):
        raise NumericalError(
            f"{what} is {value}",
            cause="weights that have diverged, a learning rate that is too high, or a logarithm of zero",
            hint="go back to an earlier checkpoint",
        )
