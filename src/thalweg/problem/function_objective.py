"""A plain function of a vector as an objective; a single 'example', nothing sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from thalweg.errors import InputError
from thalweg.problem.cost import FORWARD, GRADIENT, HVP_REBUILT, Ledger
from thalweg.problem.intact import intact
from thalweg.problem.interrupt import safe_point
from thalweg.problem.objective import GradientGraph, differentiate, require_graph

__all__ = ["FunctionObjective"]


class FunctionObjective:
    """A plain function of a vector as an objective; a single 'example', nothing sampled.

    Args:
        function: maps a tensor shaped like ``start`` to a scalar tensor.
        start: the point in question.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], start: Tensor, *, ledger: Ledger | None = None
    ) -> None:
        self._function = function
        self._shape = start.shape
        self._start = start.detach().clone().reshape(-1)
        self.ledger = ledger if ledger is not None else Ledger(1)

    @property
    def theta(self) -> Tensor:
        """The point in question, copied (n,)."""
        return self._start.clone()

    @property
    def examples(self) -> int:
        """One: the function itself."""
        return 1

    @property
    def roundoff(self) -> float:
        """The unit in the last place of the point."""
        return float(torch.finfo(self._start.dtype).eps)

    def value(self, theta: Tensor) -> float:
        """Return f(theta)."""
        self.ledger.spend(FORWARD, 1)
        with intact(None), torch.no_grad():
            return float(self._evaluate(theta))

    def values_at(self, points: Tensor) -> Tensor:
        """Return f (k,) at ``points`` (k, n) at once, by vmap; failures of the function come as they are."""
        safe_point()
        self.ledger.spend(FORWARD * len(points), 1)
        with torch.no_grad():
            if len(points) == 1:
                return self._evaluate(points[0]).reshape(1)
            values: Tensor = vmap(self._evaluate)(points)
            return values

    def gradients_at(self, points: Tensor) -> Tensor:
        """Return ∇f (k, n) at ``points`` (k, n) at once, by vmap; its failures come as they are."""
        self.ledger.spend(GRADIENT * len(points), 1)
        with intact(None):
            gradients: Tensor = vmap(grad(self._evaluate))(points)
            return gradients

    def hessians_at(self, points: Tensor) -> Tensor:
        """Return ∇²f (k, n, n) at ``points`` (k, n) at once, by vmap; its failures come as they are."""
        self.ledger.num_hvps += len(points) * points.shape[1]
        self.ledger.spend(HVP_REBUILT * points.shape[1] * len(points), 1)
        with intact(None):
            hessians: Tensor = vmap(jacrev(jacrev(self._evaluate)))(points)
            return hessians

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇f(theta) (n,)."""
        part = next(self.gradient_graphs(theta)).gradient[0]
        return torch.zeros_like(theta) if part is None else part.detach()

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²f(theta)·vector (n,)."""
        self.ledger.num_hvps += 1
        self.ledger.spend(HVP_REBUILT - GRADIENT, 1)
        (product,) = differentiate(next(self.gradient_graphs(theta)), [vector])
        return torch.zeros_like(theta) if product is None else product

    def gradient_graphs(self, theta: Tensor) -> Iterator[GradientGraph]:
        """Yield the gradient with its graph."""
        self.ledger.spend(GRADIENT, 1)
        with intact(None):
            leaf = theta.detach().clone().requires_grad_()
            value = self._evaluate(leaf)
            require_graph(value)
            (part,) = torch.autograd.grad(value, [leaf], create_graph=True, allow_unused=True)
        yield GradientGraph([leaf], [part], 1.0, 1, within=_undisturbed)

    def in_precision(self, dtype: torch.dtype) -> FunctionObjective:
        """Return the same function at a start of ``dtype``, with the same ledger."""
        return FunctionObjective(self._function, self._start.view(self._shape).to(dtype), ledger=self.ledger)

    def stand_in(self, dtype: torch.dtype | None) -> FunctionObjective:
        """Return the same function at a start of ``dtype``, with a ledger of its own."""
        start = self._start.view(self._shape).to(dtype or self._start.dtype)
        return FunctionObjective(self._function, start, ledger=self.ledger.for_checks())

    def batch_values(self, theta: Tensor) -> tuple[list[float], list[float]]:
        """Return the value as the only batch."""
        return [self.value(theta)], [1.0]

    def batch_gradients(self, theta: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield the gradient as the only batch."""
        yield self.gradient(theta), 1.0

    def batch_curvatures(self, theta: Tensor, vector: Tensor) -> tuple[list[float], list[float]]:
        """Return vᵀHv as the only batch."""
        return [float(self.hvp(theta, vector) @ vector)], [1.0]

    def _evaluate(self, theta: Tensor) -> Tensor:
        safe_point()
        value = self._function(theta.view(self._shape))
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError("the function has the wrong result", expected="a scalar tensor", got=f"{shape}")
        return value.reshape(())


def _undisturbed(work: Callable[[], Any]) -> Any:
    with intact(None):
        return work()
