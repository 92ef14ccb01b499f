"""What gradient descent does to an infinitely wide net: its predictions after any number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError
from thalweg.kernels.ridge import Eigen, decompose

__all__ = ["KernelDescent", "largest_stable_lr"]

Floats = NDArray[np.float64]


def largest_stable_lr(kernel: NDArray[np.floating], *, momentum: float = 0.0) -> float:
    """Return the learning rate above which full-batch gradient descent on |f − y|²/2n diverges.

    2n/l_max of the kernel matrix (n, n), times 1 + momentum for the heavy ball ([polyak1964], theorem 9).
    """
    _require_momentum(momentum)
    return _limit(decompose(kernel), momentum)


@dataclass(frozen=True)
class KernelDescent:
    """Full-batch gradient descent on L = |f − y|²/2n of a net that stays at its kernel, step by step.

    Per eigenvalue l of the kernel matrix Θ the residual r = f − y follows the recursion of the weights,
    v ← μv + (l/n) r, r ← r − ηv, exactly; its k-th power is taken, not its limit in continuous time
    ([lee2019], eq. 8–9, for gradient flow).

    For `torch.nn.MSELoss`, which is the mean over the n·c entries of |f − y|², η is 2·lr/c.

    Attributes:
        eigen: of Θ (n, n) on the training examples.
        targets: y (n, c).
        lr: η.
        momentum: μ of the heavy ball, as in `torch.optim.SGD`.
        start: f_0 (n, c), what the net predicts before the first step; zero is the mean over initialisations.
    """

    eigen: Eigen
    targets: Floats
    lr: float
    momentum: float = 0.0
    start: Floats | None = None

    def __post_init__(self) -> None:
        _require_momentum(self.momentum)
        if not self.lr > 0:
            raise InputError("the learning rate cannot be used", expected="above 0", got=str(self.lr))
        n = len(self.eigen.values)
        for name, values in (("targets", self.targets), ("start", self.start)):
            if values is not None and (np.ndim(values) != 2 or len(values) != n):
                raise InputError(
                    f"the {name} do not fit", expected=f"({n}, outputs)", got=f"{np.shape(values)}"
                )
        if self.start is not None and self.start.shape != self.targets.shape:
            raise InputError(
                "the start does not fit", expected=str(self.targets.shape), got=str(self.start.shape)
            )

    @property
    def stable(self) -> bool:
        """Whether the learning rate lies below the largest stable one."""
        return self.lr < _limit(self.eigen, self.momentum)

    def train(self, steps: float) -> Floats:
        """Return the predictions (n, c) for the training examples after ``steps``; infinity converges."""
        remaining = self.remaining(steps)
        rotated = self.eigen.vectors.T @ self._residual()
        return self.targets + self.eigen.vectors @ (remaining[:, None] * rotated)

    def predict(self, cross: Floats, steps: float, *, start: Floats | None = None) -> Floats:
        """Return the predictions (m, c) for other examples after ``steps`` steps.

        Args:
            cross: Θ (m, n) between them and the training examples.
            steps: 0, 1, … or infinity.
            start: f_0 (m, c) on them; zero without one.
        """
        rotated = self.eigen.vectors.T @ self._residual()
        moved = cross @ (self.eigen.vectors @ (self._taken(steps)[:, None] * rotated))
        return moved if start is None else start + moved

    def loss(self, steps: Sequence[float]) -> Floats:
        """Return the training loss (t,) after each of ``steps``, (1/2n) Σ_i c_i(k)² (v_iᵀ r_0)²."""
        energy = np.sum((self.eigen.vectors.T @ self._residual()) ** 2, axis=1)
        n = len(energy)
        with np.errstate(over="ignore"):
            return np.array([float(self.remaining(k) ** 2 @ energy) / (2 * n) for k in steps])

    def variance(
        self, cross: Floats, steps: float, *, nngp: Floats, nngp_cross: Floats, own: Floats
    ) -> Floats:
        """Return the variance (m,) of a prediction over initialisations after ``steps`` steps.

        Σ = k(x,x) + T K Tᵀ − 2 T k(X,x) with T = Θ(x,X)·Θ⁻¹(I − C_k), k of the NNGP ([lee2019], eq. 16).

        Args:
            cross: Θ (m, n) between the examples and the training examples.
            steps: 0, 1, … or infinity.
            nngp: k (n, n) of the training examples.
            nngp_cross: k (m, n).
            own: k (m,) of each example with itself.
        """
        taken = (cross @ self.eigen.vectors) * -self._taken(steps) @ self.eigen.vectors.T  # T (m, n)
        through = np.einsum("mi,ij,mj->m", taken, nngp, taken, optimize=True)
        spread: Floats = np.maximum(own + through - 2 * np.sum(taken * nngp_cross, axis=1), 0.0)
        return spread

    def steps_to_learn(self) -> Floats:
        """Return the steps (n,) after which each mode's residual has fallen by e; infinity for those at zero.

        Ascending eigenvalues, as in ``eigen``: the first are the slowest.
        """
        with np.errstate(divide="ignore"):
            return 1.0 / np.abs(np.log(np.minimum(self._rates(), 1.0)))

    def remaining(self, steps: float) -> Floats:
        """Return c_k (n,): by how much each mode's residual has been multiplied after ``steps`` steps."""
        if math.isinf(steps):
            return np.where(self.eigen.values > 0, 0.0, 1.0)
        a = self.eigen.values / len(self.eigen.values)
        once = np.empty((len(a), 2, 2))  # (r, v) -> (r − η(μv + ar), μv + ar)
        once[:, 0, 0], once[:, 0, 1] = 1 - self.lr * a, -self.lr * self.momentum
        once[:, 1, 0], once[:, 1, 1] = a, self.momentum
        return _power(once, steps)[:, 0, 0]

    def _taken(self, steps: float) -> Floats:
        """Return α_k (n,) with f_k = f_0 + Θ V α_k Vᵀ r_0; it is (c_k − 1)/l without the division by l."""
        if math.isinf(steps):
            values = self.eigen.values
            return -np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
        n = len(self.eigen.values)
        once = np.zeros((n, 3, 3))  # (α, ν, 1) -> (α − ην', ν' = μν + (lα + 1)/n, 1)
        once[:, 1, 0], once[:, 1, 1], once[:, 1, 2] = self.eigen.values / n, self.momentum, 1 / n
        once[:, 0, 0] = 1.0
        once[:, 0] -= self.lr * once[:, 1]
        once[:, 2, 2] = 1.0
        return _power(once, steps)[:, 0, 2]

    def _residual(self) -> Floats:
        return -self.targets if self.start is None else self.start - self.targets

    def _rates(self) -> Floats:
        """Return the modulus (n,) of each mode's slower root of z² − (1 + μ − ηl/n) z + μ."""
        half = (1 + self.momentum - self.lr * self.eigen.values / len(self.eigen.values)) / 2
        root = np.sqrt(np.asarray(half**2 - self.momentum, dtype=complex))
        slower: Floats = np.maximum(np.abs(half + root), np.abs(half - root))
        return slower


def _limit(eigen: Eigen, momentum: float) -> float:
    return float(2 * len(eigen.values) * (1 + momentum) / eigen.values[-1])


def _power(once: Floats, steps: float) -> Floats:
    if steps < 0 or steps != int(steps):
        raise InputError("a number of steps is whole", expected="0, 1, … or infinity", got=str(steps))
    with np.errstate(over="ignore", invalid="ignore"):  # above the stable learning rate it grows without end
        power: Floats = np.linalg.matrix_power(once, int(steps))
    return power


def _require_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise InputError("the momentum cannot be used", expected="from 0 to below 1", got=str(momentum))
