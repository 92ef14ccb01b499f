"""The published CIFAR-10 accuracies of the convolutional kernel that a computer without a GPU can check.

    python benchmarks/reproduce_cifar.py flatten ../shared/data/cifar10_subset.npz
    python benchmarks/reproduce_cifar.py gap ../shared/data/cifar10_subset.npz --minutes 9

flatten: 2,000 training examples (200 a class), all test images of the file, depths 3, 4, 6, 11, 21 out of one
pass, against the column CNTK-V-2K of the table in Arora et al. 2019. Preparation and solve as in the authors'
code: pixels / 255, mean and deviation of each channel over the training examples, one-hot 0.9 and −0.1, no
ridge. Beside it the ridge by leave-one-out on the training examples.

gap: n = 10 … 160 training examples with global average pooling, depths 5, 8, 11, 14 out of one pass, against
Arora et al. 2020. All pairs of a pool of images are computed, as many as --minutes allow; each draw takes n
of them, the same number of each class, and is tested on all the others. Errors by leaving out a tenth of the
pool at a time (a grouped jackknife), which holds the choice of training and of test images.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from rich.console import Console

from thalweg.estimates import Estimate
from thalweg.kernels import cntk_depths
from thalweg.kernels.ridge import choose_ridge, decompose, solve
from thalweg.report.terminal import Bar

Floats = NDArray[np.float64]
Images = NDArray[np.float32]
FLATTEN = {3: 40.94, 4: 42.54, 6: 43.43, 11: 43.42, 21: 42.53}
GAP = {  # n: mean and standard deviation over 20 draws, by depth
    10: {5: (15.08, 2.43), 8: (15.24, 2.44), 11: (15.31, 2.38), 14: (15.33, 2.43)},
    20: {5: (18.03, 1.91), 8: (18.50, 2.03), 11: (18.69, 2.07), 14: (18.79, 2.13)},
    40: {5: (20.83, 1.68), 8: (21.07, 1.80), 11: (21.23, 1.86), 14: (21.34, 1.91)},
    80: {5: (24.82, 1.75), 8: (25.18, 1.80), 11: (25.40, 1.84), 14: (25.48, 1.91)},
    160: {5: (29.63, 1.13), 8: (30.17, 1.11), 11: (30.46, 1.15), 14: (30.48, 1.17)},
}
GROUPS = 10


def prepared(train: NDArray[np.uint8], *others: NDArray[np.uint8]) -> list[Images]:
    """Return images (n, 3, 32, 32) with mean 0 and deviation 1 of each channel of the training examples."""
    scaled = [x.astype(np.float32) / 255 for x in (train, *others)]
    mean, spread = scaled[0].mean((0, 1, 2)), scaled[0].std((0, 1, 2))
    return [np.ascontiguousarray(((x - mean) / spread).transpose(0, 3, 1, 2)) for x in scaled]


def balanced(y: NDArray[np.integer], each: int) -> NDArray[np.int64]:
    """Return the first ``each`` rows of every class, in the order of the file."""
    return np.sort(np.concatenate([np.flatnonzero(y == c)[:each] for c in range(10)]))


def proportion(right: NDArray[np.bool_]) -> Estimate:
    share = float(np.mean(right))
    return Estimate(100 * share, 100 * math.sqrt(share * (1 - share) / len(right)))


def flatten(stored: dict[str, NDArray], bar: Bar) -> None:
    rows = balanced(stored["y_train"], 200)
    y, y_test = stored["y_train"][rows], stored["y_test"]
    x, x_test = prepared(stored["x_train"][rows], stored["x_test"])
    depths = tuple(FLATTEN)
    begun = time.perf_counter()
    bar.phase("2,000 × 2,000 pairs")
    own = cntk_depths(x, depths=depths, readout="flatten", progress=bar)
    bar.phase(f"{len(x_test):,} × 2,000 pairs")
    cross = cntk_depths(x_test, x, depths=depths, readout="flatten", progress=bar)
    seconds = time.perf_counter() - begun
    pairs = 2000 * 2001 / 2 + len(x_test) * 2000
    print(f"{pairs / 1e6:.2f} million pairs, {seconds:.0f} s: {1e6 * seconds / pairs:.1f} µs for all depths")
    print(f"{'depth':>5s} {'published':>10s} {'here, 95 %':>24s} {'ridge by leave-one-out':>28s}")
    targets = np.eye(10)[y] - 0.1
    for depth, kernel, across in zip(depths, own, cross, strict=True):
        coefficients = scipy.linalg.solve(kernel.astype(np.float64), targets)
        seen = proportion((across @ coefficients).argmax(1) == y_test)
        eigen = decompose(kernel)
        ridge = choose_ridge(eigen, targets).ridge
        better = proportion((across @ solve(eigen, targets, ridge).coefficients).argmax(1) == y_test)
        low, high = seen.interval()
        told = f"{seen.value:.2f} [{low:.2f}, {high:.2f}]"
        print(
            f"{depth:5d} {FLATTEN[depth]:10.2f} {told:>24s} {better.value:18.2f} at {ridge:.1e}", flush=True
        )


def gap(stored: dict[str, NDArray], bar: Bar, minutes: float, images: int | None, draws: int) -> None:
    depths = (5, 8, 11, 14)
    x = prepared(stored["x_train"])[0]
    few = balanced(stored["y_train"], 2)[:12]
    cntk_depths(x[few[:2]], depths=depths, readout="gap")  # compiles
    begun = time.perf_counter()
    cntk_depths(x[few], depths=depths, readout="gap")
    each = (time.perf_counter() - begun) / (len(few) * (len(few) + 1) / 2)
    size = images // 10 if images is not None else int(math.sqrt(2 * 60 * minutes / each)) // 10
    rows = balanced(stored["y_train"], min(size, 500))
    bar.phase(f"all pairs of {len(rows)} images")
    begun = time.perf_counter()
    kernels = cntk_depths(x[rows], depths=depths, readout="gap", progress=bar).astype(np.float64)
    seconds, pairs = time.perf_counter() - begun, len(rows) * (len(rows) + 1) // 2
    print(
        f"{len(rows)} images, {pairs:,} pairs, {seconds:.0f} s: {1e3 * seconds / pairs:.2f} ms for all depths"
    )
    y = stored["y_train"][rows]
    print(f"{draws} draws; accuracy in %, ± standard error; published: mean of 20 draws ± theirs")
    for n, published in GAP.items():
        if 10 * (np.bincount(y).min() - math.ceil(np.bincount(y).min() / GROUPS)) <= n:
            print(f"n = {n}: the pool is too small")
            continue
        for k, depth in enumerate(depths):
            seen = jackknifed(kernels[k], y, n, draws)
            mean, deviation = published[depth]
            theirs = deviation / math.sqrt(20)
            z = (seen.value - mean) / math.hypot(seen.stderr, theirs)
            print(
                f"n {n:4d}   depth {depth:3d}   here {seen.value:6.2f} ± {seen.stderr:.2f}   "
                f"published {mean:.2f} ± {theirs:.2f}   z {z:+.1f}",
                flush=True,
            )


def jackknifed(kernel: Floats, y: NDArray[np.integer], n: int, draws: int) -> Estimate:
    """Return the accuracy with n training examples and its error over the choice of the pool."""
    groups = min(GROUPS, int(np.bincount(y).min()))
    place = np.empty(len(y), dtype=int)
    for c in range(10):
        place[y == c] = np.arange(np.sum(y == c)) % groups
    whole = accuracy(kernel, y, np.arange(len(y)), n, draws)
    parts = np.array([accuracy(kernel, y, np.flatnonzero(place != g), n, draws) for g in range(groups)])
    spread = (groups - 1) / groups * np.sum((parts - parts.mean()) ** 2)
    return Estimate(100 * whole, 100 * float(np.sqrt(spread)), groups)


def accuracy(kernel: Floats, y: NDArray[np.integer], pool: NDArray[np.int64], n: int, draws: int) -> float:
    """Return the mean over draws of n examples of the pool, tested on all its others."""
    rng = np.random.default_rng(n)
    shares = []
    for _ in range(draws):
        train = np.concatenate([rng.choice(pool[y[pool] == c], n // 10, replace=False) for c in range(10)])
        test = np.setdiff1d(pool, train)
        coefficients = np.linalg.solve(kernel[np.ix_(train, train)], np.eye(10)[y[train]] - 0.1)
        outputs = kernel[np.ix_(test, train)] @ coefficients
        shares.append(np.mean(outputs.argmax(1) == y[test]))
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("which", choices=["flatten", "gap"])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--images", type=int, help="of the pool, in place of --minutes")
    parser.add_argument("--draws", type=int, default=100)
    arguments = parser.parse_args()
    with np.load(arguments.cifar, allow_pickle=False) as file:
        stored = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    with Bar(Console(stderr=True)) as bar:
        if arguments.which == "flatten":
            flatten(stored, bar)
        else:
            gap(stored, bar, arguments.minutes, arguments.images, arguments.draws)


if __name__ == "__main__":
    main()
