"""The loss on a line: along eigenvectors, random directions, the gradient; or a function of one variable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from thalweg.errors import InputError
from thalweg.landscape.critical import CriticalPoint, critical_points
from thalweg.landscape.directions import Along, Direction, find_directions, own_direction
from thalweg.landscape.evaluation import Evaluation
from thalweg.landscape.slice_record import Slice
from thalweg.landscape.subject import (
    Line,
    Subject,
    coordinate_axes,
    measure_line,
    open_subject,
    require_points,
)
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.intact import intact
from thalweg.problem.problem import Problem
from thalweg.progress import Progress, Silent
from thalweg.records import current_provenance

__all__ = ["Slice", "choose", "require_reach", "slice", "symmetric"]

POINTS = 51
FUNCTION_POINTS = 401


def slice(
    problem: Problem,
    along: Along | Tensor | Sequence[Tensor] = "curvature",
    *,
    points: int | None = None,
    reach: float | None = None,
    memory: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Slice:
    """Measure the loss on lines through the weights, on training and held-out data together.

    A plain function of one variable is drawn over its domain instead, with its critical points, found by root
    finding on the exact gradient.

    Args:
        problem: what is trained; left bit for bit as it is.
        along: "curvature" for the eigenvectors of λmax and λmin, "random" for two filter-normalised random
            directions ([li2018]), "gradient" for downhill; or directions of your own (n,), of which a
            coordinate of 1 is once their length.
        points: on each line; 51 by default, 401 on a plain function.
        reach: how far to go each way, in lengths of the direction; by default to where the loss would rise by
            about itself, within the length of the weights; 1 for random directions and your own.
        memory: bytes that points evaluated at once may keep; by default 16 MiB on a processor.
        seed: of the sample and the random starts.
        progress: is told how far the work is.

    Raises:
        InputError: for arguments that cannot be used.
        ThalwegError: for problems that cannot be measured; see `thalweg.errors`.

    Cost: 1/3 gradient-equivalent a point, and at most 80 Hessian–vector products for the eigenvectors.
    """
    if not isinstance(problem, Problem):
        raise InputError("there is nothing to look at", expected="a Problem", got=type(problem).__name__)
    begun, told = time.perf_counter(), progress or Silent()
    found: tuple[CriticalPoint, ...] = ()
    beside: tuple[CriticalPoint, ...] = ()
    lines: tuple[Line, ...]
    with intact(problem.model):
        subject = open_subject(problem, seed=seed)
        if subject.domain is not None and reach is not None:
            subject = replace(subject, domain=tuple(_around(x, reach) for x in subject.theta.tolist()))
        curve = subject.domain is not None and len(subject.domain) == 1
        if curve and subject.domain is not None and isinstance(along, str) and along == "curvature":
            told.phase("critical points")
            found, beside = _critical(subject)
            told.phase("the curve")
            axes, family = coordinate_axes(subject)
            number = require_points(points or FUNCTION_POINTS)
            places = np.linspace(*subject.domain[0], number)
            here = float(subject.theta[0])
            line, how = measure_line(
                subject, axes[0], places, family=family, here=here, memory=memory, progress=progress
            )
            lines, why = (line,), ""
        else:
            directions, why = choose(subject, along, seed=seed, progress=told)
            lines, how = _measure(subject, directions, points or POINTS, reach, memory, told)
    return Slice(
        name=problem.name,
        num_parameters=subject.theta.numel(),
        num_examples=subject.train.examples,
        num_heldout=subject.num_beside,
        loss=subject.loss,
        names=subject.names,
        lines=lines,
        why=why,
        slope=_slope(subject),
        critical_points=found,
        risk_critical_points=beside,
        evaluation=how,
        notes=subject.notes,
        cost=subject.ledger.cost(begun),
        provenance=current_provenance(subject.theta, seed),
    )


def choose(
    subject: Subject, along: Along | Tensor | Sequence[Tensor], *, seed: int, progress: Progress
) -> tuple[tuple[Direction, ...], str]:
    """Return the directions that are asked for, and why to look along them.

    Raises:
        InputError: for another word, or directions that cannot be used.
    """
    if isinstance(along, Tensor):
        along = [along]
    if not isinstance(along, str):
        return tuple(own_direction(v, subject.theta, i + 1) for i, v in enumerate(along)), ""
    if along not in ("curvature", "random", "gradient"):
        raise InputError(
            "there is no such way to look along",
            expected="curvature, random, gradient, or tensors",
            got=repr(along),
        )
    progress.phase("directions")
    return find_directions(subject.train, subject.theta, along, seed=seed, progress=progress)


def _measure(
    subject: Subject,
    directions: Sequence[Direction],
    points: int,
    reach: float | None,
    memory: int | None,
    told: Progress,
) -> tuple[tuple[Line, ...], Evaluation]:
    if not directions:
        raise InputError("there is no direction to look along", got="an empty list")
    require_points(points)
    lines = []
    for direction in directions:
        told.phase(f"the loss along {direction.label}")
        far = direction.reach if reach is None else require_reach(reach)
        line, how = measure_line(subject, direction, symmetric(far, points), memory=memory, progress=told)
        lines.append(line)
    return tuple(lines), how


def symmetric(reach: float, points: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return ``points`` places from −reach to reach; the middle one of an odd number is exactly 0."""
    half = np.linspace(-reach, reach, points)
    return (half - half[::-1]) / 2


def require_reach(reach: float) -> float:
    """Check how far to go.

    Raises:
        InputError: unless it is positive and finite.
    """
    if not (np.isfinite(reach) and reach > 0):
        raise InputError("the reach cannot be used", expected="a positive number", got=str(reach))
    return float(reach)


def _around(x: float, reach: float) -> tuple[float, float]:
    return x - require_reach(reach), x + reach


def _critical(subject: Subject) -> tuple[tuple[CriticalPoint, ...], tuple[CriticalPoint, ...]]:
    assert isinstance(subject.train, FunctionObjective)
    assert subject.domain is not None
    found = critical_points(subject.train, subject.domain)
    if not isinstance(subject.beside, FunctionObjective):
        return found, ()
    return found, critical_points(subject.beside, subject.domain)


def _slope(subject: Subject) -> float | None:
    if subject.domain is None or len(subject.domain) > 1:
        return None
    return float(subject.train.gradient(subject.theta)[0])
