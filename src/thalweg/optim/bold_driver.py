"""The bold driver: gradient descent whose rate grows while the loss falls and shrinks where it jumps."""

from __future__ import annotations

import math
from typing import Literal, final

from torch import Tensor

from thalweg.optim.closures import Closure
from thalweg.optim.per_parameter import require
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["BoldDriver"]


@final
class BoldDriver(WholeVector):
    """Gradient descent with an adaptive rate and rejected steps ([vogl1988]; MATLAB's traingda, traingdx).

    With F the loss before the step and F′ the loss after it::

        d = momentum·d − (1−momentum)·lr·g
        F′ > F + tolerance·|F|      the step is undone bit for bit, d = 0, lr = lr·decrease
        F′ < F                      it stays, lr = lr·increase
        else                        it stays

    ``momentum=0`` is traingda, ``momentum=0.9`` traingdx. Both losses are of the closure that the step is
    given, so that a mini-batch is compared with itself; a rate that fits all of them needs full batches.

    Closure: standard, evaluated twice. Cost: 2 gradient-equivalents a step. Memory: one number a parameter.

    Args:
        params: parameters or groups of them; real. Every group's ``lr`` grows and shrinks by the same factor.
        lr: the first rate.
        momentum: share of the step before.
        increase: factor of the rate after a loss that fell.
        decrease: factor of the rate after a step that was undone.
        tolerance: how much of |F| a loss may rise by (MATLAB's max_perf_inc is 1 + this).
        coefficient: of lr·g in d: "ema" is 1−momentum; "matlab" is momentum, as the manual of traingdx prints
            it, which with 0.9 makes the rate nine times as large.
        maximize: go up.

    Raises:
        InputError: for settings out of their range, and a closure of another kind.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.01,
        momentum: float = 0.0,
        *,
        increase: float = 1.05,
        decrease: float = 0.7,
        tolerance: float = 0.04,
        coefficient: Literal["ema", "matlab"] = "ema",
        maximize: bool = False,
    ) -> None:
        require(lr > 0, "lr", expected="above 0", got=lr)
        require(0 <= momentum < 1, "momentum", expected="from 0 to below 1", got=momentum)
        require(increase >= 1, "increase", expected="at least 1", got=increase)
        require(0 < decrease < 1, "decrease", expected="between 0 and 1", got=decrease)
        require(tolerance >= 0, "tolerance", expected="at least 0", got=tolerance)
        known = coefficient == "ema" or (coefficient == "matlab" and momentum > 0)
        require(known, "coefficient", expected="'ema', or 'matlab' with a momentum", got=coefficient)
        settings = {
            "lr": lr,
            "momentum": momentum,
            "increase": increase,
            "decrease": decrease,
            "tolerance": tolerance,
            "coefficient": coefficient,
            "maximize": maximize,
        }
        super().__init__(params, settings)

    def take(self, closure: Closure | None) -> Step:
        """Try a step, keep or undo it, and adapt the rate."""
        numbers, start = self.numbers, self.position()
        loss, gradient = self.evaluate(closure)
        norm = float(gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            reason = "loss is not finite" if not math.isfinite(loss) else "gradient is not finite"
            return Step(loss, loss, norm, 0.0, accepted=False, reason=reason, num_gradients=1)
        momentum, up = numbers["momentum"], numbers["maximize"]
        weight = momentum if numbers["coefficient"] == "matlab" else 1 - momentum
        move = self._by_rates(gradient if up else -gradient).mul_(weight)
        before = self.kept("velocity")
        if before is not None:
            move.add_(before, alpha=momentum)
        new_loss = self.loss_at(start + move, closure)
        rise = loss - new_loss if up else new_loss - loss
        accepted = rise <= numbers["tolerance"] * abs(loss)  # False for a NaN
        if accepted and math.isfinite(new_loss):
            self.keep(velocity=move)
            self._change_rates(numbers["increase"] if rise < 0 else 1.0)
        else:
            accepted = False
            self.move_to(start)
            self.keep(velocity=None)
            self._change_rates(numbers["decrease"])
        return Step(
            loss,
            new_loss if accepted else loss,
            norm,
            float(move.norm()) if accepted else 0.0,
            accepted=accepted,
            reason="accepted" if accepted else _why(new_loss, up=up),
            num_gradients=2,
            details={"lr": numbers["lr"]},
        )

    def _by_rates(self, vector: Tensor) -> Tensor:
        """Return a vector (n,) times the rate of each coordinate's group."""
        rates = [group["lr"] for group in self.param_groups for p in group["params"] if p.requires_grad]
        return self.join([part * rate for part, rate in zip(self.split(vector), rates, strict=True)])

    def _change_rates(self, factor: float) -> None:
        for group in self.param_groups:
            group["lr"] *= factor


def _why(new_loss: float, *, up: bool) -> str:
    if not math.isfinite(new_loss):
        return "loss after the step is not finite"
    return "loss fell" if up else "loss rose"
