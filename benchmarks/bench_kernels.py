"""Infinite-width kernels: time a pair against neural-tangents, and the difference of the values.

    python benchmarks/bench_kernels.py --peer other-environment/bin/python
    python benchmarks/bench_kernels.py                                     # Thalweg alone

neural-tangents is archived and wants an environment of its own:

    python -m venv other-environment
    other-environment/bin/pip install jax==0.5.3 jaxlib==0.5.3 frozendict scipy
    other-environment/bin/pip install --no-deps neural_tangents==0.6.5
    # and in its __init__.py comment out the line `from . import experimental`, which wants TensorFlow

Both compute the kernel of the same float32 examples with themselves and take turns; nothing is counted but
the computation, after a first call that compiles. A ratio is the median over the rounds of the peer's time
against Thalweg's in the same round: per unique pair, of which the peer computes all but the diagonal twice.
It is given for the clock and for the time of all cores, which others on the machine disturb less. Values are
held against Thalweg's in float64. A ratio below its limit, by the clock, ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.kernels import cntk, ntk

Times = tuple[float, float]


@dataclass
class Job:
    """A kernel, the examples, and what the peer's values are to be multiplied by."""

    name: str
    title: str
    examples: np.ndarray
    kernel: Callable[..., np.ndarray]
    factor: float
    limit: float


def jobs(pairs: dict[str, int]) -> list[Job]:
    rng = np.random.default_rng(0)

    def images(n: int) -> np.ndarray:
        coarse = rng.normal(size=(n, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
        return (coarse + 0.5 * rng.normal(size=(n, 3, 32, 32))).astype(np.float32)

    vectors = rng.normal(size=(pairs["fully connected"], 64)).astype(np.float32)
    # neural-tangents divides the first layer by its fan-in and flattened features by the pixels.
    return [
        Job(
            *("gap", "CNTK, global average, depth 11, 32×32×3", images(pairs["gap"])),
            *(lambda x, **more: cntk(x, depth=11, trained="all", **more), 3 / 2, 100),
        ),
        Job(
            *("flatten", "CNTK, flatten, depth 11, 32×32×3", images(pairs["flatten"])),
            *(lambda x, **more: cntk(x, depth=11, readout="flatten", **more), 3 / 2 * 1024, 8),
        ),
        Job(
            *("fully connected", "NTK, 5 hidden layers, 64 dimensions", vectors),
            *(lambda x, **more: ntk(x, depth=6, **more), 64.0, 10),
        ),
    ]


class Peer:
    """neural-tangents in a process of its own."""

    def __init__(self, python: str, folder: str) -> None:
        script = Path(__file__).with_name("neural_tangents_peer.py")
        self.folder = Path(folder)
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self._answer()["versions"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the peer has ended; see above")
        return json.loads(line)

    def run(self, job: Job) -> tuple[Times, np.ndarray]:
        """Return seconds, seconds of all cores, and the kernel."""
        assert self.process.stdin is not None
        x, out = self.folder / "x.npy", self.folder / "out.npy"
        np.save(x, job.examples)
        print(
            json.dumps({"job": job.name, "x": str(x), "out": str(out)}), file=self.process.stdin, flush=True
        )
        return tuple(self._answer()["times"]), np.load(out).astype(np.float64) * job.factor


def timed(job: Job, **more: Any) -> tuple[Times, np.ndarray]:
    begun, used = time.perf_counter(), time.process_time()
    found = job.kernel(job.examples, **more)
    return (time.perf_counter() - begun, time.process_time() - used), found


def error(found: np.ndarray, exact: np.ndarray, *, own: bool) -> float:
    """The largest relative error, of examples with themselves or with others."""
    relative = np.abs(found / exact - 1)
    return float(np.diag(relative).max() if own else relative[~np.eye(len(exact), dtype=bool)].max())


def compare(job: Job, peer: Peer | None, rounds: int) -> bool:
    """Print what one kernel takes; return whether the ratio reaches its limit."""
    n = len(job.examples)
    unique = n * (n + 1) // 2
    timed(job)
    single: list[Times] = []
    double: list[Times] = []
    theirs: list[Times] = []
    values = None
    if peer:
        peer.run(job)
    for _ in range(rounds):
        single.append(timed(job)[0])
        double.append(timed(job, dtype=np.float64)[0])
        if peer:
            times, values = peer.run(job)
            theirs.append(times)
    exact = timed(job, dtype=np.float64)[1]
    print(f"\n{job.title}; {n:,} examples, {unique:,} unique pairs")
    heads = zip(
        ("µs a pair", "of cores", "ratio", "of cores", "error", "itself"), (12, 12, 9, 9, 10, 10), strict=True
    )
    print(" " * 28 + "".join(head.rjust(width) for head, width in heads))
    rows = [("thalweg, float32", single, timed(job)[1]), ("thalweg, float64", double, exact)]
    ratios = {}
    for name, times, found in [*rows, *([("neural-tangents, float32", theirs, values)] if peer else [])]:
        typical = [1e6 * statistics.median(t[k] for t in times) / unique for k in (0, 1)]
        ratio = [statistics.median(a[k] / b[k] for a, b in zip(times, single, strict=True)) for k in (0, 1)]
        errors = [error(found, exact, own=own) for own in (False, True)]
        print(
            f"{name:28}{typical[0]:12.3f}{typical[1]:12.3f}{ratio[0]:9.2f}{ratio[1]:9.2f}"
            f"{errors[0]:10.1e}{errors[1]:10.1e}",
            flush=True,
        )
        ratios[name] = ratio[0]
    if not peer:
        return True
    reached = ratios["neural-tangents, float32"] >= job.limit
    print(f"at least {job.limit:g} times as fast: {'held' if reached else 'missed'}")
    return reached


def flatness(rounds: int) -> None:
    """Print the time a pair of pixels and layer takes, for several depths and sizes."""
    rng = np.random.default_rng(1)
    print(
        "\nCNTK, global average, float32: ns a pair of pixels and layer on one thread (median of the rounds)"
    )
    for title, cases in (
        ("convolutions, 16×16", [(16, depth) for depth in (3, 5, 9, 13, 17, 21)]),
        ("pixels a side, 10 convolutions", [(side, 11) for side in (8, 12, 16, 20, 24, 28, 32)]),
    ):
        print(f"  {title}")
        found: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
        for _ in range(rounds):
            for side, depth in cases:
                n = max(2, 4 * (32 // side) ** 2)
                x, z = rng.normal(size=(2, n, 3, side, side)).astype(np.float32)
                cntk(x[:1], z[:1], depth=depth, threads=1)
                begun = time.process_time()
                cntk(x, z[:4], depth=depth, threads=1)
                took = time.process_time() - begun
                found[side, depth].append(1e9 * took / (4 * n * side**4 * (depth - 1)))
        for (side, depth), values in found.items():
            label = depth - 1 if title.startswith("convolutions") else side
            print(f"    {label:>4}{statistics.median(values):8.2f}   {min(values):.2f} to {max(values):.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="the interpreter of an environment with neural-tangents")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gap", type=int, default=3, help="examples of each kernel")
    parser.add_argument("--flatten", type=int, default=64)
    parser.add_argument("--fully-connected", type=int, default=4000)
    options = parser.parse_args()
    sizes = {"gap": options.gap, "flatten": options.flatten, "fully connected": options.fully_connected}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(options.peer, folder) if options.peer else None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(f"numpy {np.__version__}, {cores} cores{f'; {peer.versions}' if peer else ''}")
        held = [compare(job, peer, options.rounds) for job in jobs(sizes)]
    flatness(options.rounds)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
