"""The loss and the gradient of many copies of a model at once, on their stacked weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from thalweg.errors import FOREIGN_FAILURES, ThalwegError
from thalweg.problem.batches import Batch, taken, tensors_of
from thalweg.problem.intact import random_state_kept
from thalweg.problem.loss import minimised
from thalweg.problem.memory import SavedBytes
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Problem
from thalweg.training.operations import written_down

__all__ = ["StackedModel"]

# Copies are taken together up to this many bytes of weights and activations: what falls out of the cache
# costs more than the calls that it saves.
CACHE = 8 << 20
_PER_WEIGHT = 16  # bytes: weight, gradient and state
# Calls from which on it pays to write the operations down once, without the transformations around them.
ENOUGH_CALLS = 20
AGREE = 1e-4

Gradients = Callable[[Tensor, Any], tuple[Tensor, ...]]


class _LossOf(nn.Module):
    """Model and loss as one module, so that whatever the loss touches sees the substituted weights."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        assert problem.model is not None
        self.model = problem.model
        self._problem = problem

    def forward(self, data: Any, what: str) -> Any:
        """Return the loss that a step minimises, the mean over all terms, or the model's outputs."""
        loss = self._problem.loss
        assert loss is not None
        if what == "minimised":
            return minimised(loss, self.model, data)
        return loss(self.model, data).mean


class StackedModel:
    """K copies of the model of a problem, on stacked weights θ (K, n); the model's own are never written to.

    Args:
        problem: a model with a loss; the model must be in the mode in which it is to run.
        space: which weights a row of θ holds.
    """

    def __init__(self, problem: Problem, space: ParameterSpace) -> None:
        self._whole, self.space = _LossOf(problem), space
        self._sizes = [shape.numel() for shape in space.shapes]
        self._written: dict[tuple[int, ...], Gradients] = {}
        self._calls: dict[tuple[int, ...], int] = {}

    def gradients(self, theta: Tensor, data: Any) -> tuple[Tensor, Tensor]:
        """Return the gradients (K, n) and losses (K,) of the copies, each on its own batch.

        Args:
            theta: (K, n).
            data: a batch whose tensors are (K, B, …).
        """
        if len(theta) == 1:
            gradient, loss = self.alone(theta[0], taken(data, torch.tensor(0)))
            return gradient[None], loss[None]
        key = (len(theta), *(size for tensor in tensors_of(data) for size in tensor.shape))
        self._calls[key] = self._calls.get(key, 0) + 1
        if key not in self._written and self._calls[key] > ENOUGH_CALLS:
            self._written[key] = self._write_down(theta, data)
        with torch.no_grad():
            gradients, losses = self._written.get(key, self._together)(theta, data)
        return gradients, losses

    @property
    def num_written(self) -> int:
        """For how many shapes the operations have been written down."""
        return sum(made != self._together for made in self._written.values())

    def alone(self, theta: Tensor, data: Any) -> tuple[Tensor, Tensor]:
        """Return the gradient (n,) and the loss of one copy, by ordinary differentiation."""
        leaves = [part.detach().requires_grad_() for part in self._cut(theta)]
        with torch.enable_grad():
            loss = self._loss(dict(zip(self._names, leaves, strict=True)), data)
            parts = torch.autograd.grad(loss, leaves, allow_unused=True)
        return self.space.flatten(list(parts)), loss.detach()

    @torch.no_grad()
    def mean_loss(self, theta: Tensor, data: Any) -> float:
        """Return the mean loss of one copy (n,) over a batch."""
        weights = dict(zip(self._names, self._cut(theta), strict=True))
        return float(functional_call(self._whole, weights, (data, "mean")))

    @torch.no_grad()
    def outputs(self, theta: Tensor, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Return what the model of one copy (n,) puts out."""
        weights = dict(zip(self.space.names, self._cut(theta), strict=True))
        return functional_call(self._whole.model, weights, inputs, keywords)

    def together_at_most(self, batch: Batch) -> int:
        """Return how many copies fit into the cache with batches like this one."""
        saved = SavedBytes()
        with random_state_kept(), saved.counting():
            self.alone(self.space.read(self._whole.model), batch.data)
        return max(1, CACHE // (saved.total + _PER_WEIGHT * self.space.size))

    def why_not(self, theta: Tensor, batch: Batch) -> str | None:
        """Say why copies of the model cannot be evaluated at once; None where they can, with one result.

        Args:
            theta: weights (n,).
            batch: any training batch.
        """
        shifted = torch.stack([theta, theta * (1 + 1e-2)])
        rows = torch.arange(batch.examples).expand(2, -1)
        data = taken(batch.data, rows)
        try:
            with random_state_kept(), torch.no_grad():
                together = self._together(shifted, data)
                single = [self.alone(row, batch.data) for row in shifted]
        except ThalwegError:
            raise
        except (*FOREIGN_FAILURES, NotImplementedError) as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        for found, alone in zip(together, zip(*single, strict=True), strict=True):
            other = torch.stack(alone)
            if not torch.allclose(found, other, rtol=AGREE, atol=AGREE * float(other.abs().max())):
                return "copies that are evaluated at once give other numbers than one alone"
        return None

    @property
    def _names(self) -> list[str]:
        return [f"model.{name}" for name in self.space.names]

    def _cut(self, theta: Tensor) -> list[Tensor]:
        """Cut weights (n,) or (K, n) into tensors of the parameters' shapes and types."""
        lead = theta.shape[:-1]
        pieces = theta.split(self._sizes, dim=-1)
        kinds = zip(pieces, self.space.shapes, self.space.dtypes, strict=True)
        return [piece.view(*lead, *shape).to(dtype) for piece, shape, dtype in kinds]

    def _loss(self, weights: dict[str, Tensor], data: Any) -> Tensor:
        loss: Tensor = functional_call(self._whole, weights, (data, "minimised"))
        return loss

    def _together(self, theta: Tensor, data: Any) -> tuple[Tensor, Tensor]:
        weights = dict(zip(self._names, self._cut(theta), strict=True))
        gradients, losses = vmap(grad_and_value(self._loss))(weights, data)
        rows = [gradients[name].reshape(len(theta), -1).to(theta.dtype) for name in self._names]
        return torch.cat(rows, dim=1), losses

    def _write_down(self, theta: Tensor, data: Any) -> Gradients:
        """Return the operations of `_together` for these shapes, if they give the same elsewhere too."""
        elsewhere = theta * 1.01
        with random_state_kept(), torch.no_grad():
            try:
                run = written_down(lambda: self._together(theta, data), [theta, *tensors_of(data)])
                same = zip(run(elsewhere, *tensors_of(data)), self._together(elsewhere, data), strict=True)
                agree = all(torch.allclose(a, b, rtol=AGREE, equal_nan=True) for a, b in same)
            except (*FOREIGN_FAILURES, NotImplementedError):
                return self._together
        return (lambda theta, data: run(theta, *tensors_of(data))) if agree else self._together
