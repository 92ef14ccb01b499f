"""One-step secant: the quasi-Newton direction that remembers a single step and keeps no matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.optim.descent import LineSearch, LineSearchDescent
from thalweg.optim.whole import Parameters

__all__ = ["OneStepSecant", "one_step_secant"]


def one_step_secant(gradient: Tensor, step: Tensor, difference: Tensor) -> Tensor:
    """Return −H·gradient, H the BFGS update of the identity by one step; all (n,), stepᵀdifference > 0.

    [battiti1992]: with s the step, y the difference of gradients and g the gradient,

        d = −g + A·s + B·y,   B = sᵀg/sᵀy,   A = −(1 + yᵀy/sᵀy)·B + yᵀg/sᵀy,

    which is memoryless BFGS ([nocedal2006] section 7.2, with H₀ = I). Cost: three inner products.
    """
    curvature = step @ difference
    b = step @ gradient / curvature
    a = -(1 + difference @ difference / curvature) * b + difference @ gradient / curvature
    return -gradient + a * step + b * difference


class OneStepSecant(LineSearchDescent):
    """One-step secant method with a line search (MATLAB's ``trainoss``).

    Between conjugate gradients and BFGS: the BFGS update of the identity by the last step alone, formed
    without a matrix ([battiti1992]). Starts anew from the gradient every n steps and where the curvature
    along the last step was not positive. On a quadratic, with exact line search, it is the conjugate gradient
    method.

    Closure: standard, and the same function within a step (one batch, fixed dropout masks).
    Cost of a step: one gradient where it begins (none with ``full_batch``) and one a trial of the line
    search, mostly one to three. Memory: 2 vectors.

    Args:
        params: parameters or groups; a learning rate has no meaning here.
        line_search: "strong_wolfe", or "backtracking" with the limits of MATLAB's ``srchbac``.
        c1: constant of the sufficient decrease.
        c2: constant of the curvature condition; for backtracking, of its growth.
        tolerance_grad: norm of the gradient at which no step is taken.
        full_batch: the closure computes the same loss at every step; the evaluation that ended a step then
            begins the next one, for 2 more vectors.

    Raises:
        InputError: for settings out of their range; by ``step`` for a closure of another kind.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        line_search: LineSearch = "strong_wolfe",
        c1: float = 1e-4,
        c2: float = 0.1,
        tolerance_grad: float = 1e-10,
        full_batch: bool = False,
    ) -> None:
        super().__init__(
            params,
            line_search=line_search,
            c1=c1,
            c2=c2,
            tolerance_grad=tolerance_grad,
            full_batch=full_batch,
            steps_since_restart=0,
        )

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the one-step secant direction."""
        step, difference = self.kept("step"), self.kept("difference")
        if step is None or difference is None:
            return -gradient
        return one_step_secant(gradient, step, difference)

    def learn(self, moved: Tensor, direction: Tensor, before: Tensor, after: Tensor) -> None:
        """Keep the step and the difference of gradients, unless it is time to start anew."""
        difference = after - before
        self.numbers["steps_since_restart"] += 1
        rounding = torch.finfo(moved.dtype).eps * moved.norm() * difference.norm()
        if self.numbers["steps_since_restart"] >= self.size or not moved @ difference > rounding:
            self.forget()
        else:
            self.keep(step=moved, difference=difference)

    def forget(self) -> None:
        """Forget the last step."""
        self.numbers["steps_since_restart"] = 0
        self.keep(step=None, difference=None)
