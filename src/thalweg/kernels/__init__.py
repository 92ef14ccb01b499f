"""Kernels of infinitely wide networks, computed exactly: fully connected and convolutional."""

from __future__ import annotations

from thalweg.kernels.convolutional import cntk, cntk_depths
from thalweg.kernels.fully_connected import ntk

__all__ = ["cntk", "cntk_depths", "ntk"]
