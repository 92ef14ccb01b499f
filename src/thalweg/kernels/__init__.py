"""Kernels of infinitely wide networks, computed exactly: fully connected and convolutional."""

from __future__ import annotations

from thalweg.kernels.convolutional import cntk
from thalweg.kernels.fully_connected import ntk

__all__ = ["cntk", "ntk"]
