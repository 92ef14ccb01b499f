# mypy: allow-untyped-decorators
"""Correlations through all layers of a fully connected ReLU network, in registers."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from thalweg.kernels.arc_cosine import arc_cosine
from thalweg.kernels.lanes import fma, lanes_of, load, spread, store

__all__ = ["ROWS", "WIDTH", "products", "relu_layers"]

Array = Any
WIDTH = 32  # columns of a block come in so many: four vectors of float64, whose layers overlap in time

ROWS = 4  # rows of a block come in so many, to use each column more than once
DEEP = 256  # terms of the products whose columns stay in the first cache

# As in tiles.py, the cache sees changes of this file only.
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def products(left: Array, right: Array, block: Array) -> None:
    """Multiply ``left`` (n, d) and ``right`` (d, m) into ``block`` (n, m).

    n is a multiple of ``ROWS``, m of ``WIDTH``. A BLAS has threads, which would fight with the
    caller's; and here sums are the same whatever the block.
    """
    columns, step = block.shape[1], lanes_of(block)
    flat, terms = block.reshape(-1), right.reshape(-1)
    block[:] = 0
    for start in range(0, left.shape[1], DEEP):
        end = min(start + DEEP, left.shape[1])
        for j in range(0, columns, 2 * step):
            for i in range(0, len(left), ROWS):
                at, skip = i * columns + j, columns
                a_0, a_1 = load(flat, at), load(flat, at + step)
                b_0, b_1 = load(flat, at + skip), load(flat, at + skip + step)
                c_0, c_1 = load(flat, at + 2 * skip), load(flat, at + 2 * skip + step)
                d_0, d_1 = load(flat, at + 3 * skip), load(flat, at + 3 * skip + step)
                for k in range(start, end):
                    z_0, z_1 = load(terms, k * columns + j), load(terms, k * columns + j + step)
                    a, b = spread(left[i, k]), spread(left[i + 1, k])
                    c, d = spread(left[i + 2, k]), spread(left[i + 3, k])
                    a_0, a_1 = fma(a, z_0, a_0), fma(a, z_1, a_1)
                    b_0, b_1 = fma(b, z_0, b_0), fma(b, z_1, b_1)
                    c_0, c_1 = fma(c, z_0, c_0), fma(c, z_1, c_1)
                    d_0, d_1 = fma(d, z_0, d_0), fma(d, z_1, d_1)
                store(flat, at, a_0)
                store(flat, at + step, a_1)
                store(flat, at + skip, b_0)
                store(flat, at + skip + step, b_1)
                store(flat, at + 2 * skip, c_0)
                store(flat, at + 2 * skip + step, c_1)
                store(flat, at + 3 * skip, d_0)
                store(flat, at + 3 * skip + step, d_1)


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
            store(flat, at, theta_0 * (row_size * load(col_sizes, j)))
            store(flat, at + step, theta_1 * (row_size * load(col_sizes, j + step)))
            store(flat, at + 2 * step, theta_2 * (row_size * load(col_sizes, j + 2 * step)))
            store(flat, at + 3 * step, theta_3 * (row_size * load(col_sizes, j + 3 * step)))


@compiled
def _relu(rho: Any, theta: Any, scale: Any, share: Any) -> Any:
    degree_0, degree_1 = arc_cosine(rho)
    rho = degree_1 * share
    return rho, fma(degree_0 * share, theta, scale * rho)
