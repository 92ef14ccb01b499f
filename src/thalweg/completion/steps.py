"""The descent on a product of matrices: gradient by hand, optimisers, and the loop, compiled.

The parameters of depth N lie in one vector θ: L (n₁, h), R (n₂, h), then the middle factors M_2 … M_{N−1}
(h, h). The product is W = L·M_{N−1}⋯M_2·Rᵀ; in the paper's words W_N = L, W_1 = Rᵀ. Of W only the observed
entries are ever computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.completion.compiled import compiled

__all__ = ["ADAM", "DECAY", "GD", "LOSS", "NGD", "NUM_STATE", "RATE", "STEP"]
__all__ += ["advance", "gradient", "squared_error"]

_Array = NDArray[Any]

NGD, GD, ADAM = 0, 1, 2
# What a descent carries from step to step, beside θ and Adam's moments.
STEP, RATE, DECAY, LOSS, _MEAN_SQUARE, _RISES, NUM_STATE = range(7)

_MEMORY = 0.99  # of the mean square of the gradient's norm, as in the reference implementation
_FLOOR = 1e-4  # added to its root, likewise
# Where the loss rose at more than so many of so many steps, they are too long, and the rate is multiplied.
# Steps that bounce between two walls of a valley would still descend, but amplify rounding until no run
# repeats another.
_WINDOW_STEPS, _ALLOWED_RISES, _SHRINK = 25, 3, 0.7
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's


@compiled
def _pass(
    left: _Array,
    right: _Array,
    start: _Array,
    columns: _Array,
    values: _Array,
    into_left: _Array,
    into_right: _Array,
) -> float:
    """Add rᵢⱼ·right[j] to into_left[i], rᵢⱼ·left[i] to into_right[j] where observed; return Σr²."""
    width = left.shape[1]
    zero = left.dtype.type(0)  # in the precision of the data, or the loop would convert at every turn
    total = 0.0
    for i in range(left.shape[0]):
        for p in range(start[i], start[i + 1]):
            j = np.uint32(columns[p])  # never negative, which spares a test at every access
            predicted = zero
            for k in range(width):
                predicted += left[i, k] * right[j, k]
            r = predicted - values[p]
            total += r * r
            for k in range(width):
                into_left[i, k] += r * right[j, k]
            for k in range(width):
                into_right[j, k] += r * left[i, k]
    return total


@compiled
def squared_error(left: _Array, right: _Array, start: _Array, columns: _Array, values: _Array) -> float:
    """Return Σ(left[i]·right[j] − values)² over the observed (i, j); ``start``, ``columns`` as in CSR."""
    width = left.shape[1]
    zero = left.dtype.type(0)
    total = 0.0
    for i in range(left.shape[0]):
        for p in range(start[i], start[i + 1]):
            j = np.uint32(columns[p])
            predicted = zero
            for k in range(width):
                predicted += left[i, k] * right[j, k]
            r = predicted - values[p]
            total += r * r
    return total


@compiled
def gradient(
    theta: _Array,
    slope: _Array,
    sizes: tuple[int, int, int, int],
    start: _Array,
    columns: _Array,
    values: _Array,
) -> float:
    """Write the gradient of the mean squared error of the observed entries into ``slope``; return it.

    With B = R·Cᵀ, C the product of the middle factors, and G the sparse residual times 2/m: ∂L = G·B,
    ∂B = Gᵀ·L, ∂R = ∂B·C, ∂C = ∂Bᵀ·R, ∂M_k = (M_{N−1}⋯M_{k+1})ᵀ·∂C·(M_{k−1}⋯M_2)ᵀ.

    Cost: 6·m·h + O((n₁+n₂)·h² + N·h³) multiplications, and no array of the size of the matrix.
    """
    n1, n2, h, depth = sizes
    left = theta[: n1 * h].reshape(n1, h)
    right = theta[n1 * h : (n1 + n2) * h].reshape(n2, h)
    into_left = slope[: n1 * h].reshape(n1, h)
    into_right = slope[n1 * h : (n1 + n2) * h].reshape(n2, h)
    slope[:] = 0
    m = max(len(values), 1)
    if depth == 2:
        total = _pass(left, right, start, columns, values, into_left, into_right)
        slope *= 2.0 / m
        return total / m
    first = (n1 + n2) * h
    count = depth - 2
    # below[k] = M_{k−1}⋯M_2 and above[k] = M_{N−1}⋯M_{k+1}
    below = np.empty((count + 1, h, h), theta.dtype)
    below[0] = np.eye(h)
    for k in range(count):
        middle = theta[first + k * h * h : first + (k + 1) * h * h].reshape(h, h)
        below[k + 1] = middle if k == 0 else np.dot(middle, below[k])
    whole = below[count]
    outer = np.dot(right, whole.T)
    into_outer = np.zeros_like(outer)
    total = _pass(left, outer, start, columns, values, into_left, into_outer)
    into_outer *= 2.0 / m
    into_left *= 2.0 / m
    into_right[:] = np.dot(into_outer, whole)
    core = np.dot(into_outer.T, right)
    above = np.eye(h).astype(theta.dtype)
    for k in range(count - 1, -1, -1):
        place = slice(first + k * h * h, first + (k + 1) * h * h)
        part = core if k == count - 1 else np.dot(above.T, core)
        slope[place] = (part if k == 0 else np.dot(part, below[k].T)).ravel()
        if k > 0:
            middle = theta[place].reshape(h, h)
            above = middle.copy() if k == count - 1 else np.dot(above, middle)
    return total / m


@compiled
def _move(
    theta: _Array, slope: _Array, first: _Array, second: _Array, state: _Array, optimizer: int, square: float
) -> None:
    """Take one step along ``slope``, whose squared norm is ``square``."""
    state[STEP] += 1
    if optimizer == ADAM:
        low, high = 1 - _BETA_1 ** state[STEP], 1 - _BETA_2 ** state[STEP]
        for i in range(len(theta)):
            g = slope[i]
            first[i] = _BETA_1 * first[i] + (1 - _BETA_1) * g
            second[i] = _BETA_2 * second[i] + (1 - _BETA_2) * g * g
            theta[i] -= state[RATE] * (first[i] / low) / (math.sqrt(second[i] / high) + _EPSILON)
        return
    rate = state[RATE]
    if optimizer == NGD:
        state[_MEAN_SQUARE] = _MEMORY * state[_MEAN_SQUARE] + (1 - _MEMORY) * square
        rate /= math.sqrt(state[_MEAN_SQUARE] / (1 - _MEMORY ** state[STEP])) + _FLOOR
    for i in range(len(theta)):
        theta[i] -= rate * slope[i]


@compiled
def advance(
    theta: _Array,
    slope: _Array,
    first: _Array,
    second: _Array,
    state: _Array,
    sizes: tuple[int, int, int, int],
    start: _Array,
    columns: _Array,
    values: _Array,
    optimizer: int,
    tol: float,
    steps: int,
) -> None:
    """Take up to ``steps`` steps in place; stop before one where the error is at most ``tol`` or not finite.

    ``state[LOSS]`` is that before the last step, or where it stopped.
    """
    for _ in range(steps):
        loss = gradient(theta, slope, sizes, start, columns, values)
        square = 0.0
        for i in range(len(slope)):
            square += float(slope[i]) * float(slope[i])
        state[_RISES] += loss > state[LOSS] > 0
        state[LOSS] = loss
        if not (loss > tol and loss < math.inf):
            return
        _move(theta, slope, first, second, state, optimizer, square)
        if state[DECAY] > 0 and state[STEP] % _WINDOW_STEPS == 0:
            if state[_RISES] > _ALLOWED_RISES:
                state[RATE] *= _SHRINK
            state[_RISES] = 0
