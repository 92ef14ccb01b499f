"""Small classics: exclusive or, Elman's recurrent net, radial basis functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from thalweg.problem.builtin.digits import loader
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.builtin.recipe import ModelRecipe
from thalweg.problem.builtin.training import train
from thalweg.rng import generator

__all__ = ["elman", "rbf", "xor"]


def xor(seed: int) -> ModelRecipe:
    """A 2-2-1 tanh net on the four examples of exclusive or, after 300 steps of Adam."""
    rng = generator(seed, "builtin", "xor")
    inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float32)
    targets = torch.tensor([[0], [1], [1], [0]], dtype=torch.float32)
    model = initialised(lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    loss = nn.BCEWithLogitsLoss()
    train(model, loss, optimizer, (inputs, targets), steps=300, batch_size=4, rng=rng)
    return ModelRecipe(model, loss, (inputs, targets), None, optimizer)


class Elman(nn.Module):
    """A recurrent layer whose state is read out at every time (J. L. Elman 1990, Cognitive Science 14)."""

    def __init__(self, hidden: int = 10) -> None:
        super().__init__()
        self.recurrent = nn.RNN(1, hidden, batch_first=True)
        self.output = nn.Linear(hidden, 1)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, time, 1) to (batch, time, 1)."""
        states, _ = self.recurrent(signal)
        outputs: Tensor = self.output(states)
        return outputs


def elman(seed: int) -> ModelRecipe:
    """Elman's net telling the amplitude of a sine wave, 1 or 2 in turns, after 400 steps of Adam.

    The task is `appelm1` of MATLAB's neural network toolbox, with random phases.
    """
    rng = generator(seed, "builtin", "elman")
    model = initialised(Elman, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    data, heldout = _amplitudes(64, rng), _amplitudes(32, rng)
    train(model, mse_loss, optimizer, data, steps=400, batch_size=16, rng=rng)
    loaders = loader(data, 16, seed, "train", shuffle=True), loader(heldout, 16, seed, "heldout")
    return ModelRecipe(model, nn.MSELoss(), *loaders, optimizer)


def _amplitudes(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return waves (num, 40, 1) of two pieces of each amplitude, and the amplitudes."""
    start = torch.randint(1, 3, (num, 1), generator=rng)
    pieces = torch.cat([start, 3 - start, start, 3 - start], dim=1).float()
    amplitude = pieces.repeat_interleave(10, dim=1)
    phase = 2 * math.pi * torch.rand(num, 1, generator=rng, dtype=torch.float32)
    wave = amplitude * torch.sin(torch.arange(40, dtype=torch.float32) + phase)
    return wave.unsqueeze(-1), amplitude.unsqueeze(-1)


class RadialBasis(nn.Module):
    """Gaussian bumps with centres and widths to be learnt, and a linear output.

    Source: D. S. Broomhead and D. Lowe (1988), Multivariable functional interpolation and adaptive
    networks, Complex Systems 2:321–355.
    """

    def __init__(self, units: int = 12) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.linspace(-1, 1, units))
        self.log_widths = nn.Parameter(torch.full((units,), math.log(2 / units)))
        self.output = nn.Linear(units, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, 1) to (batch, 1)."""
        scaled = (inputs - self.centres) / self.log_widths.exp()
        outputs: Tensor = self.output(torch.exp(-scaled.square() / 2))
        return outputs


def rbf(seed: int) -> ModelRecipe:
    """A radial-basis net on a noisy sum of sines, after 300 steps of Adam."""
    rng = generator(seed, "builtin", "rbf")
    model = initialised(RadialBasis, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    data, heldout = _sines(256, rng), _sines(128, rng)
    train(model, mse_loss, optimizer, data, steps=300, batch_size=32, rng=rng)
    loaders = loader(data, 32, seed, "train", shuffle=True), loader(heldout, 32, seed, "heldout")
    return ModelRecipe(model, nn.MSELoss(), *loaders, optimizer)


def _sines(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(num, 1, generator=rng, dtype=torch.float32) - 1
    noise = torch.randn(num, 1, generator=rng, dtype=torch.float32)
    return x, torch.sin(3 * x) + 0.5 * torch.sin(10 * x) + 0.1 * noise
