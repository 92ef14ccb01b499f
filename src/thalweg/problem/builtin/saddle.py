"""A saddle of a digits net that can be proved, by splitting a hidden unit in two."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, linear, mse_loss

from thalweg.problem.builtin.digits import Split, digits
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.builtin.recipe import ModelRecipe
from thalweg.problem.builtin.training import minimise, polish
from thalweg.problem.parameters import ParameterSpace
from thalweg.rng import generator

__all__ = ["fitted", "halves", "saddle", "split_unit"]

NUM_PIXELS = 8  # of half a digit, at 4×4


def saddle(seed: int) -> ModelRecipe:
    """A tanh net with two hidden units that are copies of each other: a saddle with a proof.

    The net predicts the lower half of a digit from the upper half (2×4 pixels each, least squares).
    A net with a single hidden unit, f(x) = aφ(wᵀx) + c with the bias inside w, is brought to its
    minimum; then the unit is split (K. Fukumizu and S. Amari 2000, Local minima and plateaus in
    hierarchical structures of multilayer perceptrons, Neural Networks 13:317–327): two units with the
    same w, and with outgoing weights μa and (1−μ)a.

    Zero gradient: the output is the same. The derivative by a copy's w is μ or 1−μ times that of the
    small net, which is 0; the derivative by a copy's outgoing weights is that of the small net, 0.

    Saddle: move the copies apart, the incoming weights to w + (1−μ)t·d and w − μt·d, the outgoing
    weights to μa + s·b and (1−μ)a − s·b. The first-order terms of the output cancel, so that the loss
    changes, to second order, by

        s·t·bᵀC d + ½ μ(1−μ) t²·dᵀB d,    C = Σₙ (∂ℓₙ/∂f) φ′(wᵀxₙ) xₙᵀ,
                                          B = Σₙ (aᵀ∂ℓₙ/∂f) φ″(wᵀxₙ) xₙxₙᵀ.

    There is no s² term: whatever μ is, the form is indefinite unless C = 0. Zero gradient says aᵀC = 0,
    so with one output only B is left, the case of the paper; with the eight here C is what the single
    unit leaves unexplained, and to follow the negative curvature is to let the second unit learn it.
    μ = ½ gives the most negative curvature relative to the largest.
    """
    data = halves(digits(seed))
    model = split_unit(fitted(seed, data), 0, 0.5).float()
    return ModelRecipe(model, nn.MSELoss(), *data.loaders(64, seed))


def halves(data: Split) -> Split:
    """Return the upper (inputs) and lower (targets) half of each digit, reduced to 4×4 pixels."""

    def cut(pixels: Tensor) -> tuple[Tensor, Tensor]:
        small = avg_pool2d(pixels.view(-1, 1, 8, 8), 2).flatten(1)
        return small[:, :NUM_PIXELS].clone(), small[:, NUM_PIXELS:].clone()

    return Split(cut(data.train[0]), cut(data.heldout[0]))


def fitted(seed: int, data: Split) -> nn.Sequential:
    """Return the net with one hidden unit at its minimum (float64)."""
    rng = generator(seed, "builtin", "digits-saddle")
    model = initialised(lambda: _net(1), rng).double()
    inputs, targets = data.train[0].double(), data.train[1].double()
    space = ParameterSpace.of(model)

    def risk(theta: Tensor) -> Tensor:
        weight, bias, outgoing, constant = space.unflatten(theta)
        outputs = linear(torch.tanh(linear(inputs, weight, bias)), outgoing, constant)
        return mse_loss(outputs, targets)

    near = minimise(risk, space.read(model), tolerance=1e-6, iterations=400)
    space.write(model, polish(risk, near))
    return model


@torch.no_grad()
def split_unit(model: nn.Sequential, unit: int, share: float) -> nn.Sequential:
    """Return the net with hidden unit ``unit`` copied; the copies share its outgoing weights.

    Args:
        model: linear, tanh, linear.
        unit: which hidden unit.
        share: μ, the share that the first copy keeps.
    """
    first, last = model[0], model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    outgoing = last.weight[:, [unit]]
    kept = last.weight.clone()
    kept[:, unit] *= share
    wide = initialised(lambda: _net(first.out_features + 1), torch.Generator()).to(first.weight.dtype)
    tensors = (
        torch.cat([first.weight, first.weight[[unit]]]),
        torch.cat([first.bias, first.bias[[unit]]]),
        torch.cat([kept, (1 - share) * outgoing], dim=1),
        last.bias,
    )
    for parameter, tensor in zip(wide.parameters(), tensors, strict=True):
        parameter.copy_(tensor)
    return wide


def _net(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(NUM_PIXELS, hidden), nn.Tanh(), nn.Linear(hidden, NUM_PIXELS))
