"""Random numbers: always from a seed, by name, never from the global state."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["gaussian", "generator", "signs"]


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU generator for the stream ``path`` of ``seed``.

    Streams with different names are independent (the name is hashed into the seed), so that adding
    a draw in one place changes no number anywhere else.
    """
    name = "/".join(str(part) for part in path)
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def gaussian(num: int, rng: torch.Generator, *, like: Tensor) -> Tensor:
    """Draw a standard normal vector (num,) with the dtype and device of ``like``.

    It is drawn on the CPU, so that a seed gives the same numbers on every device.
    """
    return torch.randn(num, generator=rng, dtype=torch.float64).to(like)


def signs(num: int, rng: torch.Generator, *, like: Tensor) -> Tensor:
    """Draw a vector (num,) of independent ±1 with the dtype and device of ``like``."""
    return (torch.randint(0, 2, (num,), generator=rng) * 2 - 1).to(like)
