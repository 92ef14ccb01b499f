"""Keskar's sharpness: how far the loss can rise in a small box around a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from torch import Tensor

from thalweg.errors import InputError, NumericalError
from thalweg.problem.objective import Objective, require_finite
from thalweg.progress import Progress, Silent
from thalweg.rng import gaussian, generator, signs

__all__ = ["EPSILONS", "SUBSPACE", "KeskarSharpness", "keskar_sharpness"]

EPSILONS = (1e-3, 5e-4)  # those of the paper
ITERATIONS = 10
SUBSPACE = 100
RANDOM_STARTS = 2
MAX_EVALUATIONS = 30
# L-BFGS-B first steps by the gradient itself. It is scaled so that most coordinates reach a side of the
# box at once, where the largest value of a convex function lies.
FIRST_STEP = 10.0
# A search over all weights or a basis of the subspace may take this much memory.
MEMORY = 4 << 30
_SEARCH_BYTES = 8 * 25  # a weight: ten pairs of vectors of L-BFGS-B and some more, in float64
_NUDGES = 3

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class KeskarSharpness:
    """φ = 100·(max f(x + Ay) − f(x))/(1 + f(x)) over the box |y_i| ≤ ε(|(A⁺x)_i| + 1).

    Attributes:
        epsilon: ε.
        dimension: of y: all weights, or a random subspace.
        value: the largest φ found, in per cent; the true maximum may lie higher. Infinite where the loss is
            not finite somewhere in the box.
        slope: φ of the linear function with the gradient at x: what is due to x not being at rest.
        rounding: φ below this is rounding of the loss.
        starts: the φ that each start reached: centre, steepest direction if known, random points.
        at_bounds: the share of the coordinates of y at a side of the box.
        num_evaluations: of value and gradient.
    """

    epsilon: float
    dimension: int
    value: float
    slope: float
    rounding: float
    starts: tuple[float, ...]
    at_bounds: float
    num_evaluations: int

    @property
    def resolved(self) -> bool:
        """Whether the rise is more than rounding of the loss."""
        return self.value > self.rounding


def keskar_sharpness(
    objective: Objective,
    theta: Tensor,
    *,
    epsilon: float,
    seed: int,
    dimension: int | None = None,
    steepest: Tensor | None = None,
    random_starts: int = RANDOM_STARTS,
    progress: Progress | None = None,
) -> KeskarSharpness:
    """Measure Keskar's sharpness at ``theta`` by L-BFGS-B, ten iterations from each start.

    The centre of the box alone is a poor start: at a minimum it has no slope, and the box has many local
    maxima. So the search also starts in the corner along the direction of the largest curvature, and at
    random points within the box.

    The paper says of A only that its columns are random. Here its entries are standard normal, so that each
    weight moves by about ε√p. With columns of unit length it would be √n times less, which float32 does not
    see in a large net.

    Args:
        objective: f, at least 0 as losses are.
        theta: x (n,).
        epsilon: the half side of the box.
        seed: of the starts and the subspace.
        dimension: p of a random subspace; None for all weights, A = I.
        steepest: the direction of the largest curvature (n,), where it is known.
        random_starts: how many.
        progress: is told of each start.

    Raises:
        InputError: for a loss of −1 or less, where φ means nothing; a subspace larger than the space; more
            weights than the memory allows.

    Cost: 4/3 gradient-equivalents an evaluation, 10 to 15 evaluations a start.
    Source: [keskar2017], metric 2.1; [byrd1995] for the search.
    """
    basis = _basis(theta, dimension, seed)
    here = objective.value(theta)
    require_finite(here, "the loss")
    if here <= -1:
        raise InputError(
            "Keskar's sharpness is relative to 1 + loss", expected="a loss above −1", got=f"{here:.4g}"
        )
    rounding = _rounding(objective, theta, here, seed)
    box = _Box(objective, theta, epsilon, basis, here)
    slope = float(np.abs(box.rise(np.zeros(box.size))[1]).sum())
    found: list[tuple[float, Vector]] = []
    starts = box.starts(steepest, random_starts, seed)
    for i, start in enumerate(starts):
        (progress or Silent()).advance(i, len(starts))
        found.append(_climb(box.rise, start))
    highest, where = max(found, key=lambda pair: pair[0])
    per_cent = 100 / (1 + here)
    return KeskarSharpness(
        epsilon=epsilon,
        dimension=box.size,
        value=per_cent * highest,
        slope=per_cent * slope,
        rounding=per_cent * 4 * rounding,
        starts=tuple(per_cent * value for value, _ in found),
        at_bounds=float(np.mean(np.abs(where) >= 1)),
        num_evaluations=box.num_evaluations,
    )


class _Box:
    """The rise of f over the box, as a function of z in [−1, 1]^p with y = z·half."""

    def __init__(
        self, objective: Objective, theta: Tensor, epsilon: float, basis: Tensor | None, here: float
    ) -> None:
        self._objective, self._theta, self._basis, self._here = objective, theta, basis, here
        coordinates = theta if basis is None else torch.linalg.lstsq(basis, theta[:, None]).solution[:, 0]
        self._half = epsilon * (np.abs(coordinates.double().cpu().numpy()) + 1)
        self.size = len(self._half)
        self.num_evaluations = 0

    def rise(self, z: Vector) -> tuple[float, Vector]:
        """Return f(x + Ay) − f(x) and its gradient in z (p,).

        Raises:
            NumericalError: where they are not finite.
        """
        move = torch.from_numpy(self._half * z).to(self._theta)
        point = self._theta + (move if self._basis is None else self._basis @ move)
        value, gradient = self._objective.value(point), self._objective.gradient(point)
        self.num_evaluations += 1
        if self._basis is not None:
            gradient = self._basis.T @ gradient
        slope = self._half * gradient.double().cpu().numpy()
        require_finite(value, "the loss within the box")
        require_finite(float(np.abs(slope).sum()), "the gradient within the box")
        return value - self._here, slope

    def starts(self, steepest: Tensor | None, random_starts: int, seed: int) -> list[Vector]:
        """Return the points z (p,) to search from."""
        points = [np.zeros(self.size)]
        if steepest is not None:
            along = steepest if self._basis is None else self._basis.T @ steepest
            points.append(np.sign(along.double().cpu().numpy()))
        rng = generator(seed, "keskar", "starts")
        for _ in range(random_starts):
            points.append(2 * torch.rand(self.size, generator=rng, dtype=torch.float64).numpy() - 1)
        return points


def _climb(rise: Callable[[Vector], tuple[float, Vector]], start: Vector) -> tuple[float, Vector]:
    """Maximise over [−1, 1]^p; return the largest value met on the way, at least 0, and where."""
    best, where = 0.0, np.zeros_like(start)
    unit = 0.0

    def descend(z: Vector) -> tuple[float, Vector]:
        nonlocal best, where, unit
        value, slope = rise(z)
        if value > best:
            best, where = value, z.copy()
        unit = unit or float(np.sqrt(np.mean(slope**2))) / FIRST_STEP or 1.0
        return -value / unit, -slope / unit

    sides = np.ones_like(start)
    try:
        minimize(
            descend,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(-sides, sides),
            options={"maxiter": ITERATIONS, "maxfun": MAX_EVALUATIONS, "ftol": 0.0, "gtol": 0.0},
        )
    except NumericalError:
        return float("inf"), where
    return best, where


def _basis(theta: Tensor, dimension: int | None, seed: int) -> Tensor | None:
    """Return A (n, p), None for the identity."""
    n = theta.numel()
    needed = n * _SEARCH_BYTES if dimension is None else 2 * n * dimension * theta.element_size()
    if needed > MEMORY:
        raise InputError(
            "the search would not fit into memory",
            expected=f"at most {MEMORY >> 30} GiB",
            got=f"{n:,} weights, {needed / 2**30:.0f} GiB",
        )
    if dimension is None:
        return None
    if not 1 <= dimension <= n:
        raise InputError(
            "the subspace does not fit into the space", expected=f"1 to {n} dimensions", got=str(dimension)
        )
    rng = generator(seed, "keskar", "subspace")
    return torch.stack([gaussian(n, rng, like=theta) for _ in range(dimension)], dim=1)


def _rounding(objective: Objective, theta: Tensor, here: float, seed: int) -> float:
    """Move every weight by one unit in the last place, up or down, and see how far the loss moves."""
    unit = objective.roundoff
    moves = [unit * abs(here)]
    for i in range(_NUDGES):
        nudges = unit * signs(theta.numel(), generator(seed, "keskar", "rounding", i), like=theta)
        moves.append(abs(objective.value(theta * (1 + nudges)) - here))
    return max(moves)
