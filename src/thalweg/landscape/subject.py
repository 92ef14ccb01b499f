"""What is looked at: the loss of a problem with what belongs beside it, over the same batches everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.estimates import Estimate
from thalweg.landscape.directions import Direction
from thalweg.landscape.evaluation import Evaluation, Family, Floats, evaluate
from thalweg.problem.cost import Ledger
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.finite import finite_loss
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.problem import Problem
from thalweg.progress import Progress

__all__ = ["Line", "Subject", "coordinate_axes", "measure_line", "open_subject", "require_points"]


@dataclass(frozen=True)
class Subject:
    """A problem made ready to be looked at.

    Attributes:
        train: the training loss, or the plain function.
        beside: the held-out loss, or the risk that the function is an estimate of.
        names: of these two, for legends.
        theta: where the weights stand (n,).
        loss: there.
        domain: of a plain function of one or two variables: its coordinates are the axes then.
        ledger: what is spent on both.
        notes: what the reader must know about the sample.
    """

    train: EmpiricalRisk | FunctionObjective
    beside: EmpiricalRisk | FunctionObjective | None
    names: tuple[str, str]
    theta: Tensor
    loss: float
    domain: tuple[tuple[float, float], ...] | None
    ledger: Ledger
    notes: tuple[str, ...]

    @property
    def num_beside(self) -> int:
        """How many examples the loss beside it is a mean over; 0 without."""
        return self.beside.examples if self.beside is not None else 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """The loss along a line.

    Attributes:
        direction: which way.
        here: the coordinate at which the weights stand.
        coordinates: where it was measured (m,), ascending, in lengths of the direction's vector.
        training: the loss at each. The standard error is that of the difference from ``here``, over the
            batches: how sure the shape is, not the level.
        heldout: the same over held-out data (of a plain function: its risk); None without.
    """

    direction: Direction
    here: float
    coordinates: tuple[float, ...]
    training: tuple[Estimate, ...]
    heldout: tuple[Estimate, ...] | None

    @property
    def lowest(self) -> int:
        """Where the training loss is lowest."""
        return _lowest(self.training)

    @property
    def lowest_heldout(self) -> int | None:
        """Where the held-out loss is lowest."""
        return None if self.heldout is None else _lowest(self.heldout)


def open_subject(problem: Problem, *, seed: int) -> Subject:
    """Freeze the data of ``problem`` and look where it stands; the caller is inside `intact`.

    Raises:
        InputError: for what is no problem.
        ThalwegError: for problems that cannot be measured.
    """
    measured = problem.measured(seed=seed)
    train = measured.train
    assert isinstance(train, EmpiricalRisk | FunctionObjective)
    theta = train.theta
    loss = finite_loss(train, theta, "the function" if problem.is_function else "the training loss")
    beside: EmpiricalRisk | FunctionObjective | None = measured.heldout
    names, domain = ("training", "held out"), None
    if problem.is_function:
        beside = problem.risk()
        names = ("empirical risk", "risk") if beside is not None else ("f", "")
        if theta.numel() <= 2:
            domain = problem.domain or tuple(
                (float(x) - 1 - abs(x), float(x) + 1 + abs(x)) for x in theta.tolist()
            )
    return Subject(train, beside, names, theta, loss, domain, measured.ledger, measured.notes)


def coordinate_axes(subject: Subject) -> tuple[tuple[Direction, ...], Family]:
    """Return the coordinates of a plain function as directions, and the family of its points."""
    assert subject.domain is not None
    units = torch.eye(subject.theta.numel(), dtype=subject.theta.dtype, device=subject.theta.device)
    names = ("x",) if len(units) == 1 else ("x₁", "x₂")
    axes = tuple(
        Direction(name, (high - low) / 2, None, None, unit)
        for name, (low, high), unit in zip(names, subject.domain, units, strict=True)
    )
    return axes, Family(torch.zeros_like(subject.theta), units)


def measure_line(
    subject: Subject,
    direction: Direction,
    coordinates: Floats,
    *,
    family: Family | None = None,
    here: float = 0.0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> tuple[Line, Evaluation]:
    """Measure the loss, and that beside it, at ``coordinates`` (m,) along ``direction``.

    Args:
        subject: whose loss.
        direction: which way.
        coordinates: ascending, ``here`` not needed among them.
        family: of the points; by default the weights plus multiples of the direction.
        here: the coordinate that errors are relative to.
        memory: that stacked points may keep; see `evaluate`.
        progress: is told how far the work is.

    Cost: 1/3 gradient-equivalent a point, over both samples.
    """
    family = family or Family(subject.theta, direction.vector[None])
    own = bool(np.isclose(coordinates, here, rtol=0, atol=1e-12).any())
    places = coordinates if own else np.append(coordinates, here)
    reference = int(np.abs(places - here).argmin())
    total = len(places) * (2 if subject.beside is not None else 1)
    found = []
    for i, objective in enumerate((subject.train, subject.beside)):
        if objective is None:
            continue
        losses, how = evaluate(
            objective,
            family,
            places[:, None],
            by="groups",
            memory=memory,
            progress=progress,
            done_before=i * len(places),
            total=total,
        )
        found.append((losses.estimates(reference)[: len(coordinates)], how))
    line = Line(
        direction=direction,
        here=here,
        coordinates=tuple(float(x) for x in coordinates),
        training=found[0][0],
        heldout=found[1][0] if len(found) > 1 else None,
    )
    return line, found[0][1]


def require_points(points: int, what: str = "points") -> int:
    """Check how many points to look at along a side.

    Raises:
        InputError: for fewer than three.
    """
    if not isinstance(points, int) or points < 3:
        raise InputError(f"the number of {what} cannot be used", expected="3 or more", got=str(points))
    return points


def _lowest(estimates: tuple[Estimate, ...]) -> int:
    return int(np.argmin([e.value if np.isfinite(e.value) else np.inf for e in estimates]))
