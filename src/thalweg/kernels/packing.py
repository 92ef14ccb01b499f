"""Where everything lies in memory while tiles of pixel pairs run through the layers.

A tile holds the pixel pairs ((i, j), (i', j')) of two images whose offset is one shift (y, x), modulo the
last grid: i' = i − y, j' = j − x, going round. So it has a full grid of pairs for either padding; where
patches would reach over an edge of either image, reads and taps leave that out. Tiles of ``num_side`` shifts
x lie side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.kernels.lanes import BYTES
from thalweg.kernels.networks import Network

__all__ = ["Layout", "Plan", "aligned", "records"]

Ints = NDArray[np.int64]
Array = NDArray[Any]
ROW = 16  # rows begin on a whole vector of float32
TILE = 1024  # pixel pairs that leave half of the first cache to the images' records
MOST = 1600  # as many as it holds at all: worth it only for fuller vectors


class Layout(NamedTuple):
    """Where the maps of an image lie in its record, with so many tiles side by side."""

    num_side: int
    rows: Ints  # (L + 1,) rows of each grid, dead ones included
    cols: Ints  # (L + 1,) columns of one tile
    wide: Ints  # (L + 1,) elements from row to row
    inverse: Ints  # (L + 1,) where 1/σ of each grid begins; the image itself begins at 0
    deviation: Ints  # (L + 1,) where σ/(q√π) begins
    length: int


class Plan(NamedTuple):
    """What the kernel needs besides the images; the arrays of numbers are of the images' type."""

    num_side: int
    rows: Ints  # (L + 1,) as in the layout
    cols: Ints
    wide: Ints
    inverse: Ints
    deviation: Ints
    length: int
    channels: int
    radius: int
    circular: bool
    strides: Ints  # (L,)
    zooms: Ints  # (L + 1,)
    base: int  # where a field begins; before it lies a row of zeros
    size: int  # elements from field to field
    shifts: Ints  # (groups, num_side) the shifts x of each group of tiles
    sources: Ints  # (shifts y, …) the three rows that are read for each row of a grid, from grid 1 on
    source_at: Ints  # (L + 1,)
    patches: Ints  # (shifts y, …) all rows of a patch, of filters larger than 3
    patch_at: Ints  # (L + 1,)
    partners: Ints  # (shifts y, …) where the other image's row begins in a map, for each grid
    partner_at: Ints  # (L + 1,)
    taps: Array  # (groups, …) 1 or 0 for every column and tap
    tap_at: Ints  # (L + 1,)
    gathers: Ints  # (groups, …) where columns are read by convolutions with a stride, −1 for nowhere
    gather_at: Ints  # (L + 1,)
    row_weights: Array  # (shifts y, rows) of the readout
    col_weights: Array  # (groups, wide)
    scales: Array  # (L + 1,) s, and at last 1/(q²π)
    readouts: NDArray[np.bool_]  # (L + 1,) whether this grid is read out


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any], skew: int = 0) -> Array:
    """Return zeros that begin on a whole vector, ``skew`` bytes into a page."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(count + 8192, np.uint8)
    start = -raw.ctypes.data % 4096 + skew // BYTES * BYTES
    return raw[start : start + count].view(dtype).reshape(shape)


def _round_up(count: int) -> int:
    return -(-count // ROW) * ROW


def _skewed(count: int, dtype: np.dtype[Any]) -> int:
    """Round up so that fields begin a quarter page apart: loads wait for stores a whole page away."""
    page = 4096 // dtype.itemsize
    return -(-count // page) * page + page // 4


def layout(network: Network, channels: int, num_side: int) -> Layout:
    """Lay out a record with ``num_side`` copies of every row."""
    depth = network.num_convolutions + 1
    rooms = [network.room(h) for h in range(depth)]
    rows, cols = (np.array([room[axis] for room in rooms], np.int64) for axis in (0, 1))
    wide = np.array([_round_up(num_side * c) for c in cols], np.int64)
    sizes = rows * wide
    maps = np.cumsum(np.r_[channels * sizes[0], sizes[1:]])
    inverse = np.r_[0, maps[:-1]]
    total = int(maps[-1] - maps[0])
    deviation = np.r_[0, inverse[1:] + total]
    return Layout(num_side, rows, cols, wide, inverse, deviation, int(maps[-1]) + total)


def records(network: Network, images: Array, dtype: np.dtype[Any]) -> Array:
    """Return what the kernel reads of each image (n, length): pixels, and 1/σ and σ/(q√π) of every grid."""
    place = layout(network, images.shape[1], 1)
    found = aligned((len(images), place.length), dtype)

    def put(start: int, h: int, field: Array) -> None:
        height, width = field.shape[-2:]
        rows, wide = int(place.rows[h]), int(place.wide[h])
        into = found[:, start : start + rows * wide].reshape(len(images), rows, wide)
        into[:, :height, :width] = field

    step = int(place.rows[0] * place.wide[0])
    for c in range(images.shape[1]):
        put(c * step, 0, images[:, c])
    for h, variance in enumerate(network.variances(images.astype(np.float64)), 1):
        sigma = np.sqrt(variance)
        put(int(place.inverse[h]), h, np.divide(1, sigma, out=np.zeros_like(sigma), where=sigma > 0))
        put(int(place.deviation[h]), h, sigma / (network.filter_size * np.sqrt(np.pi)))
    return found


def plan(network: Network, channels: int, dtype: np.dtype[Any], readouts: tuple[int, ...]) -> Plan:
    """Prepare the tables of a network that is read out on the grids ``readouts``."""
    depth = network.num_convolutions
    (rows_of, cols_of) = (network.pooling(axis).T @ network.pooling(axis) for axis in (0, 1))
    y_shifts, row_weights = _weighted_shifts(rows_of)
    x_shifts, col_weights = _weighted_shifts(cols_of)
    num_side = _num_side(network, len(x_shifts))
    place = layout(network, channels, num_side)
    groups = x_shifts.reshape(-1, num_side)
    weights = np.zeros((len(groups), int(place.wide[-1])))
    weights[:, : num_side * cols_of.shape[0]] = col_weights.reshape(len(groups), -1)
    base = int(place.wide.max()) + _round_up(network.radius + ROW)
    rows = _row_tables(network, place, y_shifts, base)
    columns = _column_tables(network, place, groups)
    wanted = np.zeros(depth + 1, np.bool_)
    wanted[list(readouts)] = True
    scale = 1 / (network.filter_size**2 * np.pi)
    return Plan(
        **place._asdict(),
        channels=channels,
        radius=network.radius,
        circular=network.circular,
        strides=np.array(network.strides, np.int64),
        zooms=np.array([network.zoom(h) for h in range(depth + 1)], np.int64),
        base=base,
        size=_skewed(2 * base + int(place.rows[0] * place.wide[0]), dtype),
        shifts=np.ascontiguousarray(groups),
        sources=rows[0],
        source_at=rows[1],
        patches=rows[2],
        patch_at=rows[3],
        partners=rows[4],
        partner_at=rows[5],
        taps=columns[0].astype(dtype),
        tap_at=columns[1],
        gathers=columns[2],
        gather_at=columns[3],
        row_weights=row_weights.astype(dtype),
        col_weights=weights.astype(dtype),
        scales=np.array([*network.scales, scale], dtype),
        readouts=wanted,
    )


def _weighted_shifts(weights: Array) -> tuple[Ints, Array]:
    """Return the shifts s for which some pair (i, i − s) has a weight, and the weights (shifts, pixels)."""
    side = len(weights)
    i = np.arange(side)
    by_shift = np.array([weights[i, (i - s) % side] for s in range(side)])
    needed = np.flatnonzero(by_shift.any(axis=1))
    return needed, by_shift[needed]


def _num_side(network: Network, shifts: int) -> int:
    """Choose how many tiles lie side by side: as many as fill vectors best while they fit into the cache."""
    rows, cols = network.room(0)
    choices = [n for n in range(1, shifts + 1) if shifts % n == 0 and (n == 1 or n * rows * cols <= MOST)]
    return max(choices, key=lambda n: (n * cols / _round_up(n * cols), n * rows * cols <= TILE, n))


def _row_tables(
    network: Network, place: Layout, shifts: Ints, base: int
) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints]:
    """Where rows of patches are read (those outside: the zeros before the field), and the partners' rows."""
    depth, r = network.num_convolutions, network.radius
    empty = np.zeros((len(shifts), 0), np.int64)
    sources, patches, partners = [empty], [empty], [_partners(place, 0, shifts, network.zoom(0))]
    at = np.zeros((3, depth + 1), np.int64)
    known: dict[tuple[int, ...], int] = {}
    for h in range(1, depth + 1):
        rows, wide = int(place.rows[h]), int(place.wide[h])
        key = (rows, wide, network.strides[h - 1], network.grid(h - 1)[0], network.zoom(h))
        if key in known:  # a layer like one before reads the same rows
            at[:, h] = at[:, known[key]]
            continue
        known[key] = h
        at[:, h] = [sum(part.shape[1] for part in parts) for parts in (sources, patches, partners)]
        reads = _patch_rows(network, place, h, shifts, base)
        if r > 1:
            patches.append(reads.reshape(len(shifts), -1))
            reads = np.broadcast_to((np.arange(rows) * wide)[:, None], (len(shifts), rows, 1))
        three = np.full((len(shifts), rows, 3), -base)
        three[:, :, : reads.shape[2]] = reads
        sources.append(three.reshape(len(shifts), -1))
        partners.append(_partners(place, h, shifts, network.zoom(h)))
    tables = [np.concatenate(parts, 1) for parts in (sources, patches, partners)]
    return tables[0], at[0], tables[1], at[1], tables[2], at[2]


def _patch_rows(network: Network, place: Layout, h: int, shifts: Ints, base: int) -> Ints:
    """Return where the rows of each patch of grid h begin (shifts, rows, taps)."""
    rows, stride, live = int(place.rows[h]), network.strides[h - 1], network.grid(h - 1)[0]
    taps = np.arange(-network.radius, network.radius + 1)
    i = np.arange(rows)
    mine = np.asarray(stride * i[None, :, None] + taps)
    other = stride * ((i - shifts[:, None] * network.zoom(h)) % rows)[:, :, None] + taps
    inside = (mine >= 0) & (mine < live) & (other >= 0) & (other < live) | network.circular
    there = mine % int(place.rows[h - 1]) * int(place.wide[h])
    return np.asarray(np.where(inside, there, -base))


def _partners(place: Layout, h: int, shifts: Ints, zoom: int) -> Ints:
    rows = int(place.rows[h])
    return np.asarray((np.arange(rows) - shifts[:, None] * zoom) % rows * int(place.wide[h]))


def _column_tables(network: Network, place: Layout, groups: Ints) -> tuple[Array, Ints, Ints, Ints]:
    """Which taps each column has (stride 1), and where each column's taps are read (other strides)."""
    depth, r = network.num_convolutions, network.radius
    taps, gathers = [np.zeros((len(groups), 0))], [np.zeros((len(groups), 0), np.int64)]
    at = np.zeros((2, depth + 1), np.int64)
    sizes, known = [0, 0], dict[tuple[int, ...], int]()
    for h in range(1, depth + 1):
        cols, wide, stride, live = (
            int(place.cols[h]),
            int(place.wide[h]),
            network.strides[h - 1],
            network.grid(h - 1)[1],
        )
        which = 0 if stride == 1 else 1
        key = (cols, stride, live, network.zoom(h))
        at[which, h] = known.setdefault(key, sizes[which])
        if at[which, h] < sizes[which]:
            continue
        j = np.arange(cols)
        tap = np.array(
            [b * s for b in range(1, r + 1) for s in (-1, 1)] if stride == 1 else range(-r, r + 1), int
        )
        shift = groups[:, None, :, None] * network.zoom(h)  # (groups, taps, tiles, columns)
        mine = np.broadcast_to(
            (stride * j + tap[:, None])[None, :, None, :], (len(groups), len(tap), place.num_side, cols)
        )
        other = stride * ((j - shift) % cols) + tap[None, :, None, None]
        inside = (mine >= 0) & (mine < live)
        if not network.circular:
            inside = inside & (other >= 0) & (other < live)
        if stride == 1:
            mask = np.zeros((len(groups), len(tap), wide))
            mask[:, :, : place.num_side * cols] = inside.reshape(len(groups), len(tap), place.num_side * cols)
            taps.append(mask.reshape(len(groups), -1))
        else:
            fine = int(place.cols[h - 1])
            where = np.arange(place.num_side)[:, None] * fine + mine % fine
            where = np.where(inside | network.circular, where, -1)
            gathers.append(where.reshape(len(groups), -1))
        sizes[which] += (taps if stride == 1 else gathers)[-1].shape[1]
    return np.concatenate(taps, 1), at[0], np.concatenate(gathers, 1), at[1]
