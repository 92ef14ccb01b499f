"""The neural tangent kernel of convolutional networks ([arora2019], section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.errors import InputError

__all__ = ["cntk"]

Floats = NDArray[np.float64]


def cntk(
    x: ArrayLike,
    z: ArrayLike | None = None,
    *,
    depth: int,
    readout: Literal["gap", "flatten"] = "gap",
    trained: Literal["paper", "all"] | Sequence[float] = "paper",
    padding: Literal["zeros", "circular"] = "zeros",
    kind: Literal["ntk", "nngp"] = "ntk",
) -> NDArray[Any]:
    """Return the kernel (n, m) between the images x (n, channels, height, width) and z (m, …).

    Args:
        x: the images.
        z: the others; without them the symmetric kernel of x with itself.
        depth: layers of weights: depth − 1 convolutions of 3×3, each followed by a ReLU, and the readout.
        readout: "gap" averages over the pixels before the last layer, "flatten" does not.
        trained: "paper" freezes the first convolution and the last layer for "gap" and nothing for "flatten",
            as the published table did; "all" trains all; or one number a layer, 0 frozen, 1 trained.
        padding: what lies outside the image.
        kind: "ntk", or "nngp" for the covariance of the outputs at random weights.

    Raises:
        InputError: for arrays of other shapes, NaN or infinity, and depths below two.
    """
    a = np.asarray(x, dtype=np.float64)
    b = a if z is None else np.asarray(z, dtype=np.float64)
    if a.ndim != 4 or b.ndim != 4 or a.shape[1:] != b.shape[1:]:
        raise InputError(
            "the images do not fit", expected="(n, channels, height, width)", got=f"{a.shape}, {b.shape}"
        )
    if depth < 2:
        raise InputError(
            "a convolutional network has two layers at least", expected="depth >= 2", got=f"{depth}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("the images hold NaN or infinity")
    scales = np.ones(depth) if isinstance(trained, str) else np.asarray(trained, dtype=np.float64)
    if isinstance(trained, str) and trained == "paper" and readout == "gap":
        scales[[0, -1]] = 0
    out = np.empty((len(a), len(b)))
    for i in range(len(a)):
        for start in range(0, len(b), 64):
            block = b[start : start + 64]
            row = _row(a[i], block, depth, readout, scales, padding == "circular", kind == "ntk")
            out[i, start : start + 64] = row
    if z is None:
        for i in range(len(a)):  # exact where rho is 1
            out[i, i] = _row(
                a[i], a[i : i + 1], depth, readout, scales, padding == "circular", kind == "ntk", True
            )[0]
    return out


def _row(
    x: Floats,
    z: Floats,
    depth: int,
    readout: str,
    scales: Floats,
    wrap: bool,
    tangent: bool,
    same: bool = False,
) -> Floats:
    height, width = x.shape[1:]
    shifts = [(0, 0)] if readout == "flatten" else [(i, j) for i in range(height) for j in range(width)]
    total = np.zeros(len(z))
    for shift in shifts:
        total += _tile(x, z, shift, depth, scales, wrap, tangent, same and shift == (0, 0))
    return total / (1 if readout == "flatten" else (height * width) ** 2)


def _tile(
    x: Floats,
    z: Floats,
    shift: tuple[int, int],
    depth: int,
    scales: Floats,
    wrap: bool,
    tangent: bool,
    same: bool,
) -> Floats:
    """All pixel pairs whose offset is ``shift``, modulo the size of the image: (m, height, width), summed."""

    def rolled(field: Floats) -> Floats:
        return np.asarray(np.roll(field, shift, (-2, -1)))

    def patches(field: Floats) -> Floats:
        for axis, cut in ((-2, shift[0]), (-1, shift[1])):
            before, after = np.roll(field, 1, axis), np.roll(field, -1, axis)
            if not wrap:
                for place in {0, cut}:
                    np.moveaxis(before, axis, 0)[place] = 0
                    np.moveaxis(after, axis, 0)[place - 1] = 0
            field = field + before + after
        return field

    def own(variance: Floats) -> Floats:
        mode: Literal["wrap", "constant"] = "wrap" if wrap else "constant"
        wide = np.pad(variance, [(0, 0)] * (variance.ndim - 2) + [(1, 1), (1, 1)], mode=mode)
        p, q = variance.shape[-2:]
        return np.asarray(sum(wide[..., i : i + p, j : j + q] for i in range(3) for j in range(3)))

    sigma = patches(np.sum(x * rolled(z), axis=1))
    variances = own(np.sum(x * x, axis=0)), own(np.sum(z * z, axis=1))
    theta = scales[0] * sigma
    for h in range(1, depth):
        norm = np.sqrt(variances[0] * rolled(variances[1]))
        rho = np.clip(np.divide(sigma, norm, out=np.zeros_like(norm), where=norm > 0), -1, 1)
        if same:
            rho[norm > 0] = 1
        angle = np.pi - np.arccos(rho)
        k = norm * (rho * angle + np.sqrt((1 - rho) * (1 + rho))) / (9 * np.pi)
        theta = theta * angle / (9 * np.pi) + scales[h] * k
        if h < depth - 1:
            sigma, theta = patches(k), patches(theta)
            variances = own(variances[0]) / 9, own(variances[1]) / 9
    return np.asarray((theta if tangent else k).sum((-2, -1)))
