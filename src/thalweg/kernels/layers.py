# mypy: allow-untyped-decorators
"""Correlations through all layers of a fully connected ReLU network, in registers."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from thalweg.kernels.arc_cosine import arc_cosine
from thalweg.kernels.lanes import fma, lanes_of, load, spread, store

__all__ = ["WIDTH", "relu_layers"]

Array = Any
WIDTH = 32  # columns of a block come in so many: four vectors of float64, whose layers overlap in time

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def relu_layers(block: Array, row_sizes: Array, col_sizes: Array, scales: Array, tangent: bool) -> None:
    """Replace correlations (rows, columns) by the kernel; columns are a multiple of ``WIDTH``.

    Args:
        block: ρ of rows and columns, in float64.
        row_sizes: norms of the rows' examples.
        col_sizes: norms of the columns' examples.
        scales: s, a number for each layer of weights.
        tangent: Θ; otherwise Σ of the last layer.
    """
    columns, step = block.shape[1], lanes_of(block)
    flat = block.reshape(-1)
    share = spread(1 / np.pi)
    for i in range(len(block)):
        row_size = spread(row_sizes[i])
        for j in range(0, columns, 4 * step):
            at = i * columns + j
            rho_0, rho_1 = load(flat, at), load(flat, at + step)
            rho_2, rho_3 = load(flat, at + 2 * step), load(flat, at + 3 * step)
            first = spread(scales[0])
            theta_0, theta_1, theta_2, theta_3 = first * rho_0, first * rho_1, first * rho_2, first * rho_3
            for h in range(1, len(scales)):
                scale = spread(scales[h])
                rho_0, theta_0 = _relu(rho_0, theta_0, scale, share)
                rho_1, theta_1 = _relu(rho_1, theta_1, scale, share)
                rho_2, theta_2 = _relu(rho_2, theta_2, scale, share)
                rho_3, theta_3 = _relu(rho_3, theta_3, scale, share)
            if not tangent:
                theta_0, theta_1, theta_2, theta_3 = rho_0, rho_1, rho_2, rho_3
            store(flat, at, theta_0 * row_size * load(col_sizes, j))
            store(flat, at + step, theta_1 * row_size * load(col_sizes, j + step))
            store(flat, at + 2 * step, theta_2 * row_size * load(col_sizes, j + 2 * step))
            store(flat, at + 3 * step, theta_3 * row_size * load(col_sizes, j + 3 * step))


@compiled
def _relu(rho: Any, theta: Any, scale: Any, share: Any) -> Any:
    degree_0, degree_1 = arc_cosine(rho)
    rho = degree_1 * share
    return rho, fma(degree_0 * share, theta, scale * rho)
