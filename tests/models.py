"""Small models and data for tests, built from a seed without touching the global random state."""

from itertools import pairwise

import torch
from torch import nn

from thalweg.problem.intact import random_state_kept


def seeded(build, seed=0):
    """Build a module under ``seed`` and put the random state back."""
    with random_state_kept():
        torch.manual_seed(seed)
        return build()


def mlp(sizes=(4, 8, 3), activation=nn.Tanh, seed=0, dtype=torch.float64):
    def build():
        layers = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), activation()]
        return nn.Sequential(*layers[:-1]).to(dtype)

    return seeded(build, seed)


def classification(num=37, features=4, classes=3, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(num, features, generator=rng, dtype=dtype)
    y = torch.randint(0, classes, (num,), generator=rng)
    return x, y


def symmetric(eigenvalues, seed=0, dtype=torch.float64):
    """Return a dense symmetric matrix with these eigenvalues in a random basis."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng, dtype=torch.float64))
    matrix = (basis * values) @ basis.T
    return ((matrix + matrix.T) / 2).to(dtype)
