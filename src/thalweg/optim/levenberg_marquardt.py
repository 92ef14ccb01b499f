"""Levenberg–Marquardt: nonlinear least squares by damped Gauss–Newton steps."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from thalweg.optim.closures import Closure, residuals
from thalweg.optim.damped import DampedGaussNewton, Evaluation, Quadratic, small_side, triangle
from thalweg.optim.whole import Parameters

__all__ = ["LevenbergMarquardt"]


@final
class LevenbergMarquardt(DampedGaussNewton):
    """Minimise F = ‖r‖², the sum of squares of the residuals r (m,), over n parameters.

    A step solves (JᵀJ + μD) h = −Jᵀr, with J the Jacobian of r and μ raised until F falls
    ([marquardt1963]; [nocedal2006], section 10.3). J is factored once a step by QR, on its smaller side, and
    every μ by QR of [R; √(μD)], which never squares the condition of J ([more1978], section 3).

    Closure: residual. It returns outputs − targets; divided by √m, the loss is the mean squared error. It
    must return the same at the same point: eval mode where there is dropout or batch normalisation. One step
    may see one batch and the next another.

    Cost of a step in gradient-equivalents: min(m, 2n) for J, ⅓ for each damping tried (usually one or two),
    1 to see that the new point has a gradient.

    Args:
        params: parameters or groups.
        damping: how μ is led. "nielsen": relative to the largest diagonal entry of JᵀJ and guided by the
            gain. "marquardt": absolute, in factors of ten, as MATLAB's ``trainlm`` ([hagan1994]).
        mu: the first damping.
        mu_max: the largest to try before a step is given up; in the units of ``mu``.
        scaled: whether D is the running maximum of diag(JᵀJ) ([more1978], section 6) instead of the identity.
            Then units of the parameters are no matter: right for fitted curves whose constants have units.
        min_grad: no step is taken where ‖∇F‖ is at most this.

    Raises:
        InputError: for arguments out of range; by `step`, for a closure of another kind and for a Jacobian
            too large to factor.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        damping: str = "nielsen",
        mu: float = 1e-3,
        mu_max: float = 1e10,
        scaled: bool = False,
        min_grad: float = 1e-7,
    ) -> None:
        defaults = {"damping": damping, "mu": mu, "mu_max": mu_max, "scaled": scaled, "min_grad": min_grad}
        super().__init__(params, defaults)

    def forward(self, closure: Closure | None) -> Evaluation:
        """Run a residual closure."""
        r = residuals(closure)
        return Evaluation(float(r.detach().double().square().sum()), r)

    def quadratic(self, here: Evaluation, matrix: Tensor) -> Quadratic:
        """Return ‖r + J·h‖² as a model of F."""
        r = here.outputs.detach().to(matrix.dtype)
        gradient = 2 * (matrix.T @ r)
        scale = self._scale(matrix) if self.numbers["scaled"] else None
        if scale is not None:
            matrix = matrix / scale
        core, basis = small_side(matrix)
        k = core.shape[1]
        reduced = triangle(torch.cat([core, r[:, None]], dim=1))[: k + 1]  # R and Qᵀr

        def step(mu: float) -> tuple[Tensor, float]:
            y = _damped_solution(reduced, mu)
            # ‖r‖² − ‖r + J·h‖² as a sum of squares, which rounding cannot make negative [more1978], section 4
            predicted = float(
                (reduced[:, :k] @ y).double().square().sum() + 2 * mu * y.double().square().sum()
            )
            h = y if basis is None else basis @ y
            return (h if scale is None else h / scale), predicted

        # Scaled, the diagonal is 1 where the scale was taken; in a flat region since, it says nothing.
        largest = float(matrix.square().sum(dim=0).max()) if scale is None else 1.0
        return Quadratic(gradient, largest, step)

    def _scale(self, matrix: Tensor) -> Tensor:
        """Return √D: the largest norm of each column so far; 1 where all are 0 ([more1978], section 6)."""
        norms, before = matrix.norm(dim=0), self.kept("scale")
        largest = norms if before is None else torch.maximum(norms, before)
        self.keep(scale=largest)
        return torch.where(largest > 0, largest, 1.0)


def _damped_solution(reduced: Tensor, mu: float) -> Tensor:
    """Return the y (k,) that minimises ‖R·y + b‖² + μ‖y‖², with [R b] = ``reduced``."""
    k = reduced.shape[1] - 1
    damping = torch.zeros(k, k + 1, dtype=reduced.dtype, device=reduced.device)
    damping.diagonal().fill_(math.sqrt(mu))
    factor = triangle(torch.cat([reduced, damping]))
    y: Tensor = torch.linalg.solve_triangular(factor[:k, :k], factor[:k, k:], upper=True)
    return -y[:, 0]
