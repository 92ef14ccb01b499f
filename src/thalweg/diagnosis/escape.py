"""Leave a saddle: a way out found on one sample, applied only if another confirms it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.spectrum import Extreme, describe_certificate, find_extremes
from thalweg.diagnosis.diagnosis import Diagnosis
from thalweg.diagnosis.escape_record import FUNCTION, HELD_BACK, HELD_OUT, MOST, Escape, plain_share
from thalweg.diagnosis.gathering import measure_rounding
from thalweg.diagnosis.line import finite
from thalweg.diagnosis.way_search import Search, search_ways
from thalweg.errors import InputError
from thalweg.estimates import Estimate, paired_difference, weighted_mean
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.finite import finite_loss
from thalweg.problem.intact import intact
from thalweg.problem.interrupt import at_safe_points
from thalweg.problem.objective import Objective
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Measured, Problem
from thalweg.progress import Metered, Progress, Silent
from thalweg.records import current_provenance
from thalweg.report.document import signed, significant

__all__ = ["Escape", "escape"]

PLANNED = 300.0  # about what an escape takes, in gradient-equivalents
CONFIDENCE = 0.99  # one-sided, of the test on the judging sample
LITTLE = 0.1  # the share of the gain up to which the gradient does not show the way


@dataclass(frozen=True)
class _Samples:
    """Where ways are found and where they are judged.

    ``judging`` is None for a function, which is judged by its own values; ``whole`` says whether the finding
    sample is the one that a diagnosis sees.
    """

    finding: Objective
    judging: Objective | None
    source: str
    whole: bool
    notes: tuple[str, ...]


def escape(
    problem: Problem,
    diagnosis: Diagnosis | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Escape:
    """Move the weights of ``problem`` out of a saddle, if data that had no part in the search confirm it.

    On the training sample the step is searched along ± the vector of λmin and along the direction that
    combines it with the gradient ([zhang2022]), and the better one followed downhill for 50 gradient steps;
    models too large for Lanczos descend from a random perturbation ([jin2017]). The best is judged once on
    the held-out data (without any, half of the training batches are held back): it is applied if the paired
    change of their loss is below zero at 99 %, one-sided. Otherwise, and on an exception or Ctrl-C, the
    weights are bit for bit what they were.

    Args:
        problem: the model's weights move, or the point of a plain function; nothing else of it changes.
        diagnosis: of the same weights; its λmin is used again after one product that checks it.
        seed: of the sample, the random starts and the perturbation.
        progress: is told how far the work is.

    Returns:
        A record: ``applied``, ``reason``, the change of the loss, λmin before and after. It says ESCAPED, or
        MOVED where as many ordinary gradient steps buy half of the gain or more, or STAYED.

    Raises:
        InputError: for arguments of the wrong kind, or where there is one batch only and nothing to judge on.
        ModelError: for a model that cannot be measured.
        NumericalError: for NaN and infinity.

    Cost: about 300 gradient-equivalents, up to 80 Hessian–vector products fewer with a diagnosis; up to 600
    for models too large for Lanczos. A refusal for want of negative curvature costs about 150.
    """
    if not isinstance(problem, Problem):
        raise InputError("there is nothing to escape from", expected="a Problem", got=type(problem).__name__)
    if diagnosis is not None and not isinstance(diagnosis, Diagnosis):
        raise InputError(
            "the diagnosis is of the wrong type", expected="a Diagnosis", got=type(diagnosis).__name__
        )
    with intact(problem.model):
        escaped, theta = _escape(problem, diagnosis, seed, progress or Silent())
    if escaped.applied:  # after all that can fail
        _move(problem, theta)
    return escaped


def _escape(
    problem: Problem, diagnosis: Diagnosis | None, seed: int, progress: Progress
) -> tuple[Escape, Tensor]:
    begun = time.perf_counter()
    measured = problem.measured(seed=seed)
    theta = measured.train.theta
    # Before the split: NaN keeps batches from being cut anew, which would look like a lack of data.
    here = finite_loss(measured.train, theta, "the training loss")
    if measured.heldout is not None:
        finite_loss(measured.heldout, theta, "the held-out loss")
    samples = _split(problem, measured)
    finding = samples.finding
    if not samples.whole:
        here = finding.value(theta)
    told = Metered(progress, lambda: measured.ledger.gradient_equivalents, PLANNED)
    told.phase("looking for a way out")
    rounding = measure_rounding(finding, theta, here, seed=seed, repeats=3)
    least = 4 * rounding
    known = diagnosis if samples.whole else None
    search = search_ways(finding, theta, known, least, seed, told)
    told.phase("judging")
    best = search.ways[0] if search.ways else None
    judged = best is not None and best.change.value < -least
    loss, change = _judge(samples, theta, best.theta if best is not None and judged else theta)
    applied = judged and change.upper(CONFIDENCE) < 0 and change.value < -least
    low = search.found.lambda_min if search.found is not None else None
    after: Extreme | None = None
    if applied and best is not None and low is not None:
        told.phase("curvature after the step")
        after = _lowest(finding, best.theta, seed, told)
    there = best.theta if applied and best is not None else theta
    return Escape(
        name=problem.name,
        applied=applied,
        reason=_reason(search, samples, change, judged=judged, applied=applied),
        way=best.name if best is not None and judged else None,
        step=best.step if best is not None and judged else None,
        loss=loss,
        change=change if judged else None,
        judged_on=samples.source,
        lambda_min=low,
        lambda_min_after=after,
        ways=search.ways,
        plain=search.plain,
        point=tuple(there.tolist()) if problem.is_function and theta.numel() <= 16 else None,
        saved_to=None,
        notes=(*measured.notes, *samples.notes, *search.notes),
        num_parameters=theta.numel(),
        num_examples=finding.examples,
        num_judging=samples.judging.examples if samples.judging is not None else 0,
        cost=measured.ledger.cost(begun),
        provenance=current_provenance(theta, seed),
    ), there


def _split(problem: Problem, measured: Measured) -> _Samples:
    """Return where to find and where to judge; without held-out data every other batch is held back."""
    train = measured.train
    if measured.heldout is not None:
        return _Samples(train, measured.heldout, HELD_OUT, True, ())
    if not isinstance(train, EmpiricalRisk):
        return _Samples(train, None, FUNCTION, True, ())
    assert problem.model is not None
    assert problem.loss is not None
    if len(train.groups) < 2:
        raise InputError(
            "there is nothing to judge an escape on",
            expected="held-out data, or training data in two batches at least",
            got=f"one batch of {train.examples:,}",
            hint="pass heldout= to the Problem",
        )
    finding, judging = (
        EmpiricalRisk(
            problem.model,
            problem.loss,
            replace(train.sample, batches=train.groups[first::2], complete=False),
            ledger=measured.ledger,
        )
        for first in (0, 1)
    )
    note = (
        f"There is no held-out data: the way was searched on {finding.examples:,} of the training examples "
        f"and judged on the other {judging.examples:,}."
    )
    return _Samples(finding, judging, HELD_BACK, False, (note,))


def _judge(samples: _Samples, theta: Tensor, there: Tensor) -> tuple[Estimate, Estimate]:
    """Return the loss at ``theta`` and its paired change from there to ``there``, where it is judged."""
    judging = samples.judging or samples.finding
    before, counts = judging.batch_values(theta)
    after, _ = judging.batch_values(there)
    loss, change = weighted_mean(before, counts), paired_difference(finite(after), before, counts)
    if samples.judging is None:  # a plain function is known exactly
        return Estimate(loss.value, 0.0), Estimate(change.value, 0.0)
    return loss, change


def _lowest(finding: Objective, theta: Tensor, seed: int, told: Progress) -> Extreme:
    choice = choose_hessian(finding, theta, seed=seed)
    return find_extremes(
        choice.operator, seed=seed, open_gap=1.0, noise=choice.noise, progress=told
    ).lambda_min


def _reason(search: Search, samples: _Samples, change: Estimate, *, judged: bool, applied: bool) -> str:
    found = search.found
    if not search.ways and found is not None:
        return (
            "nothing to escape from: no direction that curves down was found "
            f"(λmin {significant(found.lambda_min.value)}; {describe_certificate(found)})"
        )
    if not judged:
        if found is None:
            return "from a random perturbation, gradient descent does not get below the training loss here"
        low = significant(found.lambda_min.value)
        what = f"negative curvature ({low})" if found.lambda_min.value < -found.floor else "a flat direction"
        return f"there is {what}, but no step along it lowers the training loss beyond rounding"
    if not applied:
        worst = change.upper(CONFIDENCE)
        if samples.judging is None or not math.isfinite(worst):
            return "the step that lowers the training loss cannot be told from rounding or sampling noise"
        return (
            f"the {samples.source} do not confirm the way down: it changes their loss by "
            f"{signed(change.value)} ± {significant(change.stderr, 1)}, and {signed(worst)} cannot be ruled "
            f"out ({CONFIDENCE:.0%}, one-sided)"
        )
    confirmed = "the function confirms it" if samples.judging is None else f"the {samples.source} confirm it"
    plain = plain_share(search.ways, search.plain)
    if plain < LITTLE:
        return f"there was a way down that the gradient does not show, and {confirmed}"
    if plain < MOST:
        return f"there was a way down, and {confirmed}; gradient steps alone buy {plain:.0%} of it"
    return (
        f"there was a way down, and {confirmed}; but gradient steps alone buy {min(plain, 1):.0%} of it, so "
        "ordinary training gets there as well"
    )


def _move(problem: Problem, theta: Tensor) -> None:
    """Write ``theta`` into the weights, all of it or none."""
    parameters = problem.parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with at_safe_points(), torch.inference_mode(False), torch.no_grad():
            if problem.model is not None:
                ParameterSpace.of(problem.model).write(problem.model, theta)
            else:
                parameters[0].copy_(theta)
    except BaseException:
        with at_safe_points(), torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
        raise
