"""How much memory there is, and how much a computation keeps for its derivative."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["SavedBytes", "memory_share"]


class SavedBytes:
    """Counts the bytes that autograd saves, each storage once."""

    def __init__(self) -> None:
        self.total = 0
        self._seen: set[int] = set()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is saved inside the block."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _same):
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:  # a sparse gradient: of rows that are counted already
            return tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor.detach()  # the tensor itself would make a cycle that is never collected


def _same(tensor: Tensor) -> Tensor:
    return tensor


def memory_share(device: torch.device) -> int:
    """Return the bytes that may be used: a quarter of the memory, on a GPU of what is free there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 4
