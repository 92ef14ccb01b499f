"""Entropy-SGD: descent on the local entropy, which prefers wide valleys."""

from __future__ import annotations

import math
from typing import final

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.whole import Parameters, Step, WholeVector
from thalweg.rng import gaussian, generator

__all__ = ["EntropySGD"]


@final
class EntropySGD(WholeVector):
    """Steps towards the mean of a short Langevin walk around the weights.

    The objective is the negative local entropy −F(x, γ), F = log ∫ exp(−f(x′) − γ/2 ‖x − x′‖²) dx′, a loss
    smoothed over a width of 1/√γ; its gradient is γ (x − ⟨x′⟩) ([chaudhari2017] sections 3 and 4). Each step
    estimates ⟨x′⟩ by ``inner_steps`` (L) steps of Langevin dynamics from x′ = μ = x (Algorithm 1),

        x′ ← x′ − η′ (∇f(x′) − γ (x − x′)) + √η′ ε N(0, I)
        μ  ← (1 − α) μ + α x′

    and then moves: x ← x − lr (x − μ). Scoping: γ = gamma (1 + scoping)^t in step t.

    The variant: lr is the ηγ of Algorithm 1, as in the authors' released code, so that scoping does not
    lengthen the steps; lr = 1 goes to μ. In two constants that code differs from Algorithm 1, which is
    followed here: its noise is √2 times as strong, and its mean keeps 0.75 of the old μ, where Algorithm 1
    with α = 0.75 keeps 0.25. There is no momentum in the walk.

    The noise of step t comes from a generator seeded with (seed, t); both are in ``state_dict``, so that a
    resumed run walks as the uninterrupted one would have. Groups may differ in ``lr`` (schedulers work); all
    else is of the first group.

    Closure: standard; called L times a step. It may draw another mini-batch at each call, as in the paper.
    Cost: L gradient-equivalents a step: compare with other methods per gradient, not per step. A loss or
    gradient that is not finite: the step is rejected, the parameters stay; the next step draws other noise.

    Args:
        params: as for any torch optimiser.
        lr: the share of the way to μ.
        inner_steps: L.
        inner_lr: η′.
        gamma: γ of the first step; the larger, the closer the walk stays.
        scoping: by how much γ grows a step, relative to itself.
        noise: ε.
        alpha: α.
        maximize: climb instead.
        seed: of the walks.

    Raises:
        InputError: for settings out of range.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        *,
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        noise: float = 1e-4,
        alpha: float = 0.75,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        settings = {"inner_lr": inner_lr, "gamma": gamma, "scoping": scoping, "noise": noise}
        for name, value in {"lr": lr, **settings}.items():
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is out of range", expected="a number from 0 on", got=str(value))
        if inner_steps < 1:
            raise InputError("inner_steps is out of range", expected="1 or more", got=str(inner_steps))
        if not 0 < alpha <= 1:
            raise InputError("alpha is out of range", expected="above 0, at most 1", got=str(alpha))
        defaults = {"lr": lr, "inner_steps": inner_steps, **settings, "alpha": alpha}
        super().__init__(params, {**defaults, "maximize": maximize, "seed": seed}, time=0)

    def take(self, closure: Closure | None) -> Step:
        """Take one step: a walk of L gradients, and a move towards its mean."""
        numbers = self.numbers
        time, eta, alpha = numbers["time"], numbers["inner_lr"], numbers["alpha"]
        gamma = numbers["gamma"] * (1 + numbers["scoping"]) ** time
        sign = -1.0 if numbers["maximize"] else 1.0
        rng = generator(numbers["seed"], "entropy-sgd", time)
        numbers["time"] = time + 1
        start = walker = mean = self.position()
        loss, norm = math.nan, math.nan
        for inner in range(numbers["inner_steps"]):
            value, gradient = self.at(walker, closure)
            if inner == 0:
                loss, norm = value, float(gradient.norm())
            if not (math.isfinite(value) and bool(gradient.isfinite().all())):
                self.move_to(start)
                reason = "loss or gradient not finite"
                return Step(loss, loss, norm, 0.0, False, reason, num_gradients=inner + 1)
            drift = sign * gradient - gamma * (start - walker)
            shake = math.sqrt(eta) * numbers["noise"] * gaussian(start.numel(), rng, like=start)
            walker = walker - eta * drift + shake
            mean = (1 - alpha) * mean + alpha * walker
        move = self.rates() * (start - mean)
        self.move_to(start - move)
        return Step(
            loss=loss,
            new_loss=math.nan,
            gradient_norm=norm,
            step_norm=float(move.norm()),
            accepted=True,
            reason="accepted",
            num_gradients=numbers["inner_steps"],
            details={"gamma": gamma},
        )
