"""The base of LAMB and LARS: which tensors are moved together, and with what memory."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from thalweg.optim.closures import Closure
from thalweg.optim.per_parameter import PerParameter, evaluated, moving, require

__all__ = ["Bite", "LayerWise", "Scratch"]


@dataclass(frozen=True)
class Bite:
    """Tensors that one update moves, of one device and type: all of them to be adapted, or none.

    Attributes:
        parameters: at least one.
        gradients: theirs, negated to maximise.
        adapted: whether they have as many dimensions as ``adapt_ndim_min``.
    """

    parameters: list[Tensor]
    gradients: list[Tensor]
    adapted: bool


@final
class Scratch:
    """Memory for the intermediate values of one update after the other, given back at the end of the step.

    Where no allocator keeps freed memory, as on a CPU, asking for it anew costs more than the arithmetic.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return uninitialised tensors like some dense ones of one kind, valid until the next call."""
        sizes = [t.numel() for t in tensors]
        kind = tensors[0].device, tensors[0].dtype
        if kind not in self._memory or self._memory[kind].numel() < sum(sizes):
            self._memory.pop(kind, None)  # first give back, then ask for more
            self._memory[kind] = torch.empty(sum(sizes), device=kind[0], dtype=kind[1])
        pieces = self._memory[kind][: sum(sizes)].split(sizes)
        return [piece.as_strided(t.size(), t.stride()) for piece, t in zip(pieces, tensors, strict=True)]


class LayerWise(PerParameter):
    """Base class of methods whose step for a tensor is measured against that tensor.

    Groups hold ``lr``, ``weight_decay``, ``adapt_ndim_min``, ``maximize`` and ``foreach``: one call for all
    tensors of a kind, which takes more memory, or tensor by tensor. None is the first on a GPU, which then
    starts fewer kernels, and the second elsewhere, where a tensor at a time stays in the cache. Both do the
    same operations in the same order.
    """

    def check(self, group: dict[str, Any]) -> None:
        """Raise InputError where the settings that both have make no sense."""
        require(group["lr"] >= 0, "lr", expected="at least 0", got=group["lr"])
        require(group["weight_decay"] >= 0, "weight_decay", expected="at least 0", got=group["weight_decay"])
        least = group["adapt_ndim_min"]
        require(isinstance(least, int) and least >= 0, "adapt_ndim_min", expected="0, 1, 2, …", got=least)

    @abstractmethod
    def update(self, group: dict[str, Any], bite: Bite, scratch: Scratch) -> None:
        """Move the tensors of one bite; each method writes its own."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step; return the closure's loss, None where there is no closure.

        Args:
            closure: standard; None where the gradients are there already.

        Raises:
            InputError: for a sparse gradient, or a closure that returns no loss; nothing has moved.
            NumericalError: for a closure whose loss is not finite; nothing has moved.
        """
        loss = None if closure is None else evaluated(closure)
        found = [(group, moving(group)) for group in self.param_groups]
        scratch = Scratch()
        for group, parameters in found:
            for bite in _bites(group, parameters):
                self.update(group, bite, scratch)
        return None if loss is None else torch.tensor(loss, dtype=torch.float64)


def _bites(group: dict[str, Any], parameters: list[Tensor]) -> Iterator[Bite]:
    """Yield as many tensors at a time as ``foreach`` asks for."""
    least, foreach = group["adapt_ndim_min"], group["foreach"]
    alike: dict[object, list[Tensor]] = defaultdict(list)
    for place, p in enumerate(parameters):
        together = p.is_cuda if foreach is None else foreach
        alike[p.device, p.dtype, p.ndim >= least, None if together else place].append(p)
    for some in alike.values():
        gradients = [p.grad for p in some if p.grad is not None]
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        yield Bite(some, gradients, adapted=some[0].ndim >= least)
