"""Kernel matrices in tiles: whole after any interruption, and never of something else."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF

import thalweg.kernels.room as room
import thalweg.kernels.tile_files as tiles
from tests.kernels.tracing import dies, lines, nan_for_seven, numbered, traced, wrong_shape
from tests.selection import some
from thalweg.errors import InputError, NumericalError, ThalwegError
from thalweg.kernels import Gram, convolutional, ntk
from thalweg.kernels.identity import _sources, describe_kernel
from thalweg.kernels.tile_files import DamagedTileError

KERNEL = partial(ntk, depth=3)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def x():
    return numbered(23)


@pytest.mark.parametrize("tile_size", [1, 22, 23, 24])
def test_the_matrix_is_that_of_the_kernel_whatever_the_tiles(x, tile_size, tmp_path):
    gram = Gram(KERNEL, x, folder=tmp_path / "gram", tile_size=tile_size)
    gram.compute()
    assert np.allclose(gram.matrix(), KERNEL(x), rtol=1e-13, atol=0)
    assert np.array_equal(gram.matrix(), gram.matrix().T)


def test_a_rectangular_one_too(x, tmp_path):
    gram = Gram(KERNEL, x, x[:5], folder=tmp_path, tile_size=7)
    assert gram.compute().tiles == 4
    assert np.allclose(gram.matrix(), KERNEL(x, x[:5]), rtol=1e-13, atol=0)


def test_a_symmetric_one_computes_its_upper_half_only(x, tmp_path):
    log = tmp_path / "log"
    Gram(partial(traced, log=log), x, folder=tmp_path / "gram", tile_size=5).compute()
    begun, done = lines(log)
    assert sorted(begun) == sorted(done) == sorted(f"{5 * i}-{5 * j}" for i in range(5) for j in range(i, 5))


def test_what_is_there_is_not_computed_again(x, tmp_path):
    log = tmp_path / "log"
    kernel = partial(traced, log=log)
    first = Gram(kernel, x, folder=tmp_path / "gram", tile_size=5).compute()
    second = Gram(kernel, x.copy(), folder=tmp_path / "gram", tile_size=5).compute()
    assert (first.found, first.computed) == (0, 15)
    assert (second.found, second.computed, second.damaged) == (15, 0, 0)
    assert len(lines(log)[0]) == 15


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_pools_compute_the_same_bits(x, pool, tmp_path):
    alone = Gram(KERNEL, x, folder=tmp_path / "alone", tile_size=5)
    alone.compute()
    together = Gram(KERNEL, x, folder=tmp_path / "together", tile_size=5)
    with pool(2) as executor:
        together.compute(executor)
    assert np.array_equal(alone.matrix(), together.matrix())


def test_progress_tells_entries_and_starts_where_the_last_run_ended(x, tmp_path):
    class Told:
        seen = ()

        def phase(self, label):
            pass

        def advance(self, done, total):
            self.seen = (*self.seen, (done, total))

    gram = Gram(KERNEL, x, folder=tmp_path, tile_size=20)
    told = Told()
    gram.compute(progress=told)
    assert told.seen == ((0, 469), (400, 469), (460, 469), (469, 469))
    (tmp_path / "00000-00001.npy").unlink()
    told = Told()
    gram.compute(progress=told)
    assert told.seen == ((409, 469), (469, 469))


class TestDamage:
    @pytest.fixture
    def gram(self, x, tmp_path):
        gram = Gram(KERNEL, x, folder=tmp_path, tile_size=10)
        gram.compute()
        return gram

    def spoil(self, gram, change):
        path = gram.folder / "00000-00001.npy"
        path.write_bytes(change(path.read_bytes()))

    @pytest.mark.parametrize(
        "change",
        [
            lambda b: b[:-1],
            lambda b: b"",
            lambda b: b + b"\0",
            lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:],
            lambda b: b[:-33] + bytes([b[-33] ^ 1]) + b[-32:],
        ],
        ids=["cut short", "empty", "longer", "a bit of the values", "a bit of the fingerprint"],
    )
    def test_is_seen_and_mended(self, gram, change):
        whole = gram.matrix()
        self.spoil(gram, change)
        with pytest.raises(DamagedTileError, match="compute again"):
            gram.matrix()
        run = gram.compute()
        assert (run.damaged, run.computed) == (1, 1)
        assert "failed their checksum" in str(run)
        assert np.array_equal(gram.matrix(), whole)

    def test_a_tile_from_elsewhere_is_seen(self, gram, x, tmp_path):
        other = Gram(KERNEL, 2 * x, folder=tmp_path / "other", tile_size=10)
        other.compute()
        content = (other.folder / "00000-00001.npy").read_bytes()
        self.spoil(gram, lambda b: content)
        with pytest.raises(DamagedTileError, match="belongs to another matrix"):
            gram.matrix()

    def test_a_tile_in_the_place_of_another_is_seen(self, gram):
        content = (gram.folder / "00000-00002.npy").read_bytes()
        self.spoil(gram, lambda b: content)
        with pytest.raises(DamagedTileError):
            gram.matrix()

    def test_numpy_reads_a_tile_without_pickle(self, gram, x):
        tile = np.load(gram.folder / "00000-00001.npy", allow_pickle=False)
        assert np.allclose(tile, KERNEL(x[:10], x[10:20]))

    def test_drafts_of_a_killed_run_are_swept(self, gram):
        (gram.folder / ".00000-00001.npy.abc.draft").write_bytes(b"half")
        gram.compute()
        assert list(gram.folder.glob(".*.draft")) == []


class TestIdentity:
    @pytest.mark.parametrize(
        ("other", "said"),
        [
            (lambda x, f: Gram(KERNEL, x + 1, folder=f), "x "),
            (lambda x, f: Gram(KERNEL, x.astype(np.float32), folder=f), "x "),
            (lambda x, f: Gram(partial(ntk, depth=4), x, folder=f), "depth=4"),
            (lambda x, f: Gram(KERNEL, x, folder=f, tile_size=7), "tile_size 7"),
            (lambda x, f: Gram(KERNEL, x, x, folder=f), "z "),
        ],
        ids=["data", "dtype", "setting", "tiles", "columns"],
    )
    def test_another_matrix_does_not_mix_with_this_one(self, x, other, said, tmp_path):
        Gram(KERNEL, x, folder=tmp_path).compute()
        with pytest.raises(InputError, match="holds the tiles of another matrix") as refused:
            other(x, tmp_path)
        assert said in str(refused.value).split("got:")[0]

    def test_a_change_of_the_kernels_code_is_another_matrix(self, x, tmp_path, monkeypatch):
        source = tmp_path / "mine.py"
        source.write_text("def dot(x, z=None):\n    return x @ (x if z is None else z).T\n")
        monkeypatch.syspath_prepend(tmp_path)
        import mine

        Gram(mine.dot, x, folder=tmp_path / "gram").compute()
        source.write_text(source.read_text() + "# faster\n")
        with pytest.raises(InputError, match="code"):
            Gram(mine.dot, x, folder=tmp_path / "gram")

    def test_the_code_of_ours_is_what_the_kernel_needs_and_no_more(self):
        names = {path.name for path in _sources(Path(convolutional.__file__))}
        assert "convolutional.py" in names
        assert "tiles.py" in names
        assert not names & {"gram.py", "estimators.py", "empirical.py"}

    def test_the_order_of_settings_does_not_matter(self):
        assert describe_kernel(partial(ntk, depth=2, kind="nngp")) == describe_kernel(
            partial(partial(ntk, kind="nngp"), depth=2)
        )

    def test_a_kernel_object_is_named_by_what_it_holds(self):
        assert describe_kernel(RBF(2.0)) != describe_kernel(RBF(3.0))

    def test_what_other_processes_would_not_find_is_refused(self, x, tmp_path):
        with pytest.raises(InputError, match="has no name"):
            Gram(lambda x, z=None: x @ x.T, x, folder=tmp_path)
        with pytest.raises(InputError, match="where it lies in memory"):
            describe_kernel(partial(traced, log=object()))


class TestRefusals:
    def test_a_kernel_that_is_not_finite_names_the_examples(self, x, tmp_path):
        with pytest.raises(NumericalError, match="nan for the examples 7 and 0"):
            Gram(nan_for_seven, x, folder=tmp_path, tile_size=10).compute()

    def test_a_kernel_of_the_wrong_shape(self, x, tmp_path):
        with pytest.raises(InputError, match=r"expected: \(10, 10\); got: \(9, 10\)"):
            Gram(wrong_shape, x, folder=tmp_path, tile_size=10).compute()

    def test_data_that_are_none(self, x, tmp_path):
        for bad in (x[:0], x[0], np.array([["a"]]), np.where(x == x[3, 1], np.nan, x)):
            with pytest.raises(InputError):
                Gram(KERNEL, bad, folder=tmp_path)

    def test_too_little_memory_is_said_with_the_size(self, x, tmp_path, monkeypatch):
        gram = Gram(KERNEL, x, folder=tmp_path)
        gram.compute()
        monkeypatch.setattr(room, "available_memory", lambda: 4000)
        with pytest.raises(InputError, match=r"expected: 4.2 kB free; got: 4.0 kB"):
            gram.matrix()

    def test_too_little_room_on_the_disk_is_said_before_the_work(self, x, tmp_path, monkeypatch):
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: _Usage(100))
        log = tmp_path / "log"
        with pytest.raises(InputError, match=r"expected: 4.2 kB free for the tiles that are missing"):
            Gram(partial(traced, log=log), x, folder=tmp_path / "gram").compute()
        assert lines(log) == ([], [])

    def test_a_disk_that_fills_keeps_what_is_written(self, x, tmp_path, monkeypatch):
        gram = Gram(KERNEL, x, folder=tmp_path, tile_size=10)
        written = []

        def fsync(descriptor):
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(tiles.os, "fsync", fsync)
            patch.setattr("thalweg.kernels.gram.write_atomically", lambda *_: None)
            with pytest.raises(ThalwegError, match=r"the disk is full.*make room and run it again"):
                gram.compute()
        assert len(gram.missing()) == 4
        assert list(tmp_path.glob(".*.draft")) == []
        assert gram.compute().computed == 4

    def test_a_folder_in_use_by_another_process(self, x, tmp_path):
        gram = Gram(KERNEL, x, folder=tmp_path)
        code = (
            "import fcntl, sys, time\n"
            f"file = open({str(tmp_path / '.lock')!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
            "print('locked', flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
            assert other.stdout.readline() == b"locked\n"
            with pytest.raises(InputError, match="another process is computing"):
                gram.compute()
            other.kill()
        assert gram.compute().computed == 1

    def test_a_worker_that_dies(self, x, tmp_path):
        with ProcessPoolExecutor(1) as pool, pytest.raises(ThalwegError, match="a worker died"):
            Gram(dies, x, folder=tmp_path).compute(pool)

    def test_a_folder_that_is_a_file(self, x, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be kept"):
            Gram(KERNEL, x, folder=tmp_path / "file" / "gram").compute()

    def test_missing_tiles_are_said(self, x, tmp_path):
        with pytest.raises(InputError, match=r"call compute\(\) first"):
            Gram(KERNEL, x, folder=tmp_path).matrix()


class _Usage:
    def __init__(self, free):
        self.free = free


COMPUTE = """
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tests.kernels.tracing import numbered, traced
from thalweg.kernels import Gram

kernel = partial(traced, log=Path(sys.argv[1]), pause=0.01)
with ProcessPoolExecutor(2) as pool:
    Gram(kernel, numbered(100), folder=Path(sys.argv[2]), tile_size=5).compute(pool)
"""


@pytest.mark.parametrize("kills", some([2, 6], now=1))
def test_killed_at_random_moments_it_goes_on_where_it_was(kills, tmp_path):
    rng = np.random.default_rng(0)
    log, folder = tmp_path / "log", tmp_path / "gram"
    kernel = partial(traced, log=log, pause=0.01)
    for _ in range(kills):
        goal = len(lines(log)[0]) + int(rng.integers(3, 35))
        running = subprocess.Popen(
            [sys.executable, "-c", COMPUTE, str(log), str(folder)], cwd=ROOT, start_new_session=True
        )
        while len(lines(log)[0]) < goal and running.poll() is None:
            time.sleep(0.002)
        assert running.poll() is None, "it ended before it was killed"
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        with (folder / ".lock").open("w") as lock:  # its workers hold it until they are gone too
            fcntl.flock(lock, fcntl.LOCK_EX)
    gram = Gram(kernel, numbered(100), folder=folder, tile_size=5)
    gram.compute()
    begun, _ = lines(log)
    assert len(set(begun)) == 210
    # Two workers: as many tiles in hand, and as many again in the queue or on their way back.
    assert len(begun) <= 210 + kills * 4
    undisturbed = Gram(
        partial(traced, log=tmp_path / "none"), numbered(100), folder=tmp_path / "b", tile_size=5
    )
    undisturbed.compute()
    assert np.array_equal(gram.matrix(), undisturbed.matrix())
