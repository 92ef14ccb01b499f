"""What keeps a training from moving that is not the landscape: said before any verdict."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.diagnosis.baseline import Baseline, measure_baseline
from thalweg.diagnosis.continuation import continue_training, stream
from thalweg.diagnosis.gradient import GradientEvidence
from thalweg.errors import FOREIGN_FAILURES, ThalwegError, printable
from thalweg.estimates import Estimate
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.objective import Objective
from thalweg.problem.problem import Measured
from thalweg.problem.stepping import Stepping
from thalweg.report.document import significant

__all__ = ["Cause", "find_causes"]

DECAYED = 1e-3  # of the learning rate that the scheduler started from
IMPAIRED = 0.5  # of a step: where less survives rounding, it is said
LOST = 0.01  # and where less than this does, training stands still
ALL_BUT = 0.99  # of ‖g‖²: out of the optimiser's reach, the rest does not matter
SAME = 1e-3  # relative: at the baseline


@dataclass(frozen=True)
class Cause:
    """A cause that is not landscape.

    Attributes:
        name: what it is called.
        sentence: what was found.
        advice: what to do.
        blocks_training: whether training cannot get on while it lasts, whatever the landscape.
        value: the number behind it: a learning rate, a share, an entropy; see the sentence.
    """

    name: str
    sentence: str
    advice: str
    blocks_training: bool
    value: float


def find_causes(
    measured: Measured,
    stepping: Stepping | None,
    gradient: GradientEvidence,
    loss: Estimate,
    *,
    seed: int,
) -> tuple[Cause, ...]:
    """Look for causes that are not landscape, those that block training first.

    Weights that are not finite, a loss that is not, and a model with nothing to train are refused with an
    error before; see `Problem.measured` and `thalweg.problem.finite`. Where the form of the data or the
    optimiser does not let a cause be judged, nothing is said of it.

    Args:
        measured: the problem.
        stepping: how it is trained; None where that is not known.
        gradient: of the training loss.
        loss: the mean training loss.
        seed: of the training batch that one step is tried on.

    Cost: 1/3 gradient-equivalent and a gradient over one training batch, two where updates are lost.
    """
    objective, theta = measured.train, measured.train.theta
    found: list[Cause | None] = []
    if stepping is not None:
        found += [_no_learning_rate(stepping), _decayed(stepping)]
        found += _out_of_reach(objective, stepping, gradient.vector)
        if stepping.lr > 0:
            found.append(_lost_in_rounding(objective, theta, stepping, gradient, seed))
    if isinstance(objective, EmpiricalRisk):
        # Targets and outputs of forms that nobody has thought of: nothing is said then.
        with contextlib.suppress(*FOREIGN_FAILURES):
            baseline = measure_baseline(objective, theta, loss.value)
            if baseline is not None:
                found += [_constant_targets(baseline), _at_baseline(baseline)]
    causes = [cause for cause in found if cause is not None]
    return tuple(sorted(causes, key=lambda cause: not cause.blocks_training))


def _no_learning_rate(stepping: Stepping) -> Cause | None:
    if stepping.lr > 0:
        return None
    scheduled = stepping.initial_lr is not None and stepping.initial_lr > 0
    return Cause(
        "learning rate zero",
        f"the learning rate of {stepping.name} is 0, so that no step moves a weight"
        + (f"; a scheduler started from {stepping.initial_lr:g}" if scheduled else ""),
        "the scheduler has ended, or its warm-up has not begun: check how long it runs"
        if scheduled
        else "set a learning rate above 0",
        blocks_training=True,
        value=stepping.lr,
    )


def _decayed(stepping: Stepping) -> Cause | None:
    start = stepping.initial_lr
    if start is None or not 0 < stepping.lr < DECAYED * start:
        return None
    return Cause(
        "scheduler ended",
        f"the learning rate has been brought down to {stepping.lr:.2g} from {start:.2g}, so that steps are "
        f"{significant(start / stepping.lr, 1)} times shorter than at the start",
        "unless its warm-up has only begun, restart the scheduler or let it run over all the steps planned",
        blocks_training=False,
        value=stepping.lr,
    )


def _out_of_reach(objective: Objective, stepping: Stepping, gradient: Tensor) -> list[Cause | None]:
    """Say which layers the optimiser does not move, and how much of the gradient is theirs."""
    if not isinstance(objective, EmpiricalRisk):
        return []
    slices = objective.space.slices()
    rates = dict(zip(objective.space.names, stepping.lrs, strict=True))
    missing = [name for name, lr in rates.items() if lr is None]
    idle = [name for name, lr in rates.items() if lr == 0] if stepping.lr > 0 else []
    whole = float(gradient.double().square().sum())
    causes: list[Cause | None] = []
    for name, names, why, advice in (
        (
            "missing from the optimiser",
            missing,
            "are not among the parameters of",
            "pass them to the optimiser",
        ),
        (
            "learning rate zero in part",
            idle,
            "have learning rate 0 in",
            "raise the learning rate of their group",
        ),
    ):
        if not names:
            continue
        theirs = sum(float(gradient[slices[each]].double().square().sum()) for each in names)
        share = theirs / whole if whole > 0 else 0.0
        receives = (
            f"they receive {_percent(share)} of the squared gradient"
            if theirs > 0
            else ("they receive no gradient either")
        )
        count = f"{len(names)} of {len(rates)} trainable tensors ({_modules(names)})"
        causes.append(
            Cause(
                name,
                f"{count} {why} {stepping.name}; {receives}. The verdict is about the loss over all of them",
                f"{advice}, or freeze them with requires_grad_(False): only what is trained is judged then",
                blocks_training=share >= ALL_BUT,
                value=share,
            )
        )
    return causes


def _lost_in_rounding(
    objective: Objective, theta: Tensor, stepping: Stepping, gradient: GradientEvidence, seed: int
) -> Cause | None:
    """Take one step, and see how much of it the weights keep in their own precision."""
    batch = next(stream(objective, stepping, seed, "precision"))
    full = stepping.batch_size is None or stepping.batch_size >= objective.examples
    if full and not gradient.significant:
        return None  # at rest: there is nothing that rounding could take away
    try:
        after, _ = continue_training(objective, theta, stepping, iter([batch]), steps=1)
        real = (after - theta).double()
        if float((real != 0).double().mean()) > IMPAIRED:
            return None
        # Steps are proportional to the learning rate, and one this long is not lost.
        longer = 16 / objective.roundoff
        after, _ = continue_training(objective, theta, stepping, iter([batch]), steps=1, lr_factor=longer)
    except (*FOREIGN_FAILURES, ThalwegError):
        return None  # an optimiser that cannot be run on a copy
    exact = (after - theta).double() / longer
    size = float(exact.square().sum())
    if not math.isfinite(size) or (size == 0 and float(gradient.norm) == 0):
        return None
    survives = float(real @ exact) / size if size > 0 else 0.0
    if survives >= IMPAIRED:
        return None
    moved = float((real[exact != 0] != 0).double().mean()) if size > 0 else 0.0
    return _rounding_cause(objective, stepping, survives, moved, blocks=gradient.significant)


def _rounding_cause(
    objective: Objective, stepping: Stepping, survives: float, moved: float, *, blocks: bool
) -> Cause:
    dtypes = objective.space.dtypes if isinstance(objective, EmpiricalRisk) else (objective.theta.dtype,)
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    half = coarsest.itemsize < 4
    unit = f"1/{round(2 / torch.finfo(coarsest).eps):,}"
    return Cause(
        "updates below precision",
        f"a step of {stepping.name} (learning rate {stepping.lr:.2g}) changes {_percent(moved)} of the "
        f"weights that it should, and {_percent(max(survives, 0.0))} of its length is kept: the rest is lost "
        f"in rounding, since a weight in {str(coarsest).removeprefix('torch.')} takes up only changes above "
        f"about {unit} of itself",
        "train float32 weights under autocast; if the training keeps float32 copies of these weights and "
        "steps those, this does not concern it"
        if half
        else "raise the learning rate, or keep the weights in float64",
        blocks_training=blocks and survives < LOST,
        value=survives,
    )


def _constant_targets(baseline: Baseline) -> Cause | None:
    if not (baseline.constant == 0 and baseline.is_loss):
        return None
    what = "labels" if baseline.kind != "values" else "targets"
    return Cause(
        f"constant {what}",
        f"all {what} in the sample are the same, so that there is nothing to learn but a constant",
        f"check how the {what} are read, and whether the data are sorted",
        blocks_training=False,
        value=0.0,
    )


def _at_baseline(baseline: Baseline) -> Cause | None:
    """Say when the model answers every input alike: as well as one answer can, or worse."""
    if baseline.constant <= 0 or baseline.told_apart >= SAME:
        return None
    classes = baseline.kind == "classes"
    if not (classes or baseline.is_loss):
        return None
    above = baseline.model - baseline.constant
    reached = abs(above) <= max(SAME * baseline.constant, baseline.error)
    # A net that has not been trained yet is about as good as a guess, and not so much worse.
    bad = baseline.is_loss and baseline.model > 2 * max(baseline.constant, baseline.guess)
    if not reached and not bad:
        return None
    name, answer, best = (
        ("targets' mean", "the mean of the targets", "their variance")
        if baseline.kind == "values"
        else ("label prior", "how frequent the labels are", "the entropy of the labels")
    )
    own = f"its {'cross-entropy' if classes else 'loss'} is {significant(baseline.model, 4)}"
    limit = significant(baseline.constant, 4)
    alike = (
        "its answers are the same for every input"
        if baseline.told_apart == 0
        else f"its answers differ by {_percent(baseline.told_apart)} of what the targets do"
    )
    return Cause(
        name if reached else "constant predictions",
        f"the model predicts {answer}, whatever the input: {own}, {best} {limit}; {alike}"
        if reached
        else f"the model gives every input about the same answer, and a bad one: {own}, and predicting "
        f"{answer} would make it {limit}; {alike}",
        "if this lasts, the input does not reach the output: check the data and the signal in the layers",
        blocks_training=False,
        value=baseline.constant,
    )


def _modules(names: Sequence[str]) -> str:
    """Name the modules that own parameters, the first few."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return printable(", ".join(owners[:5])) + (", …" if len(owners) > 5 else "")


def _percent(share: float) -> str:
    if share == 0:
        return "none"
    if share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.2g} %" if share < 0.995 else "all"
