"""Which way to look: directions in weight space, with what they mean and how far they go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.spectrum import find_extremes
from thalweg.errors import InputError
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.objective import Objective
from thalweg.problem.parameters import ParameterSpace
from thalweg.progress import Progress
from thalweg.report.document import significant
from thalweg.rng import gaussian, generator

__all__ = [
    "Along",
    "Direction",
    "filter_normalised",
    "find_directions",
    "own_direction",
    "random_walk_share",
]

Along = Literal["curvature", "random", "gradient"]

# The loss changes by about half of itself on the way to the edge of a picture along an eigenvector.
WEIGHTS_SHARE = 1.0  # ... but no further than this part of ‖θ‖
TAME = 1.5
HALVINGS = 12


@dataclass(frozen=True)
class Direction:
    """A direction to look along.

    Attributes:
        label: what it is, for an axis.
        reach: how far to look each way, in lengths of ``vector``.
        curvature: vᵀHv of the unit vector, where it is an eigenvector; None else.
        slope: gᵀv, where it is known.
        vector: (n,); distances along an axis are multiples of it.
    """

    label: str
    reach: float
    curvature: float | None
    slope: float | None
    vector: Tensor = field(repr=False, compare=False, metadata={"json": False})


def find_directions(
    objective: Objective, theta: Tensor, along: Along, *, seed: int, progress: Progress | None = None
) -> tuple[tuple[Direction, ...], str]:
    """Return two directions (one along the gradient) and a sentence on why to look there.

    Args:
        objective: the training loss.
        theta: the point (n,).
        along: "curvature": the eigenvectors of λmax and λmin; "random": two filter-normalised random
            directions; "gradient": downhill, and the largest curvature across it.
        seed: of the random starts and directions.
        progress: is told how far the search is.

    Cost: at most 80 Hessian–vector products; none for random directions.
    """
    if along == "random":
        return _random(objective, theta, seed), (
            "Two random directions, each filter scaled to the length that it has in the weights (Li "
            "et al. 2018), "
            "1 is a change as large as the weights. In many dimensions random directions meet the mean "
            "curvature only: they show neither the steepest wall nor a way out."
        )
    choice = choose_hessian(objective, theta, seed=seed)
    found = find_extremes(choice.operator, seed=seed, noise=choice.noise, progress=progress)
    loss = abs(objective.value(theta))
    gradient = objective.gradient(theta)
    if along == "gradient":
        return _gradient(objective, theta, loss, gradient, found.lambda_max.vector, found.lambda_max.value), (
            "Downhill, and the direction of the largest curvature across it."
        )
    ends = [("λmax", found.lambda_max)] + ([("λmin", found.lambda_min)] if theta.numel() > 1 else [])
    directions = tuple(
        Direction(
            f"eigenvector of {name} = {significant(end.value, 3)}",
            _reach(objective, theta, loss, end.value, _signed(end.vector)),
            end.value,
            float(gradient.double() @ end.vector.double()),
            _signed(end.vector),
        )
        for name, end in ends
    )
    return directions, (
        "The eigenvectors of the largest and the smallest curvature: the steepest wall and, where λmin is "
        "negative, the way out. Random directions would show neither."
    )


def filter_normalised(direction: Tensor, theta: Tensor, space: ParameterSpace) -> Tensor:
    """Scale each filter of ``direction`` (n,) to the norm of the same filter of ``theta`` (n,).

    A filter is what feeds one output unit: a row of a weight matrix, a kernel of a convolution. Parameters
    with fewer than two dimensions (biases, the scale and shift of a normalisation) do not move, as in the
    authors' own code: scaled by their norm they would dominate where they are small beside the filters.

    Source: [li2018] §4, d_ij ← d_ij ‖θ_ij‖ / ‖d_ij‖.
    """
    parts = []
    for d, t in zip(space.unflatten(direction), space.unflatten(theta), strict=True):
        if d.dim() < 2:
            parts.append(torch.zeros_like(d))
            continue
        own = d.flatten(1).norm(dim=1).clamp_min(torch.finfo(d.dtype).tiny)
        scale = t.flatten(1).norm(dim=1) / own
        parts.append(d * scale.view(-1, *[1] * (d.dim() - 1)))
    return space.flatten(parts)


def own_direction(vector: Tensor, theta: Tensor, number: int) -> Direction:
    """Take a direction of the user's.

    Raises:
        InputError: where it is not a finite vector that is not zero, as long as ``theta``.
    """
    if not isinstance(vector, Tensor) or vector.numel() != theta.numel():
        got = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise InputError(
            "a direction has the wrong form", expected=f"a tensor ({theta.numel()},)", got=str(got)
        )
    flat = vector.detach().reshape(-1).to(theta)
    if not bool(torch.isfinite(flat).all()) or float(flat.norm()) == 0:
        raise InputError("a direction is zero or not finite", expected="a finite vector of some length")
    return Direction(f"direction {number}", 1.0, None, None, flat)


def random_walk_share(component: int) -> float:
    """Return the share of the variance that principal component ``component`` (from 1) has in a random walk.

    Of a walk with many steps in many dimensions it is 6/(π²k²): 61 %, 15 %, 7 % …, whatever it walks on.

    Source: [antognini2018], the limit of long walks in many dimensions.
    """
    return 6.0 / (math.pi * component) ** 2


def _random(objective: Objective, theta: Tensor, seed: int) -> tuple[Direction, ...]:
    found: list[Direction] = []
    for number in (1, 2):
        vector = gaussian(theta.numel(), generator(seed, "landscape", number), like=theta)
        if isinstance(objective, EmpiricalRisk):
            vector = filter_normalised(vector, theta, objective.space)
        label = f"random direction {number} (filter-normalised)"
        if not isinstance(objective, EmpiricalRisk) or float(vector.norm()) == 0:
            vector = gaussian(theta.numel(), generator(seed, "landscape", number), like=theta)
            vector /= vector.norm()
            label = f"random direction {number}"
        found.append(Direction(label, 1.0, None, None, vector))
    return tuple(found)


def _gradient(
    objective: Objective,
    theta: Tensor,
    loss: float,
    gradient: Tensor,
    steepest: Tensor,
    curvature: float,
) -> tuple[Direction, ...]:
    slope = float(gradient.norm())
    if slope == 0:
        raise InputError("there is no gradient to follow", got="a gradient of zero", hint='along="curvature"')
    downhill = -gradient / slope
    across = steepest - (steepest @ downhill) * downhill
    reach = _tamed(objective, theta, loss, min(max(loss, 1e-12) / slope, _longest(theta)), downhill)
    directions = [Direction("the gradient, downhill", reach, None, -slope, downhill)]
    if float(across.norm()) > 1e-3:
        across /= across.norm()
        side = _reach(objective, theta, loss, curvature, _signed(across))
        directions.append(Direction("largest curvature across it", side, None, 0.0, _signed(across)))
    return tuple(directions)


def _reach(objective: Objective, theta: Tensor, loss: float, curvature: float, vector: Tensor) -> float:
    """How far ½|λ|r² is half the loss, within ‖θ‖; less where the loss is not quadratic."""
    longest = _longest(theta)
    if curvature == 0 or loss == 0:
        return longest
    reach = float(np.clip(math.sqrt(loss / abs(curvature)), 1e-3 * longest, longest))
    return _tamed(objective, theta, loss, reach, vector)


def _tamed(objective: Objective, theta: Tensor, loss: float, reach: float, vector: Tensor) -> float:
    """Halve the reach until the loss changes at both ends by TAME of itself at most: walls hide the rest."""
    here = objective.value(theta)
    for _ in range(HALVINGS):
        ends = [objective.value(theta + side * reach * vector) for side in (-1.0, 1.0)]
        if all(abs(end - here) <= TAME * loss for end in ends) or loss == 0:
            break
        reach /= 2
    return reach


def _longest(theta: Tensor) -> float:
    return WEIGHTS_SHARE * max(float(theta.norm()), 1e-3)


def _signed(vector: Tensor) -> Tensor:
    """An eigenvector has no sign of its own: let its largest coordinate be positive."""
    return vector if float(vector[vector.abs().argmax()]) > 0 else -vector
