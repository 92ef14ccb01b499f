"""The factors of a deep factorisation: how they begin, what their product is, what keeps them balanced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from thalweg.rng import generator

__all__ = ["Factors", "Start", "effective_rank", "initial"]

Start = Literal["balanced", "gaussian"]
_Array = NDArray[Any]


@dataclass(frozen=True)
class Factors:
    """W = left · M_{N−1} ⋯ M_2 · rightᵀ.

    Attributes:
        left: W_N, (n₁, h).
        right: W_1ᵀ, (n₂, h).
        middle: M_2 … M_{N−1}, (N−2, h, h).
    """

    left: _Array
    right: _Array
    middle: _Array

    @property
    def depth(self) -> int:
        """N."""
        return len(self.middle) + 2

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """n₁, n₂, h and N, as the compiled loops take them."""
        return len(self.left), len(self.right), self.left.shape[1], self.depth

    def flat(self) -> _Array:
        """Return θ, the vector in which a descent holds them."""
        return np.concatenate([self.left.ravel(), self.right.ravel(), self.middle.ravel()])

    @classmethod
    def of(cls, theta: _Array, sizes: tuple[int, int, int, int]) -> Factors:
        """Look at θ as factors, without a copy."""
        n1, n2, h, depth = sizes
        outer = (n1 + n2) * h
        return cls(
            theta[: n1 * h].reshape(n1, h),
            theta[n1 * h : outer].reshape(n2, h),
            theta[outer:].reshape(depth - 2, h, h),
        )

    def core(self) -> _Array:
        """Return M_{N−1} ⋯ M_2, (h, h)."""
        core = np.eye(self.left.shape[1])
        for middle in self.middle:
            core = middle @ core
        return core

    def product(self) -> _Array:
        """Return W, (n₁, n₂)."""
        return np.asarray(self.left.astype(np.float64) @ self.core() @ self.right.T.astype(np.float64))

    def decomposed(self) -> tuple[_Array, _Array, _Array]:
        """Return U (n₁, h), σ (h,) falling, V (n₂, h) with W = U·diag(σ)·Vᵀ; cost (n₁+n₂)·h²."""
        q1, r1 = np.linalg.qr(self.left.astype(np.float64))
        q2, r2 = np.linalg.qr(self.right.astype(np.float64))
        u, sigma, vt = np.linalg.svd(r1 @ self.core() @ r2.T)
        return q1 @ u, sigma, q2 @ vt.T

    def singular_values(self) -> _Array:
        """Return σ (h,), falling, exact to about 1e-8 of the largest."""
        outer = [_root(f.T @ f) for f in (self.left.astype(np.float64), self.right.astype(np.float64))]
        return np.asarray(np.linalg.svd(outer[0] @ self.core() @ outer[1].T, compute_uv=False))

    def imbalance(self) -> float:
        """Return max_j ‖W_{j+1}ᵀW_{j+1} − W_jW_jᵀ‖_F / max_j ‖W_jW_jᵀ‖_F (balancedness of [arora2019b], §3).

        Constant under gradient flow, 0 from a balanced start; with steps it drifts in proportion to their
        length.
        """
        left, right, middle = (part.astype(np.float64) for part in (self.left, self.right, self.middle))
        inner = [right.T @ right, *(w @ w.T for w in middle)]  # W_jW_jᵀ for j = 1 … N−1
        outer = [*(w.T @ w for w in middle), left.T @ left]  # W_{j+1}ᵀW_{j+1}, likewise
        gaps = [np.linalg.norm(above - below) for above, below in zip(outer, inner, strict=True)]
        size = max(np.linalg.norm(square) for square in (*inner, *outer))
        return float(max(gaps) / size) if size > 0 else 0.0


def initial(
    shape: tuple[int, int], width: int, depth: int, *, scale: float, start: Start, seed: int, dtype: str
) -> Factors:
    """Draw the factors with which a descent begins.

    "balanced": every factor is scale^{1/N} times a matrix with orthonormal columns, so that W_{j+1}ᵀW_{j+1} =
    W_jW_jᵀ exactly and every singular value of W is ``scale``. "gaussian": independent entries of deviation
    scale^{1/N}/√h, as in [arora2019b], where W has about the Frobenius norm scale·√h.
    """
    rng = generator(seed, "completion", "start")

    def drawn(rows: int) -> _Array:
        g = torch.randn(rows, width, generator=rng, dtype=torch.float64).numpy()
        if start == "gaussian":
            return np.asarray(g / np.sqrt(width))
        q, r = np.linalg.qr(g)
        return np.asarray(q * np.sign(np.diag(r)))  # else the signs would be LAPACK's choice

    unit = scale ** (1 / depth)
    middle = [drawn(width) for _ in range(depth - 2)]
    stack = np.stack(middle) if middle else np.empty((0, width, width))
    left, right = drawn(shape[0]), drawn(shape[1])
    return Factors(*(np.ascontiguousarray(unit * part, dtype=dtype) for part in (left, right, stack)))


def effective_rank(singular_values: _Array) -> float:
    """Return exp(−Σ p log p) with p = σ/Σσ ([roy2007]); 0 for the zero matrix."""
    total = float(np.sum(singular_values))
    if not total > 0:
        return 0.0
    p = np.asarray(singular_values, dtype=np.float64) / total
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def _root(gram: _Array) -> _Array:
    """Return S with SᵀS equal to a Gram matrix, for its singular values: S = Λ^{1/2}Qᵀ."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)
