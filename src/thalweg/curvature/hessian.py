"""The Hessian of an objective at a point as an operator: exact products, or differences of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from thalweg.curvature.operators import Operator
from thalweg.errors import ModelError, NumericalError
from thalweg.problem.cost import HVP_KEPT, HVP_REBUILT
from thalweg.problem.derivatives import Bench, Comparison, check_products, precise, stand_in
from thalweg.problem.fault import wrong_module
from thalweg.problem.memory import SavedBytes, memory_share
from thalweg.problem.objective import GradientGraph, Objective, differentiate
from thalweg.rng import gaussian, generator

__all__ = ["DifferenceHessian", "ExactHessian", "HessianChoice", "choose_hessian"]

# Exact products whose uᵀHv and vᵀHu differ by more than this (relative to ‖Hv‖) are wrong, not inexact:
# healthy models stay below 1e-6, wrong second derivatives of layers start at 1e-1.
ASYMMETRY = 1e-3
USELESS = 0.3  # differences with a larger relative error show nothing


@final
class ExactHessian:
    """Hessian–vector products by double backward ([pearlmutter1994]).

    The graph of the gradient is built once and kept for all products as long as the tensors it saves fit
    into ``memory`` bytes; that saves the forward and the first backward pass of every product.

    Raises:
        RuntimeError: by torch, where a kernel has no second derivative.
    """

    name = "exact"

    def __init__(self, objective: Objective, theta: Tensor, *, memory: int | None = None) -> None:
        self._objective = objective
        self._theta = theta
        self.size, self.dtype, self.device = theta.numel(), theta.dtype, theta.device
        limit = memory_share(theta.device) if memory is None else memory
        self._kept: list[GradientGraph] | None = self._keep(limit)
        self.cost = HVP_KEPT if self._kept is not None else HVP_REBUILT  # of a product

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H·vector (n,). Cost: 2 gradient-equivalents, 3 where the graph cannot be kept."""
        if self._kept is None:
            return self._objective.hvp(self._theta, vector)
        ledger = self._objective.ledger
        ledger.num_hvps += 1
        total = torch.zeros_like(vector)
        for graph in self._kept:
            products = differentiate(graph, _cut(vector, graph.leaves), keep=True)
            _add(total, products, graph)
            ledger.spend(HVP_KEPT, graph.examples)
        return total

    def _keep(self, memory: int) -> list[GradientGraph] | None:
        meter = SavedBytes()
        kept = []
        with meter.counting():
            for graph in self._objective.gradient_graphs(self._theta):
                kept.append(graph)
                if meter.total > memory:
                    return None
        return kept


@final
class DifferenceHessian:
    """Hessian–vector products by central differences of the gradient, for any kernel.

    Hv ≈ (∇f(θ+εv) − ∇f(θ−εv)) / 2ε with ε = u^{1/3}(1+‖θ‖)/‖v‖, u the unit roundoff: the step that balances
    truncation O(ε²) against rounding O(u/ε), scaled so that it moves every weight ([nocedal2006], §8.1). In
    double precision a hundredth of that, which still leaves eight digits: a step that crosses the kink of a
    ReLU sees a jump of the gradient, and the shorter it is, the fewer it crosses.

    Args:
        objective: whose gradient is taken, in its precision.
        theta: where (n,); vectors come and go in its precision.
        factor: of ε, to see what another step would give.
    """

    name = "differences"

    def __init__(self, objective: Objective, theta: Tensor, *, factor: float = 1.0) -> None:
        self._objective = objective
        self._theta = theta.to(objective.theta.dtype)
        self.size, self.dtype, self.device = theta.numel(), theta.dtype, theta.device
        self.cost = 2.0
        double = objective.roundoff <= torch.finfo(torch.float64).eps
        shorter = 0.01 if double else 1.0
        self._step = shorter * factor * objective.roundoff ** (1 / 3) * (1.0 + float(theta.norm()))

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H·vector (n,). Cost: 2 gradient-equivalents."""
        norm = float(vector.norm())
        if norm == 0:
            return torch.zeros_like(vector)
        step = self._step / norm
        along = step * vector.to(self._theta.dtype)
        self._objective.ledger.num_hvps += 1
        difference = self._objective.gradient(self._theta + along) - self._objective.gradient(
            self._theta - along
        )
        product: Tensor = (difference / (2 * step)).to(self.dtype)
        return product


@dataclass(frozen=True)
class HessianChoice:
    """The operator to use and why.

    Attributes:
        operator: the Hessian.
        name: "exact" or "differences".
        cost: of a product, in gradient-equivalents.
        reason: why, in a sentence.
        asymmetry: |uᵀHv − vᵀHu| / ‖Hv‖ of the exact products for a random pair; None where they do not exist.
        noise: the relative error ‖Ĥv − Hv‖ / ‖Hv‖ of the operator's products with random vectors, measured:
            against double precision where the model runs in it, else by the asymmetry of exact products and
            by a second step size of differences. No eigenvalue below ``noise``·‖H‖ is told from zero.
    """

    operator: Operator = field(repr=False)
    name: str
    cost: float
    reason: str
    asymmetry: float | None
    noise: float


def choose_hessian(objective: Objective, theta: Tensor, *, seed: int) -> HessianChoice:
    """Choose exact products where they exist and are right, else differences; measure the error of either.

    A few examples decide: products must be symmetric, and equal to differences of the gradient in double
    precision (in the model's own, where it does not run in double). Where rounding hides how the loss
    changes, as it does where a classifier is certain of everything, asymmetry is rounding too, and enters
    ``noise``.

    Cost: the gradient that is kept, and 8 gradient-equivalents of the few (12 where the weights are not
    double); more where exact products are refused, to find the module at fault.

    Raises:
        ModelError: when neither gives a Hessian.
        NumericalError: when there is none at ``theta``.
    """
    bench = precise(objective, theta)
    found = Comparison("disagrees", 0.0)
    try:
        operator = ExactHessian(bench.objective, bench.theta)
        along, product = operator.matvec(bench.direction), operator.matvec(_probe(bench.theta, seed))
        asymmetry = _asymmetry(bench.direction, along, _probe(bench.theta, seed), product)
        if asymmetry <= ASYMMETRY or (math.isfinite(asymmetry) and bench.saturated):
            found = check_products(bench, along)
        if found.verdict != "disagrees":
            noise = max(asymmetry, objective.roundoff)
            if found.verdict == "rough" and bench.saturated:
                noise = max(noise, min(found.error, 1.0))
            if bench.objective.roundoff < objective.roundoff:
                own = stand_in(objective, theta).hvp(theta, _probe(theta, seed))
                noise = max(_relative(own.double() - product, product), noise)
            exact = ExactHessian(objective, theta)
            reason = f"double backward; asymmetry {asymmetry:.0e}, {_told(found)}"
            return HessianChoice(exact, exact.name, exact.cost, reason, asymmetry, noise)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"exact products do not exist for this model ({_first_line(error)})"
        return _differences(objective, theta, bench, seed, reason, None)
    if not math.isfinite(asymmetry):
        reason = "exact products are NaN or infinite"
        return _differences(objective, theta, bench, seed, reason, asymmetry)
    reason = (
        f"exact products are not symmetric (by {asymmetry:.0e} of their size)"
        if asymmetry > ASYMMETRY
        else f"exact products differ from differences of the gradient (by {found.error:.0e} of their size)"
    )
    where = wrong_module(bench, lambda part: check_products(part).verdict == "disagrees")
    reason += f": the second derivative of {where or 'the loss'} is wrong"
    return _differences(objective, theta, bench, seed, reason, asymmetry)


def _differences(
    objective: Objective, theta: Tensor, bench: Bench, seed: int, reason: str, asymmetry: float | None
) -> HessianChoice:
    few, here, v = bench.objective, bench.theta, _probe(bench.theta, seed)
    own, other = DifferenceHessian(few, here), DifferenceHessian(few, here, factor=2.0)
    along, product = own.matvec(bench.direction), own.matvec(v)
    asymmetric = _asymmetry(bench.direction, along, v, product)
    noise = max(_relative(other.matvec(v) - product, product), asymmetric, objective.roundoff)
    # Rounding of float32 gradients leaves about 1e-4 … 1e-2 here; a stochastic or wrong gradient leaves 1.
    if noise > USELESS and asymmetry is not None and not math.isfinite(asymmetry):
        raise NumericalError(
            "the second derivative of the loss is NaN or infinite at these weights",
            cause="a norm or a square root at zero, or an overflow",
            hint="move the weights a little, or add a small constant under the root",
        )
    if noise > USELESS:
        raise ModelError(
            "neither exact products nor differences of the gradient give a Hessian",
            got=f"{reason}; and differences that are off by {noise:.0e} of their size",
            cause="rounding that hides the curvature, such as half precision inside the model, or a custom "
            "backward that is wrong",
            hint="convert the model to double precision; check custom layers with torch.autograd.gradcheck",
        )
    better = few.roundoff < objective.roundoff
    chosen = DifferenceHessian(objective.in_precision(here.dtype) if better else objective, theta)
    reason += f"; differences{' in double precision' if better else ''} are good to {noise:.0e}"
    return HessianChoice(chosen, chosen.name, chosen.cost, reason, asymmetry, noise)


def _told(found: Comparison) -> str:
    if found.verdict == "agrees":
        return f"{found.error:.0e} from differences of the gradient"
    return "differences of the gradient are too coarse to check it by"


def _relative(error: Tensor, product: Tensor) -> float:
    size = float(product.norm())
    return min(float(error.norm()) / size, 1.0) if size > 0 else float(bool(error.any()))


def _probe(theta: Tensor, seed: int) -> Tensor:
    return gaussian(theta.numel(), generator(seed, "symmetry", 1), like=theta)


def _asymmetry(u: Tensor, hu: Tensor, v: Tensor, hv: Tensor) -> float:
    """Return ‖H − Hᵀ‖ / ‖H‖ as a random pair of vectors and their products (n,) tell it."""
    difference = abs(float(u.double() @ hv.double()) - float(v.double() @ hu.double()))
    size = float(hv.double().norm() * u.double().norm() + hu.double().norm() * v.double().norm())
    if not math.isfinite(difference + size):
        return math.inf
    # A random pair sees 1/√n of the asymmetry ‖A−Aᵀ‖_F, so undo that.
    return difference / size * u.numel() ** 0.5 if size > 0 else 0.0


def _add(total: Tensor, parts: list[Tensor | None], graph: GradientGraph) -> None:
    at = 0
    for leaf, part in zip(graph.leaves, parts, strict=True):
        if part is not None:
            total[at : at + leaf.numel()].add_(part.reshape(-1), alpha=graph.weight)
        at += leaf.numel()


def _cut(vector: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    pieces = vector.split([leaf.numel() for leaf in leaves])
    return [piece.view(leaf.shape).to(leaf.dtype) for piece, leaf in zip(pieces, leaves, strict=True)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
