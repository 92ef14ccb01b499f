"""Kernel matrices too large to compute in one go: in tiles, on many workers, through any interruption."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError
from thalweg.kernels.gram_run import GramRun
from thalweg.kernels.identity import code_digest, data_digest, describe_kernel, short
from thalweg.kernels.room import require_disk, require_memory
from thalweg.kernels.tile_files import DamagedTileError, Tile, read_tile, sweep_drafts, write_tile
from thalweg.kernels.workers import evaluate, results
from thalweg.progress import Progress, Silent
from thalweg.records import write_atomically

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing to lock with
    fcntl = None  # type: ignore[assignment]

__all__ = ["Gram", "Kernel"]

# kernel(x) -> (n, n) and kernel(x, z) -> (n, m); x and z are blocks of examples along the first axis.
Kernel = Callable[..., NDArray[Any]]
_MANIFEST = "gram.json"


class Gram:
    """A kernel matrix in tiles that verify themselves, which any number of interruptions cannot spoil.

    Each tile is one file, written beside its place and renamed, that ends in a fingerprint of kernel, data
    and code and in a checksum. Whatever kills a run, the next one computes the tiles that are missing and
    no other, and the matrix is bit for bit that of an undisturbed run. A symmetric matrix is computed on and
    above its diagonal only.

    Args:
        kernel: ``kernel(x) -> (n, n)`` and ``kernel(x, z) -> (n, m)``; a function of a module, or
            `functools.partial` of one, so that other processes find it.
        x: (n, …) examples.
        z: (m, …) examples for the columns; None for the symmetric matrix of ``x``.
        folder: where the tiles are and will be; made when missing.
        tile_size: examples along a side of a tile. A tile is what is lost when a run is killed.

    Raises:
        InputError: for no examples, for data that are not numbers or not finite, or when the folder holds
            the tiles of another matrix.
    """

    def __init__(
        self,
        kernel: Kernel,
        x: NDArray[Any],
        z: NDArray[Any] | None = None,
        *,
        folder: str | PathLike[str],
        tile_size: int = 128,
    ) -> None:
        if tile_size < 1:
            raise InputError(
                "a tile needs examples", expected="a tile_size of at least 1", got=str(tile_size)
            )
        self.kernel = kernel
        self.x = _examples(x, "x")
        self.z = None if z is None else _examples(z, "z")
        self.folder = Path(folder)
        self.tile_size = tile_size
        self.identity = {
            "format": 1,
            "kernel": describe_kernel(kernel),
            "code": code_digest(kernel),
            "x": data_digest(self.x),
            "z": None if self.z is None else data_digest(self.z),
            "shape": list(self.shape),
            "tile_size": tile_size,
        }
        self._fingerprint = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).digest()
        self._require_ours()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return len(self.x), len(self.x if self.z is None else self.z)

    @property
    def memory(self) -> int:
        """Bytes that `matrix` takes."""
        return 8 * self.shape[0] * self.shape[1]

    def tiles(self) -> list[Tile]:
        """Return the tiles in the order in which they are computed."""
        rows, columns = (_cuts(count, self.tile_size) for count in self.shape)
        return [
            Tile(i, j, row, column)
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
            if self.z is not None or i <= j
        ]

    def compute(self, executor: Executor | None = None, *, progress: Progress | None = None) -> GramRun:
        """Compute the tiles that are not there.

        Args:
            executor: computes them: a process or thread pool, ``client.get_executor()`` of Dask. They are
                written by this process, so that workers need not share a disk. None computes here.
            progress: is told how many entries of the matrix there are.

        Raises:
            InputError: when another process computes in this folder, or the disk has too little room.
            NumericalError: when the kernel gives NaN or infinity.
            ThalwegError: when a worker dies or the disk is full; what was written stays.

        Cost: that of the kernel, and 8 bytes an entry written; reading back what is there.
        """
        begun = time.perf_counter()
        progress = progress or Silent()
        with _locked(self.folder):
            sweep_drafts(self.folder)
            self._require_ours()
            if not (self.folder / _MANIFEST).exists():
                write_atomically(self.folder / _MANIFEST, json.dumps(self.identity, indent=2) + "\n")
            tiles = self.tiles()
            progress.phase("checking the tiles that are there")
            missing, damaged = self._missing(tiles)
            require_disk(sum(8 * t.shape[0] * t.shape[1] for t in missing), self.folder)
            total = sum(t.shape[0] * t.shape[1] for t in tiles)
            done = total - sum(t.shape[0] * t.shape[1] for t in missing)
            progress.phase("computing the kernel")
            progress.advance(done, total)
            for tile, values in results(executor, self._task, missing):
                write_tile(self.folder, tile, values, self._fingerprint)
                done += values.size
                progress.advance(done, total)
        return GramRun(
            kernel=str(self.identity["kernel"]),
            shape=self.shape,
            tiles=len(tiles),
            found=len(tiles) - len(missing),
            damaged=damaged,
            computed=len(missing),
            folder=str(self.folder),
            memory=self.memory,
            seconds=time.perf_counter() - begun,
        )

    def missing(self) -> list[Tile]:
        """Return the tiles that are not there or not whole; each that is there is read and checked."""
        return self._missing(self.tiles())[0]

    def matrix(self) -> NDArray[np.float64]:
        """Return the matrix (n, m) in float64 from its tiles, each checked as it is read.

        Raises:
            InputError: when tiles are missing, or the matrix does not fit into memory.
            DamagedTileError: when one is not what was written.
        """
        hint = "a machine with more memory: the tiles can be copied there"
        require_memory(self.memory, f"a matrix of {self.shape[0]:,} × {self.shape[1]:,}", hint=hint)
        whole = np.empty(self.shape, dtype=np.float64)
        for tile in self.tiles():
            try:
                values = read_tile(self.folder, tile, self._fingerprint)
            except FileNotFoundError as error:
                raise InputError(
                    f"the tile {tile.name} is not there", hint="call compute() first: it goes on where it was"
                ) from error
            whole[slice(*tile.rows), slice(*tile.columns)] = values
            if self.z is None and tile.i != tile.j:
                whole[slice(*tile.columns), slice(*tile.rows)] = values.T
        return whole

    def _task(self, tile: Tile) -> tuple[Callable[..., NDArray[Any]], tuple[Any, ...]]:
        rows = self.x[slice(*tile.rows)]
        if self.z is None and tile.i == tile.j:
            return evaluate, (self.kernel, tile, rows)
        columns = (self.x if self.z is None else self.z)[slice(*tile.columns)]
        return evaluate, (self.kernel, tile, rows, columns)

    def _missing(self, tiles: list[Tile]) -> tuple[list[Tile], int]:
        missing, damaged = [], 0
        for tile in tiles:
            try:
                read_tile(self.folder, tile, self._fingerprint)
            except (FileNotFoundError, NotADirectoryError):
                missing.append(tile)
            except DamagedTileError:
                missing.append(tile)
                damaged += 1
        return missing, damaged

    def _require_ours(self) -> None:
        path = self.folder / _MANIFEST
        try:
            there = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError) as error:
            raise InputError(
                f"{str(path)!r} cannot be read", got=f"{type(error).__name__}: {error}", hint="another folder"
            ) from error
        if there != self.identity:
            known = there if isinstance(there, dict) else {}
            differ = [key for key, value in self.identity.items() if known.get(key) != value]
            raise InputError(
                f"the folder {str(self.folder)!r} holds the tiles of another matrix",
                expected=", ".join(_told(key, self.identity[key]) for key in differ),
                got=", ".join(_told(key, known.get(key)) for key in differ),
                hint="another folder; nothing was changed in this one",
            )


def _told(key: str, value: Any) -> str:
    if key == "kernel":
        return short(str(value))
    return f"{key} {value[:8] if key in {'code', 'x', 'z'} and isinstance(value, str) else value}"


def _cuts(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _examples(x: NDArray[Any], name: str) -> NDArray[Any]:
    x = np.asarray(x)
    if x.ndim < 2 or 0 in x.shape:
        raise InputError(
            f"{name} holds no examples", expected="an array (examples, …)", got=f"the shape {x.shape}"
        )
    if x.dtype.kind not in "fiub" or not np.isfinite(x).all():
        raise InputError(
            f"{name} cannot be used", expected="finite numbers", got=f"{x.dtype} with NaN, infinity or text"
        )
    return np.ascontiguousarray(x)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder and keep other processes out; the system lets go of the lock however this one ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"the tiles cannot be kept in {str(folder)!r}", got=f"{type(error).__name__}: {error.strerror}"
        ) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"another process is computing in {str(folder)!r}",
                    hint="wait for it, or stop it: its tiles are not lost",
                ) from error
        yield
