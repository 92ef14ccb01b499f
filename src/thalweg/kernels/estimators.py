"""Kernel regression with the kernels of infinitely wide nets, as estimators of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from thalweg.errors import InputError
from thalweg.kernels.convolutional import cntk
from thalweg.kernels.fully_connected import ntk
from thalweg.kernels.gram import Kernel
from thalweg.kernels.ridge import RidgeChoice, choose_ridge, decompose, solve
from thalweg.kernels.room import require_memory

__all__ = ["NTKClassifier", "NTKRegressor", "named_kernel"]

Floats = NDArray[np.float64]
_ROWS = 1024  # of a kernel between new and known examples held at once
_OWN = 16  # examples whose products with themselves are computed at once, all pairs of them


def named_kernel(
    kernel: str | Kernel, depth: int, settings: Mapping[str, Any] | None = None
) -> partial[NDArray[Any]] | Kernel:
    """Return the kernel function that a name and a depth, or a function alone, and settings stand for.

    Raises:
        InputError: for another name.
    """
    settings = dict(settings or {})
    if callable(kernel):
        return partial(kernel, **settings) if settings else kernel
    functions: dict[str, Callable[..., NDArray[Any]]] = {"ntk": ntk, "cntk": cntk}
    if kernel not in functions:
        raise InputError(
            "there is no such kernel",
            expected="'ntk', 'cntk', or a function (x, z) -> (n, m)",
            got=repr(kernel),
        )
    return partial(functions[kernel], depth=depth, **settings)


class _KernelRidge(BaseEstimator):  # type: ignore[misc]
    """What both estimators do: a kernel matrix, a ridge chosen from the training data, a linear solve."""

    def __init__(
        self,
        kernel: str | Kernel = "ntk",
        *,
        depth: int = 3,
        kernel_params: Mapping[str, Any] | None = None,
        ridge: float | Literal["loo", "gcv"] = "loo",
    ) -> None:
        self.kernel = kernel
        self.depth = depth
        self.kernel_params = kernel_params
        self.ridge = ridge

    @property
    def kernel_function(self) -> Kernel:
        """The kernel in use, with its settings."""
        return named_kernel(self.kernel, self.depth, self.kernel_params)

    def _validated(self, X: ArrayLike, **keywords: Any) -> Any:
        flat = self.kernel == "ntk"
        shape: dict[str, bool] = {} if flat else {"ensure_2d": False, "allow_nd": True}
        return validate_data(self, X, dtype=[np.float64, np.float32], **shape, **keywords)

    def _solve(self, X: NDArray[Any], targets: Floats) -> None:
        """Fit α to centred targets (n, c)."""
        if isinstance(self.ridge, str) and self.ridge not in {"loo", "gcv"}:
            raise InputError(
                "the ridge cannot be used", expected="'loo', 'gcv' or a number", got=repr(self.ridge)
            )
        n = len(X)
        require_memory(4 * 8 * n * n, f"the kernel of {n:,} examples and its solution", hint="fewer examples")
        self._function = self.kernel_function
        self.X_fit_ = X.copy()  # what is done to the caller's array later changes no prediction
        eigen = decompose(np.asarray(self._function(X)))
        self.ridge_choice_: RidgeChoice | None = None
        if isinstance(self.ridge, str):
            self.ridge_choice_ = choose_ridge(eigen, targets, self.ridge)
            self.ridge_ = self.ridge_choice_.ridge
        else:
            self.ridge_ = float(self.ridge)
        solution = solve(eigen, targets, self.ridge_)
        self.dual_coef_ = solution.coefficients
        self._loo = solution.leave_one_out
        self._eigen = eigen
        self._amplitude = float(np.mean(np.sum(targets * solution.coefficients, axis=0))) / n

    def _predict(self, X: ArrayLike) -> Floats:
        """Return K(X, X_fit_) α (m, c)."""
        check_is_fitted(self)
        checked = self._known(X)
        parts = [
            np.asarray(self._function(checked[k : k + _ROWS], self.X_fit_), dtype=np.float64)
            @ self.dual_coef_
            for k in range(0, len(checked), _ROWS)
        ]
        return np.concatenate(parts)

    def _known(self, X: ArrayLike) -> NDArray[Any]:
        """Return X validated, of the shape of what was fitted."""
        checked: NDArray[Any] = self._validated(X, reset=False)
        if checked.shape[1:] != self.X_fit_.shape[1:]:
            raise InputError(
                "the examples do not have the shape of those that were fitted",
                expected=f"(m, {', '.join(map(str, self.X_fit_.shape[1:]))})",
                got=str(checked.shape),
            )
        return checked


class NTKClassifier(ClassifierMixin, _KernelRidge):  # type: ignore[misc]
    """Least-squares classification with the kernel of an infinitely wide net.

    One-hot targets minus 1/C, one solve for all classes, and the class with the largest output
    ([arora2019], section 6; 0.9 and −0.1 for ten classes).

    The kernels have no bias: scale features to mean 0 and variance 1 first (`StandardScaler`).

    Args:
        kernel: "ntk" for X (n, features), "cntk" for images X (n, channels, height, width), or a function
            (x) -> (n, n) and (x, z) -> (n, m).
        depth: layers of weights, for a named kernel.
        kernel_params: further arguments of the kernel: ``{"readout": "flatten"}``.
        ridge: λ relative to tr K / n; or "loo" or "gcv": that with the lowest squared error by leave-one-out
            or generalised cross-validation on the training data. 0 interpolates.

    Attributes:
        classes_: (C,) labels.
        ridge_: the ridge in use; ``ridge_choice_`` tells what else was tried, None where it was given.
        dual_coef_: α (n, C).
        loo_score_: accuracy on each training example of what the others predict. Where "loo" chose the
            ridge it is a little too good, by the choice among two dozen values of one number.

    Cost: the kernel; 9 n³ operations and 32 n² bytes in float64.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to X (n, …) and labels y (n,)."""
        checked, labels = self._validated(X, y=y)
        check_classification_targets(labels)
        self.classes_, index = np.unique(np.asarray(labels), return_inverse=True)
        num = len(self.classes_)
        if num < 2:
            raise InputError(
                "a classifier needs examples of two classes at least",
                got=f"one class, {str(self.classes_[0])!r}",
            )
        self._solve(checked, np.eye(num)[index] - 1 / num)
        self.loo_score_ = float(np.mean(self._loo.argmax(axis=1) == index))
        return self

    def left_out_predictions(self) -> NDArray[Any]:
        """Return the label (n,) that the other training examples give each."""
        check_is_fitted(self)
        labels: NDArray[Any] = self.classes_[self._loo.argmax(axis=1)]
        return labels

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return the outputs (m, C); with two classes (m,), that of the second minus that of the first."""
        outputs = self._predict(X)
        return outputs if len(self.classes_) > 2 else outputs[:, 1] - outputs[:, 0]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the labels (m,)."""
        outputs = self._predict(X)
        labels: NDArray[Any] = self.classes_[outputs.argmax(axis=1)]
        return labels


class NTKRegressor(RegressorMixin, _KernelRidge):  # type: ignore[misc]
    """Kernel ridge regression with the kernel of an infinitely wide net, on targets minus their mean.

    The kernels have no bias: scale features to mean 0 and variance 1 first (`StandardScaler`).

    Args:
        kernel: "ntk" for X (n, features), "cntk" for images X (n, channels, height, width), or a function
            (x) -> (n, n) and (x, z) -> (n, m).
        depth: layers of weights, for a named kernel.
        kernel_params: further arguments of the kernel.
        ridge: λ relative to tr K / n; or "loo" or "gcv": that with the lowest squared error by leave-one-out
            or generalised cross-validation on the training data. 0 interpolates.

    Attributes:
        ridge_: the ridge in use; ``ridge_choice_`` tells what else was tried, None where it was given.
        dual_coef_: α (n,) or (n, outputs).
        loo_score_: R² of what the other training examples predict of each.

    Cost: the kernel; 9 n³ operations and 32 n² bytes in float64.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to X (n, …) and targets y (n,) or (n, outputs)."""
        checked, targets = self._validated(X, y=y, multi_output=True, y_numeric=True)
        columns = np.asarray(targets, dtype=np.float64)
        self._single = columns.ndim == 1
        columns = columns[:, None] if self._single else columns
        self._mean = columns.mean(axis=0)
        centred = columns - self._mean
        self._solve(checked, centred)
        spread = float(np.sum(centred**2))
        self.loo_score_ = (
            1 - float(np.sum((centred - self._loo) ** 2)) / spread if spread > 0 else float("nan")
        )
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Return predictions (m,) or (m, outputs)."""
        outputs: Floats = self._predict(X) + self._mean
        return outputs[:, 0] if self._single else outputs

    def left_out_predictions(self) -> Floats:
        """Return what the other training examples predict of each, (n,) or (n, outputs)."""
        check_is_fitted(self)
        outputs: Floats = self._loo + self._mean
        return outputs[:, 0] if self._single else outputs

    def predict_variance(self, X: ArrayLike) -> Floats:
        """Return the posterior variance (m,) of the function at X, in squared units of y.

        That of a Gaussian process with covariance s²K and noise s²λ: k(x,x) − kᵀ(K + λI)⁻¹k times s²,
        where s² = yᵀ(K + λI)⁻¹y/n is what makes y likeliest ([rasmussen2006], eq. 2.26), mean over outputs.
        """
        check_is_fitted(self)
        checked = self._known(X)
        shifted = self._eigen.values + self.ridge_ * self._eigen.scale
        inverse = np.divide(1.0, shifted, out=np.zeros_like(shifted), where=shifted > 0)
        found = np.empty(len(checked))
        for k in range(0, len(checked), _OWN):
            block = checked[k : k + _OWN]
            cross = np.asarray(self._function(block, self.X_fit_), dtype=np.float64) @ self._eigen.vectors
            own = np.diagonal(np.asarray(self._function(block), dtype=np.float64))
            found[k : k + _OWN] = own - cross**2 @ inverse
        return self._amplitude * np.maximum(found, 0.0)
