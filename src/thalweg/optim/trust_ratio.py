"""The layer-wise trust ratio that LAMB and LARS share: how long a step is, against the tensor it moves."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["norms", "trust_ratio"]

# torch's norm on a CPU sums in the tensor's own precision, in a few running sums: in float32 it is wrong by
# 4e-4 for ten million normal numbers, which would be the error of the whole step. In pieces of this many it
# is wrong by 5e-7 at any size, for up to 1.4 times the time of this one pass.
PIECE = 2**17


def norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of each of k tensors (k,), accurate to a few roundings.

    Norms of half precision are taken and returned in float32.
    """
    like = tensors[0]
    dtype = torch.promote_types(like.dtype, torch.float32)
    piece = PIECE if like.device.type == "cpu" else None  # a GPU sums in a tree
    parts = [_pieces(t, piece) for t in tensors]
    partial = torch.stack(torch._foreach_norm([p for part in parts for p in part], 2, dtype=dtype))
    if len(partial) == len(tensors):
        return partial
    return torch.stack(torch._foreach_norm(list(partial.split([len(part) for part in parts]))))


def trust_ratio(size: Tensor, update: Tensor) -> Tensor:
    """Return size/update (k,), and 1 where either is 0: a tensor of zeros must be able to leave them."""
    return torch.where((size > 0) & (update > 0), size / update, torch.ones_like(size))


def _pieces(tensor: Tensor, size: int | None) -> list[Tensor]:
    if size is None or tensor.numel() <= size:
        return [tensor]
    return list(tensor.reshape(-1).split(size))
