"""The end of a step within a trust region: taken or gone back from, and the next radius."""

from __future__ import annotations

from torch import Tensor

from thalweg.optim.trust_region import Proposal, Region, assess
from thalweg.optim.whole import Step, WholeVector

__all__ = ["take_or_leave"]


def take_or_leave(
    method: WholeVector,
    start: Tensor,
    proposal: Proposal,
    before: Step,
    new_loss: float,
) -> Step:
    """Judge a step that was tried: keep it or go back to ``start`` (n,), and set the next radius.

    Args:
        method: at ``start + proposal.step``.
        start: where the step began.
        proposal: the step.
        before: what is known of the place where it began, with what was spent so far.
        new_loss: where the step ended, for one loss more.
    """
    numbers = method.numbers
    region = Region(numbers["radius"], numbers["max_radius"], numbers["acceptance"])
    assessed = assess(region, proposal, before.loss, new_loss)
    numbers["radius"] = assessed.radius
    if not assessed.accepted:
        method.move_to(start)
    return Step(
        loss=before.loss,
        new_loss=new_loss if assessed.accepted else before.loss,
        gradient_norm=before.gradient_norm,
        step_norm=float(proposal.step.norm()) if assessed.accepted else 0.0,
        accepted=assessed.accepted,
        reason=assessed.reason,
        num_losses=1,
        num_gradients=before.num_gradients,
        num_products=before.num_products,
        details=assessed.details,
    )
