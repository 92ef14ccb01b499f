"""Many pairs of images on many threads.

Threads of Python run compiled code that releases the interpreter's lock. Numba's own ``prange`` would abort
the process where two threads of a caller's executor, or a child forked after it, use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.kernels.networks import Network
from thalweg.kernels.packing import Plan, aligned, plan, records
from thalweg.kernels.tiles import run_tiles

__all__ = ["evaluate", "pairs_in_blocks"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

STRIP = 256  # images whose records are held at once, of either side
ROUND = 4096  # pairs between two reports
BLOCK = 4  # images of either side whose records stay in the second cache
JOB = 5e-3  # seconds of one job, so that threads end together and an interrupt is heard soon
PACE = 2e-9  # seconds a pair of pixels and layer


def evaluate(
    network: Network,
    left: Array,
    right: Array,
    symmetric: bool,
    grids: list[int],
    dtype: np.dtype[Any],
    threads: int,
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Yield pairs i, j (k,) and their sums (k, L + 1, 2): on each of ``grids`` the readouts of Θ∘κ₀/q² and Σ.

    Args:
        network: what to evaluate.
        left: images (n, channels, height, width), about as large as 1.
        right: images (m, channels, height, width).
        symmetric: leave out pairs with i > j.
        grids: where to read out.
        dtype: float32 or float64.
        threads: how many to run; results do not depend on it.
    """
    tables = plan(network, left.shape[1], dtype, tuple(grids))
    with ThreadPoolExecutor(threads) as pool:
        for a in range(0, len(left), STRIP):
            some = left[a : a + STRIP]
            mine = records(network, some, dtype)
            for b in range(a if symmetric else 0, len(right), STRIP):
                others = right[b : b + STRIP]
                same = left is right and a == b
                theirs = mine if same else records(network, others, dtype)
                strips = _Strips(network, tables, some, some if same else others, mine, theirs)
                i, j = pairs_in_blocks(len(some), len(others), symmetric and a == b)
                for start in range(0, len(i), ROUND):
                    part = slice(start, start + ROUND)
                    yield i[part] + a, j[part] + b, _round(strips, i[part], j[part], pool, threads)


def pairs_in_blocks(n: int, m: int, symmetric: bool) -> tuple[Ints, Ints]:
    """Return all pairs, those of a few images one after another."""
    i, j = np.divmod(np.arange(n * m), max(m, 1))
    if symmetric:
        i, j = i[i <= j], j[i <= j]
    order = np.lexsort((j, i, j // BLOCK, i // BLOCK))
    return i[order], j[order]


class _Strips:
    """Images of both sides with their records in the precision that is wanted, and in float64 on demand."""

    def __init__(self, network: Network, tables: Plan, some: Array, others: Array, mine: Array, their: Array):
        self.network, self.tables, self.images, self.records = network, tables, (some, others), (mine, their)

    @cached_property
    def exact(self) -> tuple[Plan, Array, Array]:
        """The tables and both sides' records in float64."""
        double = np.dtype(np.float64)
        grids = tuple(np.flatnonzero(self.tables.readouts).tolist())
        tables = plan(self.network, self.images[0].shape[1], double, grids)
        mine = records(self.network, self.images[0], double)
        same = self.images[0] is self.images[1]
        return tables, mine, mine if same else records(self.network, self.images[1], double)

    def run(self, units: Ints) -> Floats:
        """Return the sums of units (k, 3) of pair and group of tiles."""
        wanted = np.ones((len(units), len(self.tables.sources)), np.bool_)
        sums = np.zeros((len(units), len(self.tables.rows), 2))
        if _run(self.tables, units, wanted, *self.records, sums):
            rest = np.flatnonzero(wanted.any(axis=1))
            more = np.zeros((len(rest), *sums.shape[1:]))
            tables, mine, their = self.exact
            _run(tables, units[rest], wanted[rest], mine, their, more)
            sums[rest] += more
        return sums


def _run(tables: Plan, units: Ints, wanted: Array, mine: Array, their: Array, sums: Floats) -> int:
    work = aligned((4 * tables.size,), mine.dtype)
    room = aligned((1 + BLOCK, tables.length), mine.dtype)
    return int(run_tiles(tables, units, wanted, mine, their, work, room, sums))


def _round(strips: _Strips, i: Ints, j: Ints, pool: ThreadPoolExecutor, threads: int) -> Floats:
    """Run the pairs in jobs of about the same time, and add up what the groups of each pair found."""
    tables = strips.tables
    groups = len(tables.shifts)
    pair, group = np.divmod(np.arange(len(i) * groups), groups)
    # group by group within each block of images, so that what is laid out for a group serves several pairs
    order = np.lexsort((pair, group, j[pair] // BLOCK, i[pair] // BLOCK))
    units = np.stack((i[pair], j[pair], group), axis=1)[order]
    tiles = len(tables.sources) * tables.num_side
    cost = PACE * tiles * float(tables.rows[1:] @ tables.cols[1:])
    step = max(1, min(int(JOB / cost), -(-len(units) // threads)))
    jobs = [units[k : k + step] for k in range(0, len(units), step)]
    found = pool.map(strips.run, jobs) if threads > 1 and len(jobs) > 1 else map(strips.run, jobs)
    try:
        ordered = np.concatenate(list(found))
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    sums = np.empty_like(ordered)
    sums[order] = ordered
    return np.asarray(sums.reshape(len(i), groups, -1, 2).sum(axis=1))
