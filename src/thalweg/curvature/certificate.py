"""How sure it is that Lanczos from a random start has not missed an end of the spectrum.

Let x be a unit eigenvector of A at λ above all Ritz values, and q the random start. Two facts bound how far
above λ can be.

*Chance.* The component |qᵀx| of a uniformly random unit vector has the density
c(1−t²)^((n−3)/2) on [−1, 1] with c ≤ √((n−1)/2π), whatever A is. So it is less than τ = δ·√(π/(2(n−1))) with
probability at most δ.

*Algebra.* Multiplying AQ = QT + βq₊eᵀ − F by xᵀ from the left gives (λ−T)v = βw·e_k − f for v = Qᵀx,
w = q₊ᵀx and f = Fᵀx, the rounding of the run seen along x. With R = (λ−T)⁻¹, the first component of v is

    qᵀx = βw·R_1k − e₁ᵀR f,    where    |w|·√(1 + β²‖R e_k‖²) ≤ 1 + ‖R‖‖f‖

because the vectors of the basis and q₊ are orthonormal, so that ‖v‖² + w² ≤ ‖x‖² = 1. Hence

    |qᵀx| ≤ β·R_1k·(1 + ‖R‖‖f‖) / √(1 + β²‖R e_k‖²) + Σ R_1j |f_j|.

The right side falls as λ grows; where it crosses τ, eigenvalues end, unless the start was unlucky. Whether it
was does not depend on the run, so the run may be stopped at any time, for any reason. Without rounding the
right side is 1/√(p₀² + … + p_k²) at λ, with the orthonormal polynomials of the run (the root of the
Christoffel function); [dorsselaer1999] uses the last of them alone.

*At least as good as known beforehand.* With f = 0, p₀² + … + p_{k−1}² ≥ T_{k−1}(1 + 2g/s)², the Chebyshev
polynomial, for λ a distance g above Ritz values of spread s, since their Gauss rule integrates the square of
that polynomial exactly. So g ≤ ε·s with T_{k−1}(1+2ε) = 1/τ, or about 1.6·√n·exp(−(2k−2)√ε) = δ: the form
of [kuczynski1992], but relative to the spread that was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thalweg.curvature.lanczos import Floats, Krylov

__all__ = ["Certificate", "certify"]


@dataclass(frozen=True)
class Certificate:
    """With probability ``confidence`` no eigenvalue lies outside the Ritz values by more than ``gap``.

    It speaks about both ends at once. The probability is that of the random start, for any operator. The
    statement is about the operator that was measured (the sampled loss), and up to the noise floor, which is
    to be added to ``gap``. A small residual proves that *an* eigenvalue is near, never that it is the last
    one; this is the part that speaks about the last one.
    """

    confidence: float
    gap: float  # in units of the eigenvalues
    relative_gap: float  # to the spread λmax − λmin or max |λ|, whichever is more; at most one


def certify(krylov: Krylov, *, confidence: float = 0.99) -> Certificate:
    """Bound what a Lanczos run from a uniformly random start can have missed at either end.

    Each end gets half of the risk. The rounding of a product along a missed eigenvector is taken to be no
    larger than the largest along the vectors of the basis, where it is measured (``Krylov.rounding``); that
    is an assumption. Where every eigenvalue has been found nothing can be missed.

    Cost: no products; about a millisecond.
    Source: derived at the top of this file, after [dorsselaer1999].
    """
    if krylov.complete:
        return Certificate(1.0, 0.0, 0.0)
    run = krylov.opening()
    values = run.ritz().values
    least = (1 - confidence) / 2 * math.sqrt(math.pi / (2 * (run.basis.shape[1] - 1)))
    gap = max(_reach(run, values[-1] - values, least), _reach(run, values - values[0], least))
    size = max(float(values[-1] - values[0]), float(np.abs(values).max()))
    return Certificate(confidence, gap, min(1.0, gap / size) if size > 0 else float(gap > 0))


def _reach(run: Krylov, behind: Floats, least: float) -> float:
    """Return how far beyond an end an eigenvector may lie that has the component ``least`` in the start.

    Args:
        run: before any breakdown.
        behind: distances (k,) of the Ritz values from that end.
        least: τ.
    """
    unit = run.scale + run.remainder  # keeps powers of the distances in range
    if unit == 0:
        return 0.0
    vectors = run.ritz().vectors
    beta, rounding = run.remainder / unit, run.rounding / unit
    noise, couplings = float(np.linalg.norm(rounding)), float(np.log(run.beta / unit).sum())

    def component(gaps: Floats) -> Floats:
        distances = gaps[:, None] + behind / unit
        first = np.abs((vectors[0] / distances) @ vectors.T)  # R e₁, a row for each gap
        last = (vectors[-1] ** 2 / distances**2).sum(1)  # ‖R e_k‖²
        corner = beta * np.exp(np.minimum(couplings - np.log(distances).sum(1), 700.0))
        whole: Floats = corner * (1 + noise / gaps) / np.sqrt(1 + beta**2 * last) + first @ rounding
        return whole

    low, high = 1e-18, 2 * (beta + noise + 1e-18) / least
    for _ in range(3):
        grid = np.geomspace(low, high, 40)
        above = max(1, int((component(grid) > least).sum()))
        low, high = float(grid[above - 1]), float(grid[min(above, 39)])
    return high * unit
