"""Many pairs of images on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba.cuda
import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError, ThalwegError
from thalweg.kernels.cuda_tiles import LARGEST, Maps, tile_sums
from thalweg.kernels.evaluation import pairs_in_blocks
from thalweg.kernels.networks import Network
from thalweg.kernels.tiles import FEW, NEAR

__all__ = ["evaluate_on_gpu"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
STRIP = 256  # images whose maps are on the GPU at once, of either side
LAUNCH = 1 << 18  # tiles of one launch


def evaluate_on_gpu(
    network: Network, left: Array, right: Array, symmetric: bool, grids: list[int], dtype: np.dtype[Any]
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Yield what `thalweg.kernels.evaluation.evaluate` does.

    Raises:
        InputError: for strides and for images of more than 1,024 pixels, which only the CPU computes.
        ThalwegError: without a GPU that numba can use.
    """
    pixels = network.size[0] * network.size[1]
    if set(network.strides) != {1} or pixels > LARGEST:
        raise InputError(
            "the GPU computes a stride of 1 and images of 1,024 pixels at most",
            got=f"strides {network.strides}, {pixels:,} pixels",
            hint='device="cpu"',
        )
    if not numba.cuda.is_available():  # type: ignore[no-untyped-call]
        raise ThalwegError("numba finds no CUDA device", hint='device="cpu", or `numba -s` for the reason')
    weights = tuple(_by_shift(network.pooling(axis).T @ network.pooling(axis)) for axis in (0, 1))
    shifts = np.stack(np.meshgrid(*(np.flatnonzero(w.any(axis=1)) for w in weights), indexing="ij"), axis=-1)
    shifts = shifts.reshape(-1, 2)
    step = max(1, LAUNCH // len(shifts))
    for a in range(0, len(left), STRIP):
        some = left[a : a + STRIP]
        for b in range(a if symmetric else 0, len(right), STRIP):
            others = right[b : b + STRIP]
            i, j = pairs_in_blocks(len(some), len(others), symmetric and a == b)
            for start in range(0, len(i), step):
                part = slice(start, start + step)
                sums = _sums(network, some, others, i[part], j[part], shifts, weights, grids, dtype)
                yield i[part] + a, j[part] + b, sums


def _by_shift(weights: Floats) -> Floats:
    """Return the weights of pairs (i, i − s) by shift s and row i."""
    side = len(weights)
    i = np.arange(side)
    return np.array([weights[i, (i - s) % side] for s in range(side)])


def _maps(network: Network, images: Array, dtype: np.dtype[Any]) -> Maps:
    sigma = np.sqrt(np.stack(network.variances(images.astype(np.float64)), axis=1))
    inverse = np.divide(1, sigma, out=np.zeros_like(sigma), where=sigma > 0)
    deviation = sigma / (network.filter_size * np.sqrt(np.pi))
    return Maps(images.astype(dtype), inverse.astype(dtype), deviation.astype(dtype))


def _sums(
    network: Network,
    some: Array,
    others: Array,
    i: Ints,
    j: Ints,
    shifts: Ints,
    weights: tuple[Floats, ...],
    grids: list[int],
    dtype: np.dtype[Any],
) -> Floats:
    """Run all tiles of the pairs, those with many correlations near 1 in float64, and add them up."""
    pair, shift = np.divmod(np.arange(len(i) * len(shifts)), len(shifts))
    units = np.column_stack((i[pair], j[pair], shifts[shift]))
    readouts = np.isin(np.arange(network.num_convolutions + 1), grids)
    scales = np.array([*network.scales, 1 / (network.filter_size**2 * np.pi)])

    def run(units: Ints, kind: np.dtype[Any]) -> tuple[Array, Array]:
        rows, cols = (w.astype(kind) for w in weights)
        return tile_sums(
            *(_maps(network, some, kind), _maps(network, others, kind), units, (rows, cols), scales),
            *(readouts, network.radius, network.circular, 1 - NEAR),
        )

    found, near = run(units, dtype)
    sums = found.astype(np.float64)
    refused = near * FEW > network.size[0] * network.size[1]
    if dtype == np.float32 and refused.any():
        sums[refused] = run(units[refused], np.dtype(np.float64))[0]
    return np.asarray(sums.reshape(len(i), len(shifts), -1, 2).sum(axis=1))
