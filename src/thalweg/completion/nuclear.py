"""Matrix completion by the smallest nuclear norm: exactly, or with a penalty chosen on held-out entries."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from thalweg.completion.centring import Centring
from thalweg.completion.estimator import Completion, require, require_clip
from thalweg.completion.exact import least_nuclear_norm
from thalweg.completion.folds import EntryKFold
from thalweg.completion.observations import Duplicates, Observations
from thalweg.completion.ridge import alternate
from thalweg.errors import InputError
from thalweg.rng import generator

__all__ = ["NuclearNormCompletion"]

_Array = NDArray[Any]
_Parts = tuple[_Array, _Array, _Array]

_LARGEST = 4_000_000  # entries of a matrix that the exact method holds six times
_SMALLEST = 1e-9  # a singular value below this share of the largest is rounding
_STEP, _LENGTH = 0.7, 20  # of the path of penalties
_WORSE = 3  # penalties in a row with a larger held-out error end the path
_SWEEPS, _TOLERANCE = 60, 1e-3
_FINAL_SWEEPS, _FINAL_TOLERANCE = 500, 1e-5
_NUDGE = 1e-2  # of the singular values, so that a direction that had died can come back


class NuclearNormCompletion(Completion):
    """Complete a matrix by the smallest sum of singular values.

    ``penalty=0`` solves min ‖W‖_* subject to W_ij = y_ij at every observed entry ([candes2009]), with a
    certified gap. A positive penalty solves min ½Σ(W_ij − y_ij)² + λ‖W‖_*, where λ is that share of the
    largest singular value of the observed entries (with 1 nothing is left), by alternating least squares
    ([hastie2015]). "auto" takes the best of a falling path of penalties on a tenth of the entries
    ([mazumder2010]), and then all of them.

    Args:
        penalty: "auto", 0 for the exact constraint, or a share between 0 and 1.
        rank_cap: width of the factors when there is a penalty; if ``rank_`` comes up to it, it was too small.
        tol: of the exact method's residuals.
        max_iter: iterations of the exact method.
        center: take off "bias" (effects of rows and columns), the "mean", or nothing (None).
        validation_fraction: share of the entries that "auto" holds out.
        clip: (lowest, highest) prediction.
        duplicates: "refuse" or "mean".
        random_state: of the entries held out, and of the factors' start.

    Attributes:
        nuclear_norm_: of the completed centred matrix.
        gap_: the exact method's norm is at most this share above the smallest possible; NaN with a penalty.
        penalty_: the share that was used.
        n_iter_: iterations of the exact method; sweeps with a penalty.
        validation_rmse_: the error at the entries held out; NaN without any.
        and those of `Completion`.

    Cost: exact, per iteration O(n₁·n₂·min(n₁, n₂)) and memory for six matrices; with a penalty, per sweep
    2·m·h² + (n₁+n₂)·h³/3 multiplications and memory for entries and factors.
    """

    def __init__(
        self,
        penalty: float | Literal["auto"] = "auto",
        *,
        rank_cap: int | None = 32,
        tol: float = 1e-7,
        max_iter: int = 5000,
        center: Centring | None = "bias",
        validation_fraction: float = 0.1,
        clip: tuple[float, float] | None = None,
        duplicates: Duplicates = "refuse",
        random_state: int | None = 0,
    ) -> None:
        self.penalty, self.rank_cap, self.tol, self.max_iter = penalty, rank_cap, tol, max_iter
        self.center, self.validation_fraction = center, validation_fraction
        self.clip, self.duplicates, self.random_state = clip, duplicates, random_state

    def _check(self) -> None:
        good = self.penalty == "auto" or 0 <= float(self.penalty) < 1
        require(good, "penalty", '"auto", or a number from 0 to less than 1', self.penalty)
        cap = self.rank_cap
        require(cap is None or cap >= 1, "rank_cap", "None or an integer from 1 on", cap)
        require(self.max_iter >= 1, "max_iter", "an integer from 1 on", self.max_iter)
        require(self.tol > 0, "tol", "a positive number", self.tol)
        good = 0 < self.validation_fraction <= 0.5
        require(good, "validation_fraction", "more than 0, at most 0.5", self.validation_fraction)
        require(self.center in {"bias", "mean", None}, "center", "'bias', 'mean' or None", self.center)
        require(self.duplicates in {"refuse", "mean"}, "duplicates", "'refuse' or 'mean'", self.duplicates)
        require_clip(self.clip)

    def _factorise(
        self, entries: Observations, share: Callable[[float], None], stop: threading.Event
    ) -> tuple[_Array, _Array, _Array]:
        method = self._exact if self.penalty == 0 else self._penalised
        parts = method(entries, share, stop)
        self.nuclear_norm_ = float(parts[1].sum()) * self.scale_
        return parts

    def _is_nothing(self, entries: Observations) -> None:
        super()._is_nothing(entries)
        self.nuclear_norm_, self.gap_, self.n_iter_ = 0.0, 0.0, 0
        self.penalty_, self.validation_rmse_ = math.nan, math.nan

    def _exact(self, entries: Observations, share: Callable[[float], None], stop: threading.Event) -> _Parts:
        n1, n2 = entries.shape
        if n1 * n2 > _LARGEST:
            raise InputError(
                "the matrix is too large for the exact nuclear norm",
                expected=f"at most {_LARGEST:,} entries",
                got=f"{n1:,} × {n2:,}",
                hint='penalty="auto"',
            )
        found = least_nuclear_norm(
            entries, tol=self.tol, max_iterations=self.max_iter, advanced=share, stop=stop
        )
        u, sigma, vt = np.linalg.svd(found.matrix, full_matrices=False)
        kept = sigma > _SMALLEST * sigma[0]
        self.gap_, self.n_iter_, self.penalty_ = found.gap, found.iterations, 0.0
        self.validation_rmse_ = math.nan
        return u[:, kept], sigma[kept], vt[kept].T

    def _penalised(
        self, entries: Observations, share: Callable[[float], None], stop: threading.Event
    ) -> _Parts:
        self.gap_, self.n_iter_, self.validation_rmse_ = math.nan, 0, math.nan
        chosen, right, told = 0.0, self._begun(entries), 0.0
        if self.penalty != "auto":
            chosen = float(self.penalty)
        else:
            chosen, right, told = *self._best_of_path(entries, share, stop), 0.7
        self.penalty_ = chosen

        def swept() -> None:
            self.n_iter_ += 1
            share(min(told + 0.003 * self.n_iter_, 0.99))

        left, right = alternate(
            entries,
            np.zeros((entries.shape[0], right.shape[1])),
            right,
            chosen * _spectral_norm(entries),
            max_sweeps=_FINAL_SWEEPS,
            tol=_FINAL_TOLERANCE,
            swept=swept,
            stop=stop,
        )
        return _decomposed(left, right)

    def _best_of_path(
        self, entries: Observations, share: Callable[[float], None], stop: threading.Event
    ) -> tuple[float, _Array]:
        """Return the penalty with the least held-out error, and the factor of the columns there."""
        folds = max(round(1 / self.validation_fraction), 2)
        if len(entries) < folds:
            raise InputError(
                "too few entries to choose a penalty", got=str(len(entries)), hint="penalty=0, the exact norm"
            )
        fold = EntryKFold(folds, random_state=self.random_state or 0).assigned(entries.rows)
        train, held = entries.part(fold != 0), entries.part(fold == 0)
        largest, right = _spectral_norm(train), self._begun(entries)
        left = np.zeros((entries.shape[0], right.shape[1]))
        nudge = self._begun(entries)
        best, lowest, worse = 1.0, held.rms() ** 2, 0
        best_right = right
        for k in range(1, _LENGTH + 1):
            penalty = _STEP**k
            begun = right + _NUDGE * nudge * math.sqrt(penalty * largest)
            left, right = alternate(
                train, left, begun, penalty * largest, max_sweeps=_SWEEPS, tol=_TOLERANCE, stop=stop
            )
            share(0.7 * k / _LENGTH)
            predicted = np.einsum("mh,mh->m", left[held.rows], right[held.columns])
            error = float(np.mean((predicted - held.values) ** 2))
            if error < lowest:
                best, lowest, worse, best_right = penalty, error, 0, right
            else:
                worse += 1
            # Before anything was learned no error is smaller than that of nothing.
            if worse >= _WORSE and best < 1:
                break
        self.validation_rmse_ = math.sqrt(lowest) * self.scale_
        return min(best, 1 - 1e-9), best_right

    def _begun(self, entries: Observations) -> _Array:
        """Draw the columns' factor."""
        width = min(*entries.shape, self.rank_cap or min(entries.shape))
        rng = generator(self.random_state or 0, "completion", "nuclear")
        drawn = torch.randn(entries.shape[1], width, generator=rng, dtype=torch.float64).numpy()
        return np.asarray(drawn / math.sqrt(entries.shape[1]))


def _spectral_norm(entries: Observations) -> float:
    """Return the largest singular value of the observed entries, zero elsewhere."""
    matrix = entries.sparse()
    if min(entries.shape) <= 2:
        return float(np.linalg.norm(matrix.toarray(), 2))
    begin = np.ones(min(entries.shape))  # svds would otherwise draw from numpy's global state
    return float(svds(matrix, k=1, v0=begin, return_singular_vectors=False)[0])


def _decomposed(left: _Array, right: _Array) -> _Parts:
    q1, r1 = np.linalg.qr(left)
    q2, r2 = np.linalg.qr(right)
    u, sigma, vt = np.linalg.svd(r1 @ r2.T)
    kept = sigma > _SMALLEST * max(sigma[0], 1e-300)
    return (q1 @ u)[:, kept], sigma[kept], (q2 @ vt.T)[:, kept]
