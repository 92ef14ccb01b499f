"""The Hessian of an objective at a point as an operator: exact products, or differences of gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from thalweg.curvature.operators import Operator
from thalweg.errors import ModelError
from thalweg.problem.cost import HVP_KEPT, HVP_REBUILT
from thalweg.problem.derivatives import Bench, Comparison, check_products, precise, stand_in
from thalweg.problem.fault import wrong_module
from thalweg.problem.intact import intact
from thalweg.problem.memory import SavedBytes, memory_share
from thalweg.problem.objective import GradientGraph, Objective, differentiate
from thalweg.rng import gaussian, generator

__all__ = ["DifferenceHessian", "ExactHessian", "HessianChoice", "choose_hessian"]

# Exact products whose uᵀHv and vᵀHu differ by more than this (relative to ‖Hv‖) are wrong, not inexact:
# healthy models stay below 1e-6, wrong second derivatives of layers start at 1e-1.
ASYMMETRY = 1e-3


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
        with intact(None):
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
    truncation O(ε²) against rounding O(u/ε), scaled so that it moves every weight ([nocedal2006], §8.1).

    Args:
        objective: whose gradient is taken.
        theta: where (n,).
        factor: of ε, to see what another step would give.
    """

    name = "differences"

    def __init__(self, objective: Objective, theta: Tensor, *, factor: float = 1.0) -> None:
        self._objective = objective
        self._theta = theta
        self.size, self.dtype, self.device = theta.numel(), theta.dtype, theta.device
        self.cost = 2.0
        roundoff = float(torch.finfo(theta.dtype).eps)
        self._step = factor * roundoff ** (1 / 3) * (1.0 + float(theta.norm()))

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H·vector (n,). Cost: 2 gradient-equivalents."""
        norm = vector.norm()
        if float(norm) == 0:
            return torch.zeros_like(vector)
        step = self._step / norm
        ahead, behind = self._theta + step * vector, self._theta - step * vector
        self._objective.ledger.num_hvps += 1
        difference: Tensor = self._objective.gradient(ahead) - self._objective.gradient(behind)
        product: Tensor = difference / (2 * step)
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
    precision (in the model's own, where it does not run in double).

    Cost: the gradient that is kept, and 10 gradient-equivalents of the few (18 where the weights are not
    double); more where exact products are refused, to find the module at fault.

    Raises:
        ModelError: when neither gives a symmetric operator.
    """
    bench = precise(objective, theta)
    found = Comparison("disagrees", 0.0)
    try:
        asymmetry, product = _symmetry(ExactHessian(bench.objective, bench.theta), bench.theta, seed)
        if asymmetry <= ASYMMETRY:
            found = check_products(bench)
        if found.verdict != "disagrees":
            noise = max(asymmetry, objective.roundoff)
            if bench.objective.roundoff < objective.roundoff:
                own = stand_in(objective, theta).hvp(theta, _probe(theta, seed))
                noise = max(_relative(own.double() - product, product), objective.roundoff)
            exact = ExactHessian(objective, theta)
            reason = f"double backward; asymmetry {asymmetry:.0e}, {_told(found)}"
            return HessianChoice(exact, exact.name, exact.cost, reason, asymmetry, noise)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"exact products do not exist for this model ({_first_line(error)})"
        return _differences(objective, theta, bench, seed, reason, None)
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
    few, v = stand_in(objective, theta), _probe(theta, seed)
    own, product = _symmetry(DifferenceHessian(few, theta), theta, seed)
    # Rounding of float32 gradients leaves about 1e-4 … 1e-2 here; a stochastic or wrong gradient leaves 1.
    if own > 0.1:
        raise ModelError(
            "neither exact products nor differences of the gradient give a Hessian",
            got=f"{reason}; and differences whose asymmetry is {own:.0e} of their size",
            cause="a custom backward that is wrong, or rounding that hides the curvature",
            hint="check custom layers with torch.autograd.gradcheck; convert the model to double precision",
        )
    if bench.objective.roundoff < objective.roundoff:
        better = DifferenceHessian(bench.objective, bench.theta).matvec(v.double())
    else:
        better = DifferenceHessian(few, theta, factor=2.0).matvec(v)  # no better, but with another error
    noise = max(_relative(product.to(better.dtype) - better, better), objective.roundoff)
    reason += f"; differences are good to {noise:.0e}"
    operator = DifferenceHessian(objective, theta)
    return HessianChoice(operator, operator.name, operator.cost, reason, asymmetry, noise)


def _told(found: Comparison) -> str:
    if found.verdict == "agrees":
        return f"{found.error:.0e} from differences of the gradient"
    return "differences of the gradient are too coarse to check it by"


def _relative(error: Tensor, product: Tensor) -> float:
    size = float(product.norm())
    return min(float(error.norm()) / size, 1.0) if size > 0 else float(bool(error.any()))


def _probe(theta: Tensor, seed: int) -> Tensor:
    return gaussian(theta.numel(), generator(seed, "symmetry", 1), like=theta)


def _symmetry(operator: Operator, theta: Tensor, seed: int) -> tuple[float, Tensor]:
    """Return how asymmetric an operator is, relative to its size, and its product with `_probe` (n,)."""
    u, v = gaussian(theta.numel(), generator(seed, "symmetry", 0), like=theta), _probe(theta, seed)
    hu, hv = operator.matvec(u), operator.matvec(v)
    difference = abs(float(u.double() @ hv.double()) - float(v.double() @ hu.double()))
    size = float(hv.double().norm() * u.double().norm() + hu.double().norm() * v.double().norm())
    # A random pair sees 1/√n of the asymmetry ‖A−Aᵀ‖_F, so undo that.
    return difference / size * theta.numel() ** 0.5 if size > 0 else 0.0, hv


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
