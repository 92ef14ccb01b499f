"""The largest curvature along a run: Lanczos that starts from where it ended the last time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.curvature.hessian import DifferenceHessian, ExactHessian
from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Operator
from thalweg.problem.objective import Objective
from thalweg.rng import gaussian, generator

__all__ = ["LeadingCurvature", "WarmLanczos"]

COLD, WARM = 20, 4  # products


@dataclass(frozen=True)
class LeadingCurvature:
    """λmax as far as it was found.

    Attributes:
        value: the largest Ritz value: a lower bound of λmax, to rounding.
        residual: ‖Hv − θv‖: within it lies an eigenvalue ([parlett1998], §4.5).
        products: Hessian–vector products spent.
    """

    value: float
    residual: float
    products: int


class WarmLanczos:
    """Follows the largest eigenvalue of a slowly changing Hessian.

    The first run takes 20 products from a random start, later ones 4 from the last eigenvector, to which a
    twentieth of a random vector is added so that another one that has overtaken it is seen.
    """

    def __init__(self, seed: int) -> None:
        self._rng = generator(seed, "leading curvature")
        self._vector: Tensor | None = None

    def measure(self, objective: Objective, theta: Tensor) -> LeadingCurvature:
        """Measure λmax at ``theta`` (n,). Cost: 20 products the first time, then 4, 2 to 3 gradients each."""
        noise = gaussian(theta.numel(), self._rng, like=theta)
        noise = noise / noise.norm()
        start = noise if self._vector is None else self._vector + 0.05 * noise
        operator = _hessian(objective, theta)
        found = tridiagonalise(operator, start, max_steps=COLD if self._vector is None else WARM)
        ritz = found.ritz()
        self._vector = found.vector(ritz.vectors[:, -1])
        return LeadingCurvature(float(ritz.values[-1]), float(ritz.residuals[-1]), found.num_steps)


def _hessian(objective: Objective, theta: Tensor) -> Operator:
    """Take exact products where the kernels have a second derivative, else differences of gradients."""
    try:
        return ExactHessian(objective, theta)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return DifferenceHessian(objective, theta)
