"""Splits of the observed entries, and the mean over entries with its error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from thalweg.completion.observations import Observations, observed
from thalweg.errors import InputError
from thalweg.estimates import Estimate
from thalweg.rng import generator

__all__ = ["EntryKFold", "mean_over_entries"]

_Array = NDArray[Any]


class EntryKFold:
    """K folds over the observed entries of a matrix, with the interface of scikit-learn's splitters.

    scikit-learn's `KFold` splits rows: a model of a matrix knows nothing of a row that it has never seen, so
    that measures something else. Here each row's entries are spread over all the folds as evenly as they can
    be, and no fold holds more than one entry more than another.

    Args:
        n_splits: K, at least 2.
        random_state: of the shuffling; the same number gives the same folds.
    """

    def __init__(self, n_splits: int = 5, *, random_state: int = 0) -> None:
        self.n_splits, self.random_state = n_splits, random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return K."""
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[_Array, _Array]]:
        """Yield for each fold the indices of the entries to fit on and of those held out.

        Args:
            X: what `observed` takes; the indices then count its entries by row and column. Or positions (m,
                2) of integers as `observed_pairs` returns them, with ``y`` their values.
            y: values (m,), which only say that X holds positions.
            groups: ignored.

        Raises:
            InputError: for less than 2 folds, or fewer entries than folds.
        """
        rows = np.asarray(X)[:, 0] if is_pairs(X, y) else observed(X).rows
        fold = self.assigned(rows)
        for k in range(self.n_splits):
            yield np.flatnonzero(fold != k), np.flatnonzero(fold == k)

    def assigned(self, rows: _Array) -> NDArray[np.int64]:
        """Return the fold (m,) of entries that lie in ``rows`` (m,)."""
        m, k = len(rows), self.n_splits
        if not (isinstance(k, int | np.integer) and 2 <= k <= m):
            raise InputError("so many folds cannot be made", expected=f"2 to {m}, the entries", got=repr(k))
        shuffled = torch.randperm(m, generator=generator(self.random_state, "completion", "folds")).numpy()
        order = shuffled[np.argsort(rows[shuffled], kind="stable")]
        fold = np.empty(m, dtype=np.int64)
        fold[order] = np.arange(m) % k
        return fold

    def __repr__(self) -> str:
        return f"EntryKFold(n_splits={self.n_splits}, random_state={self.random_state})"


def is_pairs(X: Any, y: Any) -> bool:
    """Say whether X holds positions (m, 2) of the values y: two columns of integers, and y is given."""
    if y is None or sparse.issparse(X) or isinstance(X, tuple | Observations):
        return False
    found = np.asarray(X)
    return found.ndim == 2 and found.shape[1] == 2 and found.dtype.kind in "iu"


def mean_over_entries(values: _Array, rows: _Array, columns: _Array) -> Estimate:
    """Estimate the mean of one value an entry (m,), whose rows and columns may have effects of their own.

    The entries of a row are alike, and those of a column, so that their number says too little about the
    error. The variance is that of the row sums plus that of the column sums minus that of the entries
    ([cameron2011], §2), each with its factor k/(k−1); where that is less, the largest of the three.
    Student's t has as many samples as the fewer of rows and columns.
    """
    values = np.asarray(values, dtype=np.float64)
    m = len(values)
    if m == 0:
        return Estimate(float("nan"), float("inf"), 0)
    rest = values - values.mean()
    sums = [np.bincount(np.unique(groups, return_inverse=True)[1], rest) for groups in (rows, columns)]
    fewest = min(len(s) for s in sums)
    if fewest < 2:
        return Estimate(float(values.mean()), float("inf"), fewest)
    parts = [float(np.sum(s**2)) * len(s) / (len(s) - 1) / m**2 for s in (*sums, rest)]
    variance = max(parts[0] + parts[1] - parts[2], *parts)
    return Estimate(float(values.mean()), float(np.sqrt(variance)), fewest)
