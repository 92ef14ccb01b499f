"""Which ways out to try at a point, by what its curvature shows."""

from __future__ import annotations

from dataclasses import dataclass

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
# Gradient steps after the straight one, and after a random perturbation.
STEPS = 50
PERTURBED_STEPS = 200


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        ways: the best first; none where no direction curves down.
        plain: as many gradient steps from the point itself; None where nothing was there to compare.
        found: both ends of the spectrum, None where the model is too large for them.
        notes: how it was measured.
    """

    ways: tuple[WayOut, ...]
    plain: WayOut | None
    found: Extremes | None
    notes: tuple[str, ...]


def search_ways(
    finding: Objective, theta: Tensor, diagnosis: Diagnosis | None, least: float, seed: int, told: Progress
) -> Search:
    """Search the ways out at ``theta`` (n,), and how far to follow each.

    Args:
        finding: the loss over the finding sample.
        theta: the point in question.
        diagnosis: of the same point and sample, whose λmin may do again; None searches it.
        least: a change of the loss that is more than rounding.
        seed: of the random starts.
        told: is told how far the work is.

    Cost: 80 Hessian–vector products for λmin unless it is known, 24 for the combination, 16
    gradient-equivalents for the straight steps, 150 for those downhill.
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
    straight = min(ways, key=_change)
    if straight.change.value >= -least:
        return Search(tuple(sorted(ways, key=_change)), None, found, note)
    # The way down bends: a straight line leaves most of the gain where several directions curve down alike.
    told.phase("following the way")
    onward = descend(finding, theta, straight.theta, steps=STEPS, name=f"{straight.name}, then downhill")
    plain = descend(finding, theta, theta, steps=STEPS, name="downhill from the start")
    return Search(tuple(sorted([*ways, onward], key=_change)), plain, found, note)


def _search_by_gradients(finding: Objective, theta: Tensor, seed: int) -> Search:
    """Descend from a perturbed start and, to see what the perturbation is worth, from the point itself."""
    way = descend(
        finding,
        theta,
        perturbed(theta, seed=seed),
        steps=PERTURBED_STEPS,
        name="downhill from a perturbation",
    )
    plain = descend(finding, theta, theta, steps=PERTURBED_STEPS, name="downhill from the start")
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


def _change(way: WayOut) -> float:
    return way.change.value
