"""Symmetric linear maps given by their products with vectors; they know no model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from thalweg.errors import InputError

__all__ = ["Dense", "Operator"]


class Operator(Protocol):
    """A symmetric map on vectors (n,)."""

    @property
    def size(self) -> int:
        """The dimension n."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its vectors."""

    @property
    def device(self) -> torch.device:
        """The device of its vectors."""

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A·vector (n,)."""


class Dense:
    """A symmetric matrix (n, n) as an operator: for tests and small problems."""

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError("the matrix is not square", expected="(n, n)", got=str(tuple(matrix.shape)))
        self._matrix = matrix

    @property
    def size(self) -> int:
        """The dimension n."""
        return self._matrix.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix."""
        return self._matrix.dtype

    @property
    def device(self) -> torch.device:
        """The device of the matrix."""
        return self._matrix.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A·vector."""
        return self._matrix @ vector
