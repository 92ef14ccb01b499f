"""A tile of a kernel matrix in a file that proves what it is: .npy, then fingerprint and checksum."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import ThalwegError

__all__ = ["DamagedTileError", "Tile", "read_tile", "sweep_drafts", "write_tile"]

_DIGEST = hashlib.sha256().digest_size
_DRAFT = ".draft"


class DamagedTileError(ThalwegError):
    """A tile whose bytes are not those that were written, or that belongs to another matrix."""


@dataclass(frozen=True, order=True)
class Tile:
    """Block (i, j) of the matrix: rows [start, stop) against columns [start, stop)."""

    i: int
    j: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the tile."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def name(self) -> str:
        """Of its file. `numpy.load` reads it: what follows the array is left alone."""
        return f"{self.i:05d}-{self.j:05d}.npy"


def write_tile(folder: Path, tile: Tile, values: NDArray[Any], fingerprint: bytes) -> None:
    """Write a tile beside its place and rename it there, so that it is never half there.

    Raises:
        ThalwegError: when the disk is full or the folder cannot be written to.
    """
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(values), allow_pickle=False)
    body = out.getvalue()
    descriptor, draft = -1, ""
    try:
        descriptor, draft = tempfile.mkstemp(dir=folder, prefix=f".{tile.name}.", suffix=_DRAFT)
        with os.fdopen(descriptor, "wb") as file:
            file.write(body + fingerprint + _checksum(tile, body, fingerprint))
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(folder / tile.name)
    except OSError as error:
        Path(draft or folder / _DRAFT).unlink(missing_ok=True)
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise ThalwegError(
            "the disk is full" if full else f"a tile cannot be written to {str(folder)!r}",
            got=f"{type(error).__name__}: {error.strerror or error}",
            hint="make room and run it again" if full else "make the folder writable and run it again",
            cause="the tiles written so far are complete and are not computed again",
        ) from error


def read_tile(folder: Path, tile: Tile, fingerprint: bytes) -> NDArray[Any]:
    """Return the values of a tile, checked byte for byte.

    Raises:
        FileNotFoundError: when it has not been computed.
        DamagedTileError: when it is not what was written for this matrix.
    """
    path = folder / tile.name
    content = path.read_bytes()
    body, foot = content[: -2 * _DIGEST], content[-2 * _DIGEST :]
    if len(foot) < 2 * _DIGEST or foot[_DIGEST:] != _checksum(tile, body, foot[:_DIGEST]):
        raise DamagedTileError(
            f"the tile {str(path)!r} is damaged",
            expected="the bytes that were written",
            got=f"{len(content):,} bytes with another checksum",
            hint="compute again: only what is damaged or missing is computed",
        )
    if foot[:_DIGEST] != fingerprint:
        raise DamagedTileError(
            f"the tile {str(path)!r} belongs to another matrix",
            cause="it was copied here from another folder",
            hint="compute again: only what is damaged or missing is computed",
        )
    values: NDArray[Any] = np.load(io.BytesIO(body), allow_pickle=False)
    return values


def sweep_drafts(folder: Path) -> None:
    """Remove what a killed run left half written. Only for who holds the folder's lock."""
    for draft in folder.glob(f".*{_DRAFT}"):
        draft.unlink(missing_ok=True)


def _checksum(tile: Tile, body: bytes, fingerprint: bytes) -> bytes:
    return hashlib.sha256(fingerprint + f"{tile.i},{tile.j};".encode() + body).digest()
