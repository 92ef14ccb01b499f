"""Digit classifiers in known states of their training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from thalweg.problem.builtin.digits import digits
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.builtin.recipe import ModelRecipe
from thalweg.problem.builtin.training import minimise, train
from thalweg.problem.parameters import ParameterSpace
from thalweg.rng import generator

__all__ = ["PenalisedCrossEntropy", "cnn", "deep_sigmoid", "hot", "minimum", "started", "transformer"]

DECAY = 0.15  # puts the smallest curvature at 1e-3 of the largest or more
HOT_LR = 1.5


@dataclass(frozen=True)
class PenalisedCrossEntropy:
    """Mean cross-entropy + (decay/2)·‖θ − start‖², for training and held-out data alike.

    Cross-entropy alone has no minimum where the classes can be told apart: larger weights are always
    better. Decay towards the initial weights (L2-SP: Li, Grandvalet and Davoine 2018, ICML) gives it
    one with curvature in every direction. Decay towards zero gives a minimum too, but one that is
    nearly flat along rotations of the hidden units, which tanh, being nearly linear there, hardly sees.
    """

    start: tuple[Tensor, ...]
    decay: float = DECAY

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the penalised loss of one batch (inputs, classes)."""
        inputs, classes = batch
        pairs = zip(model.parameters(), self.start, strict=True)
        penalty = torch.stack([(p - s.to(p)).square().sum() for p, s in pairs]).sum()
        return cross_entropy(model(inputs), classes) + self.decay / 2 * penalty


def minimum(seed: int) -> ModelRecipe:
    """A tanh net (3,466 parameters) in a true minimum of its penalised loss, found in float64."""
    data, rng = digits(seed), generator(seed, "builtin", "digits-mlp")
    model = initialised(_mlp, rng)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=rng)
            nn.init.zeros_(layer.bias)
    loss = PenalisedCrossEntropy(tuple(p.detach().clone() for p in model.parameters()))
    precise = copy.deepcopy(model).double()
    space = ParameterSpace.of(precise)
    start = space.read(precise)
    inputs, classes = data.train[0].double(), data.train[1]

    def risk(theta: Tensor) -> Tensor:
        weights = dict(zip(space.names, space.unflatten(theta), strict=True))
        outputs = functional_call(precise, weights, (inputs,))
        return cross_entropy(outputs, classes) + DECAY / 2 * (theta - start).square().sum()

    ParameterSpace.of(model).write(model, minimise(risk, start, tolerance=3e-8, iterations=600))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ModelRecipe(model, loss, *data.loaders(64, seed), optimizer)


def started(seed: int) -> ModelRecipe:
    """The tanh net after 50 steps of training."""
    data, rng = digits(seed), generator(seed, "builtin", "digits-started")
    model = initialised(_mlp, rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, cross_entropy, optimizer, data.train, steps=50, batch_size=64, rng=rng)
    return ModelRecipe(model, nn.CrossEntropyLoss(), *data.loaders(64, seed), optimizer)


def deep_sigmoid(seed: int) -> ModelRecipe:
    """A sigmoid net with six hidden layers that has learnt how frequent the classes are, and no more.

    Each sigmoid layer shrinks what distinguishes two inputs, and the gradient on its way back (Glorot
    and Bengio 2010, AISTATS), so that only the output biases have moved. The full-batch steps at the
    end take out the noise of the minibatches, down to where nothing is left to gain from it: by
    ‖g‖²/2λ about 2e-5 in a loss of 2.3.
    """
    data, rng = digits(seed), generator(seed, "builtin", "digits-deep-sigmoid")
    model = initialised(lambda: _mlp(nn.Sigmoid, width=32, depth=6), rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, cross_entropy, optimizer, data.train, steps=300, batch_size=64, rng=rng)
    whole = len(data.train[0])
    while _gradient_norm(model, data.train) > 6e-3:
        train(model, cross_entropy, optimizer, data.train, steps=1, batch_size=whole, rng=rng)
    return ModelRecipe(model, nn.CrossEntropyLoss(), *data.loaders(64, seed), optimizer)


def hot(seed: int) -> ModelRecipe:
    """The tanh net as it bounces with a learning rate far too high.

    The loss goes up and down without a trend from about the hundredth step. To show the state and not
    a chance peak, training stops when the loss is in the lowest quarter of those it has gone through.
    """
    data, rng = digits(seed), generator(seed, "builtin", "digits-hot")
    model = initialised(_mlp, rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=HOT_LR)
    train(model, cross_entropy, optimizer, data.train, steps=300, batch_size=16, rng=rng)
    seen: list[float] = []
    while len(seen) < 40 or seen[-1] > sorted(seen)[len(seen) // 4]:
        train(model, cross_entropy, optimizer, data.train, steps=10, batch_size=16, rng=rng)
        with torch.no_grad():
            seen.append(cross_entropy(model(data.train[0]), data.train[1]).item())
    return ModelRecipe(model, nn.CrossEntropyLoss(), *data.loaders(16, seed), optimizer)


def cnn(seed: int) -> ModelRecipe:
    """A small convolutional net (3,818 parameters) after 300 steps of Adam."""
    data, rng = digits(seed).shaped(1, 8, 8), generator(seed, "builtin", "digits-cnn")
    model = initialised(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 10),
        ),
        rng,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    train(model, cross_entropy, optimizer, data.train, steps=300, batch_size=64, rng=rng)
    return ModelRecipe(model, nn.CrossEntropyLoss(), *data.loaders(64, seed), optimizer)


class RowTransformer(nn.Module):
    """Reads a digit as a sentence of eight rows."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.positions = nn.Parameter(torch.zeros(8, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (batch, 8, 8) to class scores (batch, 10)."""
        tokens = self.embedding(rows) + self.positions
        scores: Tensor = self.head(self.layer(tokens).mean(1))
        return scores


def transformer(seed: int) -> ModelRecipe:
    """A one-layer transformer after 200 steps of Adam."""
    data, rng = digits(seed).shaped(8, 8), generator(seed, "builtin", "digits-transformer")
    model = initialised(RowTransformer, rng)
    nn.init.normal_(model.positions, std=0.02, generator=rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    train(model, cross_entropy, optimizer, data.train, steps=200, batch_size=64, rng=rng)
    return ModelRecipe(model, nn.CrossEntropyLoss(), *data.loaders(64, seed), optimizer)


def _mlp(activation: Callable[[], nn.Module] = nn.Tanh, width: int = 32, depth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (64, *[width] * (depth - 1)):
        layers += [nn.Linear(inputs, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _gradient_norm(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    loss = cross_entropy(model(data[0]), data[1])
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return float(torch.cat([part.reshape(-1) for part in parts]).norm())
