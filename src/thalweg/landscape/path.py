"""The loss between two solutions, on the straight line and on the curve of Keskar et al."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.estimates import Estimate, weighted_mean
from thalweg.landscape.evaluation import Evaluation, Family, Floats, Losses, evaluate
from thalweg.landscape.path_record import Path, Shape, Way
from thalweg.landscape.subject import Subject, open_subject, require_points
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import intact
from thalweg.problem.loss import split_batch, tensor_of
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Problem
from thalweg.progress import Progress, Silent
from thalweg.records import current_provenance

__all__ = ["Path", "path"]

POINTS = 61
NEAR = 0.25  # where the rise around an end is read off, in parts of the way


def path(
    problem: Problem,
    first: Tensor | Mapping[str, Tensor],
    second: Tensor | Mapping[str, Tensor],
    *,
    points: int = POINTS,
    low: float = -1.0,
    high: float = 2.0,
    memory: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Measure the loss between two solutions and beyond, on training and held-out data together.

    Straight: θ(α) = α·second + (1 − α)·first. Curved: θ(α) = sin(απ/2)·second + cos(απ/2)·first. Both pass
    through the first at α = 0 and the second at α = 1. How sharp an end looks on such a line depends on the
    scale of the weights ([dinh2017]); what the curves do show is whether training and held-out loss are
    lowest at the same place, and whether a wall lies between.

    Args:
        problem: what is trained; left bit for bit as it is. Its own weights play no part.
        first: weights: a vector (n,), or a state_dict of the model.
        second: the same.
        points: along each way.
        low: the α to begin with.
        high: the α to end with.
        memory: bytes that points evaluated at once may keep; by default 16 MiB on a processor.
        seed: of the sample.
        progress: is told how far the work is.

    Raises:
        InputError: for arguments that cannot be used, or solutions that are the same.
        ThalwegError: for problems that cannot be measured; see `thalweg.errors`.

    Cost: 2/3 gradient-equivalents a point for the losses, as much again for the share of wrong answers.
    Source: [keskar2017] figure 3 (straight) and its appendix (curved).
    """
    if not isinstance(problem, Problem):
        raise InputError("there is nothing to look at", expected="a Problem", got=type(problem).__name__)
    require_points(points)
    if not (np.isfinite(low) and np.isfinite(high) and low <= 0 and high >= 1):
        raise InputError(
            "the way cannot be used",
            expected="low ≤ 0 and high ≥ 1, so that both ends lie on it",
            got=f"{low}, {high}",
        )
    begun, told = time.perf_counter(), progress or Silent()
    with intact(problem.model):
        subject = open_subject(problem, seed=seed)
        ends = [
            _point(problem, weights, subject.theta, name)
            for weights, name in ((first, "first"), (second, "second"))
        ]
        if torch.equal(ends[0], ends[1]):
            raise InputError("the two solutions are the same", hint="two different files")
        alphas = _alphas(low, high, points)
        ways, how = [], Evaluation(1, 0)
        for shape in ("straight", "curved"):
            told.phase(f"the {shape} way")
            way, how = _measure(subject, ends, alphas, shape, memory, told)
            ways.append(way)
        notes = (*subject.notes, *_statistics(problem.model, first, second))
    return Path(
        name=problem.name,
        num_parameters=subject.theta.numel(),
        num_examples=subject.train.examples,
        num_heldout=subject.num_beside,
        names=subject.names,
        distance=float((ends[1] - ends[0]).norm()),
        ways=tuple(ways),
        evaluation=how,
        notes=notes,
        cost=subject.ledger.cost(begun),
        provenance=current_provenance(subject.theta, seed),
    )


def _measure(
    subject: Subject, ends: list[Tensor], alphas: Floats, shape: Shape, memory: int | None, told: Progress
) -> tuple[Way, Evaluation]:
    family, coordinates = _family(ends, alphas, shape)
    objectives = [o for o in (subject.train, subject.beside) if o is not None]
    losses, hows = [], []
    for i, objective in enumerate(objectives):
        found, how = evaluate(
            objective,
            family,
            coordinates,
            by="groups",
            memory=memory,
            progress=told,
            done_before=i * len(alphas),
            total=len(objectives) * len(alphas),
        )
        losses.append(found)
        hows.append(how)
    wrong = [_wrong_answers(objective, family, coordinates) for objective in objectives]
    at = {name: int(np.abs(alphas - a).argmin()) for name, a in (("first", 0.0), ("second", 1.0))}
    way = Way(
        shape=shape,
        alphas=tuple(float(a) for a in alphas),
        training=losses[0].estimates(at["first"]),
        heldout=losses[1].estimates(at["first"]) if len(losses) > 1 else None,
        wrong=wrong[0],
        wrong_heldout=wrong[1] if len(wrong) > 1 else None,
        barrier=_barrier(losses[0], alphas),
        rises=(_rise(losses[0], alphas, 0.0), _rise(losses[0], alphas, 1.0)),
    )
    return way, hows[0]


def _family(ends: list[Tensor], alphas: Floats, shape: Shape) -> tuple[Family, Floats]:
    first, second = ends
    if shape == "straight":
        return Family(first, (second - first)[None]), alphas[:, None]
    turned = np.stack([np.cos(alphas * np.pi / 2), np.sin(alphas * np.pi / 2)], axis=1)
    # So that both ends are met exactly, which sin and cos of rounded angles are not.
    for alpha, factors in ((0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))):
        turned[alphas == alpha] = factors
    return Family(torch.zeros_like(first), torch.stack(ends)), turned


def _alphas(low: float, high: float, points: int) -> Floats:
    """Return the places of the grid, with both ends and what lies ``NEAR`` them among them."""
    grid = np.linspace(low, high, points)
    wanted = [a for end in (0.0, 1.0) for a in (end - NEAR, end, end + NEAR) if low <= a <= high]
    kept = [a for a in grid if min(abs(a - w) for w in wanted) > 1e-9]
    places: Floats = np.array(sorted([*kept, *wanted]))
    return places


def _barrier(losses: Losses, alphas: Floats) -> Estimate:
    """Return how far the loss between the ends is above the line between their losses, at most."""
    at = [int(np.abs(alphas - a).argmin()) for a in (0.0, 1.0)]
    between = np.flatnonzero((alphas >= 0) & (alphas <= 1))
    first, second = losses.values[at[0]], losses.values[at[1]]
    above = losses.values[between] - (first + alphas[between, None] * (second - first))
    weights = np.asarray(losses.counts)
    with np.errstate(invalid="ignore"):
        means = above @ weights / weights.sum()
    means = np.where(np.isfinite(means), means, np.inf)
    return _mean(above[int(means.argmax())], losses.counts)


def _rise(losses: Losses, alphas: Floats, end: float) -> Estimate | None:
    """Return by how much the loss rises within ``NEAR`` of an end, the mean of both sides."""
    places = [int(np.abs(alphas - a).argmin()) for a in (end - NEAR, end, end + NEAR)]
    if any(abs(alphas[p] - a) > 1e-9 for p, a in zip(places, (end - NEAR, end, end + NEAR), strict=True)):
        return None
    left, middle, right = (losses.values[p] for p in places)
    return _mean((left + right) / 2 - middle, losses.counts)


def _mean(values: Floats, counts: tuple[float, ...]) -> Estimate:
    if len(counts) == 1 and counts[0] == 1:
        return Estimate(float(values[0]), 0.0)
    with np.errstate(invalid="ignore"):
        return weighted_mean(list(values), counts)


def _wrong_answers(objective: Any, family: Family, coordinates: Floats) -> tuple[float, ...] | None:
    """Return the share of wrong answers at each point; None where the model does not tell classes apart."""
    if not isinstance(objective, EmpiricalRisk):
        return None
    shares = []
    for place in coordinates:
        outputs: list[Any] = []
        objective.observe(
            family.at(place[None])[0],
            objective.chunks,
            lambda name, module: None,
            lambda name, module, out: outputs.append(out) if name == "" else None,  # noqa: B023
        )
        if len(outputs) != len(objective.chunks):
            return None
        wrong = 0
        for out, batch in zip(outputs, objective.chunks, strict=True):
            scores = tensor_of(out)
            targets = _classes(batch.data)
            if (
                not isinstance(scores, Tensor)
                or scores.dim() != 2
                or targets is None
                or len(scores) != len(targets)
            ):
                return None
            wrong += int((scores.argmax(1) != targets).sum())
        shares.append(wrong / objective.examples)
    return tuple(shares)


def _classes(data: Any) -> Tensor | None:
    try:
        targets = split_batch(data)[2]
    except InputError:
        return None
    known = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
    return targets if known else None


def _point(problem: Problem, weights: Tensor | Mapping[str, Tensor], theta: Tensor, name: str) -> Tensor:
    if isinstance(weights, Mapping) and problem.model is not None:
        space = ParameterSpace.of(problem.model)
        missing = [n for n in space.names if n not in weights]
        wrong = [
            n
            for n, s in zip(space.names, space.shapes, strict=True)
            if n in weights and weights[n].shape != s
        ]
        if missing or wrong:
            raise InputError(
                f"the {name} solution is of another model",
                got=f"no {missing[0]!r}" if missing else f"another shape of {wrong[0]!r}",
            )
        weights = space.flatten([weights[n].to(space.device) for n in space.names])
    if not isinstance(weights, Tensor) or weights.numel() != theta.numel():
        raise InputError(
            f"the {name} solution has the wrong form", expected=f"a vector ({theta.numel()},) or a state_dict"
        )
    point = weights.detach().reshape(-1).to(theta)
    if not bool(torch.isfinite(point).all()):
        raise InputError(f"the {name} solution is not finite")
    return point


def _statistics(model: nn.Module | None, first: Any, second: Any) -> tuple[str, ...]:
    """Say what is done about running statistics, where the model has any."""
    moving = [n for n, b in model.named_buffers() if b.is_floating_point()] if model is not None else []
    if not moving:
        return ()
    return (
        "Running statistics of batch norm are those of the problem's model all the way, at the two ends too: "
        "they are not of the weights in between. Compare the ends with their own losses.",
    )
