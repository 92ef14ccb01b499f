# mypy: allow-untyped-decorators
"""Tiles of pixel pairs through all layers of a convolutional network, without leaving the first cache.

A stride-1 convolution sums pairs of pixels with the same offset, a ReLU acts on each pair alone, so every
offset evolves by itself. On a tile (see `thalweg.kernels.packing`) live two fields, the covariance Σ and the
tangent kernel Θ. Each layer is two sweeps: across (`_across`: sums along the rows) and down (`_activate`: the
rest of the patch sum, then the arc-cosine kernels). Equations: [arora2019], section 4.

The functions release the interpreter's lock and share nothing, so that any threads may run them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from thalweg.kernels.arc_cosine import arc_cosine, count_above
from thalweg.kernels.lanes import fma, lanes_of, load, spread, store, total
from thalweg.kernels.packing import ROW, Plan

__all__ = ["run_tiles"]

Array = Any
# Correlations above 1 − NEAR lose digits in float32. A tile with more of them than one in FEW is refused.
NEAR = 1e-5
FEW = 256

# Numba's cache of compiled code sees changes of this file only: after one of lanes.py, touch it.
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def run_tiles(
    plan: Plan, units: Array, wanted: Array, left: Array, right: Array, work: Array, room: Array, sums: Array
) -> int:
    """Add up the readouts of all tiles of ``units``; return how many tiles were refused.

    Args:
        plan: the tables.
        units: (k, 3) for each the image of ``left``, the image of ``right``, and the group of shifts x.
        wanted: (k, shifts y) which tiles to compute; those refused become true, all others false.
        left: records of images, (n, length).
        right: records of images, (m, length).
        work: (4·size,) zeros, room for four fields.
        room: (1 + k, length) zeros, room for a record of ``left`` and some of ``right``.
        sums: (k, L + 1, 2) takes, for each grid that is read out, Θ∘κ₀/q² and Σ there.
    """
    slots, last_i, refused = len(room) - 1, -1, 0
    last = np.full((slots, 2), -1)
    for u in range(len(units)):
        i, j, group = units[u, 0], units[u, 1], units[u, 2]
        x, z = left[i], right[j]
        if plan.num_side > 1:
            if i != last_i:
                _lay(plan, x, room[0], group, False)
            x = room[0]
        if plan.num_side > 1 or plan.shifts[group, 0] != 0:
            slot = j % slots
            if j != last[slot, 0] or group != last[slot, 1]:
                _lay(plan, z, room[1 + slot], group, True)
                last[slot, 0], last[slot, 1] = j, group
            z = room[1 + slot]
        last_i = i
        for y in range(wanted.shape[1]):
            if wanted[u, y]:
                near = _tile(plan, x, z, y, group, work, sums[u])
                wanted[u, y] = near
                refused += near
    return refused


@compiled
def _lay(plan: Plan, record: Array, into: Array, group: int, shifted: bool) -> None:
    """Copy an image's record, once for each tile side by side, columns moved round by the tile's shift."""
    start_from, start_to = 0, 0
    rows_of, cols_of, wide_of, zooms, shifts = plan.rows, plan.cols, plan.wide, plan.zooms, plan.shifts[group]
    depth = len(rows_of) - 1
    for block in range(plan.channels + 2 * depth):
        h = 0 if block < plan.channels else (block - plan.channels) % depth + 1
        cols, wide = cols_of[h], wide_of[h]
        narrow = -(-cols // ROW) * ROW
        for t in range(len(shifts)):
            shift = shifts[t] * zooms[h] % cols if shifted else 0
            for row in range(rows_of[h]):
                to, source = start_to + row * wide + t * cols, start_from + row * narrow
                for j in range(shift):
                    into[to + j] = record[source + cols - shift + j]
                for j in range(shift, cols):
                    into[to + j] = record[source + j - shift]
        start_from += rows_of[h] * narrow
        start_to += rows_of[h] * wide


@compiled
def _tile(plan: Plan, x: Array, z: Array, y: int, group: int, work: Array, sums: Array) -> bool:
    """Run one tile through the layers; return whether it was refused for correlations too near 1.

    Arrays are taken out of the plan here, once: to hand on a plan costs more than a layer.
    """
    rows_of, wide_of, cols_of, strides = plan.rows, plan.wide, plan.cols, plan.strides
    inverse_at, deviation_at, scales, readouts = plan.inverse, plan.deviation, plan.scales, plan.readouts
    sources, patches, partners = plan.sources[y], plan.patches[y], plan.partners[y]
    source_at, patch_at, partner_at = plan.source_at, plan.patch_at, plan.partner_at
    taps, gathers, tap_at, gather_at = plan.taps[group], plan.gathers[group], plan.tap_at, plan.gather_at
    row_weights, col_weights = plan.row_weights[y], plan.col_weights[group]
    radius, num_side, scale, depth = plan.radius, plan.num_side, scales[-1], len(rows_of) - 1
    size, sigma, theta = plan.size, plan.base, plan.base + plan.size
    across_sigma, across_theta = theta + size, theta + 2 * size
    _products(x, z, partners, plan.channels, rows_of[0], wide_of[0], work, sigma)
    for h in range(1, depth + 1):
        rows, wide, fine_rows = rows_of[h], wide_of[h], rows_of[h - 1]
        for field in range(1 if h == 1 else 2):
            start, to = sigma + field * size, across_sigma + field * size
            if strides[h - 1] > 1:
                _across_strided(
                    *(work, start, to, gathers, gather_at[h], num_side * cols_of[h], 2 * radius + 1),
                    *(fine_rows, wide_of[h - 1], wide),
                )
            elif radius == 1:
                _across_three(work, start, to, taps, tap_at[h], fine_rows, wide)
            else:
                _across_many(work, start, to, taps, tap_at[h], radius, fine_rows, wide)
            if plan.circular and strides[h - 1] == 1:
                _across_edges(work, start, to, radius, fine_rows, wide, num_side, cols_of[h])
        if h == 1:
            _scale(work, across_sigma, across_theta, scales[0], fine_rows * wide)
        from_sigma = across_sigma
        if radius > 1:
            from_sigma = sigma
            _down(work, across_sigma, sigma, patches, patch_at[h], 2 * radius + 1, rows, wide)
            _down(work, across_theta, theta, patches, patch_at[h], 2 * radius + 1, rows, wide)
        source, partner, inverse, deviation = source_at[h], partner_at[h], inverse_at[h], deviation_at[h]
        if h == 1 and x.itemsize == 4:
            near = _num_near(
                *(x, z, work, from_sigma, sources, source, partners, partner, inverse, rows, wide)
            )
            if near * FEW > rows * cols_of[h] * num_side:
                return True
        if readouts[h]:
            new_theta, new_sigma = _read_out(
                *(x, z, work, from_sigma, size, sources, source, partners, partner, inverse, deviation),
                *(rows, wide, scale, row_weights, col_weights),
            )
            sums[h, 0] += new_theta
            sums[h, 1] += new_sigma
        if h < depth:
            _activate(
                *(x, z, work, from_sigma, size, sources, source, partners, partner, inverse, deviation),
                *(rows, wide, scale, scales[h], sigma),
            )
    return False


@compiled
def _products(
    x: Array, z: Array, partners: Array, channels: int, rows: int, wide: int, work: Array, to: int
) -> None:
    """Sum the products of the pixels over the channels."""
    for i in range(rows):
        mine, other = i * wide, partners[i]
        for v in range(0, wide, lanes_of(x)):
            found = load(x, mine + v) * load(z, other + v)
            for channel in range(1, channels):
                start = channel * rows * wide + v
                found = fma(load(x, start + mine), load(z, start + other), found)
            store(work, to + mine + v, found)


@compiled
def _across_three(work: Array, start: int, to: int, taps: Array, at: int, rows: int, wide: int) -> None:
    """Sum each row over the columns of patches of 3."""
    for row in range(0, rows * wide, wide):
        for v in range(0, wide, lanes_of(work)):
            k = start + row + v
            found = fma(load(taps, at + v), load(work, k - 1), load(work, k))
            store(work, to + row + v, fma(load(taps, at + wide + v), load(work, k + 1), found))


@compiled
def _across_many(
    work: Array, start: int, to: int, taps: Array, at: int, radius: int, rows: int, wide: int
) -> None:
    """Sum each row over the columns of patches of any size."""
    for row in range(0, rows * wide, wide):
        for v in range(0, wide, lanes_of(work)):
            k = start + row + v
            found = load(work, k)
            for b in range(1, radius + 1):
                tap = at + 2 * (b - 1) * wide + v
                found = fma(load(taps, tap), load(work, k - b), found)
                found = fma(load(taps, tap + wide), load(work, k + b), found)
            store(work, to + row + v, found)


@compiled
def _across_edges(
    work: Array, start: int, to: int, radius: int, rows: int, wide: int, num_side: int, cols: int
) -> None:
    """Add what the patches of circular images reach over the edge of each tile."""
    for row in range(0, rows * wide, wide):
        for first in range(row, row + num_side * cols, cols):
            for b in range(1, radius + 1):
                for c in range(b):
                    work[to + first + c] += work[start + first + c - b + cols]
                    work[to + first + cols - 1 - c] += work[start + first + b - 1 - c]


@compiled
def _across_strided(
    work: Array,
    start: int,
    to: int,
    gathers: Array,
    at: int,
    columns: int,
    taps: int,
    rows: int,
    wide_from: int,
    wide_to: int,
) -> None:
    """Sum each row over the columns of patches that stand a stride apart."""
    for i in range(rows):
        for j in range(columns):
            found = work[start] - work[start]
            for b in range(taps):
                where = gathers[at + b * columns + j]
                if where >= 0:
                    found += work[start + i * wide_from + where]
            work[to + i * wide_to + j] = found


@compiled
def _scale(work: Array, start: int, to: int, factor: Any, size: int) -> None:
    factors = spread(factor)
    for v in range(0, size, lanes_of(work)):
        store(work, to + v, load(work, start + v) * factors)


@compiled
def _down(work: Array, start: int, to: int, patches: Array, at: int, taps: int, rows: int, wide: int) -> None:
    """Sum rows of row sums into patch sums: what `_three_rows` does for filters of 3."""
    for i in range(rows):
        first = at + taps * i
        for v in range(0, wide, lanes_of(work)):
            found = load(work, start + patches[first] + v)
            for a in range(1, taps):
                found += load(work, start + patches[first + a] + v)
            store(work, to + i * wide + v, found)


@compiled
def _three_rows(work: Array, first: int, second: int, third: int) -> Any:
    """Sum three rows of row sums into patch sums, a vector of each."""
    return load(work, first) + load(work, second) + load(work, third)


@compiled
def _num_near(
    x: Array,
    z: Array,
    work: Array,
    start: int,
    sources: Array,
    at: int,
    partners: Array,
    partner: int,
    inverse: int,
    rows: int,
    wide: int,
) -> int:
    """Count the pairs of the first convolution's outputs that are all but equal."""
    limit = x.dtype.type(1 - NEAR)
    near = 0
    for i in range(rows):
        mine, other = inverse + i * wide, inverse + partners[partner + i]
        first, second = start + sources[at + 3 * i], start + sources[at + 3 * i + 1]
        third = start + sources[at + 3 * i + 2]
        for v in range(0, wide, lanes_of(x)):
            found = _three_rows(work, first + v, second + v, third + v)
            near += count_above(found * load(x, mine + v) * load(z, other + v), limit)
    return near


@compiled
def _through_relu(
    x: Array,
    z: Array,
    work: Array,
    size: int,
    first: int,
    second: int,
    third: int,
    mine: int,
    other: int,
    inverse: int,
    deviation: int,
) -> Any:
    """Return κ₀, κ₁ σσ' and the patch sums of Θ for a vector of pixel pairs."""
    rho = _three_rows(work, first, second, third)
    rho = rho * load(x, inverse + mine) * load(z, inverse + other)
    degree_0, degree_1 = arc_cosine(rho)
    new = load(x, deviation + mine) * load(z, deviation + other) * degree_1
    return degree_0, new, _three_rows(work, size + first, size + second, size + third)


@compiled
def _activate(
    x: Array,
    z: Array,
    work: Array,
    start: int,
    size: int,
    sources: Array,
    at: int,
    partners: Array,
    partner: int,
    inverse: int,
    deviation: int,
    rows: int,
    wide: int,
    scale: Any,
    weight: Any,
    to: int,
) -> None:
    """Apply a ReLU: Σ ← κ₁ σσ'/q², Θ ← κ₀ Θ/q² + s Σ, of the patch sums."""
    scales, weights = spread(scale), spread(weight)
    for i in range(rows):
        mine, other = i * wide, partners[partner + i]
        first, second = start + sources[at + 3 * i], start + sources[at + 3 * i + 1]
        third = start + sources[at + 3 * i + 2]
        for v in range(0, wide, lanes_of(x)):
            degree_0, new, old = _through_relu(
                x, z, work, size, first + v, second + v, third + v, mine + v, other + v, inverse, deviation
            )
            store(work, to + mine + v, new)
            store(work, to + size + mine + v, fma(degree_0 * scales, old, weights * new))


@compiled
def _read_out(
    x: Array,
    z: Array,
    work: Array,
    start: int,
    size: int,
    sources: Array,
    at: int,
    partners: Array,
    partner: int,
    inverse: int,
    deviation: int,
    rows: int,
    wide: int,
    scale: Any,
    row_weights: Array,
    col_weights: Array,
) -> tuple[float, float]:
    """Apply a ReLU and add up, with the readout's weights, κ₀Θ/q² and κ₁σσ'/q²."""
    scales = spread(scale)
    sum_theta, sum_sigma = scales - scales, scales - scales
    for i in range(rows):
        row_weight = spread(row_weights[i])
        mine, other = i * wide, partners[partner + i]
        first, second = start + sources[at + 3 * i], start + sources[at + 3 * i + 1]
        third = start + sources[at + 3 * i + 2]
        for v in range(0, wide, lanes_of(x)):
            degree_0, new, old = _through_relu(
                x, z, work, size, first + v, second + v, third + v, mine + v, other + v, inverse, deviation
            )
            share = row_weight * load(col_weights, v)
            sum_theta = fma(share * degree_0, scales * old, sum_theta)
            sum_sigma = fma(share, new, sum_sigma)
    return total(sum_theta), total(sum_sigma)
