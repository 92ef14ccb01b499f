"""Newton's method within a trust region, by conjugate gradients: no matrix, and saddles are left."""

from __future__ import annotations

import math

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.negative_curvature import way_down
from thalweg.optim.products import LossHessian
from thalweg.optim.trust_region import Proposal, Region, steihaug
from thalweg.optim.trust_step import take_or_leave
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["TrustRegionNewtonCG"]


class TrustRegionNewtonCG(WholeVector):
    """Trust-region Newton method with Steihaug–Toint conjugate gradients.

    Each step minimises the quadratic model of the loss within the trust radius and tries the result once. A
    refused step leaves the parameters bit for bit and shrinks the radius. Where the gradient is below the
    tolerance, a Lanczos run from a random start looks for negative curvature, and the step goes along it to
    the boundary: so saddles are left, and what is reached at the end is a point where none was found.

    It takes a **loss closure** (returns the loss, no backward), of the same examples whenever it is called
    within a step.

    Args:
        params: parameters, or groups of them.
        radius: the first trust radius, in units of the parameters.
        max_radius: it grows to this at most.
        acceptance: a step is taken when the loss falls by more than this share of the prediction.
        gradient_tolerance: below this norm the gradient counts as zero.
        max_products: Hessian–vector products a step may spend; what conjugate gradients reached by then is
            used.
        seed: of the random start at zero gradient.

    Raises:
        InputError: for settings out of range, complex parameters, or a closure of another kind.

    Cost per step: a gradient, a loss, and as many products (2 gradient-equivalents each) as the conjugate
    gradients take to lower the model's gradient to min(½, √‖g‖)‖g‖; at zero gradient up to 32.
    Source: [nocedal2006], algorithms 4.1 and 7.2; [steihaug1983].
    """

    def __init__(
        self,
        params: Parameters,
        *,
        radius: float = 1.0,
        max_radius: float = 1000.0,
        acceptance: float = 0.15,
        gradient_tolerance: float = 1e-6,
        max_products: int = 250,
        seed: int = 0,
    ) -> None:
        Region(radius, max_radius, acceptance)
        if gradient_tolerance < 0 or max_products < 1:
            raise InputError(
                "the settings of the conjugate gradients are not usable",
                expected="gradient_tolerance ≥ 0 and max_products ≥ 1",
                got=f"gradient_tolerance={gradient_tolerance}, max_products={max_products}",
            )
        defaults = {
            "max_radius": max_radius,
            "acceptance": acceptance,
            "gradient_tolerance": gradient_tolerance,
            "max_products": max_products,
            "seed": seed,
        }
        super().__init__(params, defaults, radius=radius)

    def take(self, closure: Closure | None) -> Step:
        """Take one step; see the class."""
        start = self.position()
        hessian = LossHessian(closure, self.parameters())
        loss, gradient_norm = hessian.loss, float(hessian.gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return Step(loss, loss, gradient_norm, 0.0, False, "loss or gradient not finite", num_gradients=1)
        proposal = self._propose(hessian, gradient_norm)
        here = Step(
            *(loss, loss, gradient_norm, 0.0, False, "gradient below tolerance, no way down found"),
            num_gradients=1,
            num_products=hessian.num_products,
        )
        if proposal is None:
            return here
        new_loss = self.loss_at(start + proposal.step, closure)
        return take_or_leave(self, start, proposal, here, new_loss)

    def _propose(self, hessian: LossHessian, gradient_norm: float) -> Proposal | None:
        numbers, radius = self.numbers, self.numbers["radius"]
        if gradient_norm > numbers["gradient_tolerance"]:
            tolerance = min(0.5, math.sqrt(gradient_norm)) * gradient_norm  # superlinear: [nocedal2006], §7.1
            most = numbers["max_products"]
            return steihaug(hessian.matvec, hessian.gradient, radius, tolerance=tolerance, max_products=most)
        found = way_down(hessian, seed=numbers["seed"])
        if found is None:
            return None
        curvature, direction = found
        gain = -radius * float(direction @ hessian.gradient) - radius**2 * curvature / 2
        return Proposal(radius * direction, gain, True, curvature)
