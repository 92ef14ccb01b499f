"""How sure it is that Lanczos from a random start has not missed an end of the spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Certificate", "certify", "steps_for"]


@dataclass(frozen=True)
class Certificate:
    """With probability ``confidence`` no eigenvalue lies outside the Ritz values by more than ``gap``.

    The statement is about the operator that was measured (the sampled loss), and about its products up to
    the noise floor. A small residual proves that *an* eigenvalue is near, never that it is the last one;
    this is the part that speaks about the last one.
    """

    confidence: float
    gap: float  # ε·(λmax − λmin), in units of the eigenvalues
    relative_gap: float  # ε


def certify(
    *, num_steps: int, size: int, spread: float, exact: bool, confidence: float = 0.99
) -> Certificate:
    """Bound what ``num_steps`` Lanczos steps from a uniformly random start can have missed.

    P(λ_min(T) − λ_min > ε·(λmax−λmin)) ≤ 1.648·√n·exp(−√ε·(2k−1)), solved for ε
    ([kuczynski1992], theorem 4.2), and the same for the other end.

    Args:
        num_steps: steps k before any breakdown.
        size: the dimension n.
        spread: λmax − λmin as found.
        exact: the Krylov space is invariant, which holds every extreme eigenvalue with probability one.
        confidence: 1 − δ.
    """
    if exact:
        return Certificate(1.0, 0.0, 0.0)
    root = math.log(1.648 * math.sqrt(size) / (1 - confidence)) / (2 * num_steps - 1)
    epsilon = min(1.0, root * root)
    # The found spread is at least (1−2ε) of the true one when both ends hold.
    widened = spread / (1 - 2 * epsilon) if epsilon < 0.5 else math.inf
    return Certificate(confidence, epsilon * widened, epsilon)


def steps_for(epsilon: float, size: int, confidence: float = 0.99) -> int:
    """Return the steps after which the relative gap is at most ``epsilon``."""
    needed = math.log(1.648 * math.sqrt(size) / (1 - confidence)) / math.sqrt(epsilon)
    return min(size, max(1, math.ceil((needed + 1) / 2)))
