"""What both completions share: checks, scaling, centring, and the conventions of scikit-learn."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from thalweg.completion.centring import Centre, Centring, centre_of
from thalweg.completion.folds import is_pairs
from thalweg.completion.graph import ObservationGraph, observation_graph
from thalweg.completion.observations import Duplicates, Observations, dense_matrix, observed
from thalweg.completion.parallel import Task, run_all
from thalweg.errors import InputError
from thalweg.progress import Progress

__all__ = ["Completion", "require", "require_clip"]

_Array = NDArray[Any]

_NOTHING = 1e-12  # what is left after centring, relative to the values, when it is all rounding
_RANK_SHARE = 1e-2  # a singular value counts for the rank when it is this share of the largest


class Completion(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A matrix as an additive part plus one of low rank, learned from some of its entries.

    Entries are divided by their root mean square after centring, so that ``fit(c·X)`` predicts c times what
    ``fit(X)`` does, and every tolerance and starting size is relative.

    Attributes:
        centre_: what was taken off first.
        left_, singular_values_, right_: U (n₁, h), σ (h,) falling, V (n₂, h); the rest is U·diag(σ)·Vᵀ.
        rank_: singular values of at least a hundredth of the largest.
        graph_: the report on the pattern of the observed entries.
        scale_: root mean square of the entries after centring.
        n_features_in_: columns.
    """

    centre_: Centre
    left_: _Array
    right_: _Array
    singular_values_: _Array
    rank_: int
    graph_: ObservationGraph
    scale_: float
    n_features_in_: int

    # Set by the constructors of those who inherit.
    center: Centring | None
    clip: tuple[float, float] | None
    duplicates: Duplicates

    def fit(self, X: Any, y: Any = None, *, progress: Progress | None = None) -> Self:
        """Learn from the observed entries of X.

        Args:
            X: a matrix or pandas frame (n₁, n₂) with NaN where it is unknown; a scipy sparse matrix, whose
                stored entries are observed, zeros too; Observations; a tuple (rows, columns, values); or, if
                ``y`` is given, positions (m, 2) of integers.
            y: the values (m,) at the positions X; ignored where X is a matrix.
            progress: told what is done.

        Returns:
            the estimator itself.

        Raises:
            InputError: for settings or entries that cannot be used; it says which.
            NumericalError: when the descent diverges.
        """
        entries = self._entries(X, y)
        self._check()
        if sparse.issparse(X) or (hasattr(X, "shape") and not is_pairs(X, y)):
            validate_data(self, X, skip_check_array=True)  # counts and names the columns
        tasks: list[Task[Self]] = [lambda share, stop: self.learn(entries, share, stop)]
        run_all(tasks, progress=progress)
        return self

    def learn(self, entries: Observations, share: Callable[[float], None], stop: threading.Event) -> Self:
        """Fit on the calling thread: what `fit` does once its input is checked, for runs of many fits.

        Args:
            entries: to learn from.
            share: told which share is done.
            stop: when set, KeyboardInterrupt is raised.
        """
        self.n_features_in_ = entries.shape[1]
        self.graph_ = observation_graph(entries)
        self.centre_ = centre_of(entries, self.center)
        rest = entries.values - self.centre_.at(entries.rows, entries.columns)
        self.scale_ = entries.with_values(rest).rms()
        if self.scale_ <= _NOTHING * entries.rms():
            self.scale_ = 0.0
            self._is_nothing(entries)
            return self
        parts = self._factorise(entries.with_values(rest / self.scale_), share, stop)
        self.left_, sigma, self.right_ = parts
        self.singular_values_ = sigma * self.scale_
        self.rank_ = int(np.sum(sigma >= _RANK_SHARE * sigma[0])) if len(sigma) and sigma[0] > 0 else 0
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predict the entries at positions X (m, 2) of integers.

        Rows and columns that were not seen get what centring says of them: the mean, or the effect of the
            other.
        """
        check_is_fitted(self)
        pairs = np.asarray(X)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise InputError(
                "these are not positions",
                expected="integers (m, 2): rows and columns from 0",
                got=f"{pairs.dtype} {pairs.shape}",
                hint="transform() completes a matrix",
            )
        rows, columns = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
        n1, n2 = self.graph_.shape
        inside = (rows >= 0) & (rows < n1) & (columns >= 0) & (columns < n2)
        found = self.centre_.at(rows, columns)
        weighted = self.left_ * self.singular_values_
        for at in np.array_split(np.flatnonzero(inside), max(len(rows) // 100_000, 1)):
            found[at] += np.einsum("mh,mh->m", weighted[rows[at]], self.right_[columns[at]])
        return self._clipped(found)

    def completed(self) -> NDArray[np.float64]:
        """Return the whole matrix (n₁, n₂) as it is predicted, observed entries too."""
        check_is_fitted(self)
        return self._clipped(self.centre_.dense() + (self.left_ * self.singular_values_) @ self.right_.T)

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> NDArray[np.float64]:
        """Fit, and return the matrix (n₁, n₂), observed entries as they are and the others predicted."""
        self.fit(X, y, **options)
        entries = self._entries(X, y)
        filled = self.completed()
        filled[entries.rows, entries.columns] = entries.values
        return filled

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Complete rows of the same columns, whether they were in what was fitted or not.

        Each row of X (k, n₂) is placed among the fitted ones by ridge regression of its observed entries on
        the fitted columns, with a penalty of a thousandth of their mean square.
        Observed entries stay; a row without any becomes what centring says. To complete the fitted matrix
        itself, `fit_transform` or `completed` are the better way: they use each row's own factors.
        """
        check_is_fitted(self)
        if sparse.issparse(X):
            entries = observed(X, duplicates=self.duplicates)
            dense = np.full(entries.shape, np.nan)
            dense[entries.rows, entries.columns] = entries.values
        else:
            dense = dense_matrix(X).copy()
        validate_data(self, X, reset=False, skip_check_array=True)
        features = self.right_ * (self.singular_values_ / np.sqrt(max(self.graph_.shape[0], 1)))
        for row in dense:
            _fill(row, self.centre_, features, self.clip)
        return dense

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the root mean squared error at entries: positions X (m, 2) with values y, or a matrix.

        Of a matrix (of the fitted shape) the observed entries count. More is better, as scikit-learn wants
        it.
        """
        check_is_fitted(self)
        entries = self._entries(X, y)
        pairs = np.stack([entries.rows, entries.columns], axis=1)
        return -float(np.sqrt(np.mean((self.predict(pairs) - entries.values) ** 2)))

    def _entries(self, X: Any, y: Any) -> Observations:
        if not is_pairs(X, y):
            return observed(X, duplicates=self.duplicates)
        pairs = np.asarray(X)
        return Observations.from_triplets(pairs[:, 0], pairs[:, 1], y, duplicates=self.duplicates)

    @abstractmethod
    def _check(self) -> None:
        """Raise InputError for settings that cannot be used."""

    @abstractmethod
    def _factorise(
        self, entries: Observations, share: Callable[[float], None], stop: threading.Event
    ) -> tuple[_Array, _Array, _Array]:
        """Return U, σ, V of a matrix that fits entries of root mean square 1."""

    def _is_nothing(self, entries: Observations) -> None:
        """Be the additive part alone."""
        self.left_, self.right_ = (np.zeros((n, 0)) for n in entries.shape)
        self.singular_values_, self.rank_ = np.zeros(0), 0

    def _clipped(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        return found if self.clip is None else np.clip(found, *self.clip)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.requires_fit = True
        return tags


def _fill(row: _Array, centre: Centre, features: _Array, clip: tuple[float, float] | None) -> None:
    """Complete one row in place; with ``features`` (n₂, h) fitted rows have coefficients of size 1."""
    missing = np.isnan(row)
    if not missing.any():
        return
    known, seen = features[~missing], row[~missing] - centre.overall - centre.column[~missing]
    # The row's own effect, damped as in the fit, then its coefficients.
    own = float(seen.sum() / (len(seen) + 5.0)) if len(seen) and np.any(centre.row) else 0.0
    coefficients: NDArray[np.float64] = np.zeros(features.shape[1])
    if len(seen) and features.shape[1]:
        rest = seen - own
        gram = known.T @ known
        noise = max(1e-3 * float(np.trace(gram)) / len(seen), 1e-300)
        coefficients = np.asarray(
            np.linalg.solve(gram + noise * np.eye(len(gram)), known.T @ rest), dtype=np.float64
        )
    filled = centre.overall + own + centre.column[missing] + features[missing] @ coefficients
    row[missing] = filled if clip is None else np.clip(filled, *clip)


def require(holds: bool, name: str, expected: str, got: Any) -> None:
    """Raise InputError for a setting that cannot be used."""
    if not holds:
        raise InputError(f"{name} cannot be used", expected=expected, got=repr(got))


def require_clip(clip: Any) -> None:
    """Raise InputError unless ``clip`` is None or two rising numbers."""
    good = clip is None or (len(clip) == 2 and clip[0] < clip[1])
    require(good, "clip", "None or (lowest, highest)", clip)
