"""Small problems for the studies, in a module of their own so that other processes find them."""

import torch
from torch import nn

from thalweg import Problem
from thalweg.problem.builtin.initialise import initialised
from thalweg.rng import generator


def blobs(n=120, seed=0):
    rng = generator(seed, "blobs")
    y = torch.randint(0, 3, (n,), generator=rng)
    centres = torch.tensor([[0.0, 2.0], [1.7, -1.0], [-1.7, -1.0]])
    return centres[y] + torch.randn(n, 2, generator=rng), y


def net():
    return initialised(
        lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), generator(0, "net")
    )


def problem():
    return Problem(net(), nn.CrossEntropyLoss(), blobs(), heldout=blobs(60, 1), name="blobs")
