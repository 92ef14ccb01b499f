"""Perturbed gradient descent: a random push where the gradient is small, to leave saddles."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.whole import Parameters, Step, WholeVector
from thalweg.rng import gaussian, generator

__all__ = ["PerturbedGradientDescent", "uniform_in_ball"]


@final
class PerturbedGradientDescent(WholeVector):
    """Gradient descent that moves to a random point nearby where the gradient is small.

    [jin2017] Algorithm 2 (PGD), with x of all parameters together and time t in steps:

        if ‖∇f(x)‖ ≤ g_thr and the last perturbation is more than t_thr steps ago:
            keep x̃ = x;  x ← x̃ + ξ,  ξ uniform in the ball of radius r
        if the last perturbation is t_thr steps ago and f(x) − f(x̃) > −f_thr:
            x ← x̃, which the paper returns as a second-order stationary point
        x ← x − lr ∇f(x)

    The variant: r, g_thr, t_thr and f_thr are given directly. The paper derives them from constants that are
    unknown for a net: with ℓ and ρ the Lipschitz constants of gradient and Hessian, accuracy ε, and
    χ = 3 max(log(n ℓ Δf/(c ε² δ)), 4),

        lr = c/ℓ,  r = √c ε/(χ² ℓ),  g_thr = √c ε/χ²,  f_thr = c √(ε³/ρ)/χ³,  t_thr = χ ℓ/(c² √(ρ ε)).

    And where the paper returns, this goes back to x̃, says so in ``last.reason`` ("went back: nothing lower
    within time_threshold steps"), and would perturb again at the next step: stop there if that is what you
    were looking for. It is not called a minimum.

    The noise of perturbation k comes from a generator seeded with (seed, k); both are in ``state_dict``, so
    that a resumed run draws what the uninterrupted one would have. The guarantee is for full gradients; where
    those of mini-batches never become small, no perturbation takes place. Groups may differ in ``lr``
    (schedulers work); all else is of the first group.

    Closure: standard. Cost: 1 gradient-equivalent a step, 2 in one that perturbs. A loss or gradient that is
    not finite: the step is rejected, the parameters stay.

    Args:
        params: as for any torch optimiser.
        lr: the step size; below 1/ℓ.
        radius: r, in units of the parameters.
        gradient_threshold: g_thr.
        time_threshold: t_thr, in steps, at least 1.
        decrease: f_thr, what a perturbation has to bring in t_thr steps.
        maximize: climb instead.
        seed: of the perturbations.

    Raises:
        InputError: for settings out of range.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        *,
        radius: float = 1e-2,
        gradient_threshold: float = 1e-3,
        time_threshold: int = 100,
        decrease: float = 0.0,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        settings = {"radius": radius, "gradient_threshold": gradient_threshold, "decrease": decrease}
        for name, value in {"lr": lr, **settings}.items():
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is out of range", expected="a number from 0 on", got=str(value))
        if time_threshold < 1:
            raise InputError("time_threshold is out of range", expected="1 or more", got=str(time_threshold))
        defaults = {
            "lr": lr,
            **settings,
            "time_threshold": time_threshold,
            "maximize": maximize,
            "seed": seed,
        }
        super().__init__(params, defaults, since=time_threshold + 1, perturbations=0, loss_before=math.inf)

    def take(self, closure: Closure | None) -> Step:
        """Take one step of Algorithm 2."""
        numbers = self.numbers
        sign = -1.0 if numbers["maximize"] else 1.0
        start = self.position()
        loss, gradient = self.evaluate(closure)
        first_norm, num_gradients, reason = float(gradient.norm()), 1, "accepted"
        point, target = start, loss
        if not (math.isfinite(loss) and math.isfinite(first_norm)):
            return self._stay(start, loss, first_norm, "loss or gradient not finite", num_gradients)
        if first_norm <= numbers["gradient_threshold"] and numbers["since"] > numbers["time_threshold"]:
            numbers["perturbations"] += 1
            rng = generator(numbers["seed"], "perturbed-gradient-descent", numbers["perturbations"])
            point = start + uniform_in_ball(start.numel(), numbers["radius"], rng, like=start)
            target, gradient = self.at(point, closure)
            num_gradients, reason = 2, "perturbed"
            if not (math.isfinite(target) and bool(gradient.isfinite().all())):
                return self._stay(
                    start, loss, first_norm, "perturbed loss or gradient not finite", num_gradients
                )
            self.keep(before=start)
            numbers["loss_before"], numbers["since"] = loss, 0
        before = self.kept("before")
        if before is not None and numbers["since"] == numbers["time_threshold"]:
            self.keep(before=None)
            if sign * (loss - numbers["loss_before"]) > -numbers["decrease"]:
                return self._go_back(start, before, loss, first_norm)
        point = point - sign * self.rates() * gradient
        self.move_to(point)
        numbers["since"] += 1
        moved = float((point - start).norm())
        return Step(loss, math.nan, first_norm, moved, True, reason, num_gradients=num_gradients)

    def _stay(self, start: Tensor, loss: float, norm: float, reason: str, num_gradients: int) -> Step:
        self.move_to(start)
        return Step(loss, loss, norm, 0.0, False, reason, num_gradients=num_gradients)

    def _go_back(self, start: Tensor, before: Tensor, loss: float, norm: float) -> Step:
        self.move_to(before)
        self.numbers["since"] += 1
        reason = "went back: nothing lower within time_threshold steps"
        moved = float((before - start).norm())
        return Step(loss, self.numbers["loss_before"], norm, moved, True, reason, num_gradients=1)


def uniform_in_ball(num: int, radius: float, rng: torch.Generator, *, like: Tensor) -> Tensor:
    """Draw a point (num,) uniformly from the ball of ``radius``, with the dtype and device of ``like``.

    A Gaussian direction, and a length radius·u^(1/num) with u uniform in [0, 1).
    """
    direction = gaussian(num, rng, like=torch.empty(0, dtype=torch.float64))
    share = torch.rand(1, generator=rng, dtype=torch.float64).pow(1 / max(num, 1))
    point: Tensor = radius * share * direction / direction.norm()
    return point.to(like)
