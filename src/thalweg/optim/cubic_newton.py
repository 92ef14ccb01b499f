"""Newton's method with cubic regularisation: a saddle is no obstacle, and no radius is needed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.krylov_model import KrylovModel, krylov_model, line_model
from thalweg.optim.negative_curvature import way_down
from thalweg.optim.products import LossHessian
from thalweg.optim.trust_region import gain_ratio, outcome
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["CubicNewton", "cubic_decrease", "cubic_minimiser", "next_sigma"]

# η₁, η₂ and γ of [cartis2011], and the inexactness θ of the subspace.
ACCEPTANCE, VERY_SUCCESSFUL, GROWTH = 0.1, 0.9, 2.0
INEXACTNESS = 0.1
SMALLEST = 1e-16
# Doublings of σ within a step: enough from its smallest to any scale.
MOST_TRIES = 80


class CubicNewton(WholeVector):
    """Adaptive cubic regularisation (ARC) with the subproblem solved in a Krylov space.

    The model m(s) = f + gᵀs + ½sᵀHs + (σ/3)‖s‖³ is bounded below whatever the signs in H; its minimiser
    satisfies (H + σ‖s‖I)s = −g with H + σ‖s‖I positive semidefinite. It is found in the Krylov space of g,
    which grows until the model's gradient is below 0.1·min(1, ‖s‖)‖g‖. σ falls after a step that kept its
    promise; while a step does not, σ is doubled and the model minimised anew in the same space, which costs a
    loss. Where no σ helps, the parameters stay bit for bit.

    Where the gradient is below the tolerance, a Lanczos run from a random start looks for negative
    curvature λ, and the model is minimised along it: a step of length |λ|/σ.

    It takes a **loss closure** (returns the loss, no backward), of the same examples whenever it is called
    within a step.

    Args:
        params: parameters, or groups of them.
        sigma: the first σ, in loss per cube of a parameter.
        gradient_tolerance: below this norm the gradient counts as zero.
        max_products: Hessian–vector products a step may spend.
        seed: of the random start at zero gradient.

    Raises:
        InputError: for settings out of range, complex parameters, or a closure of another kind.
        NumericalError: where a product holds NaN or infinity.

    Cost per step: a gradient, a loss for each σ tried, and as many products (2 gradient-equivalents each)
    as the space needs; at zero gradient up to 32; O(nk) memory for k products.
    Source: [cartis2011], algorithm 2.1, with its updates in §7.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        sigma: float = 1.0,
        gradient_tolerance: float = 1e-6,
        max_products: int = 100,
        seed: int = 0,
    ) -> None:
        if not 0 < sigma < math.inf or gradient_tolerance < 0 or max_products < 1:
            raise InputError(
                "the settings of the cubic model are not usable",
                expected="0 < sigma < ∞, gradient_tolerance ≥ 0 and max_products ≥ 1",
                got=f"sigma={sigma}, gradient_tolerance={gradient_tolerance}, max_products={max_products}",
            )
        defaults = {"gradient_tolerance": gradient_tolerance, "max_products": max_products, "seed": seed}
        super().__init__(params, defaults, sigma=sigma)

    def take(self, closure: Closure | None) -> Step:
        """Take one step; see the class."""
        start, sigma = self.position(), self.numbers["sigma"]
        hessian = LossHessian(closure, self.parameters())
        loss, norm = hessian.loss, float(hessian.gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return Step(*(loss, loss, norm, 0.0, False, "loss or gradient not finite"), num_gradients=1)
        model, tries = self._model(hessian, norm), 0
        products = hessian.num_products
        if model is None:
            reason = "gradient below tolerance, no way down found"
            return Step(loss, loss, norm, 0.0, False, reason, tries, 1, products)
        details = {"lowest_curvature": float(model.values[0])}
        while True:
            solution = cubic_minimiser(model.values, model.gradient, sigma)
            step, predicted = model.lift(solution), cubic_decrease(model.values, solution, sigma)
            if torch.equal(start + step, start) or tries == MOST_TRIES:
                self.move_to(start)
                reason = "no step lowers the loss"
                return Step(loss, loss, norm, 0.0, False, reason, tries, 1, products, details)
            new_loss, tries = self.loss_at(start + step, closure), tries + 1
            ratio = gain_ratio(loss, new_loss, predicted, eps=torch.finfo(start.dtype).eps)
            accepted, reason = outcome(loss, new_loss, ratio, ACCEPTANCE)
            if accepted:
                self.numbers["sigma"] = next_sigma(sigma, ratio, norm)
                details |= {"sigma": sigma, "ratio": ratio, "predicted": predicted}
                moved = float(step.norm())
                return Step(loss, new_loss, norm, moved, True, reason, tries, 1, products, details)
            sigma = next_sigma(sigma, ratio, norm)

    def _model(self, hessian: LossHessian, norm: float) -> KrylovModel | None:
        numbers, sigma = self.numbers, self.numbers["sigma"]
        if norm > numbers["gradient_tolerance"]:

            def enough(model: KrylovModel) -> bool:
                solution = cubic_minimiser(model.values, model.gradient, sigma)
                return model.outside(solution) <= INEXACTNESS * min(1.0, float(solution.norm())) * norm

            return krylov_model(hessian, max_products=numbers["max_products"], enough=enough)
        found = way_down(hessian, seed=numbers["seed"])
        return None if found is None else line_model(hessian, *found)


def next_sigma(sigma: float, ratio: float, gradient_norm: float) -> float:
    """Return the σ of the next step ([cartis2011], §7)."""
    if not ratio >= ACCEPTANCE:  # NaN too
        return GROWTH * sigma
    if ratio >= VERY_SUCCESSFUL:
        return max(min(sigma, gradient_norm), SMALLEST)
    return sigma


def cubic_minimiser(values: Tensor, gradient: Tensor, sigma: float) -> Tensor:
    """Return the global minimiser u (k,) of cᵀu + ½Σθᵢuᵢ² + (σ/3)‖u‖³.

    It satisfies (θᵢ + λ)uᵢ = −cᵢ with λ = σ‖u‖ ≥ −θ₁ ([cartis2011], theorem 3.1). In the hard case, where
    c has no part along the lowest θ₁ < 0 and the rest is too short for λ = −θ₁, the lowest eigenvector
    makes up the length; both signs are as good.

    Args:
        values: θ (k,) ascending, float64.
        gradient: c (k,).
        sigma: σ > 0.
    """
    above = values - values[0]  # so that the shift μ = λ + θ₁ keeps its digits when it is tiny
    lowest, heights = float(values[0]), gradient.abs()
    at_end = above == 0
    if not bool(heights[at_end].any()):
        rest = torch.where(at_end, 0.0, -gradient / torch.where(at_end, 1.0, above))
        missing = (max(-lowest, 0.0) / sigma) ** 2 - float(rest @ rest)
        if missing >= 0:
            rest[0] = math.sqrt(missing)
            return rest
    shift = _shift(above, heights, lowest, sigma)
    return -gradient / (above + shift)


def cubic_decrease(values: Tensor, solution: Tensor, sigma: float) -> float:
    """Return m(0) − m(u) for the minimiser u: ½uᵀ(Θ + λI)u + λ‖u‖²/6, which is free of cancellation."""
    square = float(solution @ solution)
    shift = sigma * math.sqrt(square)
    return float(((values + shift) * solution) @ solution) / 2 + shift * square / 6


def _shift(above: Tensor, heights: Tensor, lowest: float, sigma: float) -> float:
    """Return μ = λ + θ₁ at which ‖u‖ = λ/σ for u = c/(θ − θ₁ + μ): Newton's method in a bracket.

    The unknown x is λ where θ₁ > 0 and μ elsewhere. 1/‖u‖ − σ/λ increases and is concave in it, so that from
    the left Newton's steps never pass the root ([cartis2011], §6.1).
    """
    shift, damping = max(lowest, 0.0), max(-lowest, 0.0)  # μ and λ at x = 0
    total, end = float(heights.norm()), float(heights[above == 0].norm())
    high = _root(abs(lowest), sigma * total)
    low = _root(lowest + float(above[-1]), sigma * total) if lowest > 0 else _root(-lowest, sigma * end)
    x = low if low > 0 else high / 1024
    for _ in range(200):
        gaps = above + (shift + x)
        u = heights / gaps
        norm, lam = float(u.norm()), damping + x
        value = 1 / norm - sigma / lam
        low, high = (x, high) if value < 0 else (low, x)
        slope = float((u * u / gaps).sum()) / norm**3 + sigma / lam**2
        new = x - value / slope
        if not low <= new <= high:
            new = math.sqrt(low * high) if low > 0 else high / 1024
        if abs(new - x) <= 4e-16 * x:
            break
        x = new
    return shift + x


def _root(linear: float, constant: float) -> float:
    """Return the root x ≥ 0 of x² + linear·x = constant, for linear ≥ 0."""
    return 2 * constant / (linear + math.sqrt(linear**2 + 4 * constant)) if constant > 0 else 0.0
