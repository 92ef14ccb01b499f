# mypy: allow-untyped-decorators
"""Tiles of pixel pairs on a GPU: a block of threads for each tile, a thread for each pair of pixels.

As in `thalweg.kernels.tiles`, a tile's two fields stay where they are fastest, here in shared memory, through
all layers; of the main memory only the images' own maps are read. In numba's CUDA, which also runs, slowly,
in its simulator (NUMBA_ENABLE_CUDASIM=1) where there is no GPU.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numba.cuda
import numpy as np
from numba import types

from thalweg.kernels.arc_cosine import EQUAL, P_COEFFICIENTS, R_COEFFICIENTS

__all__ = ["LARGEST", "Maps", "tile_sums"]

Array = Any
cuda: Any = numba.cuda
LARGEST = 1024  # pixels of an image: the threads of a block


class Maps(NamedTuple):
    """What a side's images bring along, (n, …, pixels) each."""

    pixels: Array  # (n, channels, height, width)
    inverse: Array  # (n, L, height, width): 1/σ
    deviation: Array  # (n, L, height, width): σ/(q√π)


def tile_sums(
    left: Maps,
    right: Maps,
    units: Array,
    weights: tuple[Array, Array],
    scales: Array,
    readouts: Array,
    radius: int,
    circular: bool,
    near: float,
) -> tuple[Array, Array]:
    """Return the sums (k, L + 1, 2) of units (k, 4): image, image, shift y, shift x; and near pairs (k,).

    Args:
        left: maps of images.
        right: maps of images.
        units: what to compute.
        weights: of the readout, by shift and row (height, height) and by shift and column (width, width).
        scales: s of each layer, (L + 1,), and at last 1/(q²π).
        readouts: (L + 1,) whether each grid is read out.
        radius: pixels of the filter on each side of its middle.
        circular: whether images go round.
        near: correlations of the first convolution above it are counted.
    """
    dtype = left.pixels.dtype
    sums = cuda.to_device(np.zeros((len(units), len(readouts), 2), dtype))
    counts = cuda.to_device(np.zeros(len(units), np.int64))
    threads = 1 << max(left.pixels[0, 0].size - 1, 1).bit_length()  # a power of two, for sums by halves
    moved = [cuda.to_device(np.ascontiguousarray(part)) for part in (*left, *right, units, *weights)]
    tables = cuda.to_device(scales.astype(dtype)), cuda.to_device(readouts)
    _kernel(dtype.name)[len(units), threads](
        *moved, *tables, radius, circular, dtype.type(near), sums, counts
    )
    return sums.copy_to_host(), counts.copy_to_host()


def _arc_cosine(dtype: np.dtype[Any]) -> Any:
    """Return the device function of `thalweg.kernels.arc_cosine`."""
    bits = 8 * dtype.itemsize
    angles, residues = np.array(P_COEFFICIENTS[bits], dtype), np.array(R_COEFFICIENTS[bits], dtype)
    one, zero, pi = dtype.type(1), dtype.type(0), dtype.type(np.pi)
    equal = dtype.type(EQUAL * np.finfo(dtype).eps)
    num_angles, num_residues = len(angles), len(residues)

    @cuda.jit(device=True)
    def arc_cosine(rho: Any) -> Any:
        p = cuda.const.array_like(angles)
        r = cuda.const.array_like(residues)
        size = abs(rho)
        angle, residue = p[num_angles - 1], r[num_residues - 1]
        for k in range(num_angles - 2, -1, -1):
            angle = angle * size + p[k]
        for k in range(num_residues - 2, -1, -1):
            residue = residue * size + r[k]
        root = math.sqrt(one - size) if one - size > equal else zero
        if rho < zero:
            return root * angle, root * residue
        return pi - root * angle, root * residue + pi * rho

    return arc_cosine


@cache
def _kernel(name: str) -> Any:
    number = types.float32 if name == "float32" else types.float64
    zero, arc_cosine = np.dtype(name).type(0), _arc_cosine(np.dtype(name))

    @cuda.jit
    def run(x, ix, dx, z, iz, dz, units, rows, cols, scales, readouts, radius, circular, near, sums, counts):  # type: ignore[no-untyped-def]
        sigma = cuda.shared.array(LARGEST, number)
        theta = cuda.shared.array(LARGEST, number)  # the simulator tells arrays apart by their lines
        unit, t = cuda.blockIdx.x, cuda.threadIdx.x
        height, width = x.shape[2], x.shape[3]
        a, b, y_shift, x_shift = units[unit, 0], units[unit, 1], units[unit, 2], units[unit, 3]
        live = t < height * width
        i, j = t // width, t % width
        i_other, j_other = (i - y_shift + height) % height, (j - x_shift + width) % width
        found = zero
        if live:
            for channel in range(x.shape[1]):
                found += x[a, channel, i, j] * z[b, channel, i_other, j_other]
        sigma[t], theta[t] = found, zero
        cuda.syncthreads()
        depth = len(readouts) - 1
        for h in range(1, depth + 1):
            new, old = zero, zero
            if live:
                for u in range(-radius, radius + 1):
                    for v in range(-radius, radius + 1):
                        inside = 0 <= i + u < height and 0 <= i_other + u < height
                        inside = inside and 0 <= j + v < width and 0 <= j_other + v < width
                        if inside or circular:
                            where = (i + u + height) % height * width + (j + v + width) % width
                            new += sigma[where]
                            old += theta[where]
            if h == 1:
                old = scales[0] * new
            cuda.syncthreads()
            degree_0, degree_1, share = zero, zero, zero
            if live:
                rho = new * ix[a, h - 1, i, j] * iz[b, h - 1, i_other, j_other]
                if h == 1 and rho > near:
                    cuda.atomic.add(counts, unit, 1)
                degree_0, degree_1 = arc_cosine(rho)
                degree_0 *= scales[depth + 1]
                degree_1 *= dx[a, h - 1, i, j] * dz[b, h - 1, i_other, j_other]
                share = rows[y_shift, i] * cols[x_shift, j]
            if readouts[h]:
                sigma[t], theta[t] = share * degree_1, share * degree_0 * old
                cuda.syncthreads()
                half = cuda.blockDim.x // 2
                while half > 0:
                    if t < half:
                        sigma[t] += sigma[t + half]
                        theta[t] += theta[t + half]
                    cuda.syncthreads()
                    half //= 2
                if t == 0:
                    sums[unit, h, 0], sums[unit, h, 1] = theta[0], sigma[0]
                cuda.syncthreads()
            sigma[t], theta[t] = degree_1, degree_0 * old + scales[h] * degree_1
            cuda.syncthreads()

    return run
