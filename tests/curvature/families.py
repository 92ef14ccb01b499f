"""Symmetric operators whose spectra are known: LAPACK's test matrices and harder ones, at any size.

The types 1–21 are those of LAPACK's ``dchkst``, the modes those of ``dlatm1``. Spectra are hidden by
Householder reflections whose vectors are exact in the dtype, so that the eigenvalues of the operator are the
stored ones, and every error is rounding of its products.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal


@dataclass(frozen=True)
class Case:
    """An operator, all of its eigenvalues ascending, and how well those are known."""

    operator: object
    truth: np.ndarray
    doubt: float = 0.0


class Rotated:
    """HᵀDH with a diagonal D and a product of reflections H."""

    def __init__(self, eigenvalues, dtype, rng, reflections=2):
        self.values = torch.as_tensor(eigenvalues).to(dtype)
        self.size, self.dtype, self.device = len(eigenvalues), dtype, torch.device("cpu")
        self._normals = [torch.as_tensor(rng.normal(size=self.size)).to(dtype) for _ in range(reflections)]

    def matvec(self, vector):
        for normal in self._normals:
            vector = _reflect(vector, normal)
        vector = self.values * vector
        for normal in reversed(self._normals):
            vector = _reflect(vector, normal)
        return vector


class Tridiagonal:
    def __init__(self, diagonal, off, dtype):
        self.diagonal, self.off = torch.as_tensor(diagonal).to(dtype), torch.as_tensor(off).to(dtype)
        self.size, self.dtype, self.device = len(diagonal), dtype, torch.device("cpu")

    def matvec(self, vector):
        product = self.diagonal * vector
        product[1:] += self.off * vector[:-1]
        product[:-1] += self.off * vector[1:]
        return product


class Full:
    def __init__(self, matrix, dtype):
        self.matrix = torch.as_tensor(matrix).to(dtype)
        self.size, self.dtype, self.device = len(matrix), dtype, torch.device("cpu")

    def matvec(self, vector):
        return self.matrix @ vector


def _reflect(vector, normal):
    wide = normal.double()
    return vector - normal * ((2 * (wide @ vector.double()) / (wide @ wide)).to(vector.dtype))


def rotated(eigenvalues, dtype, rng):
    # Rotating one dimension would only change its sign.
    operator = Rotated(
        np.asarray(eigenvalues, dtype=float), dtype, rng, reflections=2 if len(eigenvalues) > 1 else 0
    )
    return Case(operator, np.sort(operator.values.double().numpy()))


def aligned(eigenvalues, dtype):
    operator = Rotated(np.asarray(eigenvalues, dtype=float), dtype, None, reflections=0)
    return Case(operator, np.sort(operator.values.double().numpy()))


def tridiagonal(diagonal, off, dtype):
    operator = Tridiagonal(np.asarray(diagonal, dtype=float), np.asarray(off, dtype=float), dtype)
    truth = eigvalsh_tridiagonal(operator.diagonal.double().numpy(), operator.off.double().numpy())
    return Case(operator, truth, _doubt(truth))


def full(matrix, dtype):
    operator = Full(matrix, dtype)
    truth = np.linalg.eigvalsh(operator.matrix.double().numpy())
    return Case(operator, truth, _doubt(truth))


def _doubt(truth):
    """What LAPACK promises of the eigenvalues that are taken for the truth."""
    return 4 * np.finfo(float).eps * np.abs(truth).max(initial=0.0) * np.sqrt(len(truth))


# Shapes of spectra: (n, u, rng) -> eigenvalues. u is the unit of rounding of the dtype.


def evenly(n, u, rng):
    return np.linspace(1, u, n)


def geometrically(n, u, rng):
    return np.geomspace(1, u, n)


def clustered(n, u, rng):
    return np.r_[1.0, np.full(n - 1, u)]


def signed(shape):
    return lambda n, u, rng: shape(n, u, rng) * rng.choice([-1.0, 1.0], n)


def times(shape, power):
    """Scale by about √overflow (power ½) or √underflow (−½) of the dtype, as LAPACK does."""

    def scaled(n, u, rng):
        largest = 1e38 if u > 1e-10 else 1e300
        return shape(n, u, rng) * largest ** (power * 0.98)

    return scaled


def mode(number, cond):
    """Return mode ``number`` of LAPACK's dlatm1; ``cond`` None stands for 1/u."""

    def spectrum(n, u, rng):
        low = 1 / cond if cond else u
        return (
            np.r_[1.0, np.full(n - 1, low)],
            np.r_[np.ones(n - 1), low],
            np.geomspace(1, low, n),
            np.linspace(1, low, n),
            np.exp(rng.uniform(np.log(low), 0, n)),
            rng.normal(size=n),
        )[number - 1]

    return spectrum


def tiny_negative(depth):
    return lambda n, u, rng: np.r_[-(depth or u), np.linspace(0.01, 1, n - 1)]


def outliers_over_a_bulk(n, u, rng):
    count = min(5, n - 1)
    return np.r_[np.linspace(5, 100, count), 0.01 * rng.normal(size=n - count)]


def low_rank(n, u, rng):
    rank = min(3, n)
    return np.r_[np.array([3.0, -2.0, 1.0])[:rank], np.zeros(n - rank)]


def close_pair(n, u, rng):
    return np.r_[1.0, 1 - 1e-10, np.linspace(-0.5, 0.5, max(n - 2, 0))][:n]


def repeated(n, u, rng):
    return np.resize(np.repeat([2.0, -1.0, 0.0, 1.5], 30), n)


def one_of_many(n, u, rng):
    """A bulk dense at its edges, which Chebyshev polynomials like least, and one eigenvalue just below."""
    return np.r_[-0.01, (1 - np.cos(np.pi * np.arange(n - 1) / max(n - 2, 1))) / 2]


SPECTRA = {
    "evenly, signs": signed(evenly),
    "geometrically, signs": signed(geometrically),
    "clustered, signs": signed(clustered),
    "evenly, signs, huge": times(signed(evenly), 0.5),
    "evenly, signs, tiny": times(signed(evenly), -0.5),
    "positive evenly": evenly,
    "positive geometrically": geometrically,
    "positive clustered": clustered,
    "positive evenly, huge": times(evenly, 0.5),
    "positive evenly, tiny": times(evenly, -0.5),
    **{f"mode {m}, cond 100": mode(m, 100.0) for m in range(1, 6)},
    **{f"mode {m}, cond 1/u": mode(m, None) for m in range(1, 6)},
    "mode 6": mode(6, None),
    "negative mode 2": lambda n, u, rng: -mode(2, 100.0)(n, u, rng),
    "one at -1e-8": tiny_negative(1e-8),
    "one at -u": tiny_negative(None),
    "outliers over a bulk": outliers_over_a_bulk,
    "low rank": low_rank,
    "close pair": close_pair,
    "repeated 30 times": repeated,
    "plus and minus": lambda n, u, rng: np.r_[np.linspace(1, 2, n - n // 2), -np.linspace(1, 2, n)[: n // 2]],
    "one below a Chebyshev bulk": one_of_many,
    "scale 1e-30": lambda n, u, rng: 1e-30 * np.linspace(-1, 2, n),
    "far from zero": lambda n, u, rng: 1000 + np.linspace(0, 1, n),
    "signed zeros": lambda n, u, rng: np.where(np.arange(n) % 2, -0.0, 0.0),
}


def _glued_wilkinson(n, dtype):
    block = np.abs(np.arange(21) - 10.0)
    off = np.ones(n - 1)
    off[20::21] = 1e-6
    return tridiagonal(np.resize(block, n), off, dtype)


def _identical_blocks(n, dtype, rng):
    block = rng.normal(size=(5, 5))
    block = (block + block.T).astype(np.float32)
    whole = np.zeros((n, n))
    for at in range(0, n, 5):
        part = min(5, n - at)
        whole[at : at + part, at : at + part] = block[:part, :part]
    return full(whole, dtype)


def _random_symmetric(n, dtype, rng, power=0.0):
    matrix = rng.uniform(-1, 1, size=(n, n))
    return full(
        times(lambda n, u, rng: np.tril(matrix) + np.tril(matrix, -1).T, power)(
            n, torch.finfo(dtype).eps, rng
        ),
        dtype,
    )


def _hilbert(n, dtype, rng):
    return full(1 / (np.arange(n)[:, None] + np.arange(n) + 1.0), dtype)


def _dominant(n, dtype, rng):
    diagonal = np.geomspace(1, torch.finfo(dtype).eps, n)
    return tridiagonal(diagonal, 0.5 * np.sqrt(diagonal[1:] * diagonal[:-1]) * rng.uniform(size=n - 1), dtype)


MATRICES = {
    "zero": lambda n, dtype, rng: aligned(np.zeros(n), dtype),
    "identity": lambda n, dtype, rng: aligned(np.ones(n), dtype),
    "diagonal evenly": lambda n, dtype, rng: aligned(signed(evenly)(n, torch.finfo(dtype).eps, rng), dtype),
    "diagonal geometrically": lambda n, dtype, rng: aligned(
        signed(geometrically)(n, torch.finfo(dtype).eps, rng), dtype
    ),
    "diagonal clustered": lambda n, dtype, rng: aligned(
        signed(clustered)(n, torch.finfo(dtype).eps, rng), dtype
    ),
    "diagonal geometrically, huge": lambda n, dtype, rng: aligned(
        times(geometrically, 0.5)(n, torch.finfo(dtype).eps, rng), dtype
    ),
    "diagonal geometrically, tiny": lambda n, dtype, rng: aligned(
        times(geometrically, -0.5)(n, torch.finfo(dtype).eps, rng), dtype
    ),
    "random symmetric": _random_symmetric,
    "random symmetric, huge": lambda n, dtype, rng: _random_symmetric(n, dtype, rng, 0.5),
    "random symmetric, tiny": lambda n, dtype, rng: _random_symmetric(n, dtype, rng, -0.5),
    "dominant tridiagonal": _dominant,
    "W+": lambda n, dtype, rng: tridiagonal(np.abs(np.arange(n) - (n - 1) / 2), np.ones(n - 1), dtype),
    "W-": lambda n, dtype, rng: tridiagonal(np.arange(n) - (n - 1) / 2, np.ones(n - 1), dtype),
    "glued W21+": lambda n, dtype, rng: _glued_wilkinson(n, dtype),
    "Laplacian": lambda n, dtype, rng: tridiagonal(np.full(n, 2.0), -np.ones(n - 1), dtype),
    "Hilbert": _hilbert,
    "identical blocks": _identical_blocks,
}
# Dense ones stay small enough for an eigenvalue solver to be asked for the truth.
DENSE = {name for name in MATRICES if name.startswith("random") or name in {"Hilbert", "identical blocks"}}
NAMES = (*MATRICES, *SPECTRA)


def build(name, n, dtype, seed=0):
    """Return the case ``name`` of size n; the dense ones are cut to 500."""
    rng = np.random.default_rng([seed, n, NAMES.index(name)])
    if name in MATRICES:
        return MATRICES[name](min(n, 500) if name in DENSE else n, dtype, rng)
    return rotated(SPECTRA[name](n, torch.finfo(dtype).eps, rng), dtype, rng)
