"""The Hessian of a loss closure as an operator, for methods of second order."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure, loss_with_graph

__all__ = ["LossHessian"]


@final
class LossHessian:
    """Loss, gradient and Hessian–vector products of one evaluation of a loss closure.

    The graph is built once, with `torch.autograd.grad` (a backward with ``create_graph`` would tie the
    parameters to their gradients and never be freed), and kept for all products ([pearlmutter1994]).

    Args:
        closure: a loss closure.
        parameters: the trainable ones.

    Raises:
        InputError: for a closure of another kind.
        RuntimeError: by torch, where a kernel has no second derivative.
    """

    def __init__(self, closure: Closure | None, parameters: list[Tensor]) -> None:
        loss = loss_with_graph(closure)
        self._parameters = parameters
        try:
            with torch.enable_grad():
                self._parts = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise InputError(
                "the graph of the loss is used up",
                expected="a loss closure: compute the loss and return it, without backward()",
                got="a loss on which backward() was called",
            ) from error
        self.loss = float(loss.detach())
        self.gradient = _join(self._parts, parameters).detach()  # (n,)
        self.size, self.dtype, self.device = self.gradient.numel(), self.gradient.dtype, self.gradient.device
        self.num_products = 0

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H·vector (n,). Cost: 2 gradient-equivalents."""
        self.num_products += 1
        pieces = vector.split([p.numel() for p in self._parameters])
        with torch.enable_grad():
            terms = [
                (part * piece.view(part.shape)).sum()
                for part, piece in zip(self._parts, pieces, strict=True)
                if part is not None and part.requires_grad
            ]
            if not terms:  # a linear loss
                return torch.zeros_like(vector)
            products = torch.autograd.grad(
                torch.stack(terms).sum(), self._parameters, retain_graph=True, allow_unused=True
            )
        return _join(products, self._parameters).detach()

    def matrix(self) -> Tensor:
        """Return H (n, n), symmetrised. Cost: 2n gradient-equivalents."""
        eye = torch.eye(self.size, dtype=self.dtype, device=self.device)
        dense = torch.stack([self.matvec(row) for row in eye])
        return (dense + dense.T) / 2


def _join(parts: tuple[Tensor | None, ...], parameters: list[Tensor]) -> Tensor:
    if any(part is not None and part.is_sparse for part in parts):
        raise InputError(
            "a gradient is sparse, which this method cannot take", hint="sparse=False in the embedding"
        )
    flat = [
        torch.zeros_like(p).reshape(-1) if part is None else part.reshape(-1)
        for part, p in zip(parts, parameters, strict=True)
    ]
    return torch.cat(flat)
