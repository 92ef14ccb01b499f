"""What was observed of a matrix: positions and values, each position once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from thalweg.errors import InputError

__all__ = ["Duplicates", "Observations", "dense_matrix", "observed", "observed_pairs"]

Duplicates = Literal["refuse", "mean"]
_Array = NDArray[Any]


@dataclass(frozen=True)
class Observations:
    """The observed entries of a matrix, by row and then by column.

    Attributes:
        rows, columns: positions (m,), int32.
        values: (m,), float64, finite.
        shape: of the matrix.
    """

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.float64]
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Observations({len(self):,} of {self.shape[0]:,} × {self.shape[1]:,})"

    def part(self, indices: _Array) -> Observations:
        """Return those at ``indices``, or where a mask (m,) is true; their order does not matter."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[indices] = True
        return Observations(self.rows[chosen], self.columns[chosen], self.values[chosen], self.shape)

    def with_values(self, values: _Array) -> Observations:
        """Return other values at the same positions."""
        return Observations(self.rows, self.columns, np.asarray(values, dtype=np.float64), self.shape)

    def starts(self) -> NDArray[np.int64]:
        """Return where each row begins (n₁+1,), as in CSR."""
        return np.searchsorted(self.rows, np.arange(self.shape[0] + 1)).astype(np.int64)

    def transposed(self) -> Observations:
        """Return the observations of the transposed matrix."""
        order = np.lexsort((self.rows, self.columns))
        return Observations(
            self.columns[order], self.rows[order], self.values[order], (self.shape[1], self.shape[0])
        )

    def sparse(self) -> sparse.csr_array:
        """Return them as a sparse array; what was observed as zero is stored as zero."""
        return sparse.csr_array((self.values, self.columns, self.starts()), shape=self.shape)

    def rms(self) -> float:
        """Return the root of the mean square of the values; 0 without any."""
        if not len(self):
            return 0.0
        largest = float(np.abs(self.values).max())  # the squares of very large values would overflow
        return largest * float(np.sqrt(np.mean((self.values / largest) ** 2))) if largest > 0 else 0.0

    @classmethod
    def from_triplets(
        cls,
        rows: Any,
        columns: Any,
        values: Any,
        shape: tuple[int, int] | None = None,
        *,
        duplicates: Duplicates = "refuse",
    ) -> Observations:
        """Take positions counted from 0 and their values, each (m,).

        Args:
            rows: integers.
            columns: integers.
            values: real numbers.
            shape: of the matrix; without one, as large as the positions need.
            duplicates: "refuse" a position that comes twice, or take the "mean" of its values.

        Raises:
            InputError: for nothing at all, different lengths, positions that are no integers or outside of
                the shape, values that are not finite, and duplicates.
        """
        rows, columns = (_positions(name, given) for name, given in (("rows", rows), ("columns", columns)))
        values = _numbers(values)
        if not len(rows) == len(columns) == len(values):
            raise InputError(
                "rows, columns and values do not belong together",
                expected="three arrays of one length",
                got=f"lengths {len(rows)}, {len(columns)}, {len(values)}",
            )
        if not len(values):
            raise InputError("nothing is observed", expected="at least one entry", got="none")
        extent = (int(rows.max()) + 1, int(columns.max()) + 1)
        shape = extent if shape is None else (int(shape[0]), int(shape[1]))
        if rows.min() < 0 or columns.min() < 0 or extent[0] > shape[0] or extent[1] > shape[1]:
            raise InputError(
                "a position lies outside of the matrix",
                expected=f"rows 0 … {shape[0] - 1} and columns 0 … {shape[1] - 1}",
                got=f"rows {rows.min()} … {rows.max()}, columns {columns.min()} … {columns.max()}",
                cause="ids that count from 1, or a shape that is too small",
            )
        if max(shape) >= 2**31:
            raise InputError("the matrix has too many rows or columns", expected="fewer than 2³¹")
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InputError(
                "an observed value is not a finite number",
                got=f"{values[at]} at row {rows[at]}, column {columns[at]}",
                cause="a missing value given as an observed one, or an overflow before",
                hint="leave entries that are missing out",
            )
        return cls(*_each_once(rows, columns, values, shape, duplicates), shape)

    @classmethod
    def from_dense(cls, matrix: Any) -> Observations:
        """Take a matrix (n₁, n₂) in which NaN is missing; everything else is observed, zeros too.

        Raises:
            InputError: for what is not a matrix of real numbers, infinite values, and nothing observed.
        """
        dense = dense_matrix(matrix)
        rows, columns = np.nonzero(~np.isnan(dense))
        if not len(rows):
            raise InputError(
                "nothing is observed",
                expected="a matrix with at least one number",
                got=f"{dense.shape[0]} × {dense.shape[1]} missing values",
            )
        return cls.from_triplets(rows, columns, dense[rows, columns], (dense.shape[0], dense.shape[1]))

    @classmethod
    def from_sparse(cls, matrix: Any, *, duplicates: Duplicates = "refuse") -> Observations:
        """Take a scipy sparse matrix or array: what is stored is observed, stored zeros too.

        Raises:
            InputError: as `from_triplets` does; scipy's COO may hold a position twice.
        """
        given = matrix.tocoo()
        return cls.from_triplets(given.row, given.col, given.data, given.shape, duplicates=duplicates)


def observed(data: Any, *, duplicates: Duplicates = "refuse") -> Observations:
    """Return the observations that ``data`` holds.

    Args:
        data: Observations; a matrix or a pandas frame with NaN where it is unknown; a scipy sparse matrix,
            whose stored entries are observed, zeros too; or a tuple (rows, columns, values).
        duplicates: as in `Observations.from_triplets`.

    Raises:
        InputError: when it is none of these, holds infinite values or nothing.
    """
    if isinstance(data, Observations):
        return data
    if sparse.issparse(data):
        return Observations.from_sparse(data, duplicates=duplicates)
    if isinstance(data, tuple) and len(data) == 3:
        return Observations.from_triplets(*data, duplicates=duplicates)
    return Observations.from_dense(data)


def observed_pairs(data: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the positions (m, 2) and values (m,) of what ``data`` holds: one row an observed entry.

    scikit-learn splits the rows of what it is given. Given these two it splits entries, which is what
    completion needs: ``GridSearchCV(model, grid, cv=EntryKFold()).fit(*observed_pairs(table))``.
    """
    found = observed(data)
    return np.stack([found.rows, found.columns], axis=1).astype(np.int64), found.values.copy()


def _positions(name: str, given: Any) -> _Array:
    found = np.asarray(given).ravel()
    if found.size and found.dtype.kind not in "iu":
        raise InputError(f"{name} are not integers", expected="positions from 0", got=str(found.dtype))
    return found.astype(np.int64)


def _numbers(given: Any) -> _Array:
    try:
        found = np.asarray(given)
        if found.dtype.kind == "c":
            raise InputError("Complex data not supported", expected="real numbers", got=str(found.dtype))
        return found.astype(np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise InputError("the values are not real numbers", got=str(error)[:160]) from error


def dense_matrix(given: Any) -> _Array:
    """Return a matrix of floats, in which NaN is missing, or refuse what is none."""
    found = np.asarray(given)
    if found.ndim != 2:
        raise InputError(
            "this is not a matrix",
            expected="a 2D array, a frame, a scipy sparse matrix, or (rows, columns, values)",
            got=f"an array of shape {found.shape}",
            hint="Reshape your data: .reshape(-1, 1) for a column, .reshape(1, -1) for a row",
        )
    if 0 in found.shape:
        short = "sample(s)" if found.shape[0] == 0 else "feature(s)"
        raise InputError(f"0 {short} (shape={found.shape}) while a minimum of 1 is required.")
    values = _numbers(found).reshape(found.shape)
    if np.isinf(values).any():
        row, column = (int(i[0]) for i in np.nonzero(np.isinf(values)))
        raise InputError(
            "an observed value is infinite",
            got=f"{values[row, column]} at row {row}, column {column}",
            cause="an overflow before",
            hint="NaN or inf: NaN marks what is missing, inf cannot be completed from",
        )
    return values


def _each_once(
    rows: _Array, columns: _Array, values: _Array, shape: tuple[int, int], duplicates: Duplicates
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """Sort by row and column, and see to positions that come more than once."""
    key = rows * shape[1] + columns
    if not (key[1:] > key[:-1]).all():
        order = np.argsort(key, kind="stable")
        key, values = key[order], values[order]
        fresh = np.concatenate([[True], key[1:] != key[:-1]])
        if not fresh.all():
            if duplicates != "mean":
                twice = int(key[np.flatnonzero(~fresh)[0]])
                raise InputError(
                    "a position is observed more than once",
                    got=f"row {twice // shape[1]}, column {twice % shape[1]}; "
                    f"{int((~fresh).sum())} of {len(key)} entries repeat one before",
                    cause="repeated measurements or ratings",
                    hint='their mean (duplicates="mean", --duplicates mean), or keep one of them',
                )
            group = np.cumsum(fresh) - 1
            values = np.bincount(group, weights=values) / np.bincount(group)
            key = key[fresh]
        rows, columns = np.divmod(key, shape[1])
    return rows.astype(np.int32), columns.astype(np.int32), np.ascontiguousarray(values, dtype=np.float64)
