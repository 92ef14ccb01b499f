"""The Jacobian of a vector of outputs with respect to all parameters, by whichever side is cheaper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import InputError

__all__ = ["Jacobian", "jacobian"]

# Entries of one batch of gradients: large enough to fill the kernels, small enough to stay in memory.
CHUNK = 2**19


@dataclass(frozen=True)
class Jacobian:
    """A Jacobian and what it cost.

    Attributes:
        matrix: ∂outputs/∂parameters (m, n).
        num_gradients: backward passes, one a row.
        num_products: products J·v, one a column.
    """

    matrix: Tensor
    num_gradients: int = 0
    num_products: int = 0


def jacobian(outputs: Tensor, parameters: list[Tensor]) -> Jacobian:
    """Differentiate outputs (m,) with respect to n parameters.

    A row is one backward pass. A column is J·v, the derivative of Jᵀu in u, which is linear in it
    ([pearlmutter1994]): two passes, so columns are taken where 2n < m. Both come in batches
    (``is_grads_batched``); what a model cannot do in batches is done row by row.

    Args:
        outputs: with their graph, which is kept.
        parameters: those to differentiate for; one that the outputs do not depend on has columns of zeros.

    Raises:
        InputError: where a gradient is sparse.

    Cost: min(m, 2n) gradient-equivalents.
    """
    num, size = outputs.numel(), sum(p.numel() for p in parameters)
    with torch.enable_grad():
        if 2 * size < num:
            try:
                return Jacobian(_by_columns(outputs, parameters).detach(), num_products=size)
            except RuntimeError:
                pass  # a kernel without second derivative or without batches: rows need less
        try:
            rows = _by_rows(outputs, parameters)
        except RuntimeError:
            rows = torch.stack([_backward(outputs, parameters, unit) for unit in _units(outputs, 0, num)])
    return Jacobian(rows.detach(), num_gradients=num)


def _by_rows(outputs: Tensor, parameters: list[Tensor]) -> Tensor:
    num, size = outputs.numel(), sum(p.numel() for p in parameters)
    chunk = max(1, CHUNK // max(num, size))
    rows = [
        _backward(outputs, parameters, _units(outputs, first, min(first + chunk, num)), batched=True)
        for first in range(0, num, chunk)
    ]
    return torch.cat(rows)


def _by_columns(outputs: Tensor, parameters: list[Tensor]) -> Tensor:
    weights = torch.zeros_like(outputs, requires_grad=True)  # u: any value, for Jᵀu is linear in it
    parts = torch.autograd.grad(
        outputs, parameters, weights, create_graph=True, retain_graph=True, allow_unused=True
    )
    combined = _join(parts, parameters, ())  # Jᵀu (n,)
    size = combined.numel()
    chunk = max(1, CHUNK // max(outputs.numel(), size))
    columns = [
        torch.autograd.grad(
            combined,
            weights,
            _units(combined, first, min(first + chunk, size)),
            retain_graph=True,
            is_grads_batched=True,
        )[0]
        for first in range(0, size, chunk)
    ]
    return torch.cat(columns).T


def _backward(outputs: Tensor, parameters: list[Tensor], weights: Tensor, *, batched: bool = False) -> Tensor:
    """Return Jᵀu (n,), or one row (k, n) for each row of ``weights`` (k, m)."""
    parts = torch.autograd.grad(
        outputs, parameters, weights, retain_graph=True, allow_unused=True, is_grads_batched=batched
    )
    return _join(parts, parameters, tuple(weights.shape[:-1]))


def _join(parts: tuple[Tensor | None, ...], parameters: list[Tensor], lead: tuple[int, ...]) -> Tensor:
    flat = []
    for part, parameter in zip(parts, parameters, strict=True):
        if part is None:
            flat.append(parameter.new_zeros(*lead, parameter.numel()))
        elif part.is_sparse:
            raise InputError(
                "a gradient is sparse, which this method cannot take", hint="sparse=False in the embedding"
            )
        else:
            flat.append(part.reshape(*lead, -1))
    return torch.cat(flat, dim=-1)


def _units(like: Tensor, first: int, last: int) -> Tensor:
    """Return the unit vectors ``first`` to ``last`` (excluded) as rows."""
    units = like.new_zeros(last - first, like.numel())
    units[torch.arange(last - first), torch.arange(first, last)] = 1
    return units.detach()
