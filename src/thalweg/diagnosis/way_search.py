"""Which ways out to try at a point, by what its curvature shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.curvature.hessian import HessianChoice, choose_hessian
from thalweg.curvature.spectrum import Extremes, find_extremes
from thalweg.diagnosis.diagnosis import Diagnosis
from thalweg.diagnosis.ways_out import WayOut, combined_direction, descend, follow, perturbed, reach
from thalweg.problem.objective import Objective
from thalweg.progress import Progress

__all__ = ["Search", "search_ways"]

# A Lanczos run that is worth its name keeps so many vectors; models for which they take more memory than
# this get perturbed gradient descent.
LEAST_VECTORS = 16
VECTOR_BYTES = 4 << 30


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        ways: the best first; none where no direction curves down.
        plain: what the gradient alone does, None where it is zero.
        found: both ends of the spectrum, None where the model is too large for them.
        notes: how it was measured.
    """

    ways: tuple[WayOut, ...]
    plain: WayOut | None
    found: Extremes | None
    notes: tuple[str, ...]


def search_ways(
    finding: Objective, theta: Tensor, diagnosis: Diagnosis | None, seed: int, told: Progress
) -> Search:
    """Search the ways out at ``theta`` (n,), and how far to follow each.

    Args:
        finding: the loss over the finding sample.
        theta: the point in question.
        diagnosis: of the same point and sample, whose λmin may do again; None searches it.
        seed: of the random starts.
        told: is told how far the work is.

    Cost: 80 Hessian–vector products for λmin unless it is known, 24 for the combination, 25
    gradient-equivalents for the steps.
    """
    if LEAST_VECTORS * theta.numel() * theta.element_size() > VECTOR_BYTES:
        return _search_by_gradients(finding, theta, seed)
    choice = choose_hessian(finding, theta, seed=seed)
    found, note = _again(choice, theta, diagnosis)
    if found is None:
        found = find_extremes(choice.operator, seed=seed, progress=told)
    low, gradient = found.lambda_min, finding.gradient(theta)
    if low.value > found.floor:
        return Search((), None, found, note)
    curved = low.value < -found.floor
    directions = {"along the lowest curvature" if curved else "along the flattest direction": low.vector}
    if curved:
        combined = combined_direction(choice.operator, gradient, low)
        if combined is not None:
            directions["along curvature and gradient combined"] = combined
    told.phase("trying steps")
    ways = [
        follow(finding, theta, direction, gradient, name=name, farthest=reach(theta))
        for name, direction in directions.items()
    ]
    return Search(_ranked(ways), _plain(finding, theta, gradient, found), found, note)


def _search_by_gradients(finding: Objective, theta: Tensor, seed: int) -> Search:
    """Descend from a perturbed start and, to see what the perturbation is worth, from the point itself."""
    way = descend(finding, theta, perturbed(theta, seed=seed), name="by perturbed gradient descent")
    plain = descend(finding, theta, theta, name="by gradient descent")
    note = (
        "The model is too large to keep Lanczos vectors, so the curvature was not measured: gradient descent "
        "was started from a random perturbation of the weights."
    )
    return Search((way,), plain, None, (note,))


def _again(
    choice: HessianChoice, theta: Tensor, diagnosis: Diagnosis | None
) -> tuple[Extremes | None, tuple[str, ...]]:
    """Return the spectrum of ``diagnosis`` if its lowest pair still is one here. Cost: one product."""
    if diagnosis is None:
        return None, ()
    known = diagnosis.evidence.curvature.extremes
    low, floor = known.lambda_min, known.floor
    if low.vector.shape == theta.shape:
        vector = low.vector.to(theta)
        product = choice.operator.matvec(vector).double()
        value = float(vector.double() @ product)
        residual = float((product - value * vector.double()).norm())
        if abs(value - low.value) <= floor + low.residual and residual <= floor + 2 * low.residual:
            return known, ()
    return None, ("The diagnosis is of other weights or other data; λmin was searched anew.",)


def _plain(finding: Objective, theta: Tensor, gradient: Tensor, found: Extremes) -> WayOut | None:
    """What the gradient alone buys: a step along −g as long as a hundred of length 1/λmax would be."""
    norm = float(gradient.double().norm())
    scale = found.scale
    if norm == 0 or scale == 0:
        return None
    farthest = min(100 * norm / scale, reach(theta))
    if farthest <= torch.finfo(theta.dtype).eps * float(theta.double().norm()):
        return None
    return follow(finding, theta, -gradient / norm, gradient, name="along −gradient", farthest=farthest)


def _ranked(ways: list[WayOut]) -> tuple[WayOut, ...]:
    return tuple(sorted(ways, key=lambda way: way.change.value))
