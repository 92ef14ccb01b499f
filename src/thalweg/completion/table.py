"""Tables in files: read with blanks or as triplets, written completed under a new name."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.observations import Duplicates, Observations
from thalweg.errors import InputError, printable

__all__ = ["Layout", "Table", "read_table", "require_new", "write_completed"]

Layout = Literal["auto", "long", "wide"]

_MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?", "."}
_MOST = 5_000_000  # entries that a completed file may have
_PROBED = 200  # lines that decide about separator and layout


@dataclass(frozen=True)
class Table:
    """A table from a file.

    Attributes:
        observations: its numbers.
        row_names, column_names: (n₁,) and (n₂,).
        is_long: whether each line held row, column and value.
        headers: the first line, as it was: names of the three columns, or the corner and the columns.
        has_row_names: whether a wide table's first column holds the names of its rows.
    """

    observations: Observations
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    is_long: bool
    headers: tuple[str, ...]
    has_row_names: bool


def read_table(
    path: str | os.PathLike[str], *, layout: Layout = "auto", duplicates: Duplicates = "refuse"
) -> Table:
    """Read a table of comma-, semicolon- or tab-separated text with a header line.

    A long table has three columns: row, column, value (a fourth one, such as a time, is passed over). A wide
        one
    has a line a row, blanks where nothing is known (also NA, NaN, null, none, -, ? and .), and the names of
    its rows in the first column, if that is not numeric, has no name, or counts upwards. "auto" takes three
    or four columns for a long table when names come more than once in the first column, and wide otherwise.

    Raises:
        InputError: when there is no such file, no header, lines of different lengths, text where a number was
            needed, or nothing observed; it names the line.
    """
    path = Path(path)
    lines = _lines(path)
    header, body = lines[0], lines[1:]
    if not body:
        raise InputError(
            f"{path.name!r} holds no lines below its header", hint="the first line names the columns"
        )
    for number, line in enumerate(body, start=2):
        if len(line) != len(header):
            raise InputError(
                f"line {number} of {path.name!r} has another number of cells than the header",
                expected=str(len(header)),
                got=str(len(line)),
                cause="a separator within a cell that is not quoted",
            )
    if _is_no_header(header):
        raise InputError(
            f"the first line of {path.name!r} names no columns",
            expected="a header line",
            got="numbers, some of them missing or twice",
            hint="put a line with names above it, or its numbers would be lost",
        )
    if layout == "auto":
        layout = "long" if _looks_long(header, body) else "wide"
    if layout == "long":
        return _long(path, header, body, duplicates)
    return _wide(path, header, body)


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            probe = "".join(line for _, line in zip(range(_PROBED), file, strict=False))
            file.seek(0)
            lines = [line for line in csv.reader(file, delimiter=_separator(probe)) if any(line)]
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}", got=error.strerror or str(error)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path.name!r} is not a table of text",
            expected="UTF-8, separated by commas",
            got=str(error)[:120],
        ) from error
    if not lines:
        raise InputError(f"{path.name!r} is empty", expected="a header line and a line a row")
    return lines


def _separator(probe: str) -> str:
    first = probe.splitlines()[0] if probe else ""
    return max("\t;,", key=first.count) if any(first.count(c) for c in "\t;,") else ","


def _is_no_header(header: Sequence[str]) -> bool:
    """Whether it is a line of data: numbers alone, which unlike years or days are missing or come twice."""
    cells = [cell.strip().lower() for cell in header[1:]]
    try:
        numbers = [float(cell) for cell in cells if cell not in _MISSING]
    except ValueError:
        return False
    return len(set(numbers)) < len(cells)


def _looks_long(header: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    if len(header) not in {3, 4}:
        return False
    names = [line[0] for line in body]
    others = [line[1] for line in body]
    repeated = len(set(names)) < len(names) or len(set(others)) < len(others)
    pairs = len({(a, b) for a, b in zip(names, others, strict=True)})
    return repeated and pairs > len(names) // 2 and not any(a.strip().lower() in _MISSING for a in others)


def _long(path: Path, header: Sequence[str], body: list[list[str]], duplicates: Duplicates) -> Table:
    if len(header) not in {3, 4}:
        raise InputError(
            f"{path.name!r} is not a long table",
            expected="row, column, value, and at most one column more, such as a time, that is left out",
            got=printable(", ".join(header)[:120]),
            hint="--layout wide",
        )
    rows, columns, values = [], [], []
    for number, line in enumerate(body, start=2):
        value = _number(path, number, header[2], line[2])
        if value is not None:
            rows.append(line[0])
            columns.append(line[1])
            values.append(value)
    row_names, row_index = _numbered(rows)
    column_names, column_index = _numbered(columns)
    observations = Observations.from_triplets(
        row_index, column_index, values, (len(row_names), len(column_names)), duplicates=duplicates
    )
    return Table(observations, row_names, column_names, True, tuple(header[:3]), True)


def _wide(path: Path, header: Sequence[str], body: list[list[str]]) -> Table:
    named = _has_row_names(header, body)
    first = 1 if named else 0
    if len(header) - first < 1:
        raise InputError(f"{path.name!r} has no columns of numbers", got=", ".join(header))
    matrix = np.full((len(body), len(header) - first), np.nan)
    for i, line in enumerate(body):
        for j, cell in enumerate(line[first:]):
            value = _number(path, i + 2, header[first + j], cell)
            if value is not None:
                matrix[i, j] = value
    row_names = tuple(line[0] if named else str(i + 1) for i, line in enumerate(body))
    return Table(
        Observations.from_dense(matrix), row_names, tuple(header[first:]), False, tuple(header), named
    )


def _has_row_names(header: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    cells = [line[0].strip() for line in body]
    if not header[0].strip():
        return True
    try:
        numbers = [float(cell) for cell in cells if cell.lower() not in _MISSING]
    except ValueError:
        return True
    if len(numbers) < len(cells) or len(cells) < 3:
        return False
    steps = np.diff(numbers)
    return bool(np.all(steps > 0) and all(float(n).is_integer() for n in numbers))


def _number(path: Path, line: int, column: str, cell: str) -> float | None:
    text = cell.strip()
    if text.lower() in _MISSING:
        return None
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"line {line} of {path.name!r} has text where a number was needed",
            got=f"{printable(text[:40])!r} in column {printable(column[:40])!r}",
            cause="a decimal comma, a unit, or a column of names",
            hint="blanks for what is missing; --layout long or wide if the layout was mistaken",
        ) from None
    if not np.isfinite(value):
        raise InputError(
            f"line {line} of {path.name!r} has an infinite value",
            got=f"{text!r} in column {printable(column[:40])!r}",
        )
    return value


def _numbered(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names once each, in the order in which they first come, and the number of each."""
    index: dict[str, int] = {}
    numbers = [index.setdefault(name, len(index)) for name in names]
    return tuple(index), np.asarray(numbers, dtype=np.int64)


def require_new(path: Path) -> None:
    """Refuse a path that cannot be written to, before any work is done.

    Raises:
        InputError: when it exists, or its folder does not.
    """
    if os.path.lexists(path):
        raise InputError(
            f"{str(path)!r} exists already, and nothing is ever written over",
            hint="--output with another name, or move it away",
        )
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"cannot write {str(path)!r}", got="a folder that does not exist", hint="create it first"
        )


def write_completed(table: Table, completed: Any, path: Path) -> bool:
    """Write the table in its own layout with every blank filled.

    Args:
        table: as it was read; observed numbers are written as they are.
        completed: the model, whose ``predict`` is asked for the blanks.
        path: must not exist.

    Returns:
        whether it was written: a table of more than five million entries is not.

    Raises:
        InputError: when the path exists or cannot be written.
    """
    n1, n2 = table.observations.shape
    if n1 * n2 > _MOST:
        return False
    require_new(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(
                _long_lines(table, completed) if table.is_long else _wide_lines(table, completed)
            )
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: claim the name, then move there
            path.touch(exist_ok=False)
            draft.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}", got=error.strerror or str(error)) from error
    finally:
        draft.unlink(missing_ok=True)
    return True


def _rows(table: Table, completed: Any) -> Iterable[tuple[int, NDArray[Any], NDArray[Any]]]:
    """Return row by row the values with the blanks filled, and which of them were observed."""
    start, (_, n2) = table.observations.starts(), table.observations.shape
    everywhere = np.arange(n2)
    for i in range(len(start) - 1):
        values = completed.predict(np.stack([np.full(n2, i), everywhere], axis=1))
        part = slice(start[i], start[i + 1])
        known = np.zeros(n2, dtype=bool)
        known[table.observations.columns[part]] = True
        values[table.observations.columns[part]] = table.observations.values[part]
        yield i, values, known


def _wide_lines(table: Table, completed: Any) -> Iterable[list[str]]:
    yield list(table.headers)
    for i, values, known in _rows(table, completed):
        cells = [_written(v, k) for v, k in zip(values, known, strict=True)]
        yield [table.row_names[i], *cells] if table.has_row_names else cells


def _long_lines(table: Table, completed: Any) -> Iterable[list[str]]:
    yield [*table.headers, "source"]
    for i, values, known in _rows(table, completed):
        for j, (value, is_known) in enumerate(zip(values, known, strict=True)):
            source = "observed" if is_known else "predicted"
            yield [table.row_names[i], table.column_names[j], _written(value, is_known), source]


def _written(value: float, known: bool) -> str:
    return repr(float(value)) if known else f"{value:.6g}"
