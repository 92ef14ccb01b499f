"""Scaled conjugate gradients: the step length from curvature along the direction, no line search."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.descent import Descent, Start
from thalweg.optim.products import LossHessian
from thalweg.optim.whole import Parameters, Step

__all__ = ["ScaledConjugateGradient"]

_Product = Callable[[Tensor], Tensor]

_LEAST, _MOST = 1e-15, 1e100  # of λ


class ScaledConjugateGradient(Descent):
    """Scaled conjugate gradient method of Møller (MATLAB's ``trainscg``).

    The step along a conjugate direction p is α = pᵀr/δ, with r = −g and δ = pᵀHp + λ‖p‖² from the curvature
    and a damping λ that grows where the parabola foretold the loss badly and shrinks where it did well
    ([moller1993], algorithm SCG). A trial that does not go down is taken back; the next step tries a shorter
    one along p. Starts anew from the gradient after every n-th trial, if that is kept, and where p no longer
    points down.

    Closure: standard, and the same function within a step (one batch, fixed dropout masks); with
    ``curvature="exact"`` a loss closure.
    Cost of a step: a gradient where it begins (none with ``full_batch``), one for the curvature (none after a
    trial was taken back), one for the trial; with exact curvature 4 gradient-equivalents. Memory: 1 vector.

    Args:
        params: parameters or groups; a learning rate has no meaning here.
        curvature: "differences" of two gradients along p, or "exact" by a Hessian–vector product, which
            needs second derivatives of the model and costs more. The differences are within 1 % of it where
            that was measured, in float32 with up to 1.5 million parameters too.
        sigma: distance of the two gradients, at most 1e-4.
        damping: λ at the start, at most 1e-6.
        tolerance_grad: norm of the gradient at which no step is taken.
        full_batch: the closure computes the same loss at every step; the evaluation that ended a step then
            begins the next one, for 2 more vectors. Without effect where the curvature is exact.

    Raises:
        InputError: for settings out of their range; by ``step`` for a closure of another kind.
        RuntimeError: by torch, where the curvature is exact and a kernel has no second derivative.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        curvature: Literal["differences", "exact"] = "differences",
        sigma: float = 5e-5,
        damping: float = 5e-7,
        tolerance_grad: float = 1e-6,
        full_batch: bool = False,
    ) -> None:
        if curvature not in {"differences", "exact"}:
            raise InputError(f"there is no curvature {curvature!r}", expected="'differences' or 'exact'")
        if not (0 < sigma <= 1e-4 and 0 < damping <= 1e-6):
            raise InputError(
                "sigma or damping is out of the range that the method allows",
                expected="0 < sigma ≤ 1e-4 and 0 < damping ≤ 1e-6",
                got=f"sigma {sigma:g}, damping {damping:g}",
            )
        super().__init__(
            params,
            tolerance_grad=tolerance_grad,
            full_batch=full_batch and curvature != "exact",
            settings={"curvature": curvature, "sigma": sigma, "damping": damping},
            scale=damping,  # λ
            scale_in_delta=0.0,  # λ̄, what of λ is in δ already
            delta=0.0,  # δ of a trial that was taken back, 0 where there was none
            iterations=0,
        )

    def take(self, closure: Closure | None) -> Step:
        """Try one step along the direction; keep it where the loss does not rise."""
        start, product = self._begin(closure)
        if objection := self.objection(start):
            return self.stay(start, objection)
        self.numbers["iterations"] += 1
        direction, descent = self._downward(start)  # p and μ = pᵀr
        squared, noted = float(direction.norm()) ** 2, self.numbers["delta"]
        probes, products = (0, 0) if noted else (1, 0) if product is None else (0, 1)
        measured = noted or self._curvature(closure, start, direction, product)
        if not math.isfinite(measured):
            self.forget()
            return self.stay(start, "curvature is not finite", probes, products)
        delta = self._positive(measured, squared)
        alpha = descent / delta
        point = start.position + alpha * direction
        self.move_to(point)
        loss, gradient, _ = self._look(closure)
        fall = self._fall(start, loss, gradient, direction, alpha)
        # Δ: the fall in units of what the parabola foretold, μ²/2δ
        comparison = fall / max(alpha * descent / 2, sys.float_info.min)
        details = {"step_length": alpha, "damping": self.numbers["scale"], "comparison": comparison}
        if not comparison >= 0:
            self.numbers["scale_in_delta"], self.numbers["delta"] = self.numbers["scale"], delta
            self.keep(direction=direction)
            self._rescale(comparison, delta / squared)
            reason = "loss rose" if math.isfinite(fall) else "loss is not finite at the trial"
            return self.stay(start, reason, probes + 1, products, details)
        self._learn(start, gradient, direction, descent)
        self._rescale(comparison, delta / squared)
        return self.go(start, point, loss, gradient, "accepted", probes + 1, products, details)

    def forget(self) -> None:
        """Forget the last direction: the next one is −gradient."""
        self.numbers["scale_in_delta"], self.numbers["delta"] = 0.0, 0.0
        self.keep(direction=None)

    def _begin(self, closure: Closure | None) -> tuple[Start, _Product | None]:
        if self.numbers["curvature"] == "differences":
            return self.begin(closure), None
        loss, gradient, product = self._look(closure)
        return Start(self.position(), loss, gradient, float(gradient.norm()), 1), product

    def _look(self, closure: Closure | None) -> tuple[float, Tensor, _Product | None]:
        """Evaluate here: loss, gradient, and the product with H where that is asked for."""
        if self.numbers["curvature"] == "differences":
            return *self.evaluate(closure), None
        hessian = LossHessian(closure, self.parameters())
        return hessian.loss, hessian.gradient, hessian.matvec

    def _downward(self, start: Start) -> tuple[Tensor, float]:
        """Return the direction p and pᵀr, from the gradient anew where p does not point down."""
        direction = self.kept("direction")
        if direction is not None:
            descent = -float(direction @ start.gradient)
            rounding = torch.finfo(direction.dtype).eps * float(direction.norm()) * start.norm
            if descent > rounding:
                return direction, descent
        self.forget()
        return -start.gradient, start.norm**2

    def _curvature(
        self, closure: Closure | None, start: Start, direction: Tensor, product: _Product | None
    ) -> float:
        """Return pᵀHp, from the product or the difference of gradients."""
        if product is not None:
            return float(direction @ product(direction))
        distance: float = self.numbers["sigma"] / float(direction.norm())
        _, gradient = self.at(start.position + distance * direction, closure)
        return float(direction @ (gradient - start.gradient)) / distance

    def _positive(self, delta: float, squared: float) -> float:
        """Return δ with λ in it, made positive by a larger λ where it is not (steps 3 and 4 of the paper)."""
        delta += (self.numbers["scale"] - self.numbers["scale_in_delta"]) * squared
        if delta <= 0:
            scale = self.numbers["scale"]
            self.numbers["scale"] = 2 * (scale - delta / squared)
            delta = -delta + scale * squared
        return delta

    def _fall(self, start: Start, loss: float, gradient: Tensor, direction: Tensor, alpha: float) -> float:
        """Return by how much the loss fell; by the slopes at both ends where rounding hides it.

        A rise by rounding would be taken for a bad parabola, and λ would grow without need.
        """
        fall = start.loss - loss
        if abs(fall) > start.noise or not math.isfinite(loss):
            return fall
        return -alpha * float(direction @ (start.gradient + gradient)) / 2

    def _rescale(self, comparison: float, curvature: float) -> None:
        """Change λ by how well the parabola foretold the loss (steps 7 and 8 of the paper)."""
        scale = self.numbers["scale"]
        if comparison >= 0.75:
            scale /= 4
        elif not comparison >= 0.25:
            # Where the trial was not finite nothing says how far to go back: to a tenth of the step.
            scale += curvature * (1 - comparison if math.isfinite(comparison) else 9)
        self.numbers["scale"] = min(max(scale, _LEAST), _MOST)

    def _learn(self, start: Start, gradient: Tensor, direction: Tensor, descent: float) -> None:
        """Form the next direction: −gradient + β·p, or anew after n iterations (step 7 of the paper)."""
        self.forget()
        if self.numbers["iterations"] % self.size:
            beta = float(gradient @ gradient - gradient @ start.gradient) / descent
            self.keep(direction=-gradient + beta * direction)
