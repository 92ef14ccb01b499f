"""Large tables: seconds a pass and memory from 100,000 ratings to ten million, and how both grow.

    python benchmarks/bench_completion_size.py
    python benchmarks/bench_completion_size.py --largest 1000000

Synthetic ratings: effects of users and films, rank 8, noise; as many rows and columns as tables of that
size have. A pass is one step of depth 2 with rank cap 16 in float32 on one thread: loss, gradient and
update over all entries. The first size is also fitted whole, centring, early stopping and the second
descent included. Each size runs in a process of its own, so that its peak memory is its own; the process
without data is taken off.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from thalweg.completion import DeepMatrixFactorization, Observations
from thalweg.completion.descent import descend
from thalweg.completion.factors import initial

SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
WIDTH, PASSES = 16, 5


def ratings(m: int) -> Observations:
    """Draw m ratings (a little fewer, since no pair comes twice) of users and films."""
    rng = np.random.default_rng(0)
    n1, n2 = int(50 * np.sqrt(m)) // 2, int(10 * np.sqrt(m)) // 2
    at = np.unique(rng.integers(0, n1 * n2, m))
    rows, columns = np.divmod(at, n2)
    left, right = rng.standard_normal((n1, 8)) * 0.4, rng.standard_normal((n2, 8)) * 0.4
    values = np.empty(len(at))
    for part in np.array_split(np.arange(len(at)), max(len(at) // 100_000, 1)):
        values[part] = np.einsum("mh,mh->m", left[rows[part]], right[columns[part]])
    values += rng.standard_normal(n1)[rows] * 0.5 + rng.standard_normal(n2)[columns] * 0.5
    values += 3.5 + 0.9 * rng.standard_normal(len(at))
    return Observations.from_triplets(rows, columns, values, (n1, n2))


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(m: int, whole: bool) -> dict[str, float]:
    """Time passes over m entries in this process."""
    tiny = ratings(2000)
    start = initial(tiny.shape, WIDTH, 2, scale=1e-3, start="balanced", seed=0, dtype="float32")
    descend(start, tiny, max_steps=PASSES)  # compiles
    bare = peak()
    entries = ratings(m)
    data = peak()
    unit = entries.with_values((entries.values - entries.values.mean()) / entries.values.std())
    start = initial(entries.shape, WIDTH, 2, scale=1e-3, start="balanced", seed=0, dtype="float32")
    taken = []
    for _ in range(3 if m <= SIZES[2] else 1):
        begun = time.process_time()
        descend(start, unit, max_steps=PASSES)
        longer = time.process_time() - begun
        begun = time.process_time()
        descend(start, unit, max_steps=2 * PASSES)
        taken.append((time.process_time() - begun - longer) / PASSES)  # without what is done once
    told: dict[str, float] = {
        "entries": len(entries),
        "seconds": float(np.median(taken)),
        "bytes": sum(a.nbytes for a in (entries.rows, entries.columns, entries.values)) / 2**20,
        "drawing": data - bare,
        "memory": peak() - bare,
    }
    if whole:
        begun = time.process_time()
        model = DeepMatrixFactorization(2, WIDTH, dtype="float32").fit(entries)
        told |= {"fit": time.process_time() - begun, "steps": model.descent_.num_steps + model.n_iter_}
        told["rmse"] = model.validation_rmse_
    return told


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure(options.size, options.size == SIZES[0])))
        return 0
    rows = []
    for m in (size for size in SIZES if size <= options.largest):
        command = [sys.executable, __file__, "--size", str(m)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        r = rows[-1]
        print(
            f"{r['entries']:12,.0f} entries   {1e3 * r['seconds']:9.1f} ms a pass, "
            f"{1e9 * r['seconds'] / r['entries']:5.1f} ns an entry   peak {r['memory']:7.0f} MB over the "
            f"bare process, {r['drawing']:.0f} MB of it to draw the data, which take {r['bytes']:.0f} MB",
            flush=True,
        )
        if "fit" in r:
            print(
                f"{'':12} a whole fit: {r['fit']:.1f} s, {r['steps']:.0f} steps, error {r['rmse']:.3f}",
                flush=True,
            )
    if len(rows) > 1:
        size = np.log([r["entries"] for r in rows])
        for what in ("seconds", "memory"):
            slope = np.polyfit(size, np.log([r[what] for r in rows]), 1)[0]
            print(f"{what} grow with the entries to the power {slope:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
