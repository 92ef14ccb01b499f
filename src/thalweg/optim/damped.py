"""Damped Gauss–Newton steps: raise the damping until the loss falls, then lower it.

Both rules begin at a damping μ and learn from the gain ρ = (F − F′)/(decrease that the model predicts).

nielsen    ρ > 0: μ·max(⅓, 1 − (2ρ − 1)³), ν = 2; else μ·ν, 2ν  ([nielsen1999]; [madsen2004], eq. 2.21).
           μ and its limit are relative to the largest diagonal entry of the curvature, so that the
           scale of the loss is no matter.
marquardt  the loss fell: μ/10; else 10·μ ([hagan1994]; ``trainlm`` of MATLAB). μ and its limit are absolute.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.jacobian import Jacobian, jacobian
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["DampedGaussNewton", "Evaluation", "Quadratic", "marquardt", "nielsen", "small_side", "triangle"]


@dataclass(frozen=True)
class Evaluation:
    """The loss at a point, and the outputs (m,) with the graph from which it was computed."""

    loss: float
    outputs: Tensor
    targets: Tensor | None = None


@dataclass(frozen=True)
class Quadratic:
    """A convex quadratic model of the loss at a point.

    Attributes:
        gradient: of the loss (n,).
        largest: the scale of the damping: the largest diagonal entry of the curvature, or a bound of it.
        step: μ ↦ the damped step (n,) and the decrease that the model predicts for it.
    """

    gradient: Tensor
    largest: float
    step: Callable[[float], tuple[Tensor, float]]


def nielsen(mu: float, nu: float, gain: float) -> tuple[float, float]:
    """Return the next μ and ν ([madsen2004], eq. 2.21)."""
    if gain > 0:
        return mu * max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3), 2.0
    return mu * nu, 2 * nu


def marquardt(mu: float, nu: float, gain: float) -> tuple[float, float]:
    """Return the next μ; ν is not used ([hagan1994])."""
    return (mu * 0.1 if gain > 0 else mu * 10), nu


RULES = {"nielsen": nielsen, "marquardt": marquardt}


class DampedGaussNewton(WholeVector):
    """Base class: a method says how to evaluate the loss (`forward`) and how to model it (`quadratic`).

    One step tries the model's minimiser at ever larger damping, with one Jacobian, until the loss falls. A
    step that did not lower the loss is never kept, nor one to a point where the Jacobian is not finite: no
    step could leave it.
    """

    #: entries of a Jacobian (0.8 GB in float64) and its smaller side, up to which it is factored
    most_entries: ClassVar[int] = 10**8
    most_rows_or_columns: ClassVar[int] = 4000

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        if defaults["damping"] not in RULES:
            raise InputError(
                f"there is no damping {defaults['damping']!r}", expected="one of " + ", ".join(RULES)
            )
        for name in ("mu", "mu_max"):
            if not 0 < defaults[name] < math.inf:
                raise InputError(f"Invalid {name}: {defaults[name]}", expected="a positive number")
        if not defaults["min_grad"] >= 0:
            raise InputError(f"Invalid min_grad: {defaults['min_grad']}", expected="0 or a positive number")
        super().__init__(params, defaults, current_mu=0.0, current_nu=2.0)  # 0: not begun

    @abstractmethod
    def forward(self, closure: Closure | None) -> Evaluation:
        """Run the closure where the parameters are."""

    @abstractmethod
    def quadratic(self, here: Evaluation, matrix: Tensor) -> Quadratic:
        """Model the loss around a point from the Jacobian (m, n) of the outputs there."""

    def take(self, closure: Closure | None) -> Step:
        """Take one step; see the class."""
        here = self.forward(closure)
        if not math.isfinite(here.loss):
            return self._stay(here.loss, math.nan, "the loss is not finite")
        self._require_room(here.outputs.numel())
        derivative = jacobian(here.outputs, self.parameters())
        if not bool(derivative.matrix.isfinite().all()):
            return self._stay(here.loss, math.nan, "the Jacobian is not finite", derivative)
        half = derivative.matrix.dtype in {torch.float16, torch.bfloat16}  # which QR does not take
        model = self.quadratic(here, derivative.matrix.float() if half else derivative.matrix)
        norm = float(model.gradient.norm())
        if norm <= self.numbers["min_grad"]:
            return self._stay(here.loss, norm, "gradient below min_grad", derivative)
        return self._search(closure, here.loss, model, derivative)

    def _search(self, closure: Closure | None, loss: float, model: Quadratic, derivative: Jacobian) -> Step:
        numbers, start = self.numbers, self.position()
        rule = RULES[numbers["damping"]]
        unit = model.largest if numbers["damping"] == "nielsen" else 1.0
        limit = numbers["mu_max"] * unit
        mu, nu = min(numbers["current_mu"] or numbers["mu"] * unit, limit), numbers["current_nu"]
        floor = torch.finfo(start.dtype).eps ** 2 * model.largest  # below it the damped factor is singular
        norm, reason, trials = float(model.gradient.norm()), "no damping up to mu_max lowered the loss", 0
        while mu <= limit:
            mu = max(mu, floor)
            step, predicted = model.step(mu)
            gain = -math.inf
            if bool(step.isfinite().all()):
                point = start + step
                if torch.equal(point, start):
                    reason = "step below rounding"
                    break
                self.move_to(point)
                there = self.forward(closure)
                new_loss, trials = there.loss, trials + 1
                if new_loss < loss and self._differentiable(there):  # false for NaN
                    gain = (loss - new_loss) / predicted if predicted > 0 else math.inf
            used = mu
            mu, nu = rule(mu, nu, gain)
            if gain > 0:
                numbers["current_mu"], numbers["current_nu"] = mu, nu
                moved = float((self.position() - start).norm())
                details = {"damping": used, "gain": gain}
                return Step(
                    loss,
                    new_loss,
                    norm,
                    moved,
                    True,
                    "accepted",
                    trials + 1,
                    details=details,
                    num_gradients=derivative.num_gradients + 1,
                    num_products=derivative.num_products,
                )
        self.move_to(start)
        return self._stay(loss, norm, reason, derivative, trials)

    def _differentiable(self, there: Evaluation) -> bool:
        """Say whether the next step can start there: a weight of 1 lets NaN through from every row of J."""
        weights = torch.ones_like(there.outputs)
        with torch.enable_grad():
            parts = torch.autograd.grad(there.outputs, self.parameters(), weights, allow_unused=True)
        return all(part is None or bool(part.isfinite().all()) for part in parts)

    def _stay(
        self, loss: float, norm: float, reason: str, derivative: Jacobian | None = None, trials: int = 0
    ) -> Step:
        """Report a step that was not taken. The damping stays as it was: another batch may need no more."""
        gradients, products = (derivative.num_gradients, derivative.num_products) if derivative else (0, 0)
        return Step(loss, loss, norm, 0.0, False, reason, trials + 1, gradients, products)

    def _require_room(self, num_outputs: int) -> None:
        size = self.size
        if num_outputs * size <= self.most_entries and min(num_outputs, size) <= self.most_rows_or_columns:
            return
        raise InputError(
            f"the Jacobian of {num_outputs:,} outputs for {size:,} parameters is too large to factor",
            expected=f"at most {self.most_entries:,} entries, and the smaller of the two at most "
            f"{self.most_rows_or_columns:,}",
            hint="fewer examples a step, or a method without a matrix: ScaledConjugateGradient, "
            "TrustRegionNewtonCG",
        )


def small_side(matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return C (m, k), k = min(m, n), and Q (n, k) with matrix = C·Qᵀ; None where Q is the identity.

    A damped step is a combination of the rows, so nothing is lost: it is found as y (k,) and is Q·y.

    Cost: 2nm² operations where m < n.
    """
    if matrix.shape[0] >= matrix.shape[1]:
        return matrix, None
    basis, triangle = torch.linalg.qr(matrix.T)
    return triangle.T, basis


def triangle(matrix: Tensor) -> Tensor:
    """Return R of the QR factorisation."""
    r: Tensor = torch.linalg.qr(matrix, mode="r").R
    return r
