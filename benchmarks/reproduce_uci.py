"""The UCI protocol of the NTK papers, and what the ridge by leave-one-out does without a tuning split.

    python benchmarks/reproduce_uci.py ../shared/data

The folder holds uci_fd_le5000.npz (features standardised, tuning split, four folds) and
uci_ntk_svm_reference.csv, accuracies by the authors' released code on 68 sets. The protocol: an SVM on the
kernels of 1 to 5 layers, of which the first 0, 1, … do not train, C from 0.01 to 10,000; kernel and C with
the best accuracy on the tuning split; then the mean accuracy over the four folds. The released kernels leave
out the 2 of 2E[σσ], so that a kernel is smaller by 2^-(layers − 1); C means the same only with that. An SVM
that has not converged after a million iterations stops there; the released code waits for it.

Beside it NTKClassifier: layers and ridge chosen by leave-one-out on each fold's training rows, nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC

from thalweg.estimates import Estimate
from thalweg.kernels import ntk
from thalweg.kernels.ridge import choose_ridge, decompose, solve

LAYERS = 5
ITERATIONS = 1_000_000
COLUMNS = ("released code", "here", "leave-one-out", "random forest")
COSTS = [10.0**k for k in range(-2, 5)]
Floats = NDArray[np.float64]


def kernels(x: Floats) -> dict[tuple[int, int], Floats]:
    """Return the kernel of each number of layers and of frozen ones, in the scale of the released code."""
    found = {}
    for layers in range(1, LAYERS + 1):
        for frozen in range(layers):
            trained = [0.0] * frozen + [1.0] * (layers - frozen)
            found[layers, frozen] = ntk(x, depth=layers, trained=trained) / 2.0 ** (layers - 1)
    return found


def svm_accuracy(
    kernel: Floats, y: NDArray[np.int16], train: NDArray[np.int64], test: NDArray[np.int64], cost: float
) -> float:
    machine = SVC(kernel="precomputed", C=cost, cache_size=1000, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(kernel[np.ix_(train, train)], y[train])
    return float(np.mean(machine.predict(kernel[np.ix_(test, train)]) == y[test]))


def by_the_protocol(found: dict[tuple[int, int], Floats], y, tune, folds) -> float:
    """Return the mean accuracy over the folds with what did best on the tuning split."""
    best, chosen = 0.0, None
    for key, kernel in found.items():
        for cost in COSTS:
            accuracy = svm_accuracy(kernel, y, *tune, cost)
            if accuracy > best:
                best, chosen = accuracy, (key, cost)
    assert chosen is not None
    return float(np.mean([svm_accuracy(found[chosen[0]], y, *fold, chosen[1]) for fold in folds]))


def by_leave_one_out(found: dict[tuple[int, int], Floats], y, folds) -> float:
    """Return the mean accuracy over the folds of kernel regression that sees a fold's training rows only."""
    accuracies = []
    for train, test in folds:
        classes, index = np.unique(y[train], return_inverse=True)
        targets = np.eye(len(classes))[index] - 1 / len(classes)
        best, outputs = np.inf, None
        for layers in range(1, LAYERS + 1):
            kernel = found[layers, 0]
            eigen = decompose(kernel[np.ix_(train, train)])
            choice = choose_ridge(eigen, targets)
            if choice.errors.min() < best:
                best = float(choice.errors.min())
                outputs = kernel[np.ix_(test, train)] @ solve(eigen, targets, choice.ridge).coefficients
        assert outputs is not None
        accuracies.append(np.mean(classes[outputs.argmax(1)] == y[test]))
    return float(np.mean(accuracies))


def mean_difference(a: Floats, b: Floats) -> Estimate:
    change = a - b
    return Estimate(float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(change))), len(change))


def recorded(path: Path | None) -> dict[str, tuple[float, ...]]:
    if path is None or not path.exists():
        return {}
    return {name: tuple(values) for name, values in map(json.loads, path.read_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--record", type=Path, help="JSON lines, one a set; those in it are not done again")
    parser.add_argument("--skip", nargs="*", default=[], help="sets to leave out")
    parser.add_argument("--minutes", type=float, default=np.inf, help="begin no set after so many")
    arguments = parser.parse_args()
    stored = np.load(arguments.data / "uci_fd_le5000.npz", allow_pickle=False)
    with (arguments.data / "uci_ntk_svm_reference.csv").open() as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file)}
    begun, done = time.perf_counter(), recorded(arguments.record)
    for name in sorted(
        rows.keys() - done.keys() - set(arguments.skip), key=lambda name: len(stored[f"{name}/y"])
    ):
        if time.perf_counter() - begun > 60 * arguments.minutes:
            break
        x, y = stored[f"{name}/X"], stored[f"{name}/y"]
        tune = (stored[f"{name}/tune0"], stored[f"{name}/tune1"])
        folds = [(stored[f"{name}/kfold{2 * k}"], stored[f"{name}/kfold{2 * k + 1}"]) for k in range(4)]
        found = kernels(x)
        svm, loo = by_the_protocol(found, y, tune, folds), by_leave_one_out(found, y, folds)
        published, forest = float(rows[name]["ntk_test_acc_4fold"]), float(rows[name]["fd_rf_caret"])
        done[name] = (published, 100 * svm, 100 * loo, forest)
        if arguments.record is not None:
            with arguments.record.open("a") as file:
                file.write(json.dumps([name, done[name]]) + "\n")
        told = "   ".join(f"{label} {value:6.2f}" for label, value in zip(COLUMNS, done[name], strict=True))
        print(f"{name:34s} n {len(x):5d}   {told}", flush=True)
    values = np.array(list(done.values()))
    print(f"\n{len(values)} sets in {time.perf_counter() - begun:.0f} s; mean accuracy in %")
    print("   ".join(f"{label} {mean:.2f}" for label, mean in zip(COLUMNS, values.mean(0), strict=True)))
    for one, other in ((1, 0), (2, 0), (1, 3)):
        change = mean_difference(values[:, one], values[:, other])
        low, high = change.interval()
        same = int(np.sum(np.abs(values[:, one] - values[:, other]) < 0.005))
        difference = f"{COLUMNS[one]} − {COLUMNS[other]}: {change.value:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(f"{difference}; the same on {same} sets")


if __name__ == "__main__":
    main()
