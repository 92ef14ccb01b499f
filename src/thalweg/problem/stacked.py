"""One batch at many points of weight space: stacked weights, and the fastest way to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from thalweg.errors import FOREIGN_FAILURES, InputError, ThalwegError
from thalweg.problem.batches import Batch, tensors_of
from thalweg.problem.cost import FORWARD
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.interrupt import safe_point
from thalweg.problem.loss import predictions, split_batch

__all__ = ["Run", "Runs", "choose_runs"]

# A loss that is computed in another order may differ by rounding of sums, no more.
ROUNDINGS = 1e3

Run = Callable[[Tensor], Tensor]  # points (k, n) -> mean losses of one batch (k,)


@dataclass(frozen=True)
class Runs:
    """How to run the batches of an objective at many points, the fastest way that gives the same losses.

    Attributes:
        objective: the loss.
        batches: of it.
        quick: whether cross-entropy is computed from class scores with the classes first.
        reason: why several points cannot be run at once; empty where they can, or need not.
    """

    objective: EmpiricalRisk | FunctionObjective
    batches: tuple[Batch, ...]
    quick: bool
    reason: str

    def together(self, points: Tensor) -> Tensor:
        """Return the mean losses (k, b) of the batches at ``points`` (k, n), all points at once."""
        if isinstance(self.objective, FunctionObjective):
            return self.objective.values_at(points)[:, None]
        runs = [_run(self.objective, batch, self.quick) for batch in self.batches]
        return torch.stack([run(points) for run in runs], dim=1)

    def one_by_one(self, points: Iterable[Tensor]) -> list[list[float]]:
        """Return the mean losses (b,) at each of ``points`` (n,), one after the other.

        The weights are substituted once, and each point is copied over them: what a substitution costs is as
        much as a small net's forward pass. Buffers that a run writes to are fresh for every point.
        """
        if isinstance(self.objective, FunctionObjective) or not self.objective.stays_substituted:
            return [self.together(point[None])[0].tolist() for point in points]
        return _over_written(self.objective, self.batches, self.quick, points)


def choose_runs(
    objective: EmpiricalRisk | FunctionObjective, batches: Sequence[Batch], trial: Tensor, *, stacked: bool
) -> Runs:
    """Choose how to run a loss at many points.

    The plain way is to call the loss. Faster are: several points by `torch.func.vmap` over stacked weights;
    images laid out channels last, for convolutions on a processor; cross-entropy from class scores with the
    classes first. Each is tried on the first batch and taken where it gives the same losses up to rounding.
    The caller is inside `intact` as long as the runs are used; a run costs no more than its forward passes.

    Args:
        objective: the loss; a plain function has one batch.
        batches: of the objective.
        trial: points (1 or 2, n) to try it at.
        stacked: whether several points are wanted at once.

    Raises:
        RuntimeError, TypeError, …: of the model, which has run before.
    """
    if isinstance(objective, FunctionObjective):
        alone: Run = lambda points: torch.cat([objective.values_at(p[None]) for p in points])  # noqa: E731
        reason = _differs(objective.values_at, alone, trial, objective.roundoff) if stacked else ""
        return Runs(objective, tuple(batches), False, reason)
    plain = _run(objective, batches[0], False)
    quick = False
    if all(_classes(batch) is not None for batch in batches) and _has_scores(objective, batches[0]):
        quick = not _differs(_run(objective, batches[0], True), plain, trial[:1], objective.roundoff)
    if objective.space.device.type == "cpu" and any(t.dim() == 4 for t in tensors_of(batches[0].data)):
        other = _run(objective, batches[0].channels_last(), quick)
        if not _differs(other, plain, trial[:1], objective.roundoff):
            batches = [batch.channels_last() for batch in batches]
    run, reason = _run(objective, batches[0], quick), ""
    if stacked and len(trial) > 1:
        reason = _differs(run, plain, trial, objective.roundoff)
    return Runs(objective, tuple(batches), quick, reason)


def _run(risk: EmpiricalRisk, batch: Batch, quick: bool) -> Run:
    classes = _classes(batch) if quick else None

    def one(*tensors: Tensor) -> Tensor:
        result: Tensor = risk.substituted(tensors, lambda: _loss_or_scores(risk, batch, quick))
        return result

    def run(points: Tensor) -> Tensor:
        safe_point()
        risk.ledger.spend(FORWARD * len(points), batch.examples)
        with torch.no_grad():
            if len(points) == 1:
                found = one(*risk.space.unflatten(points[0]))[None]
            else:
                found = vmap(one)(*risk.space.unflatten_stacked(points))
            return found if classes is None else _cross_entropy(found, classes)

    return run


def _over_written(
    risk: EmpiricalRisk, batches: Sequence[Batch], quick: bool, points: Iterable[Tensor]
) -> list[list[float]]:
    classes = [_classes(batch) if quick else None for batch in batches]
    flat = risk.theta
    tensors = risk.space.unflatten(flat)  # views of it, but for parameters of another dtype
    apart = any(tensor.dtype != flat.dtype for tensor in tensors)

    def value(batch: Batch, targets: Tensor | None) -> float:
        safe_point()
        risk.ledger.spend(FORWARD, batch.examples)
        result = _loss_or_scores(risk, batch, quick)
        return float(result if targets is None else _cross_entropy(result[None], targets))

    def all_of_them() -> list[list[float]]:
        done = []
        for point in points:
            flat.copy_(point)
            for own, new in zip(tensors, risk.space.unflatten(flat) if apart else tensors, strict=True):
                if own is not new:
                    own.copy_(new)
            done.append([value(batch, own) for batch, own in zip(batches, classes, strict=True)])
        return done

    with torch.no_grad():
        found: list[list[float]] = risk.substituted(tensors, all_of_them)
        return found


def _loss_or_scores(risk: EmpiricalRisk, batch: Batch, quick: bool) -> Tensor:
    if quick:
        return predictions(risk.loss, risk.model, batch.data)[0]
    return risk.loss(risk.model, batch.data).mean


def _classes(batch: Batch) -> Tensor | None:
    """Return the class numbers (b,) of a batch; None where it has none, or some that the loss leaves out."""
    try:
        targets = split_batch(batch.data)[2]
    except InputError:
        return None
    known = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
    return targets if known and not bool((targets < 0).any()) else None


def _has_scores(risk: EmpiricalRisk, batch: Batch) -> bool:
    """Say whether the loss is the plain mean cross-entropy of scores (b, c)."""
    try:
        with torch.no_grad():
            scores = predictions(risk.loss, risk.model, batch.data)[0]
    except (InputError, *FOREIGN_FAILURES):
        return False
    return isinstance(scores, Tensor) and scores.dim() == 2


def _cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Return the mean cross-entropy (k,) of scores (k, b, c).

    With the classes first a sum over few of them runs along the long side: three to six times faster.
    """
    first = scores.transpose(1, 2).contiguous()
    own = first.gather(1, classes[None, None].expand(len(first), 1, -1)).squeeze(1)
    return (first.logsumexp(1) - own).mean(1)


def _differs(run: Run, plain: Run, trial: Tensor, roundoff: float) -> str:
    """Say why ``run`` cannot take the place of ``plain`` at the points of ``trial``; nothing where it can."""
    try:
        found = run(trial).double()
    except torch.OutOfMemoryError:
        return "two points at once do not fit the memory of the device"
    except ThalwegError:
        raise
    except FOREIGN_FAILURES as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return f"the model cannot be run stacked ({first[:120]})"
    wanted = torch.cat([plain(point[None]) for point in trial]).double()
    same = ((found - wanted).abs() <= ROUNDINGS * roundoff * wanted.abs().clamp_min(1.0)) | (
        ~torch.isfinite(found) & ~torch.isfinite(wanted)
    )
    return "" if bool(same.all()) else "the model gives other losses when it is run stacked"
