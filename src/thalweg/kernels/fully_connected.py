"""The neural tangent kernel of fully connected networks ([arora2019], section 3 and theorem 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from thalweg.errors import InputError
from thalweg.kernels.examples import checked_dtype, checked_pair, num_cores, root_mean_square

__all__ = ["ntk"]

Floats = NDArray[np.float64]
BLOCK = 256  # rows and columns between two reads of the memory

# 1/E[σ(z)²] for z ~ N(0, 1), so that variances neither grow nor fade.
ERF_GAIN = np.pi / (2 * np.arcsin(2 / 3))


def ntk(
    x: ArrayLike,
    z: ArrayLike | None = None,
    *,
    depth: int,
    kind: Literal["ntk", "nngp"] = "ntk",
    activation: Literal["relu", "erf"] = "relu",
    trained: Literal["all"] | Sequence[float] = "all",
    dtype: DTypeLike | None = None,
    threads: int | None = None,
) -> NDArray[Any]:
    """Return the kernel (n, m) of an infinitely wide fully connected network between x (n, d) and z (m, d).

    From Σ = xᵀz and Θ = s₀Σ, each of the depth − 1 hidden layers makes Σ ← c E[σ(u)σ(v)] and
    Θ ← Θ · c E[σ'(u)σ'(v)] + s_h Σ, with (u, v) normal of the covariance before it ([arora2019],
    equation 9) and c = 1/E[σ(z)²]. The first layer has no 1/√d, so that for ReLU Σ(x, x) stays ‖x‖².
    Computed in float64; about 5 ns an entry and core at depth 5 for ReLU, 40 ns for erf.

    Args:
        x: the examples, one a row.
        z: the others; without them the symmetric kernel of x with itself, of which half is computed.
        depth: layers of weights; 1 is the linear kernel, depth − 1 layers are followed by the activation.
        kind: "ntk", or "nngp" for the covariance of the outputs at random weights.
        activation: "relu", or "erf" ([williams1997], section 3), which depends on the examples' scale.
        trained: one number s a layer, from the examples on: 0 frozen, 1 trained, else its learning rate
            relative to the others; "all" for ones. With s = fan-in/c (1 for the first layer) it is the
            kernel of the standard parametrisation.
        dtype: of the result; float32 if x and z are, else float64.
        threads: how many to run; without a number as many as there are cores for this process.

    Raises:
        InputError: for arrays of other shapes, NaN or infinity, options that do not go together.
    """
    if not isinstance(depth, int | np.integer) or depth < 1:
        raise InputError(
            "a network has at least one layer", expected="a depth of 1 or more", got=f"{depth!r}"
        )
    if kind not in {"ntk", "nngp"}:
        raise InputError("the kind of kernel is unknown", expected='"ntk" or "nngp"', got=f"{kind!r}")
    if activation not in {"relu", "erf"}:
        raise InputError("the activation is unknown", expected='"relu" or "erf"', got=f"{activation!r}")
    scales = np.ones(depth) if isinstance(trained, str) else np.array([float(s) for s in trained])
    if (isinstance(trained, str) and trained != "all") or len(scales) != depth or not (scales >= 0).all():
        raise InputError(
            "trained does not fit", expected=f'"all" or {depth} numbers of 0 or more', got=f"{trained}"
        )
    first, second = checked_pair(x, z, ("n", "d"))
    one = _Side.of(first, activation, depth)
    sides = one, one if z is None else _Side.of(second, activation, depth)
    found = np.empty((len(first), len(second)), checked_dtype(dtype, first, second))
    jobs = [
        (slice(a, a + BLOCK), slice(b, b + BLOCK))
        for a in range(0, len(first), BLOCK)
        for b in range(a if z is None else 0, len(second), BLOCK)
    ]

    def job(rows_and_columns: tuple[slice, slice]) -> None:
        rows, columns = rows_and_columns
        block = _block(sides[0].part(rows), sides[1].part(columns), scales, kind, activation)
        found[rows, columns] = block
        if z is None:
            found[columns, rows] = block.T if rows != columns else np.triu(block) + np.triu(block, 1).T

    with ThreadPoolExecutor(num_cores(threads)) as pool:
        list(pool.map(job, jobs))
    if z is None:
        diagonal = np.arange(len(first))
        found[diagonal, diagonal] = _diagonal(sides[0], scales, kind, activation)
    return found


@dataclass(frozen=True)
class _Side:
    """Examples of one side: directions (n, d), norms (n,), and what every layer makes of the norms."""

    directions: Floats
    norms: Floats
    variances: Floats  # (depth, n)

    @staticmethod
    def of(examples: NDArray[Any], activation: str, depth: int) -> _Side:
        sizes = root_mean_square(examples)
        directions = examples / np.where(sizes > 0, sizes, 1)[:, None] / np.sqrt(examples.shape[1])
        norms = sizes * np.sqrt(examples.shape[1])
        variances = np.empty((depth, len(examples)))
        variances[0] = norms**2
        for h in range(1, depth):
            q = variances[h - 1]
            variances[h] = (
                q if activation == "relu" else ERF_GAIN * 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))
            )
        return _Side(directions, norms, variances)

    def part(self, where: slice) -> _Side:
        return _Side(self.directions[where], self.norms[where], self.variances[:, where])


def _block(rows: _Side, columns: _Side, scales: Floats, kind: str, activation: str) -> Floats:
    from thalweg.kernels.layers import ROWS, WIDTH, products, relu_layers  # compiled: only when it is needed

    n, m, d = len(rows.norms), len(columns.norms), rows.directions.shape[1]
    left, right = np.zeros((-(-n // ROWS) * ROWS, d)), np.zeros((d, -(-m // WIDTH) * WIDTH))
    left[:n], right[:, :m] = rows.directions, columns.directions.T
    block = np.empty((len(left), right.shape[1]))
    products(left, right, block)
    if activation == "erf":
        sigma = block[:n, :m] * np.outer(rows.norms, columns.norms)
        return _erf_layers(sigma, rows, columns, scales, kind)
    row_sizes, col_sizes = np.zeros(len(left)), np.zeros(right.shape[1])
    row_sizes[:n], col_sizes[:m] = rows.norms, columns.norms
    relu_layers(block, row_sizes, col_sizes, scales, kind == "ntk")
    return block[:n, :m]


def _erf_layers(sigma: Floats, rows: _Side, columns: _Side, scales: Floats, kind: str) -> Floats:
    """E[erf(u)erf(v)] = 2/π · arcsin r with r = 2Σ/√((1 + 2Σuu)(1 + 2Σvv)), and its derivative by Σ."""
    theta = scales[0] * sigma
    for h in range(1, len(scales)):
        widths = np.sqrt(np.outer(1 + 2 * rows.variances[h - 1], 1 + 2 * columns.variances[h - 1]))
        r = 2 * sigma / widths
        slope = ERF_GAIN * 4 / np.pi / (widths * np.sqrt((1 - r) * (1 + r)))
        sigma = ERF_GAIN * 2 / np.pi * np.arcsin(r)
        theta = theta * slope + scales[h] * sigma
    return theta if kind == "ntk" else sigma


def _diagonal(side: _Side, scales: Floats, kind: str, activation: str) -> Floats:
    """Each example with itself, exactly: there ρ is 1, which a product of directions meets only nearly."""
    if kind == "nngp":
        return np.asarray(side.variances[-1])
    theta = scales[0] * side.variances[0]
    for h in range(1, len(scales)):
        q = side.variances[h - 1]
        slope = 1.0 if activation == "relu" else ERF_GAIN * 4 / np.pi / np.sqrt(1 + 4 * q)
        theta = theta * slope + scales[h] * side.variances[h]
    return np.asarray(theta)
