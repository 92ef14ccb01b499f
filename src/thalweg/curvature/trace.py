"""The trace of the Hessian with its error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Operator
from thalweg.errors import InputError
from thalweg.estimates import Estimate
from thalweg.problem.intact import intact
from thalweg.problem.problem import Problem
from thalweg.rng import gaussian, generator, signs

__all__ = ["estimate_trace", "trace"]


def trace(problem: Problem, *, seed: int = 0, num_probes: int = 20) -> Estimate:
    """Estimate the trace of the Hessian of the training loss.

    Args:
        problem: left bit for bit as it is.
        seed: of the sample and the probes.
        num_probes: random vectors, at least 2; the standard error falls with their square root.

    Cost: 2·``num_probes`` + 2 Hessian–vector products.
    """
    with intact(problem.model):
        objective = problem.measured(seed=seed).train
        theta = objective.theta
        operator = choose_hessian(objective, theta, seed=seed).operator
        return estimate_trace(operator, seed=seed, num_probes=num_probes)


def estimate_trace(operator: Operator, *, seed: int, num_probes: int = 20) -> Estimate:
    """Estimate tr(A) by Hutchinson's method on what a Krylov space leaves over.

    tr(A) = Σ θ_i + E[zᵀ(I−VVᵀ)A(I−VVᵀ)z] for orthonormal V with Ritz values θ = diag(VᵀAV) and signs z
    ([hutchinson1990]; the split is that of [meyer2021]). Half the products find V, where few
    eigenvalues carry most of the trace; the others sample the rest.

    Raises:
        InputError: for fewer than two probes, which leave no error to state.

    Cost: 2·``num_probes`` products; n where that is less, and then the trace is exact.
    """
    if num_probes < 2:
        raise InputError("too few probes", expected="at least 2", got=str(num_probes))
    n = operator.size
    template = torch.empty(0, dtype=operator.dtype, device=operator.device)
    rng = generator(seed, "trace")
    steps = n if n <= 2 * num_probes else num_probes

    def fresh() -> Tensor:
        return gaussian(n, rng, like=template)

    krylov = tridiagonalise(operator, fresh(), max_steps=steps, fresh=fresh)
    captured = float(krylov.alpha.sum())
    if krylov.complete:
        return Estimate(captured, 0.0)
    samples = []
    for _ in range(num_probes):
        probe = signs(n, rng, like=template)
        probe = probe - krylov.basis.T @ (krylov.basis @ probe)
        samples.append(float(probe.double() @ operator.matvec(probe).double()))
    rest = np.asarray(samples)
    return Estimate(captured + float(rest.mean()), float(rest.std(ddof=1) / np.sqrt(num_probes)), num_probes)
