"""Matrix completion by gradient descent on a product of matrices, with no regulariser."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.centring import Centring
from thalweg.completion.descent import Descended, Optimizer, descend
from thalweg.completion.descent_record import Descent
from thalweg.completion.estimator import Completion, require, require_clip
from thalweg.completion.factors import Factors, Start, effective_rank, initial
from thalweg.completion.folds import EntryKFold
from thalweg.completion.observations import Duplicates, Observations
from thalweg.completion.polish import polished

__all__ = ["DeepMatrixFactorization"]

_Array = NDArray[Any]

_ENOUGH_HELD_OUT = 10  # entries; the error of fewer says nothing
_MORE = 2  # the second descent may take so many times the steps of the first


class DeepMatrixFactorization(Completion):
    """Complete a matrix by descending on W = W_N ⋯ W_1 from a small start ([arora2019b]).

    There is no penalty and no rank to choose: from a small start the singular values of W grow one after the
    other, the deeper the product the more sharply so, and descent arrives at a matrix of low rank; not at one
    of smallest norm, for every norm may grow without bound ([razin2020]). Depth 3
    recovers nearly noiseless tables from 1.5 to 3 entries per degree of freedom, where the nuclear norm
    fails; above that both do. On noisy tables, ratings above all, depth 2 is better (docs/completion.md).

    A tenth of the entries is held out first and says when to stop; then all entries are descended on, from
    the same start, down to the training error that was best.

    Args:
        depth: N, at least 2.
        rank_cap: width of the hidden layers, an upper bound of the rank; None for the full width min(n₁, n₂).
        init_scale: singular values of the product at the start, relative to entries of root mean square 1.
        init: "balanced", orthonormal factors of one size, or "gaussian", as in the paper.
        optimizer: "ngd", the gradient over the average of its norm; "gd" and "adam" for study. Adam is faster
            than "ngd" at a fixed rate and ends at a worse matrix.
        learning_rate: "auto", which also shrinks it when the error rises; or a fixed number, for entries of
            size 1.
        max_iter: steps at most.
        tol: mean squared error, relative to that of the centred entries, at which to stop.
        center: take off "bias" (effects of rows and columns), the "mean", or nothing (None).
        early_stopping: hold entries out to say when to stop. Without it, ``tol`` alone does: for noiseless
            data.
        validation_fraction: share of the entries that is held out.
        patience: stop when the held-out error has not been better for so many steps, or is a quarter above
            it.
        polish: read the rank at the largest gap of the singular values, finish by alternating least squares
            at that rank, and keep the result if the held-out error is less; needs ``early_stopping``.
        clip: (lowest, highest) prediction, for ratings.
        duplicates: "refuse" or "mean", for triplets and sparse matrices.
        dtype: "float64"; "float32" halves the memory and is faster on large tables.
        random_state: of the start and of the entries held out.

    Attributes:
        factors_: the factors, of the centred and scaled matrix.
        effective_rank_: exp of the entropy of the singular values.
        n_iter_: steps of the last descent.
        stop_reason_: what ended it.
        descent_: what the first descent, the one with entries held out, went through; without early stopping,
            the only one.
        validation_rmse_: the error at the entries held out, of the first descent; NaN without any. It chose
            when to stop and is a little low for that.
        polished_: whether the polished result was kept.
        and those of `Completion`.

    Cost: per step 6·m·h + O((n₁+n₂)·h² + N·h³) multiplications for m entries and width h; memory for the
        entries and
    a few times the factors, never for the matrix.
    """

    def __init__(
        self,
        depth: int = 2,
        rank_cap: int | None = 32,
        *,
        init_scale: float = 1e-3,
        init: Start = "balanced",
        optimizer: Optimizer = "ngd",
        learning_rate: float | Literal["auto"] = "auto",
        max_iter: int = 20_000,
        tol: float = 1e-6,
        center: Centring | None = "bias",
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        patience: int = 1000,
        polish: bool = False,
        clip: tuple[float, float] | None = None,
        duplicates: Duplicates = "refuse",
        dtype: Literal["float64", "float32"] = "float64",
        random_state: int | None = 0,
    ) -> None:
        self.depth, self.rank_cap = depth, rank_cap
        self.init_scale, self.init = init_scale, init
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.max_iter, self.tol, self.center = max_iter, tol, center
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.patience, self.polish, self.clip = patience, polish, clip
        self.duplicates, self.dtype, self.random_state = duplicates, dtype, random_state

    def _check(self) -> None:
        for name in ("depth", "max_iter", "patience"):
            least = 2 if name == "depth" else 1
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= least
            hint = "; depth 1 never changes what was not observed" if name == "depth" else ""
            require(good, name, f"an integer from {least} on{hint}", value)
        cap, rate = self.rank_cap, self.learning_rate
        require(cap is None or cap >= 1, "rank_cap", "None or an integer from 1 on", cap)
        require(rate == "auto" or float(rate) > 0, "learning_rate", '"auto" or a positive number', rate)
        require(self.init_scale > 0, "init_scale", "a positive number", self.init_scale)
        require(self.tol >= 0, "tol", "at least 0", self.tol)
        good = 0 < self.validation_fraction <= 0.5
        require(good, "validation_fraction", "more than 0, at most 0.5", self.validation_fraction)
        require(
            self.early_stopping or not self.polish,
            "polish",
            "early_stopping=True, since held-out entries must say whether it helps",
            "early_stopping=False",
        )
        for name, choices in {
            "init": ("balanced", "gaussian"),
            "optimizer": ("ngd", "gd", "adam"),
            "center": ("bias", "mean", None),
            "dtype": ("float64", "float32"),
            "duplicates": ("refuse", "mean"),
        }.items():
            value = getattr(self, name)
            require(bool(value in choices), name, " or ".join(map(repr, choices)), value)
        require_clip(self.clip)

    def _factorise(
        self, entries: Observations, share: Callable[[float], None], stop: threading.Event
    ) -> tuple[_Array, _Array, _Array]:
        self.factors_ = _without_start(self._fitted(entries, share, stop), entries)
        u, sigma, v = self.factors_.decomposed()
        self.effective_rank_ = effective_rank(sigma)
        return u, sigma, v

    def _is_nothing(self, entries: Observations) -> None:
        super()._is_nothing(entries)
        self.effective_rank_, self.n_iter_, self.stop_reason_ = 0.0, 0, "nothing is left after centring"
        self.validation_rmse_, self.polished_ = math.nan, False
        self.descent_ = Descent.empty(entries, self.depth, self.optimizer)

    def _fitted(
        self, entries: Observations, share: Callable[[float], None], stop: threading.Event
    ) -> Factors:
        seed = self.random_state or 0
        width = min(*entries.shape, self.rank_cap or min(entries.shape))
        rate = None if self.learning_rate == "auto" else float(self.learning_rate)

        def run(part: Observations, at: float, **options: Any) -> Descended:
            start = initial(
                entries.shape,
                width,
                self.depth,
                scale=self.init_scale,
                start=self.init,
                seed=seed,
                dtype=self.dtype,
            )
            return descend(
                start,
                part,
                **{"max_steps": self.max_iter, **options},
                optimizer=self.optimizer,
                learning_rate=rate,
                tol=self.tol,
                advanced=lambda step: share(at + 0.5 * step / self.max_iter),
                stop=stop,
            )

        train, held = self._split(entries, seed)
        first = run(train, 0.0, heldout=held, patience=self.patience)
        final = first
        if held is not None and first.step > 0:
            limit = int(_MORE * first.step) + 1
            final = run(entries, 0.5, max_steps=limit, level=first.loss)
        self.n_iter_ = final.num_steps
        self.validation_rmse_ = math.sqrt(first.heldout) * self.scale_
        self.descent_ = Descent.told(
            first, entries, depth=self.depth, width=width, optimizer=self.optimizer, scale=self.scale_
        )
        self.stop_reason_ = self.descent_.reason
        factors, self.polished_ = final.factors, False
        if self.polish and held is not None:
            better = polished(first.factors, train, held)
            if better is not None:
                factors, self.polished_ = polished(final.factors, entries, None) or factors, True
        return factors

    def _split(self, entries: Observations, seed: int) -> tuple[Observations, Observations | None]:
        """Return the entries to descend on first, and those held out; None where there are too few."""
        folds = round(1 / self.validation_fraction)
        if not self.early_stopping or len(entries) // folds < _ENOUGH_HELD_OUT:
            return entries, None
        fold = EntryKFold(folds, random_state=seed).assigned(entries.rows)
        return entries.part(fold != 0), entries.part(fold == 0)


def _without_start(factors: Factors, entries: Observations) -> Factors:
    """Clear the rows and columns without entries: they are still where they began, and that says nothing."""
    left, right = factors.left.copy(), factors.right.copy()
    left[np.bincount(entries.rows, minlength=len(left)) == 0] = 0
    right[np.bincount(entries.columns, minlength=len(right)) == 0] = 0
    return Factors(left, right, factors.middle)
