"""What every kernel asks of the arrays it is given."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from thalweg.errors import InputError

__all__ = ["checked_dtype", "checked_pair", "num_cores", "root_mean_square"]


def checked_pair(
    x: ArrayLike, z: ArrayLike | None, axes: tuple[str, ...]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both as arrays of real, finite numbers whose axes fit; x twice where z is None.

    Raises:
        InputError: if they are not, with what was expected.
    """
    first = _checked(x, "x", axes)
    if z is None:
        return first, first
    second = _checked(z, "z", axes)
    if first.shape[1:] != second.shape[1:]:
        raise InputError(
            "the examples of x and z differ in shape",
            expected=f"{first.shape[1:]}",
            got=f"{second.shape[1:]}",
        )
    return first, second


def _checked(values: ArrayLike, name: str, axes: tuple[str, ...]) -> NDArray[Any]:
    array = np.asarray(values)
    expected = f"an array ({', '.join(axes)})"
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} holds no real numbers", expected=expected, got=f"dtype {array.dtype}")
    if array.ndim != len(axes) or 0 in array.shape[1:]:
        hint = None
        if array.ndim == len(axes) - 1:
            hint = (
                f"{name}[None] for a single example"
                if len(axes) == 2
                else f"{name}[None], or {name}[:, None]"
            )
        raise InputError(
            f"the shape of {name} does not fit", expected=expected, got=f"{array.shape}", hint=hint
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).any(axis=tuple(range(1, array.ndim))).argmax())
        raise InputError(f"{name} holds NaN or infinity, first in example {bad}")
    return array


def checked_dtype(dtype: DTypeLike | None, *arrays: NDArray[Any]) -> np.dtype[Any]:
    """Return float32 or float64; where none is asked for, float32 if all arrays are, else float64."""
    if dtype is None:
        single = all(array.dtype == np.float32 for array in arrays)
        return np.dtype(np.float32 if single else np.float64)
    found = np.dtype(dtype)
    if found not in {np.dtype(np.float32), np.dtype(np.float64)}:
        raise InputError("kernels are computed in float32 or float64", got=f"{found}")
    return found


def num_cores(threads: int | None) -> int:
    """Return how many threads to run: as many as this process may use cores, unless told."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise InputError("somebody has to work", expected="threads of 1 or more", got=f"{threads}")
    return threads


def root_mean_square(array: NDArray[Any]) -> NDArray[np.float64]:
    """Return the root mean square of each example (n,), without overflow."""
    flat = array.reshape(len(array), int(np.prod(array.shape[1:]))).astype(np.float64)
    largest = np.abs(flat).max(axis=1, initial=0.0)
    flat /= np.where(largest > 0, largest, 1)[:, None]
    return np.asarray(largest * np.sqrt(np.mean(flat * flat, axis=1)))
