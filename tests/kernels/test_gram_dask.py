"""A kernel matrix on a Dask cluster of this machine, its workers killed while they compute."""

import os
import signal
import threading
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest

from tests.kernels.tracing import lines, numbered, traced
from thalweg.errors import ThalwegError
from thalweg.kernels import Gram
from thalweg.problem.intact import random_state_kept

pytest.importorskip("distributed", reason="the extra `dask` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_workers_are_killed_and_no_stored_tile_is_computed_again(tmp_path):
    import dask
    import distributed

    log, x = tmp_path / "log", numbered(100)
    gram = Gram(partial(traced, log=log, pause=0.05), x, folder=tmp_path / "gram", tile_size=5)
    rng, kills, done = np.random.default_rng(0), [], threading.Event()
    patience = {"distributed.scheduler.allowed-failures": 100}
    with (
        random_state_kept(),
        dask.config.set(patience),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):

        def kill():
            while len(kills) < 4 and not done.wait(rng.uniform(0.5, 2.0)):
                pids = [nanny.pid for nanny in cluster.workers.values() if nanny.pid is not None]
                if len(pids) < 2 or len(cluster.scheduler.workers) < 2:
                    continue  # Dask gives up a worker that dies while it starts
                stored = {path.name for path in gram.folder.glob("*.npy")}
                time.sleep(0.3)  # until the scheduler has heard that nobody wants these any more
                kills.append((len(lines(log)[0]), stored))
                os.kill(int(rng.choice(pids)), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        while True:
            try:
                gram.compute(client.get_executor())
                break
            except ThalwegError:
                continue
        done.set()
        killer.join()
    assert kills
    begun, _ = lines(log)
    names = {f"{t.rows[0]}-{t.columns[0]}": t.name for t in gram.tiles()}
    for before, stored in kills:
        assert not {names[tile] for tile in begun[before:]} & stored
    assert len(begun) - len(set(begun)) <= 4 * len(kills)
    assert max(Counter(begun).values()) <= 1 + len(kills)
    alone = Gram(partial(traced, log=tmp_path / "none"), x, folder=tmp_path / "alone", tile_size=5)
    alone.compute()
    assert np.array_equal(gram.matrix(), alone.matrix())


def test_a_cluster_without_workers_is_waited_for_with_a_warning(tmp_path, monkeypatch):
    import distributed

    monkeypatch.setattr("thalweg.kernels.workers._PATIENCE", 0.5)
    gram = Gram(partial(traced, log=tmp_path / "log"), numbered(10), folder=tmp_path / "gram", tile_size=5)
    with (
        random_state_kept(),
        distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        joins = threading.Timer(3, lambda: cluster.scale(1))
        joins.start()
        with pytest.warns(RuntimeWarning, match="the cluster has no workers: waiting") as said:
            gram.compute(client.get_executor())
        joins.join()
    assert sum("no workers" in str(warning.message) for warning in said) == 1
    assert gram.missing() == []
