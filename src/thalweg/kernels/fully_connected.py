"""The neural tangent kernel of fully connected networks ([arora2019], section 3 and theorem 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.errors import InputError

__all__ = ["ntk"]


def ntk(
    x: ArrayLike,
    z: ArrayLike | None = None,
    *,
    depth: int,
    kind: Literal["ntk", "nngp"] = "ntk",
    trained: Literal["all"] | Sequence[float] = "all",
) -> NDArray[Any]:
    """Return the kernel (n, m) of an infinitely wide ReLU network between x (n, d) and z (m, d).

    With Σ(x, z) = xᵀz and Θ = s₀Σ, each of the depth − 1 hidden layers replaces Σ by 2E[σ(u)σ(v)] and Θ by
    Θ ∘ 2E[σ'(u)σ'(v)] + s_h Σ, (u, v) Gaussian with the covariance before it ([arora2019], equation 9).

    Args:
        x: the examples, one a row.
        z: the others; without them the symmetric kernel of x with itself.
        depth: layers of weights; 1 is the linear kernel, depth − 1 layers are followed by a ReLU.
        kind: "ntk", or "nngp" for the covariance of the outputs at random weights.
        trained: s, one number a layer: 0 frozen, 1 trained; "all" for ones.

    Raises:
        InputError: for arrays of other shapes, NaN or infinity, and depths below one.
    """
    a = np.asarray(x, dtype=np.float64)
    b = a if z is None else np.asarray(z, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            "the examples do not fit", expected="x (n, d) and z (m, d)", got=f"{a.shape}, {b.shape}"
        )
    if depth < 1:
        raise InputError("a network has at least one layer", expected="depth >= 1", got=f"{depth}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("the examples hold NaN or infinity")
    scales = np.ones(depth) if trained == "all" else np.asarray(trained, dtype=np.float64)
    if scales.shape != (depth,):
        raise InputError("trained does not fit", expected=f"{depth} numbers", got=f"{scales.shape}")
    size = np.sqrt(np.einsum("ni,ni->n", a, a)), np.sqrt(np.einsum("ni,ni->n", b, b))
    norm = np.outer(*size)
    rho = np.divide(a @ b.T, norm, out=np.zeros_like(norm), where=norm > 0)
    if z is None:
        np.fill_diagonal(rho, size[0] > 0)
    theta = scales[0] * rho
    for h in range(1, depth):
        rho = np.clip(rho, -1, 1)
        angle = np.pi - np.arccos(rho)
        theta = theta * angle / np.pi
        rho = (rho * angle + np.sqrt((1 - rho) * (1 + rho))) / np.pi * (norm > 0)
        theta += scales[h] * rho
    return np.asarray(norm * (theta if kind == "ntk" else rho))
