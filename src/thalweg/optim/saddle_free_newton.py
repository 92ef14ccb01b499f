"""Newton's method that runs away from saddles: every curvature counts by its magnitude."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.krylov_model import KrylovModel, krylov_model
from thalweg.optim.negative_curvature import way_down
from thalweg.optim.products import LossHessian
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["SaddleFreeNewton", "saddle_free_step"]

# Dampings tried, relative to the largest |θ|: from the pure step to short gradient steps.
DAMPINGS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# Lengths tried along negative curvature, relative to 1 + ‖x‖.
LENGTHS = (1.0, 0.25, 0.25**2, 0.25**3, 0.25**4, 0.25**5, 0.25**6)


class SaddleFreeNewton(WholeVector):
    """Saddle-free Newton method in a Krylov space of the gradient.

    k Lanczos steps from g give the eigenpairs (θ, V) of the projected Hessian; the step is
    −V(|Θ| + λI)⁻¹Vᵀg. Of eight dampings λ the one with the lowest loss is taken. With k = n and λ = 0 this
    is −|H|⁻¹g, and Newton's step where H is positive definite.

    Where the gradient is below the tolerance, or no damping lowers the loss, a Lanczos run from a random
    start looks for negative curvature, and lengths along it are tried in both directions; so saddles with
    zero gradient are left too.

    It takes a **loss closure** (returns the loss, no backward), of the same examples whenever it is called
    within a step. A step that lowers the loss nowhere leaves the parameters bit for bit.

    Args:
        params: parameters, or groups of them.
        num_vectors: the dimension k at most; [dauphin2014] takes 500.
        gradient_tolerance: below this norm the gradient counts as zero.
        seed: of the random start at zero gradient.

    Raises:
        InputError: for settings out of range, complex parameters, or a closure of another kind.
        NumericalError: where a product holds NaN or infinity.

    Cost per step: a gradient, k products (2 gradient-equivalents each) and 8 losses; O(nk) memory.
    Source: [dauphin2014], algorithm 1.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        num_vectors: int = 30,
        gradient_tolerance: float = 1e-6,
        seed: int = 0,
    ) -> None:
        if num_vectors < 1 or gradient_tolerance < 0:
            raise InputError(
                "the settings of the Krylov space are not usable",
                expected="num_vectors ≥ 1 and gradient_tolerance ≥ 0",
                got=f"num_vectors={num_vectors}, gradient_tolerance={gradient_tolerance}",
            )
        defaults = {"num_vectors": num_vectors, "gradient_tolerance": gradient_tolerance, "seed": seed}
        super().__init__(params, defaults)

    def take(self, closure: Closure | None) -> Step:
        """Take one step; see the class."""
        start = self.position()
        hessian = LossHessian(closure, self.parameters())
        loss, norm = hessian.loss, float(hessian.gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return Step(*(loss, loss, norm, 0.0, False, "loss or gradient not finite"), num_gradients=1)
        losses, gradients, products = 0, 1, 0
        if norm > self.numbers["gradient_tolerance"]:
            model = krylov_model(hessian, max_products=self.numbers["num_vectors"])
            scale, lowest = _scale(model), float(model.values[0])
            steps = [saddle_free_step(model, scale * damping) for damping in DAMPINGS]
            new_loss, step, best = self._lowest(closure, start, steps, loss)
            losses, products = len(steps), hessian.num_products
            if best is not None:
                details = {"damping": scale * DAMPINGS[best], "lowest_curvature": lowest}
                moved = float(step.norm())
                return Step(loss, new_loss, norm, moved, True, "accepted", losses, 1, products, details)
            hessian = LossHessian(closure, self.parameters())  # trying steps spoilt the graph of the first
            gradients = 2
        found = way_down(hessian, seed=self.numbers["seed"])
        products += hessian.num_products
        if found is None:
            why = "no step lowers the loss" if losses else "gradient below tolerance"
            reason = f"{why}, no way down found"
            return Step(loss, loss, norm, 0.0, False, reason, losses, gradients, products)
        lowest, direction = found
        reach = 1 + float(start.norm())
        steps = [sign * reach * length * direction for length in LENGTHS for sign in (1, -1)]
        new_loss, step, best = self._lowest(closure, start, steps, loss)
        accepted = best is not None
        reason = "accepted along negative curvature" if accepted else "no step lowers the loss"
        details, moved, losses = {"lowest_curvature": lowest}, float(step.norm()), losses + len(steps)
        return Step(loss, new_loss, norm, moved, accepted, reason, losses, gradients, products, details)

    def _lowest(
        self, closure: Closure | None, start: Tensor, steps: Sequence[Tensor], loss: float
    ) -> tuple[float, Tensor, int | None]:
        """Try all steps; stay at the one of the lowest loss, or at the start where none is below ``loss``."""
        lowest, best = loss, None
        for index, step in enumerate(steps):
            new_loss = self.loss_at(start + step, closure)
            if math.isfinite(new_loss) and new_loss < lowest:
                lowest, best = new_loss, index
        step = torch.zeros_like(start) if best is None else steps[best]
        self.move_to(start if best is None else start + step)
        return lowest, step, best


def saddle_free_step(model: KrylovModel, damping: float) -> Tensor:
    """Return −V(|Θ| + λI)⁻¹Vᵀg (n,) for the damping λ ≥ 0."""
    size = model.values.abs() + damping
    # A curvature that is rounding against the largest says nothing about a length.
    floor = torch.finfo(model.basis.dtype).eps * _scale(model)
    return -model.lift(model.gradient / size.clamp_min(floor))


def _scale(model: KrylovModel) -> float:
    """Return the largest |θ|, or 1 where all are zero."""
    return float(model.values.abs().max()) or 1.0
