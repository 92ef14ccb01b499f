"""The squared norm of every example's gradient from what a layer sees, without making the gradients.

With a the input of a layer and δ the gradient at its output, an example's gradient is Σ_t δ_t a_tᵀ over the
places t at which the layer is applied (words, pixels). Its squared norm is ‖a‖²‖δ‖² for one place, and for
many Σ_{t,s} (a_t·a_s)(δ_t·δ_s) ([goodfellow2015] for one; [rochette2019] for convolutions), or the gradient
of a few examples at a time is made, whichever is less work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, unfold

__all__ = ["LayerNorms", "rule_for"]

PIECE = 1 << 23  # numbers that may be made at a time


@dataclass(frozen=True)
class LayerNorms:
    """What a layer's examples contribute to the gradient.

    Attributes:
        squares: the squared norm of each example's contribution (B,).
        totals: the sum of the contributions, for each parameter of the layer by its name there.
    """

    squares: Tensor
    totals: dict[str, Tensor]


Rule = Callable[[nn.Module, Tensor, Tensor], LayerNorms]


def rule_for(module: nn.Module) -> Rule | None:
    """Return how the norms follow from (module, input, gradient at the output); None if they do not."""
    own = [p for p in module._parameters.values() if p is not None and p.requires_grad]
    if not own or set(module._parameters) - {"weight", "bias"}:
        return None
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return None  # computed from others, as by weight_norm
    if type(module) is nn.Linear:
        return _linear
    if type(module) in {nn.Conv1d, nn.Conv2d} and module.padding_mode == "zeros":
        return None if isinstance(module.padding, str) else _convolution
    if type(module) is nn.Embedding and module.max_norm is None:
        return None if module.scale_grad_by_freq or module.sparse else _embedding
    if type(module) is nn.LayerNorm:
        return _layer_norm
    return None


def _linear(module: nn.Module, a: Tensor, delta: Tensor) -> LayerNorms:
    a, delta = a.flatten(1, -2) if a.dim() > 2 else a, delta.flatten(1, -2) if delta.dim() > 2 else delta
    wanted = _wanted(module)
    squares, totals = torch.zeros(len(a), device=a.device), {}
    if "weight" in wanted and a.dim() == 2:
        squares = squares + a.square().sum(1) * delta.square().sum(1)
        totals["weight"] = delta.T @ a
    elif "weight" in wanted:
        places, into, out = a.shape[1], a.shape[2], delta.shape[2]
        if places * (into + out) < into * out:
            gram = torch.bmm(a, a.transpose(1, 2)) * torch.bmm(delta, delta.transpose(1, 2))
            squares = squares + gram.sum((1, 2))
            totals["weight"] = delta.flatten(0, 1).T @ a.flatten(0, 1)
        else:
            products, totals["weight"] = _products(delta.transpose(1, 2), a)
            squares = squares + products
    if "bias" in wanted:
        squares, totals["bias"] = _with_bias(squares, delta if delta.dim() == 2 else delta.sum(1))
    return LayerNorms(squares, totals)


def _convolution(module: nn.Module, a: Tensor, delta: Tensor) -> LayerNorms:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    setting = (module.kernel_size, module.dilation, module.padding, module.stride)
    if isinstance(module, nn.Conv1d):  # an image one pixel high
        a, delta = a.unsqueeze(2), delta.unsqueeze(2)
        kernel, dilation, padding, stride = (
            (first, *n) for n, first in zip(setting, (1, 1, 0, 1), strict=True)
        )
    else:
        kernel, dilation, padding, stride = setting  # type: ignore[assignment]
    num, groups = len(a), module.groups
    wanted = _wanted(module)
    squares, totals = torch.zeros(num, device=a.device), {}
    if "weight" in wanted:
        rows = a.shape[1] * kernel[0] * kernel[1]
        places = delta[0, 0].numel()
        step = max(1, PIECE // max(rows * places, rows * delta.shape[1] // groups))
        total: Tensor | None = None
        parts = []
        for images, ends in zip(a.split(step), delta.split(step), strict=True):
            seen = unfold(images, kernel, dilation, padding, stride).view(len(images), groups, -1, places)
            outs = ends.reshape(len(images), groups, -1, places)
            gradients = torch.matmul(outs, seen.transpose(2, 3))
            parts.append(gradients.square().flatten(1).sum(1))
            total = gradients.sum(0) if total is None else total + gradients.sum(0)
        assert total is not None
        squares = squares + torch.cat(parts)
        totals["weight"] = total.reshape(module.weight.shape)
    if "bias" in wanted:
        squares, totals["bias"] = _with_bias(squares, delta.flatten(2).sum(2))
    return LayerNorms(squares, totals)


def _embedding(module: nn.Module, a: Tensor, delta: Tensor) -> LayerNorms:
    assert isinstance(module, nn.Embedding)
    words, ends = a.reshape(len(a), -1), delta.reshape(len(a), -1, delta.shape[-1])
    if module.padding_idx is not None:
        ends = ends * (words != module.padding_idx).unsqueeze(2)
    same = (words.unsqueeze(2) == words.unsqueeze(1)).to(ends.dtype)
    squares = (torch.bmm(ends, ends.transpose(1, 2)) * same).sum((1, 2))
    total = torch.zeros(module.weight.shape, dtype=ends.dtype, device=ends.device)
    return LayerNorms(squares, {"weight": total.index_add_(0, words.reshape(-1), ends.flatten(0, 1))})


def _layer_norm(module: nn.Module, a: Tensor, delta: Tensor) -> LayerNorms:
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape
    wanted = _wanted(module)
    squares, totals = torch.zeros(len(a), device=a.device), {}

    def per_example(values: Tensor) -> Tensor:
        return values.reshape(len(a), -1, *shape).sum(1)

    if "weight" in wanted:
        gradients = per_example(delta * layer_norm(a, shape, eps=module.eps))
        squares = squares + gradients.square().flatten(1).sum(1)
        totals["weight"] = gradients.sum(0)
    if "bias" in wanted:
        gradients = per_example(delta)
        squares = squares + gradients.square().flatten(1).sum(1)
        totals["bias"] = gradients.sum(0)
    return LayerNorms(squares, totals)


def _products(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared norms of left_i·right_i (B,) and their sum, a few examples at a time."""
    step = max(1, PIECE // (left.shape[1] * right.shape[2]))
    parts, total = [], torch.zeros(left.shape[1], right.shape[2], dtype=left.dtype, device=left.device)
    for some, others in zip(left.split(step), right.split(step), strict=True):
        gradients = torch.bmm(some, others)
        parts.append(gradients.square().sum((1, 2)))
        total += gradients.sum(0)
    return torch.cat(parts), total


def _with_bias(squares: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return squares + ends.square().sum(1), ends.sum(0)


def _wanted(module: nn.Module) -> set[str]:
    return {name for name, p in module._parameters.items() if p is not None and p.requires_grad}
