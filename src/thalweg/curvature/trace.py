"""The trace of the Hessian with its error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.lanczos import ROUNDINGS, Krylov, checked_product, orthogonalise, tridiagonalise
from thalweg.curvature.operators import Operator
from thalweg.errors import InputError
from thalweg.estimates import Estimate
from thalweg.problem.finite import finite_loss
from thalweg.problem.intact import intact
from thalweg.problem.problem import Problem
from thalweg.rng import gaussian, generator, signs

__all__ = ["estimate_trace", "trace", "trace_of_run"]


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
        finite_loss(objective, theta, "the training loss")
        choice = choose_hessian(objective, theta, seed=seed)
        return estimate_trace(choice.operator, seed=seed, num_probes=num_probes, noise=choice.noise)


def estimate_trace(operator: Operator, *, seed: int, num_probes: int = 20, noise: float = 0.0) -> Estimate:
    """Estimate tr(A) by Hutchinson's method on what a Krylov space leaves over.

    tr(A) = Σ θ_i + E[zᵀ(I−VVᵀ)A(I−VVᵀ)z] for orthonormal V with Ritz values θ = diag(VᵀAV) and signs z
    ([hutchinson1990]; the split is that of [meyer2021]). Half the products find V, where few
    eigenvalues carry most of the trace; the others sample the rest. The interval is Student's: nothing less
    covers as often as it says with so few samples. Where nothing is left over, the error is that of rounding.

    Products that are off by E, ‖Ev‖ = ``noise``·‖Av‖ for random v so that ‖E‖_F = ``noise``·‖A‖_F, add to
    that: an error in proportion to A is off by ``noise``·|tr(A)|, and one of random entries by less than
    ``noise``·‖A‖_F. The larger counts. One that had all its size in the trace could be √n times the second.

    Args:
        operator: symmetric, A.
        seed: of the random vectors.
        num_probes: see the cost.
        noise: the relative error of the products with random vectors, where it is known.

    Raises:
        InputError: for fewer than two probes, which leave no error to state.
        NumericalError: when a product holds NaN or infinity; it says which.

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
    square = float((krylov.alpha**2).sum() + 2 * (krylov.beta**2).sum())  # ‖A‖_F², with what is left over
    if krylov.complete:
        return Estimate(captured, noise * max(abs(captured), square**0.5))
    samples, squares = [], []
    for i in range(num_probes):
        _, probe = orthogonalise(signs(n, rng, like=template), krylov.basis)
        product = checked_product(operator, probe, krylov.num_steps + i + 1)
        samples.append(float(probe.double() @ product.double()))
        squares.append(float(product.double() @ product.double()))
    rest, value = np.asarray(samples), captured + float(np.mean(samples))
    rounding = ROUNDINGS * float(torch.finfo(operator.dtype).eps) * krylov.scale * float(np.sqrt(n))
    inexact = noise * max(abs(value), (square + float(np.mean(squares))) ** 0.5)
    stderr = float(np.hypot(np.hypot(rest.std(ddof=1) / np.sqrt(num_probes), rounding), inexact))
    return Estimate(value, stderr, num_probes)


def trace_of_run(krylov: Krylov) -> Estimate:
    """Estimate the trace from one probe: n·qᵀAq for q uniform on the sphere.

    Its variance is 2n/(n+2)·Σ(λ−μ)² over all eigenvalues with their mean μ. The Gauss rule of the run gives
    the sum, but a probe that has hardly any of an outlier's eigenvector underrates the trace and the sum at
    once. So every Ritz value counts as one eigenvalue at least. That keeps the interval honest; where a few
    eigenvalues carry the trace it is wide and covers oftener than it says, and `estimate_trace` is better.

    Args:
        krylov: from a start that is uniformly random on the sphere.
    """
    if krylov.complete:
        return Estimate(float(krylov.alpha.sum()), 0.0)
    n = krylov.basis.shape[1]
    mean, opening = float(krylov.alpha[0]), krylov.opening()
    ritz = opening.ritz()
    counts = np.maximum(n * ritz.vectors[0] ** 2, 1.0)
    unit = opening.scale + opening.remainder
    if unit == 0:
        return Estimate(0.0, 0.0)
    # One step has no rule yet, but its remainder is the spread that the probe sees.
    spreads = (ritz.values - mean) / unit if opening.num_steps > 1 else np.array([opening.remainder / unit])
    square = float((counts * spreads**2).sum())
    return Estimate(n * mean, unit * float(np.sqrt(2 * n / (n + 2) * square)))
