"""Critical points of functions of one or two variables: found by a scan and root finding, classified."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import brentq, root

from thalweg.errors import FOREIGN_FAILURES
from thalweg.problem.function_objective import FunctionObjective

__all__ = ["CriticalPoint", "Kind", "critical_points"]

Kind = Literal["minimum", "maximum", "saddle", "inflection", "degenerate"]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Domain = tuple[tuple[float, float], ...]

SCAN = {1: 401, 2: 25}  # places along each side that the search starts from
# Relative to the largest in the scan: a curvature below this is zero, a gradient below this vanishes.
FLAT = 1e-7
STILL = 1e-8
SAME = 1e-6  # of the domain: nearer points are one
AROUND = 24  # directions in which a degenerate point is looked at


@dataclass(frozen=True)
class CriticalPoint:
    """A point where the gradient vanishes.

    Attributes:
        point: coordinates.
        value: of the function.
        kind: by the eigenvalues of the Hessian; where one of them is zero, by values nearby:
            "inflection" (one variable) or "saddle" where there are higher and lower ones.
        eigenvalues: of the Hessian, ascending.
        gradient_norm: what is left of the gradient.
        lowest: whether nothing in the domain was found lower, its border included.
    """

    point: tuple[float, ...]
    value: float
    kind: Kind
    eigenvalues: tuple[float, ...]
    gradient_norm: float
    lowest: bool


def critical_points(function: FunctionObjective, domain: Domain) -> tuple[CriticalPoint, ...]:
    """Find and classify the critical points of ``function`` inside ``domain``.

    The gradient is exact (autograd). In one dimension its sign changes on a scan of 401 places are closed in
    by Brent's method, and so are those of the second derivative, where the first one may touch zero without
    crossing it (x³ at 0). In two dimensions Powell's hybrid method starts from every place of a 25×25 scan
    where the gradient is smaller than around it. Narrower features than the scan can be missed.

    Args:
        function: of one or two variables.
        domain: low and high of each.

    Cost: about 400 gradients and Hessians in one dimension, 625 gradients and more in two.
    """
    found = _in_one(function, domain[0]) if len(domain) == 1 else _in_two(function, domain)
    sides = [np.linspace(*span, SCAN[len(domain)]) for span in domain]
    seen = _values(function, np.array(list(itertools.product(*sides))))
    least = min([float(np.nanmin(seen)), *(_value(function, x) for x in found)])
    return tuple(_classified(function, domain, x, least) for x in found)


def _in_one(function: FunctionObjective, span: tuple[float, float]) -> list[Floats]:
    places = np.linspace(*span, SCAN[1])
    slopes = _gradients(function, places[:, None])[:, 0]
    bends = _hessians(function, places[:, None])[:, 0, 0]
    scale = np.abs(slopes[np.isfinite(slopes)]).max(initial=0.0)
    roots = _crossings(places, slopes, lambda x: float(_gradient(function, np.array([x]))[0]))
    # A curvature that changes sign where the slope vanishes: a slope that touches zero.
    for x in _crossings(places, bends, lambda x: float(_hessian(function, np.array([x]))[0, 0])):
        if abs(_gradient(function, np.array([x]))[0]) <= STILL * scale:
            roots.append(x)
    distinct: list[float] = []
    for x in sorted(roots):
        if not distinct or x - distinct[-1] > SAME * (span[1] - span[0]):
            distinct.append(x)
    return [np.array([x]) for x in distinct]


def _crossings(places: Floats, values: Floats, f: Callable[[float], float]) -> list[float]:
    found = [float(x) for x, value in zip(places[1:-1], values[1:-1], strict=True) if value == 0]
    for a, b, at_a, at_b in zip(places, places[1:], values, values[1:], strict=False):
        if at_a * at_b < 0:
            # A multiple root, as of 4x³, is closed in slowly.
            found.append(float(brentq(f, a, b, xtol=1e-13, rtol=8.9e-16, maxiter=1000, disp=False)))
    return found


def _in_two(function: FunctionObjective, domain: Domain) -> list[Floats]:
    sides = [np.linspace(*span, SCAN[2]) for span in domain]
    size = np.array([float(span[1] - span[0]) for span in domain])
    places = np.array(list(itertools.product(*sides)))
    norms = np.linalg.norm(_gradients(function, places), axis=1).reshape(SCAN[2], SCAN[2])
    norms[~np.isfinite(norms)] = np.inf
    scale = norms[np.isfinite(norms)].max(initial=0.0)
    found: list[Floats] = []
    for i, j in itertools.product(range(SCAN[2]), repeat=2):
        around = norms[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        if not np.isfinite(norms[i, j]) or norms[i, j] > around.min():
            continue
        start = np.array([sides[0][i], sides[1][j]])
        with np.errstate(all="ignore"):
            solution = root(
                lambda x: _gradient(function, x), start, jac=lambda x: _hessian(function, x), tol=1e-14
            )
        x = solution.x
        inside = all(low <= c <= high for c, (low, high) in zip(x, domain, strict=True))
        if not inside or not np.linalg.norm(_gradient(function, x)) <= STILL * scale:
            continue
        if all(np.linalg.norm((x - other) / size) > SAME for other in found):
            found.append(x)
    return sorted(found, key=tuple)


def _classified(function: FunctionObjective, domain: Domain, x: Floats, least: float) -> CriticalPoint:
    values = np.linalg.eigvalsh(_hessian(function, x))
    corner = np.array([span[0] for span in domain])
    scale = max(np.abs(values).max(), np.abs(np.linalg.eigvalsh(_hessian(function, corner))).max())
    flat = np.abs(values) <= FLAT * scale
    kind: Kind
    if flat.any():
        kind = _by_values(function, domain, x)
    elif (values > 0).all():
        kind = "minimum"
    elif (values < 0).all():
        kind = "maximum"
    else:
        kind = "saddle"
    value = _value(function, x)
    return CriticalPoint(
        point=tuple(float(c) for c in x),
        value=value,
        kind=kind,
        eigenvalues=tuple(float(v) for v in values),
        gradient_norm=float(np.linalg.norm(_gradient(function, x))),
        lowest=kind == "minimum" and value <= least,
    )


def _by_values(function: FunctionObjective, domain: Domain, x: Floats) -> Kind:
    """Look around a point whose curvature vanishes in some direction."""
    size = np.array([span[1] - span[0] for span in domain])
    here = _value(function, x)
    turns = [0.0, np.pi] if len(x) == 1 else list(2 * np.pi * np.arange(AROUND) / AROUND)
    ways = [np.array([np.cos(t), np.sin(t)])[: len(x)] for t in turns]
    there = np.array([_value(function, x + 1e-3 * size * way) for way in ways]) - here
    if (there > 0).all():
        return "minimum"
    if (there < 0).all():
        return "maximum"
    if (there > 0).any() and (there < 0).any():
        return "inflection" if len(x) == 1 else "saddle"
    return "degenerate"


def _values(function: FunctionObjective, places: Floats) -> Floats:
    """Return the values (k,) at places (k, d), at once where the function can be run so."""
    points = _tensor(places, function)
    try:
        values: Floats = function.values_at(points).double().cpu().numpy()
    except FOREIGN_FAILURES:
        values = np.array([_value(function, x) for x in places])
    return values


def _gradients(function: FunctionObjective, places: Floats) -> Floats:
    """Return the gradients (k, d) at places (k, d), at once where the function can be run so."""
    try:
        gradients: Floats = function.gradients_at(_tensor(places, function)).double().cpu().numpy()
    except FOREIGN_FAILURES:
        gradients = np.array([_gradient(function, x) for x in places])
    return gradients


def _hessians(function: FunctionObjective, places: Floats) -> Floats:
    """Return the Hessians (k, d, d) at places (k, d), at once where the function can be run so."""
    try:
        hessians: Floats = function.hessians_at(_tensor(places, function)).double().cpu().numpy()
    except FOREIGN_FAILURES:
        hessians = np.array([_hessian(function, x) for x in places])
    return hessians


def _tensor(x: Floats, function: FunctionObjective) -> torch.Tensor:
    return torch.as_tensor(x).to(function.theta)


def _value(function: FunctionObjective, x: Floats) -> float:
    return function.value(_tensor(x, function))


def _gradient(function: FunctionObjective, x: Floats) -> Floats:
    gradient: Floats = function.gradient(_tensor(x, function)).double().cpu().numpy()
    return gradient


def _hessian(function: FunctionObjective, x: Floats) -> Floats:
    theta = _tensor(x, function)
    rows = [function.hvp(theta, unit) for unit in torch.eye(len(x), dtype=theta.dtype, device=theta.device)]
    matrix = torch.stack(rows).double().cpu().numpy()
    hessian: Floats = (matrix + matrix.T) / 2
    return hessian
