"""Kernel regression on a data set, told: how good, how sure, and what was chosen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.estimates import Estimate
from thalweg.kernels.estimators import NTKClassifier, NTKRegressor
from thalweg.kernels.identity import describe_kernel, short
from thalweg.progress import Progress, Silent
from thalweg.records import Record
from thalweg.report.document import Block, Document, Facts, Headline, Note, significant

__all__ = ["KernelFit", "Task", "fit_kernel", "squared_errors"]

Task = Literal["classification", "regression"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class KernelFit(Record):
    """What a kernel learned from a data set.

    Attributes:
        kernel: its name and settings.
        task: "classification" or "regression".
        num_train: training examples.
        shape: of one example.
        num_classes: None for regression.
        ridge: relative to the mean of the kernel's diagonal.
        criterion: what chose it: "loo" or "gcv"; None where it was given.
        at_edge: whether it is the largest that was tried.
        left_out: accuracy, or root mean squared error, on each training example from all the others.
        heldout: the same on held-out examples; None without any.
        num_heldout: how many they were.
        scale: what always guessing the commonest class, or the mean, gets on the training examples.
        seconds: wall clock.
    """

    schema: ClassVar[str] = "thalweg/kernel-fit@1"

    kernel: str
    task: Task
    num_train: int
    shape: tuple[int, ...]
    num_classes: int | None
    ridge: float
    criterion: str | None
    at_edge: bool
    left_out: Estimate
    heldout: Estimate | None
    num_heldout: int
    scale: float
    seconds: float

    def document(self) -> Document:
        """Describe the fit for people."""
        each = " × ".join(map(str, self.shape)) + ("" if len(self.shape) > 1 else " features")
        title = f"{short(self.kernel)} · {self.num_train:,} training examples of {each}"
        classes = self.task == "classification"
        seen, where = (
            (self.left_out, "left out one at a time") if self.heldout is None else (self.heldout, "held out")
        )
        better = seen.lower(0.975) > self.scale if classes else seen.upper(0.975) < self.scale
        said = f"{_told(seen, classes)} {'right' if classes else 'root mean squared error'}, {where}; "
        said += (
            f"{'the commonest class' if classes else 'the mean'} alone gets {_number(self.scale, classes)}"
        )
        chosen = {"loo": "by leave-one-out", "gcv": "by generalised cross-validation", None: "as given"}
        rows = [("left out", f"{_told(self.left_out, classes)}, each training example from the others")]
        if self.heldout is not None:
            rows.append(("held out", f"{_told(self.heldout, classes)} on {self.num_heldout:,} examples"))
        text = f"{significant(self.ridge)} of the mean diagonal, {chosen[self.criterion]}"
        rows.append(("ridge", text))
        blocks: list[Block] = [
            Headline("learned" if better else "not learned", said, "good" if better else "bad"),
            Facts(tuple(rows)),
        ]
        if self.at_edge:
            blocks.append(
                Note(
                    "The ridge is the largest that was tried: this kernel sees next to nothing in these data."
                )
            )
        blocks.append(Note(f"Errors are 95 % intervals. {self.seconds:.1f} s"))
        return Document(title, tuple(blocks))


def fit_kernel(
    model: NTKClassifier | NTKRegressor,
    x: NDArray[Any],
    y: NDArray[Any],
    x_test: NDArray[Any] | None = None,
    y_test: NDArray[Any] | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[KernelFit, NDArray[Any] | None]:
    """Fit ``model`` and say how good it is; return that and its predictions for ``x_test``.

    Args:
        model: fitted here.
        x: (n, …) training examples.
        y: (n,) labels or targets.
        x_test: (m, …) examples that had no part in anything.
        y_test: (m,) of them; None where they are not known.
        progress: is told the phases.
    """
    progress, begun = progress or Silent(), time.perf_counter()
    classes = isinstance(model, NTKClassifier)
    progress.phase("computing the kernel and solving")
    model.fit(x, y)
    left_out = _score(y, model.left_out_predictions(), classes)
    heldout, predicted = None, None
    if x_test is not None:
        progress.phase("predicting the held-out examples")
        predicted = model.predict(x_test)
        heldout = _score(y_test, predicted, classes) if y_test is not None else None
    common = float(np.unique(y, return_counts=True)[1].max() / len(y)) if classes else float(np.std(y))
    fitted = KernelFit(
        kernel=describe_kernel(model.kernel_function),
        task="classification" if classes else "regression",
        num_train=len(x),
        shape=tuple(x.shape[1:]),
        num_classes=len(model.classes_) if isinstance(model, NTKClassifier) else None,
        ridge=model.ridge_,
        criterion=None if model.ridge_choice_ is None else model.ridge_choice_.criterion,
        at_edge=model.ridge_choice_ is not None and model.ridge_choice_.at_edge,
        left_out=left_out,
        heldout=heldout,
        num_heldout=0 if x_test is None else len(x_test),
        scale=common,
        seconds=time.perf_counter() - begun,
    )
    return fitted, predicted


def squared_errors(targets: Floats, predicted: Floats) -> Floats:
    """Return the squared error (n,) of each example, summed over its outputs."""
    errors: Floats = np.sum((targets - predicted) ** 2, axis=1)
    return errors


def _score(y: NDArray[Any], predicted: NDArray[Any], classes: bool) -> Estimate:
    """Return accuracy, or the root mean squared error with its error by the delta method."""
    n = len(y)
    if classes:
        share = float(np.mean(predicted == y))
        # Two successes and two failures more ([agresti1998]): no error of zero where all are right.
        shrunk = (share * n + 2) / (n + 4)
        return Estimate(share, math.sqrt(shrunk * (1 - shrunk) / (n + 4)))
    squares = (y - predicted) ** 2
    root = float(np.sqrt(squares.mean()))
    spread = float(squares.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return Estimate(root, spread / (2 * root) if root > 0 else 0.0, n)


def _number(value: float, classes: bool) -> str:
    return f"{100 * value:.1f} %" if classes else significant(value, 3)


def _told(estimate: Estimate, classes: bool) -> str:
    half = (estimate.interval()[1] - estimate.interval()[0]) / 2
    return f"{_number(estimate.value, classes)} ± {f'{100 * half:.1f}' if classes else significant(half)}"
