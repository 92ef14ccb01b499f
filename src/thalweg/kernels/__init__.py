"""Kernels of infinitely wide networks, computed exactly, what stands on them, and finite nets beside them.

The names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.first_use import on_first_use
from thalweg.kernels.convolutional import cntk, cntk_depths
from thalweg.kernels.fully_connected import ntk

if TYPE_CHECKING:
    from thalweg.kernels.dynamics import KernelDescent, largest_stable_lr
    from thalweg.kernels.empirical import EmpiricalNTK, empirical_ntk
    from thalweg.kernels.estimators import NTKClassifier, NTKRegressor
    from thalweg.kernels.gram import Gram
    from thalweg.kernels.similarity import DriftWatch, alignment, distance, effective_rank, target_alignment

_HOMES = {
    "DriftWatch": "similarity",
    "EmpiricalNTK": "empirical",
    "Gram": "gram",
    "KernelDescent": "dynamics",
    "NTKClassifier": "estimators",
    "NTKRegressor": "estimators",
    "alignment": "similarity",
    "distance": "similarity",
    "effective_rank": "similarity",
    "empirical_ntk": "empirical",
    "largest_stable_lr": "dynamics",
    "target_alignment": "similarity",
}

__all__ = [
    "DriftWatch",
    "EmpiricalNTK",
    "Gram",
    "KernelDescent",
    "NTKClassifier",
    "NTKRegressor",
    "alignment",
    "cntk",
    "cntk_depths",
    "distance",
    "effective_rank",
    "empirical_ntk",
    "largest_stable_lr",
    "ntk",
    "target_alignment",
]


__getattr__ = on_first_use("thalweg.kernels", _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
