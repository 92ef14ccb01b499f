"""The spectral density of the Hessian: how many directions have which curvature."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.lanczos import Floats, Krylov, tridiagonalise
from thalweg.curvature.operators import Operator
from thalweg.estimates import Estimate
from thalweg.problem.finite import finite_loss
from thalweg.problem.intact import intact
from thalweg.problem.problem import Problem
from thalweg.records import Cost, Provenance, Record, current_provenance
from thalweg.report.document import Document, Facts, Note, significant
from thalweg.rng import gaussian, generator

__all__ = ["Density", "density", "estimate_density", "gauss_rule"]


def gauss_rule(krylov: Krylov) -> tuple[Floats, Floats]:
    """Return nodes (k,) and weights (k,) of the density seen from the start vector ([golub2009], §6.2).

    The rule integrates polynomials up to degree 2k−1 exactly. Where every eigenvalue has been found, each
    counts the same.
    """
    if krylov.complete:
        values = krylov.ritz().values
        return values, np.full(len(values), 1.0 / len(values))
    ritz = krylov.opening().ritz()
    return ritz.values, ritz.vectors[0] ** 2


@dataclass(frozen=True, kw_only=True, repr=False)
class Density(Record):
    """A spectral density as quadrature rules, one a probe.

    Attributes:
        name: of the problem.
        nodes: curvatures, one array (k,) a probe.
        weights: their shares (k,), each array sums to one.
        resolution: about the spacing of the nodes; structure finer than that is not resolved.
        bound: with 99 % probability the distance (Wasserstein-1) to the true density is at most this
            ([chen2021], theorem 1); infinity where the steps are too few for a statement.
        num_parameters: n.
        cost: what it took.
        provenance: what is needed to repeat it.
    """

    schema: ClassVar[str] = "thalweg/density@1"

    name: str
    nodes: tuple[Floats, ...] = field(repr=False)
    weights: tuple[Floats, ...] = field(repr=False)
    resolution: float
    bound: float
    num_parameters: int
    cost: Cost
    provenance: Provenance

    def __repr__(self) -> str:
        return (
            f"Density({self.name!r}, {len(self.nodes)} probes, below zero {self.share(-np.inf, 0).value:.1%})"
        )

    def share(self, low: float, high: float) -> Estimate:
        """Return the share of directions with curvature in [low, high), its error from the probes."""
        shares = [
            float(w[(x >= low) & (x < high)].sum()) for x, w in zip(self.nodes, self.weights, strict=True)
        ]
        k = len(shares)
        stderr = float(np.std(shares, ddof=1) / np.sqrt(k)) if k > 1 else float("inf")
        return Estimate(float(np.mean(shares)), stderr, k)

    def document(self) -> Document:
        """Describe the density for people."""
        values = np.concatenate(self.nodes)
        below = self.share(-np.inf, -self.resolution)
        near = self.share(-self.resolution, self.resolution)
        rows = (
            ("range", f"{significant(float(values.min()), 3)} … {significant(float(values.max()), 3)}"),
            ("below zero", f"{below.value:.1%} of the directions, beyond the resolution"),
            ("near zero", f"{near.value:.1%} within ± {significant(self.resolution)}, the resolution"),
        )
        cost = f"{self.cost.num_hvps} Hessian–vector products, {self.cost.seconds:.1f} s"
        return Document(f"{self.name} · {self.num_parameters:,} parameters", (Facts(rows), Note(cost)))


def estimate_density(
    operator: Operator, *, seed: int, num_steps: int = 80, num_probes: int = 1
) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """Return Gauss rules (nodes, weights) of ``num_probes`` random starts, by stochastic Lanczos quadrature.

    Cost: ``num_steps``·``num_probes`` products.
    """
    template = torch.empty(0, dtype=operator.dtype, device=operator.device)
    rules = []
    for probe in range(num_probes):
        start = gaussian(operator.size, generator(seed, "density", probe), like=template)
        rules.append(gauss_rule(tridiagonalise(operator, start, max_steps=num_steps)))
    return tuple(nodes for nodes, _ in rules), tuple(weights for _, weights in rules)


def density(problem: Problem, *, seed: int = 0, num_probes: int = 1) -> Density:
    """Estimate the spectral density of the Hessian of the training loss.

    Args:
        problem: left bit for bit as it is.
        seed: of the sample and the starts.
        num_probes: random starts; one is enough from about a million parameters on.

    Cost: 80 Hessian–vector products a probe.
    Source: [ubaru2017], algorithm 1; [ghorbani2019] for networks.
    """
    begun = time.perf_counter()
    with intact(problem.model):
        measured = problem.measured(seed=seed)
        theta = measured.train.theta
        finite_loss(measured.train, theta, "the training loss")
        operator = choose_hessian(measured.train, theta, seed=seed).operator
        nodes, weights = estimate_density(operator, seed=seed, num_probes=num_probes)
    everything = np.concatenate(nodes)
    spread = float(everything.max() - everything.min())
    steps = min(len(rule) for rule in nodes)
    exact = steps == theta.numel()
    return Density(
        name=problem.name,
        nodes=nodes,
        weights=weights,
        resolution=0.0 if exact else spread / steps,
        bound=0.0 if exact else _wasserstein_bound(spread, steps, num_probes, theta.numel()),
        num_parameters=theta.numel(),
        cost=measured.ledger.cost(begun),
        provenance=current_provenance(theta, seed),
    )


def _wasserstein_bound(spread: float, steps: int, probes: int, n: int, risk: float = 0.01) -> float:
    """Return t·spread for the smallest t with steps ≥ 12/t + ½ and probes ≥ 4 ln(2n/risk)/((n+2)t²)."""
    from_steps = 12 / (steps - 0.5)
    from_probes = np.sqrt(4 * np.log(2 * n / risk) / ((n + 2) * probes))
    return float(spread * max(from_steps, from_probes))
