"""A copy of a model with fresh weights and, if asked for, another activation or batch normalisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from thalweg.problem.intact import random_state_kept
from thalweg.rng import generator

__all__ = ["initialisation_for", "rebuilt"]

_SATURATING = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardtanh, nn.Softsign)
_ONE_SIDED = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Softplus, nn.ReLU6, nn.Mish)
_ACTIVATIONS = (*_SATURATING, *_ONE_SIDED)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by dimension
_NORMALISED = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Run = Callable[[nn.Module], object]


def initialisation_for(model: nn.Module, *, relu: bool = False) -> str:
    """Return "Glorot" where the activations of ``model`` saturate, else "He".

    Glorot keeps the signal where units are nearly linear, He where half of them are silent. An activation
    that is not a module cannot be seen; such models mostly rectify.
    """
    saturates = any(isinstance(module, _SATURATING) for module in model.modules())
    return "Glorot" if saturates and not relu else "He"


def rebuilt(model: nn.Module, run: Run, *, relu: bool, batch_norm: bool, seed: int) -> nn.Module | None:
    """Return a freshly initialised variant of ``model``; None where that cannot be done or changes nothing.

    Linear and convolution layers get weights after He ([he2015], eq. (10)) or Glorot ([glorot2010],
    eq. (12)), whichever fits the activation, and zero biases; other layers are reset to what their
    constructors draw. Layers without trainable parameters stay as they are.

    Args:
        model: it is copied, never written to.
        run: runs a model on one batch of training data.
        relu: replace every activation module by a ReLU.
        batch_norm: normalise before every activation module that follows a linear or convolution layer
            ([ioffe2015]).
        seed: of the initialisation.

    None for tied weights, for parameters that belong to no layer known to reset itself, for models without
    activation modules where those are to be changed, and for activations that one model uses in several
    places, which cannot be normalised apart.

    Cost: a forward pass over one batch with ``batch_norm``, else nothing.
    """
    if _is_tied(model):
        return None
    variant = copy.deepcopy(model)
    convention = initialisation_for(model, relu=relu)
    if not _reset(variant, he=convention == "He", seed=seed):
        return None
    places = _activation_places(variant)
    norms = _normalisations(variant, run) if batch_norm else {}
    if (batch_norm and not norms) or (relu and all(isinstance(m, nn.ReLU) for _, _, m in places)):
        return None
    for parent, name, activation in places:
        chosen: nn.Module = nn.ReLU() if relu else activation
        norm = norms.get(activation)
        parent._modules[name] = chosen if norm is None else nn.Sequential(norm, chosen)
    return variant


def _is_tied(model: nn.Module) -> bool:
    every = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return len(every) > len(set(every))


def _reset(variant: nn.Module, *, he: bool, seed: int) -> bool:
    """Draw all trainable weights anew, in place; return whether that could be done for all of them."""
    rng = generator(seed, "rebuild")
    weighted = []
    with random_state_kept(seed):  # what resets itself draws from the global state
        for module in variant.modules():
            trainable = any(p is not None and p.requires_grad for p in module._parameters.values())
            if not trainable and not isinstance(module, nn.modules.batchnorm._NormBase):
                continue
            if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
                weighted.append(module)
                continue
            reset = getattr(module, "reset_parameters", None)
            frozen = any(p is not None and not p.requires_grad for p in module._parameters.values())
            if frozen or not callable(reset):
                return False
            reset()
    for layer in weighted:
        if layer._parameters.get("weight") is None:  # computed from others, as weight normalisation does
            return False
        _initialise(layer, rng, he=he)
    return bool(weighted)


@torch.no_grad()
def _initialise(layer: nn.Module, rng: torch.Generator, *, he: bool) -> None:
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    field = weight[0, 0].numel() if weight.dim() > 2 else 1
    fan_in, fan_out = weight.shape[1] * field, weight.shape[0] * field
    deviation = math.sqrt(2 / fan_in) if he else math.sqrt(2 / (fan_in + fan_out))
    if weight.requires_grad:
        weight.copy_(torch.randn(weight.shape, generator=rng) * deviation)
    if bias is not None and bias.requires_grad:
        bias.zero_()


def _activation_places(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return parent, name and module of every activation, one entry for each name it has."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, _ACTIVATIONS)
    ]


def _normalisations(model: nn.Module, run: Run) -> dict[nn.Module, nn.Module]:
    """Run the model once and make a batch normalisation for each activation that can have one.

    The layer that ran last before it tells which dimension holds the channels: the last after a linear layer,
    the second after a convolution. What is normalised already stays as it is.
    """
    norms: dict[nn.Module, nn.Module] = {}
    calls: dict[nn.Module, int] = {}
    latest: list[nn.Module | None] = [None]

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(module, _ACTIVATIONS):
            latest[0] = module
            return
        calls[module] = calls.get(module, 0) + 1
        x, before = inputs[0], latest[0]
        conv = isinstance(before, _CONVOLUTIONS) and x.dim() == before.weight.dim()
        if conv or (isinstance(before, nn.Linear) and x.dim() == 2):
            norms[module] = _NORMALISATIONS[x.dim()](x.shape[1], device=x.device, dtype=x.dtype)

    watched = (*_ACTIVATIONS, *_CONVOLUTIONS, *_NORMALISED, nn.Linear)
    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, watched)]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    once = {module: norm for module, norm in norms.items() if calls[module] == 1}
    return once if len(once) == len(norms) else {}
