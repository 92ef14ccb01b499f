"""The loss on a plane: of eigenvectors, random directions, a trajectory; or a function of two variables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.estimates import Estimate, paired_difference
from thalweg.landscape.critical import critical_points
from thalweg.landscape.directions import Along, Direction, random_walk_share
from thalweg.landscape.evaluation import Evaluation, Family, Floats, evaluate
from thalweg.landscape.plane_record import Lowest, Plane, Way
from thalweg.landscape.slice import choose, require_reach, symmetric
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

__all__ = ["Plane", "plane"]

POINTS = 31
FUNCTION_POINTS = 81
MARGIN = 0.25  # of a trajectory's extent, around it


def plane(
    problem: Problem,
    along: Along | Sequence[Tensor] = "curvature",
    *,
    trajectory: Sequence[Tensor] | Tensor | None = None,
    points: int | None = None,
    reach: float | None = None,
    memory: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plane:
    """Measure the loss on a plane through the weights, and along both its axes with error and held-out data.

    A plain function of two variables is drawn over its domain instead, with its critical points and with the
    two sections along the eigenvectors of its Hessian.

    Args:
        problem: what is trained; left bit for bit as it is.
        along: "curvature" for the eigenvectors of λmax and λmin, "random" for two filter-normalised random
            directions ([li2018]), "gradient" for downhill and the largest curvature across it; or two
            directions of your own (n,).
        trajectory: weights (t, n) that training went through, at least 3: the plane is then that of their two
            principal components around the last of them, and the way is drawn in it. A random walk gives the
            same picture; how much variance it would explain stands beside.
        points: along each side; 31 by default, 81 for a plain function.
        reach: how far to go each way, in lengths of the directions; by default to where the loss would change
            by about half of itself, within the length of the weights; 1 for random directions and your own.
        memory: bytes that points evaluated at once may keep; by default 16 MiB on a processor.
        seed: of the sample, the random starts and directions.
        progress: is told how far the work is.

    Raises:
        InputError: for arguments that cannot be used.
        ThalwegError: for problems that cannot be measured; see `thalweg.errors`.

    Cost: 1/3 gradient-equivalent a point, and at most 80 Hessian–vector products for the eigenvectors.
    """
    if not isinstance(problem, Problem):
        raise InputError("there is nothing to look at", expected="a Problem", got=type(problem).__name__)
    begun, told = time.perf_counter(), progress or Silent()
    with intact(problem.model):
        subject = open_subject(problem, seed=seed)
        if reach is not None:
            require_reach(reach)
            if subject.domain is not None:
                around = tuple((x - reach, x + reach) for x in subject.theta.tolist())
                subject = replace(subject, domain=around)
        drawn = subject.domain is not None and len(subject.domain) == 2 and trajectory is None
        if drawn and isinstance(along, str) and along == "curvature":
            found = _of_function(subject, require_points(points or FUNCTION_POINTS), seed, memory, told)
        else:
            number = require_points(points or POINTS)
            found = _of_net(subject, along, trajectory, number, reach, seed, memory, told)
    return replace(
        found,
        name=problem.name,
        cost=subject.ledger.cost(begun),
        provenance=current_provenance(subject.theta, seed),
    )


def trajectory_axes(points: Sequence[Tensor] | Tensor, theta: Tensor) -> tuple[tuple[Direction, ...], Way]:
    """Return the two principal components of a trajectory (t, n) around its last point, and the way in them.

    Source: [li2018] §7; the random walk's share is from [antognini2018].

    Raises:
        InputError: for fewer than three points, another length, or points that do not move in two directions.
    """
    try:
        stacked = torch.stack([p.detach().reshape(-1) for p in points]).to(theta)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            "the trajectory cannot be used", expected="weights (t, n)", cause=str(error)
        ) from None
    if len(stacked) < 3 or stacked.shape[1] != theta.numel() or not bool(torch.isfinite(stacked).all()):
        raise InputError(
            "the trajectory cannot be used",
            expected=f"at least 3 finite points (t, {theta.numel()})",
            got=str(tuple(stacked.shape)),
        )
    offsets = (stacked - stacked[-1]).double()
    centred = offsets - offsets.mean(0)
    _, sizes, vectors = torch.linalg.svd(centred, full_matrices=False)
    variance = sizes.square() / sizes.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    if not float(sizes[1]) > 1e-9 * float(sizes[0]):
        raise InputError(
            "the trajectory does not span a plane", got="points on one line, or all the same", hint="slice"
        )
    at = offsets @ vectors[:2].T
    explained = tuple(float(v) for v in variance[:2])
    directions = tuple(
        Direction(
            f"principal component {i + 1} ({explained[i]:.0%})",
            float(at[:, i].abs().max()),
            None,
            None,
            vectors[i].to(theta),
        )
        for i in range(2)
    )
    way = Way(
        tuple((float(a), float(b)) for a, b in at), explained, (random_walk_share(1), random_walk_share(2))
    )
    return directions, way


def _of_net(
    subject: Subject,
    along: Along | Sequence[Tensor],
    trajectory: Sequence[Tensor] | Tensor | None,
    points: int,
    reach: float | None,
    seed: int,
    memory: int | None,
    told: Progress,
) -> Plane:
    way, origin = None, subject.theta
    if trajectory is not None:
        directions, way = trajectory_axes(trajectory, subject.theta)
        origin = trajectory[-1].detach().reshape(-1).to(subject.theta)
        why = (
            "The plane of the trajectory's first two principal components. Any random walk explains "
            "as much and "
            "draws the same curves; only what exceeds it is of this training."
        )
        places = [_around([p[i] for p in way.points], points) for i in (0, 1)]
    else:
        directions, why = choose(subject, along, seed=seed, progress=told)
        if len(directions) != 2:
            raise InputError("a plane has two directions", got=f"{len(directions)}", hint="slice")
        places = [symmetric(d.reach if reach is None else reach, points) for d in directions]
    family = Family(origin, torch.stack([d.vector for d in directions]))
    told.phase("the plane")
    grids, how = _grids(subject, family, places, memory, told)
    sections = []
    for i in (0, 1):
        told.phase(f"the section along {directions[i].label}")
        own = Family(origin, directions[i].vector[None])
        line, _ = measure_line(subject, directions[i], places[i], family=own, memory=memory, progress=told)
        sections.append(line)
    return _record(
        subject, directions, places, grids, sections, how, why, way, _lowest(subject, family, places, grids)
    )


def _of_function(subject: Subject, points: int, seed: int, memory: int | None, told: Progress) -> Plane:
    assert isinstance(subject.train, FunctionObjective)
    assert subject.domain is not None
    told.phase("critical points")
    found = critical_points(subject.train, subject.domain)
    axes, family = coordinate_axes(subject)
    places = [np.linspace(*span, points) for span in subject.domain]
    told.phase("the plane")
    grids, how = _grids(subject, family, places, memory, told)
    directions, _ = choose(subject, "curvature", seed=seed, progress=told)
    sections = []
    for direction in directions:
        far = _to_border(subject, direction)
        line, _ = measure_line(subject, direction, symmetric(far, points), memory=memory)
        sections.append(line)
    record = _record(subject, axes, places, grids, sections, how, "", None, None)
    return replace(record, critical_points=found, here=(float(subject.theta[0]), float(subject.theta[1])))


def _grids(
    subject: Subject, family: Family, places: list[Floats], memory: int | None, told: Progress
) -> tuple[list[Floats], Evaluation]:
    """Return the losses (rows of the second coordinate) on training and, where there are, held-out data."""
    second, first = np.meshgrid(places[1], places[0], indexing="ij")
    coordinates = np.stack([first.ravel(), second.ravel()], axis=1)
    objectives = [o for o in (subject.train, subject.beside) if o is not None]
    grids: list[Floats] = []
    hows: list[Evaluation] = []
    for i, objective in enumerate(objectives):
        losses, how = evaluate(
            objective,
            family,
            coordinates,
            by="whole",
            memory=memory,
            progress=told,
            done_before=i * len(coordinates),
            total=len(objectives) * len(coordinates),
        )
        grids.append(losses.means().reshape(len(places[1]), len(places[0])))
        hows.append(how)
    return grids, hows[0]


def _lowest(subject: Subject, family: Family, places: list[Floats], grids: list[Floats]) -> Lowest:
    """Return where the training loss is lowest, and what the change from the weights is on either sample."""
    finite = np.where(np.isfinite(grids[0]), grids[0], np.inf)
    row, column = np.unravel_index(int(finite.argmin()), finite.shape)
    at = (float(places[0][column]), float(places[1][row]))
    there = family.at(np.array([at]))[0]

    def change(objective: object) -> Estimate:
        before, counts = objective.batch_values(subject.theta)  # type: ignore[attr-defined]
        after, _ = objective.batch_values(there)  # type: ignore[attr-defined]
        return paired_difference(after, before, counts)

    heldout = change(subject.beside) if subject.beside is not None else None
    return Lowest(at, float(finite[row, column]), change(subject.train), heldout)


def _record(
    subject: Subject,
    axes: Sequence[Direction],
    places: list[Floats],
    grids: list[Floats],
    sections: list[Line],
    how: Evaluation,
    why: str,
    way: Way | None,
    lowest: Lowest | None,
) -> Plane:
    rows = [tuple(tuple(float(v) for v in row) for row in grid) for grid in grids]
    return Plane(
        name="",
        num_parameters=subject.theta.numel(),
        num_examples=subject.train.examples,
        num_heldout=subject.num_beside,
        loss=subject.loss,
        names=subject.names,
        axes=(axes[0], axes[1]),
        x=tuple(float(v) for v in places[0]),
        y=tuple(float(v) for v in places[1]),
        training=rows[0],
        heldout=rows[1] if len(rows) > 1 else None,
        here=(0.0, 0.0),
        lowest=lowest,
        critical_points=(),
        sections=tuple(sections),
        way=way,
        why=why,
        evaluation=how,
        notes=subject.notes,
        cost=subject.ledger.cost(time.perf_counter()),
        provenance=current_provenance(subject.theta, 0),
    )


def _around(values: Sequence[float], points: int) -> Floats:
    low, high = min(values), max(values)
    margin = MARGIN * ((high - low) or 1.0)
    places: Floats = np.linspace(low - margin, high + margin, points)
    return places


def _to_border(subject: Subject, direction: Direction) -> float:
    """How far a line through the weights stays inside the domain, each way."""
    assert subject.domain is not None
    room = [
        min(x - low, high - x) / abs(float(v))
        for x, (low, high), v in zip(subject.theta.tolist(), subject.domain, direction.vector, strict=True)
        if abs(float(v)) > 1e-9 and low < x < high
    ]
    return min(room, default=direction.reach)
