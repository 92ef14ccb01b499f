"""A problem with sparse features, most of them rare: where a rate for each weight helps."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thalweg.problem.builtin.digits import loader
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.builtin.recipe import ModelRecipe
from thalweg.problem.builtin.training import train
from thalweg.rng import generator

__all__ = ["clicks"]

NUM_FEATURES, NUM_TRAIN, NUM_HELDOUT = 300, 3000, 2000
MOST_FREQUENT, SCALE = 0.5, 2.0


def clicks(seed: int) -> ModelRecipe:
    """Logistic regression on 300 features that are there or not, as words are, after 50 steps of SGD.

    Feature j is there with probability min(0.5, 2/j) (Zipf's law), and the rarer it is, the more it says: the
    true weight of each is normal with a standard deviation ∝ p^(−1/4). Gradient descent learns a weight in
    proportion to how often its feature is seen; a method with a rate for each weight does not have to wait
    (Duchi, Hazan and Singer 2011, JMLR 12).
    """
    rng = generator(seed, "builtin", "sparse-clicks")
    frequency = (2.0 / torch.arange(1, NUM_FEATURES + 1)).clamp(max=MOST_FREQUENT)
    weights = SCALE * torch.randn(NUM_FEATURES, generator=rng) * frequency**-0.25
    there = (torch.rand(NUM_TRAIN + NUM_HELDOUT, NUM_FEATURES, generator=rng) < frequency).float()
    scores = (there - frequency) @ weights
    clicked = (torch.rand(len(scores), generator=rng) < torch.sigmoid(scores)).long()
    data = (there[:NUM_TRAIN], clicked[:NUM_TRAIN])
    heldout = (there[NUM_TRAIN:], clicked[NUM_TRAIN:])
    model = initialised(lambda: nn.Linear(NUM_FEATURES, 2), rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, cross_entropy, optimizer, data, steps=50, batch_size=32, rng=rng)
    return ModelRecipe(
        model,
        nn.CrossEntropyLoss(),
        loader(data, 32, seed, "train", shuffle=True),
        loader(heldout, 32, seed, "heldout"),
        optimizer,
    )
