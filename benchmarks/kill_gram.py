"""A kernel matrix of 2,000 CIFAR images, killed 50 times and resumed, against the undisturbed one.

    python benchmarks/kill_gram.py ../shared/data/cifar10_subset.npz          # SIGKILL of all
    python benchmarks/kill_gram.py ../shared/data/cifar10_subset.npz --dask   # of Dask's workers

The convolutional kernel with flatten, in tiles of 64 × 64. A run works in a process group with two workers;
after a random time the whole group gets SIGKILL, or, with --dask, one of two workers of a cluster on this
machine does while the run goes on. The kernel writes down each tile that it begins. What is checked:

- no tile whose file was there is begun again; tiles begun twice were in flight when something was killed;
- the matrix at the end is bit for bit that of a run which nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import ThalwegError
from thalweg.kernels import Gram, cntk

TILE = 64


def traced(x: NDArray[Any], z: NDArray[Any] | None = None, *, log: str, depth: int) -> NDArray[Any]:
    """Compute the kernel; write down first which images it is of, by the first of each block."""
    line = f"{digest(x)}-{digest(x if z is None else z)}\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)
    return cntk(x, z, depth=depth, readout="flatten")


def digest(x: NDArray[Any]) -> str:
    return hashlib.sha256(x[0].tobytes()).hexdigest()[:16]


def images(path: Path, count: int) -> NDArray[np.float32]:
    stored = np.load(path, allow_pickle=False)
    x = stored["x_train"][:count].astype(np.float32) / 255
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def gram(x: NDArray[np.float32], folder: Path, log: Path, depth: int) -> Gram:
    return Gram(partial(traced, log=str(log), depth=depth), x, folder=folder, tile_size=TILE)


def work(x: NDArray[np.float32], folder: Path, log: Path, depth: int) -> None:
    os.setsid()
    with ProcessPoolExecutor(2) as pool:
        gram(x, folder, log, depth).compute(pool)


def names(x: NDArray[np.float32], found: Gram) -> dict[str, str]:
    """Return the file of each line of the log."""
    return {f"{digest(x[t.rows[0] :])}-{digest(x[t.columns[0] :])}": t.name for t in found.tiles()}


def kill_the_process(
    x: Any, folder: Path, log: Path, depth: int, kills: int, expected: float
) -> tuple[int, int]:
    """Kill and resume; return how often tiles were begun and the kills that met a run at work."""
    rng, met, whole = random.Random(0), 0, gram(x, folder, log, depth)
    file_of, count = names(x, whole), len(whole.tiles())
    while met < kills:
        stored = {path.name for path in folder.glob("*.npy")}
        before = len(begun(log))
        process = multiprocessing.get_context("fork").Process(target=work, args=(x, folder, log, depth))
        process.start()
        # After so many tiles that the kills fall all over the matrix, and a fraction of a tile more; one time
        # in five already while the run starts and looks at what is there.
        share = 0 if rng.random() < 0.2 else rng.uniform(0, 2 * (count - len(stored)) / (kills - met + 1))
        while process.is_alive() and len(begun(log)) < before + share:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 2 * expected / count))
        if process.is_alive():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # so early that it had no group yet
                process.kill()
            met += 1
        process.join()
        again = {file_of[line] for line in begun(log)[before:]} & stored
        assert not again, f"begun although they were there: {again}"
        there = len(list(folder.glob("*.npy")))
        print(f"kill {met}: {there} tiles there", flush=True)
        if there == count:
            break
    last = multiprocessing.get_context("fork").Process(target=work, args=(x, folder, log, depth))
    last.start()
    last.join()
    return len(begun(log)), met


def kill_workers(x: Any, folder: Path, log: Path, depth: int, kills: int, expected: float) -> tuple[int, int]:
    """Kill workers of a Dask cluster while it computes."""
    import dask
    from distributed import Client, LocalCluster

    rng, met, done = random.Random(0), [0], threading.Event()
    # A task that was about when a worker died is a suspect to Dask, and fails after three; here all do.
    dask.config.set(
        {"distributed.scheduler.allowed-failures": 1000, "distributed.logging.distributed": "error"}
    )
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def at_work() -> dict[str, int]:
            """The workers that the scheduler knows and whose processes live: address and process."""
            nannies = {nanny.worker_address: nanny.pid for nanny in cluster.workers.values()}
            known = set(cluster.scheduler.workers)
            return {address: pid for address, pid in nannies.items() if address in known and pid is not None}

        def assassin() -> None:
            dead: set[str] = set()
            while met[0] < kills and not done.wait(rng.uniform(0, 2 * expected / kills)):
                alive = at_work()
                # Both, and no corpse that the scheduler has not noticed: Dask gives up one that dies at its
                # start.
                if len(alive) == 2 and not dead & set(cluster.scheduler.workers):
                    victim = rng.choice(sorted(alive))
                    os.kill(alive[victim], signal.SIGKILL)
                    dead.add(victim)
                    met[0] += 1

        killer = threading.Thread(target=assassin)
        killer.start()
        try:
            while True:
                try:
                    gram(x, folder, log, depth).compute(client.get_executor())
                    break
                except ThalwegError as error:
                    print(f"goes on after: {error}", flush=True)
        finally:
            done.set()
            killer.join()
        print(f"complete after {met[0]} killed workers, {len(begun(log))} tiles begun", flush=True)
    return len(begun(log)), met[0]


def begun(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--depth", type=int, default=11)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--dask", action="store_true")
    arguments = parser.parse_args()
    x = images(arguments.cifar, arguments.images)
    with tempfile.TemporaryDirectory() as place:
        folder, log = Path(place) / "gram", Path(place) / "log"
        cntk(x[:2], depth=arguments.depth, readout="flatten")  # compile once, before the processes part
        clock = time.perf_counter()
        alone = gram(x, Path(place) / "alone", Path(place) / "log-alone", arguments.depth)
        with ProcessPoolExecutor(2) as pool:
            alone.compute(pool)
        expected = time.perf_counter() - clock
        count = len(alone.tiles())
        print(f"undisturbed: {count} tiles of {arguments.images} images in {expected:.1f} s", flush=True)
        attack = kill_workers if arguments.dask else kill_the_process
        clock = time.perf_counter()
        total, met = attack(x, folder, log, arguments.depth, arguments.kills, expected)
        seconds = time.perf_counter() - clock
        there = gram(x, folder, log, arguments.depth)
        assert there.missing() == []
        same = np.array_equal(there.matrix(), alone.matrix())
        most = Counter(begun(log)).most_common(1)[0][1]
        print(
            f"{met} kills met work in progress; {count} tiles, begun {total} times in all, one at most "
            f"{most} times: {total - count} were lost in flight, {(total - count) / max(met, 1):.2f} a kill\n"
            f"bitwise equal to the undisturbed matrix: {same}; {seconds:.0f} s"
        )
        limit = 4 * max(met, 1)  # two workers, each with a tile in hand and one on its way
        sys.exit(0 if same and total - count <= limit else 1)


if __name__ == "__main__":
    main()
