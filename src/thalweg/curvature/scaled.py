"""A symmetric operator in stretched coordinates."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from thalweg.curvature.operators import Operator

__all__ = ["Scaled"]


@final
class Scaled:
    """D·(A + W)·D for diagonal D and W: the curvature in the coordinates D⁻¹θ.

    Args:
        operator: A, symmetric.
        scale: the diagonal of D (n,).
        shift: the diagonal of W (n,) or a number.
    """

    def __init__(self, operator: Operator, scale: Tensor, shift: Tensor | float = 0.0) -> None:
        self._operator, self._scale, self._shift = operator, scale, shift

    @property
    def size(self) -> int:
        """The dimension n."""
        return self._operator.size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its vectors."""
        return self._operator.dtype

    @property
    def device(self) -> torch.device:
        """The device of its vectors."""
        return self._operator.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Return D·(A + W)·D·vector (n,). Cost: one product with A."""
        stretched = self._scale * vector
        return self._scale * (self._operator.matvec(stretched) + self._shift * stretched)
