"""Examples and targets from files, .npz, .npy and csv, checked before anything is computed from them."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError, printable

__all__ = [
    "DataSet",
    "computed_in",
    "read_array",
    "read_data",
    "require_usable",
    "require_varied",
    "standardised",
]

_X, _Y = ("X", "x", "x_train", "X_train"), ("y", "Y", "y_train", "Y_train")


@dataclass(frozen=True)
class DataSet:
    """Examples (n, …) and, where the file has them, targets (n,)."""

    x: NDArray[Any]
    y: NDArray[Any] | None


def read_data(path: Path, targets: Path | None = None) -> DataSet:
    """Read examples and targets.

    .npz holds x and y (or X, x_train, …); .npy holds x, and ``targets`` names the .npy of y; csv has one
    example a line, the target in the last column (with ``targets`` all columns are features), a line of
    names above or not.

    Raises:
        InputError: for a file that is missing, of another kind, or of shapes that do not fit.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        x, y = _from_npz(path)
    elif suffix == ".npy":
        x, y = read_array(path), None
    elif suffix in {".csv", ".tsv", ".txt"}:
        x, y = _from_csv(path, with_target=targets is None)
    else:
        raise InputError(
            f"{str(path)!r} is of no known kind", expected=".npz, .npy or .csv", got=f"the suffix {suffix!r}"
        )
    if targets is not None:
        y = read_array(targets)
    if y is not None and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y is not None and (y.ndim != 1 or len(y) != len(x)):
        raise InputError(
            "examples and targets do not fit",
            expected=f"one target for each of the {len(x):,} examples",
            got=f"targets of shape {y.shape}",
        )
    return DataSet(x, y)


def read_array(path: Path) -> NDArray[Any]:
    """Read one .npy array; no code in it is run.

    Raises:
        InputError: for a file that is missing or cannot be read.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(loaded, np.ndarray):
        raise InputError(f"{str(path)!r} is not one array", expected="a .npy file", got="an archive")
    return loaded


def require_usable(x: NDArray[Any], where: str) -> None:
    """Refuse examples that no kernel can be computed from.

    Args:
        x: (n, …).
        where: the file, for the message.

    Raises:
        InputError: naming the first offender and how many there are.
    """
    if x.ndim not in {2, 4} or 0 in x.shape:
        raise InputError(
            f"the examples of {where!r} have the wrong shape",
            expected="(examples, features), or (examples, channels, height, width) for images",
            got=str(x.shape),
        )
    if x.dtype.kind not in "fiub":
        raise InputError(f"the examples of {where!r} are not numbers", got=f"an array of {x.dtype}")
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        first = ", ".join(map(str, bad[0]))
        raise InputError(
            f"the examples of {where!r} hold NaN or infinity",
            got=f"{len(bad):,} of them, the first at [{first}]",
            hint="fill them in or leave those examples out",
        )


def require_varied(x: NDArray[Any], where: str, *, drop: bool) -> None:
    """Refuse features, or channels of images, that are the same in all examples.

    Args:
        x: (n, …).
        where: the file, for the message.
        drop: they will be left out; refuse only when none would remain.

    Raises:
        InputError: naming them.
    """
    flat = x if x.ndim == 2 else x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
    same = np.flatnonzero((flat == flat[0]).all(axis=0))
    if len(same) == 0 or (drop and len(same) < flat.shape[1]):
        return
    what = "features" if x.ndim == 2 else "channels"
    listed = ", ".join(map(str, same[:5])) + (" …" if len(same) > 5 else "")
    raise InputError(
        f"{len(same):,} of the {flat.shape[1]:,} {what} of {where!r} are the same in all examples",
        got=f"{what} {listed} (counted from 0)",
        cause="they say nothing about the targets",
        hint="--drop-constant leaves them out" if len(same) < flat.shape[1] else "other examples",
    )


def standardised(
    x: NDArray[Any], others: list[NDArray[Any]], *, drop: bool
) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """Shift and scale to mean 0 and variance 1 by the statistics of ``x``; each feature, or each channel.

    What is in float32 stays so, and the kernel is computed in it; all else becomes float64.

    Args:
        x: (n, …).
        others: (m, …) scaled by the same numbers.
        drop: leave out what is constant in ``x``.
    """
    axes, index = ((0,), (slice(None),)) if x.ndim == 2 else ((0, 2, 3), (slice(None),))
    kept = np.ones(x.shape[1], dtype=bool)
    mean, spread = (
        statistic(x, axis=axes, keepdims=True, dtype=np.float64) for statistic in (np.mean, np.std)
    )
    if drop:
        kept = (np.ptp(x, axis=axes) > 0) if x.ndim == 2 else kept
    spread = np.where(spread > 0, spread, 1.0)
    dtype = computed_in(x)
    scaled = [((a.astype(np.float64) - mean) / spread)[(*index, kept)].astype(dtype) for a in (x, *others)]
    return scaled[0], scaled[1:]


def computed_in(x: NDArray[Any]) -> type[np.float32] | type[np.float64]:
    """Return the precision in which a kernel of ``x`` is computed."""
    return np.float32 if x.dtype == np.float32 else np.float64


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write a .npy beside its place and rename it there.

    Raises:
        InputError: when it cannot be written.
    """
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)
    descriptor, draft = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(out.getbuffer())
        Path(draft).replace(path)
    except OSError as error:
        Path(draft).unlink(missing_ok=True)
        raise InputError(f"cannot write {str(path)!r}", got=f"{type(error).__name__}: {error}") from error


def _from_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files if name in {*_X, *_Y}}
            names = stored.files
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise _unreadable(path, error) from error
    x = next((found[name] for name in _X if name in found), None)
    if x is None:
        raise InputError(
            f"{str(path)!r} holds no examples",
            expected="an array called x or X, and y for the targets",
            got=printable(", ".join(names[:8])) or "nothing",
        )
    return x, next((found[name] for name in _Y if name in found), None)


def _from_csv(path: Path, *, with_target: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    lines = [line for line in csv.reader(text.splitlines(), delimiter=delimiter) if line]
    first = 1 if lines and not any(_is_number(cell) for cell in lines[0]) else 0
    lines = lines[first:]
    if not lines or len(lines[0]) < 1 + with_target:
        raise InputError(
            f"{str(path)!r} holds no examples", expected="features, then the target, a line each"
        )
    for k, line in enumerate(lines):
        if len(line) != len(lines[0]):
            raise InputError(
                f"the lines of {str(path)!r} differ in length",
                expected=f"{len(lines[0])} values",
                got=f"{len(line)} in line {k + 1 + first}",
            )
    end = len(lines[0]) - with_target
    x = np.array(
        [[_number(cell, path, k + 1 + first) for cell in line[:end]] for k, line in enumerate(lines)]
    )
    if not with_target:
        return x, None
    last = [line[-1].strip() for line in lines]
    numbers = all(_is_number(cell) for cell in last)
    return x, np.array([float(cell) for cell in last]) if numbers else np.array(last)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, path: Path, line: int) -> float:
    if cell.strip().lower() in {"", "na", "nan", "?"}:
        return float("nan")
    try:
        return float(cell)
    except ValueError as error:
        raise InputError(
            f"a feature in {str(path)!r} is not a number",
            got=f"{printable(cell)!r} in line {line}",
            hint="turn categories into numbers first, one column for each",
        ) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    missing = isinstance(error, FileNotFoundError)
    if isinstance(error, ValueError) and "pickle" in str(error):  # numpy's words, not the file's name
        return InputError(
            f"{str(path)!r} cannot be read",
            expected="arrays of numbers or text in numpy's format",
            got="something else, or Python objects, which are never loaded",
        )
    return InputError(
        f"{str(path)!r} {'does not exist' if missing else 'cannot be read'}",
        got=None if missing else f"{type(error).__name__}: {error}",
    )
