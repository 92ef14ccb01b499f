"""Both ends of a spectrum from one Lanczos run, with errors: extreme eigenpairs, certificate, floor."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.certificate import Certificate, certify
from thalweg.curvature.density import gauss_rule
from thalweg.curvature.lanczos import ROUNDINGS, Floats, Krylov, checked_product, length, tridiagonalise
from thalweg.curvature.operators import Operator
from thalweg.curvature.trace import trace_of_run
from thalweg.estimates import Estimate
from thalweg.progress import Progress, Silent
from thalweg.report.document import significant
from thalweg.rng import gaussian, generator

__all__ = ["Extreme", "Extremes", "describe_certificate", "find_extremes"]

# Two more are spent on the symmetry of the products: 80 in all.
MAX_PRODUCTS = 78
# The ends are followed until their estimated error is below this part of their value, and until the
# certificate's relative gap is at most GAP.
TOLERANCE = 3e-4
GAP = 0.01
# The basis may take at most this much memory; larger models get fewer steps, and the certificate says so.
BASIS_BYTES = 4 << 30


@dataclass(frozen=True)
class Extreme:
    """One end of the spectrum.

    Some eigenvalue lies within ``bound`` of ``value``: ‖Hv−θv‖ of a fresh product, plus the noise floor
    ([parlett1998], theorem 4.5.1). That it is the last one is what the certificate says.
    """

    value: float
    bound: float
    residual: float
    vector: Tensor = field(repr=False, metadata={"json": False})  # (n,) of unit length


@dataclass(frozen=True)
class Extremes:
    """What one Lanczos run says about a symmetric operator.

    With probability ``certificate.confidence`` every eigenvalue lies between lambda_min − gap − floor and
    lambda_max + gap + floor, with the certificate's gap.

    Attributes:
        lambda_max: the largest eigenvalue found.
        lambda_min: the smallest (algebraic, not in magnitude).
        floor: below this the sign of an eigenvalue is rounding.
        certificate: what may have been missed.
        num_hvps: products spent.
        trace: Σλ with its error, from the same run: one probe, so a wide interval; see `trace_of_run`.
        nodes: Ritz values (k,): the quadrature nodes of the spectral density.
        weights: their shares (k,), summing to one.
        complete: whether all eigenvalues were found; ``nodes`` are then all of them, each up to ``floor``.
    """

    lambda_max: Extreme
    lambda_min: Extreme
    floor: float
    certificate: Certificate
    num_hvps: int
    trace: Estimate
    nodes: Floats
    weights: Floats
    complete: bool

    @property
    def scale(self) -> float:
        """The largest eigenvalue in magnitude."""
        return max(abs(self.lambda_max.value), abs(self.lambda_min.value))


def find_extremes(
    operator: Operator,
    *,
    seed: int,
    max_products: int = MAX_PRODUCTS,
    open_gap: float = GAP,
    noise: float = 0.0,
    progress: Progress | None = None,
) -> Extremes:
    """Find both ends of the spectrum of ``operator`` in one run.

    Args:
        operator: symmetric.
        seed: of the random start.
        max_products: to spend at most, the two that check the ends included; at least 3.
        open_gap: the relative gap that the certificate may leave open before the run stops; 1 stops
            as soon as both ends have converged, whatever is certified by then.
        noise: the relative error of the products, ‖error‖ / (‖A‖‖v‖), where it is known; what is seen of it
            in the run counts anyway.
        progress: is told of each product.

    Cost: at most ``max_products`` products; fewer when both ends have converged and the certificate is met.
    """
    rng = generator(seed, "lanczos")
    told = progress or Silent()
    max_steps = min(max(max_products - 2, 1), _steps_in_memory(operator), operator.size)

    def fresh() -> Tensor:
        return gaussian(operator.size, rng, like=template)

    def enough(krylov: Krylov) -> bool:
        told.advance(krylov.num_steps, max_steps + 2)
        return _converged(krylov, noise) and certify(krylov).relative_gap <= open_gap

    template = _template(operator)
    krylov = tridiagonalise(operator, fresh(), max_steps=max_steps, fresh=fresh, enough=enough)
    return _read(operator, krylov, noise)


def describe_certificate(found: Extremes) -> str:
    """Say in a sentence what may have been missed below λmin."""
    if found.complete or found.certificate.gap == 0:
        return "these are all there is"
    if found.certificate.relative_gap >= 1:
        return "too few products to say"
    below = found.lambda_min.value - found.certificate.gap
    return f"nothing below {significant(below)} with {found.certificate.confidence:.0%} confidence"


def _converged(krylov: Krylov, noise: float) -> bool:
    ritz = krylov.ritz()
    if len(ritz.values) < 3:
        return krylov.remainder == 0
    tolerable = np.maximum(TOLERANCE * np.abs(ritz.values), _floor(krylov, noise))
    for end, neighbour in ((0, 1), (-1, -2)):
        residual = ritz.residuals[end]
        gap = abs(ritz.values[end] - ritz.values[neighbour])
        # The error of a Ritz value is r²/gap once it has separated, r before ([parlett1998], §11.7).
        error = residual * (residual / gap) if gap > residual else residual
        if error > tolerable[end]:
            return False
    return True


def _floor(krylov: Krylov, noise: float) -> float:
    """What rounding and asymmetry of the products can do to an eigenvalue of T: ‖E‖ for random entries."""
    seen = max(krylov.noise, ROUNDINGS * float(torch.finfo(krylov.basis.dtype).eps))
    return krylov.scale * max(seen * float(np.sqrt(krylov.num_steps)), noise)


def _read(operator: Operator, krylov: Krylov, noise: float) -> Extremes:
    floor = _floor(krylov, noise)
    low = _extreme(operator, krylov, 0, floor)
    high = low
    if krylov.num_steps > 1:
        high = _extreme(operator, krylov, -1, floor)
    nodes, weights = gauss_rule(krylov)
    return Extremes(
        lambda_max=high,
        lambda_min=low,
        floor=floor,
        certificate=certify(krylov),
        num_hvps=krylov.num_steps + (2 if krylov.num_steps > 1 else 1),
        trace=trace_of_run(krylov),
        nodes=nodes,
        weights=weights,
        complete=krylov.complete,
    )


def _extreme(operator: Operator, krylov: Krylov, end: int, floor: float) -> Extreme:
    vector = krylov.vector(krylov.ritz().vectors[:, end])
    product = checked_product(operator, vector, krylov.num_steps + (1 if end == 0 else 2))
    rayleigh = float(vector.double() @ product.double())
    residual = length(product.double() - rayleigh * vector.double())
    return Extreme(rayleigh, residual + floor, residual, vector)


def _template(operator: Operator) -> Tensor:
    return torch.empty(0, dtype=operator.dtype, device=operator.device)


def _steps_in_memory(operator: Operator) -> int:
    width = _template(operator).element_size()
    return max(4, BASIS_BYTES // (max(operator.size, 1) * width))
