"""Whether loss and gradient are finite, and if not, which example or parameter it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.errors import NumericalError, ThalwegError, printable
from thalweg.problem.batches import Batch, Sample, tensors_of
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.objective import Objective, require_finite

__all__ = ["finite_loss", "require_finite_gradient", "require_finite_loss"]


def finite_loss(objective: Objective, theta: Tensor, what: str) -> float:
    """Return the loss at ``theta`` (n,), or raise NumericalError that names the first example at fault.

    Args:
        objective: the loss.
        theta: the weights.
        what: "the training loss", for the message.

    Cost: 1/3 gradient-equivalent; where it raises, up to 1 more.
    """
    value = objective.value(theta)
    if not math.isfinite(value):
        require_finite_loss(objective, theta, objective.batch_values(theta)[0], what)
        require_finite(value, what)  # of finite batches, whose mean overflows
    return value


def require_finite_loss(objective: Objective, theta: Tensor, values: Sequence[float], what: str) -> None:
    """Raise NumericalError where the loss of a statistical batch is not finite, and name the first example.

    Args:
        objective: whose `batch_values` gave ``values``.
        theta: the weights (n,).
        values: of the statistical batches (k,).
        what: "the training loss", for the message.

    Cost: where it raises, up to 2/3 gradient-equivalents over one batch; else none.
    """
    broken = [i for i, value in enumerate(values) if not math.isfinite(value)]
    if not broken:
        return
    value = values[broken[0]]
    if not isinstance(objective, EmpiricalRisk) or len(broken) == len(values) > 1:
        raise NumericalError(
            f"{what} is {value}",
            cause="weights that have diverged, a learning rate that is too high, or a logarithm of zero",
            hint="go back to an earlier checkpoint",
        )
    batch, inside = _narrowed(objective, theta, objective.groups[broken[0]])
    at = sum(group.examples for group in objective.groups[: broken[0]]) + inside
    span = f"example {at}" if batch.examples == 1 else f"examples {at} to {at + batch.examples - 1}"
    data = [tensor for tensor in tensors_of(batch.data) if tensor.is_floating_point()]
    if all(bool(torch.isfinite(tensor).all()) for tensor in data):
        cause = "an input of extreme size, a logarithm of zero or a division by zero"
        hint = "run the loss on that example alone"
    else:
        cause, hint = "the data hold NaN or infinity there", "clean such examples, or leave them out"
    raise NumericalError(
        f"{what} is {value}: {len(broken)} of {len(values)} batches are affected, first {span} of the sample "
        "(counted from 0)",
        cause=cause,
        hint=hint,
    )


def require_finite_gradient(objective: Objective, gradient: Tensor) -> None:
    """Raise NumericalError that names the parameters whose gradient (n,) is not finite."""
    if bool(torch.isfinite(gradient).all()):
        return
    slices = objective.space.slices() if isinstance(objective, EmpiricalRisk) else {"theta": slice(None)}
    broken = [name for name, part in slices.items() if not bool(torch.isfinite(gradient[part]).all())]
    raise NumericalError(
        f"the gradient is NaN or infinite in {len(broken)} of {len(slices)} parameters: "
        f"{printable(', '.join(broken[:5]))}, though the loss is finite",
        cause="a derivative that does not exist: a root at 0, or the branch that torch.where discards",
        hint="add a small number under the root, or mask before the operation instead of after it",
    )


def _narrowed(risk: EmpiricalRisk, theta: Tensor, batch: Batch) -> tuple[Batch, int]:
    """Halve a batch as long as one half shows what the whole does; return it and where it begins."""
    begin = 0
    while batch.examples > 1:
        halves = Sample((batch,), None, True, "").grouped(2)
        if len(halves) != 2:
            break
        try:
            shown = [not math.isfinite(risk.mean_value(theta, (half,))) for half in halves]
        except ThalwegError:
            break
        if not any(shown):
            break
        begin += 0 if shown[0] else halves[0].examples
        batch = halves[0] if shown[0] else halves[1]
    return batch, begin
