"""Models that Thalweg can build anew with another activation, normalisation and initialisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import nn

from thalweg.rng import generator

__all__ = ["rebuilt"]

_ACTIVATIONS = (
    nn.Sigmoid,
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.Softplus,
    nn.Hardtanh,
)
_PLAIN = (nn.Flatten, nn.Unflatten, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity)


def rebuilt(model: nn.Module, *, relu: bool, batch_norm: bool, seed: int) -> nn.Sequential | None:
    """Return a freshly initialised variant of a plain chain of layers; None for any other model.

    Args:
        model: an `nn.Sequential`, possibly nested, of linear and convolution layers, activations, pooling.
        relu: replace every activation by ReLU and initialise after He ([he2015], eq. (10)); else keep them
            and initialise after Glorot ([glorot2010], eq. (12)).
        batch_norm: normalise before every activation.
        seed: of the initialisation.
    """
    layers = list(_chain(model))
    known = (nn.Linear, nn.Conv2d, *_ACTIVATIONS, *_PLAIN)
    if not layers or not all(isinstance(layer, known) for layer in layers):
        return None
    if len(set(map(id, layers))) < len(layers) or len(list(model.parameters())) < sum(
        len(list(layer.parameters())) for layer in layers
    ):
        return None  # shared layers or tied weights
    rng = generator(seed, "rebuild")
    out: list[nn.Module] = []
    width: tuple[int, bool] | None = None
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            out.append(_initialised(layer, rng, he=relu))
            convolution = isinstance(layer, nn.Conv2d)
            width = (layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features, convolution)
        elif isinstance(layer, _ACTIVATIONS):
            if batch_norm and width is not None:
                out.append(nn.BatchNorm2d(width[0]) if width[1] else nn.BatchNorm1d(width[0]))
            out.append(nn.ReLU() if relu else copy.deepcopy(layer))
        else:
            out.append(layer)
    reference = next(model.parameters())
    return nn.Sequential(*out).to(device=reference.device, dtype=reference.dtype)


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    if isinstance(model, nn.Sequential):
        for child in model:
            yield from _chain(child)
    else:
        yield model


def _initialised(layer: nn.Linear | nn.Conv2d, rng: torch.Generator, *, he: bool) -> nn.Module:
    fresh: nn.Linear | nn.Conv2d
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        fresh = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=bias)
    else:
        fresh = nn.utils.skip_init(
            nn.Conv2d,
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            bias=bias,
        )
    field = fresh.weight[0, 0].numel() if isinstance(fresh, nn.Conv2d) else 1
    fan_in, fan_out = fresh.weight.shape[1] * field, fresh.weight.shape[0] * field
    deviation = math.sqrt(2 / fan_in) if he else math.sqrt(2 / (fan_in + fan_out))
    with torch.no_grad():
        fresh.weight.copy_(torch.randn(fresh.weight.shape, generator=rng) * deviation)
        if fresh.bias is not None:
            fresh.bias.zero_()
    return fresh
