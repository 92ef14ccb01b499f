"""The handwritten digits of scikit-learn, split by seed, and loaders over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from thalweg.rng import generator

__all__ = ["Split", "digits", "loader"]

NUM_TRAIN = 1437  # four fifths of 1,797


@dataclass(frozen=True)
class Split:
    """Digits as pixels in [0, 1] (float32) and classes (int64)."""

    train: tuple[Tensor, Tensor]
    heldout: tuple[Tensor, Tensor]

    def shaped(self, *shape: int) -> Split:
        """Return the same digits with the pixels of each in ``shape``."""
        (x, y), (xh, yh) = self.train, self.heldout
        return Split((x.view(-1, *shape), y), (xh.view(-1, *shape), yh))

    def loaders(self, batch_size: int, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return loaders over both parts."""
        train = loader(self.train, batch_size, seed, "train", shuffle=True)
        return train, loader(self.heldout, batch_size, seed, "heldout")


def digits(seed: int) -> Split:
    """Return 1,437 training and 360 held-out digits of 8×8 pixels (64,).

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, as `sklearn.datasets.load_digits`.
    """
    from sklearn.datasets import load_digits  # takes a second, which only these need

    pixels, classes = load_digits(return_X_y=True)
    x = torch.tensor(pixels / 16, dtype=torch.float32)
    y = torch.tensor(classes, dtype=torch.int64)
    order = torch.randperm(len(x), generator=generator(seed, "builtin", "digits"))
    train, heldout = order[:NUM_TRAIN], order[NUM_TRAIN:]
    return Split((x[train], y[train]), (x[heldout], y[heldout]))


def loader(
    data: tuple[Tensor, Tensor], batch_size: int, seed: int, role: str, *, shuffle: bool = False
) -> DataLoader[Any]:
    """Return a loader with its own random stream."""
    rng = generator(seed, "builtin", "loader", role)
    return DataLoader(TensorDataset(*data), batch_size=batch_size, shuffle=shuffle, generator=rng)
