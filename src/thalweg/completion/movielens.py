"""MovieLens files of the user's own: they may not be redistributed, so they are not here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.observations import Duplicates, Observations
from thalweg.errors import InputError

__all__ = ["Ratings", "is_movielens", "load_movielens"]

# file name -> separator, lines of header
_KINDS = {"u.data": ("\t", 0), "ratings.csv": (",", 1), "ratings.dat": ("::", 0)}


@dataclass(frozen=True)
class Ratings:
    """Ratings with the ids that their file uses.

    Attributes:
        observations: users by films, ids numbered in rising order.
        users, films: the ids (n₁,) and (n₂,).
    """

    observations: Observations
    users: NDArray[np.int64]
    films: NDArray[np.int64]

    def positions(self, users: Any, films: Any) -> NDArray[np.int64]:
        """Return positions (m, 2) of ids; −1 for one that is not there, for which the mean is predicted."""
        found = []
        for known, asked in ((self.users, users), (self.films, films)):
            asked = np.asarray(asked, dtype=np.int64)
            at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
            found.append(np.where(known[at] == asked, at, -1))
        return np.stack(found, axis=1)


def is_movielens(path: str | os.PathLike[str]) -> bool:
    """Say whether this is a MovieLens file of ratings, or a folder with one.

    By its name; a ``ratings.csv`` of other people's is told apart by its header.
    """
    path = Path(path)
    if path.is_dir():
        return any(is_movielens(path / name) for name in _KINDS)
    if path.name != "ratings.csv" or not path.is_file():
        return path.name in _KINDS and path.is_file()
    with path.open("rb") as file:
        return file.readline(64).decode("utf-8-sig", errors="replace").lower().startswith("userid,movieid,")


def load_movielens(path: str | os.PathLike[str], *, duplicates: Duplicates = "refuse") -> Ratings:
    """Read u.data (100K), ratings.dat (1M, 10M) or ratings.csv (20M and later, latest).

    Args:
        path: the file, or the folder that it lies in; another name is read by its first line.
        duplicates: "refuse" or "mean", where a user rated a film twice.

    Raises:
        InputError: when there is no such file or a line of it is not user, film, rating.

    Cost: about a second per million ratings, and 32 bytes each.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in _KINDS if (path / name).is_file()]
        if not names:
            raise InputError(
                f"no MovieLens file in {str(path)!r}", expected="u.data, ratings.csv or ratings.dat"
            )
        path /= names[0]
    try:
        with path.open("rb") as file:
            first = file.readline().decode("utf-8-sig", errors="replace")
            separator, header = _KINDS.get(path.name) or _kind_of(first, path)
            if not header:
                file.seek(0)
            ids, values = _parsed(file.read(), separator, path)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}", got=error.strerror or str(error)) from error
    users, rows = np.unique(ids[0], return_inverse=True)
    films, columns = np.unique(ids[1], return_inverse=True)
    observations = Observations.from_triplets(
        rows, columns, values, (len(users), len(films)), duplicates=duplicates
    )
    return Ratings(observations, users, films)


def _kind_of(first: str, path: Path) -> tuple[str, int]:
    for separator in ("::", "\t", ","):
        cells = first.split(separator)
        if len(cells) in {3, 4}:
            return separator, int(not cells[0].strip().isdigit())
    raise InputError(
        f"{path.name!r} is not a MovieLens file", expected="user, film, rating, time", got=first[:80].strip()
    )


def _parsed(
    text: bytes, separator: str, path: Path
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]:
    cells = text.replace(separator.encode(), b" ").split()
    lines = text.count(b"\n") + (0 if text.endswith(b"\n") or not text else 1)
    width = len(cells) // lines if lines else 0
    if not lines or len(cells) != width * lines or width not in {3, 4}:
        raise InputError(
            f"{path.name!r} is not a MovieLens file",
            expected="lines of user, film, rating and perhaps time",
            got=f"{len(cells)} numbers on {lines} lines",
        )
    try:
        users = np.array(cells[::width], dtype=np.int64)
        films = np.array(cells[1::width], dtype=np.int64)
        return (users, films), np.array(cells[2::width], dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"{path.name!r} holds something else than numbers",
            expected="lines of user, film, rating and perhaps time",
            got=str(error)[:120],
        ) from error
