"""How much curvature an optimiser's steps can take before they grow instead of shrink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.curvature.operators import Operator
from thalweg.curvature.scaled import Scaled
from thalweg.curvature.spectrum import Extreme, find_extremes
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.objective import Objective
from thalweg.problem.stepping import Stepping, TensorStepping
from thalweg.progress import Progress

__all__ = [
    "Stability",
    "StabilityLimit",
    "coupled_decay",
    "gradient_scale",
    "inverse_preconditioner",
    "is_plain",
    "measure_stability",
    "stability_limit",
]

# Both ends have usually converged by then; the error bound says so where they have not.
PRODUCTS = 40
EDGE = 0.05  # around a ratio of 1
_ADAPTIVE = frozenset({"Adam", "RMSprop", "Adagrad"})


@dataclass(frozen=True)
class StabilityLimit:
    """The edge of stability of an optimiser.

    Attributes:
        rule: whose limit it is.
        formula: the limit in terms of the learning rate η.
        curvature: its value; along directions that curve more than this, steps grow.
        lr: η, the largest among the parameter groups.
        momentum: β (β₁ for Adam), 0 without.
    """

    rule: str
    formula: str
    curvature: float
    lr: float
    momentum: float


@dataclass(frozen=True)
class Stability:
    """The largest curvature that the optimiser meets, against its limit.

    Attributes:
        limit: see `StabilityLimit`.
        curvature: λmax of P^{-1/2}(H + W)P^{-1/2}, H the Hessian of what training minimises, W its coupled
            weight decay and P what the optimiser divides the gradient by.
        bound: the radius around ``curvature`` that holds an eigenvalue.
        ratio: curvature over limit; 1 is the edge.
        preconditioned: whether P holds second moments.
        batch_size: examples per step; None for all of them.
    """

    limit: StabilityLimit
    curvature: float
    bound: float
    ratio: float
    preconditioned: bool
    batch_size: int | None

    @property
    def least_ratio(self) -> float:
        """The ratio that is certain: some eigenvalue is at least this far on the way to the limit."""
        return (self.curvature - self.bound) / self.limit.curvature

    @property
    def judgement(self) -> str:
        """What the ratio says, in a sentence without a full stop."""
        if self.curvature <= 0:
            return "no direction curves upwards, so no step is too long for the curvature"
        if self.ratio > 1 + EDGE:
            return "beyond the edge: steps along the steepest direction grow from one to the next"
        if self.ratio >= 1 - EDGE:
            return "at the edge of stability: steps along the steepest direction hardly shrink"
        if self.batch_size is None:
            return "steps along every direction shrink"
        return (
            f"steps on all the data would shrink; those on {self.batch_size:,} examples can become unstable "
            "before the ratio reaches 1"
        )


def stability_limit(stepping: Stepping) -> StabilityLimit | str:
    """Return the curvature at which the steps of an optimiser become unstable, or why none is known.

    On a quadratic, each eigenvector of the (preconditioned) Hessian with eigenvalue s steps by itself:
    x⁺ = (1 − ηw)x − ηb⁺ with b⁺ = βb + (1 − τ)s·x for momentum β, dampening τ (β₁ for both in Adam) and
    decoupled decay w. Its roots solve z² − (1 − ηw + β − (1 − τ)ηs)z + β(1 − ηw) = 0 and leave the unit
    circle at z = −1, where s = (2 − ηw)(1 + β)/((1 − τ)η). Nesterov's look-ahead, x⁺ = x − η(s·x + βb⁺)
    with τ = 0, gives s = 2(1 + β)/((1 + 2β)η) in the same way.

    Steps on minibatches become unstable before that: λmax of the whole loss then stays below the limit
    ([andreyev2024]).

    Source: [cohen2021] for momentum, [cohen2022] for Adam.
    """
    rule, tensors = stepping.rule, [t for t in stepping.tensors if t.settings]
    if rule not in {"SGD", *_ADAPTIVE}:
        return f"no step-size limit is known for {stepping.name}"
    groups = [t.settings for t in tensors]
    if any(group.get("maximize") for group in groups):
        return "the optimiser climbs (maximize=True)"
    lr = max(float(group["lr"]) for group in groups)
    if lr <= 0:
        return "the learning rate is zero"
    momenta = {_momenta(rule, group) for group in groups}
    if len(momenta) > 1:
        return "the parameter groups differ in their momentum, and no limit is known for that"
    beta, dampening, nesterov = momenta.pop()
    if beta >= 1 or dampening >= 1:
        return "with a momentum or dampening of 1 or more, steps never settle"
    if rule in _ADAPTIVE and not any(_num_steps(t) for t in tensors):
        return f"{stepping.name} has taken no step yet, so its second moments are not known"
    decay = max(float(g["lr"]) * float(g["weight_decay"]) if _is_decoupled(g) else 0.0 for g in groups)
    name, formula = _names(rule, beta, dampening, nesterov, decay > 0)
    # Groups with less decay bear up to decay/2 more of it; the largest is on the safe side.
    edge = 2 * (1 + beta) / (1 + 2 * beta) if nesterov else (2 - decay) * (1 + beta) / (1 - dampening)
    return StabilityLimit(name, formula, edge / lr, lr, beta)


def inverse_preconditioner(stepping: Stepping) -> Tensor | None:
    """Return the diagonal of P⁻¹ (n,): what a step makes of a unit of gradient, in learning rates.

    P holds √v̂ + ε with the second moments as they are, their bias correction and that of the first moment
    ([cohen2022]), and the share of each group in the largest learning rate. It is zero where the
    optimiser does not move a weight. None where it is 1 throughout.
    """
    tensors = stepping.tensors
    lr = max(float(t.settings["lr"]) for t in tensors if t.settings)
    rule = stepping.rule
    plain = all(t.settings and float(t.settings["lr"]) == lr for t in tensors)
    if rule not in _ADAPTIVE and plain:
        return None
    return torch.cat([_inverse(rule, t, lr) for t in tensors])


def coupled_decay(stepping: Stepping) -> Tensor | float:
    """Return the weight decay that is part of the gradient: (n,), or a number where it is one for all."""
    decays = [
        0.0 if not t.settings or _is_decoupled(t.settings) else float(t.settings.get("weight_decay", 0.0))
        for t in stepping.tensors
    ]
    if len(set(decays)) == 1:
        return decays[0]
    return torch.cat(
        [torch.full((t.size,), d, dtype=torch.float64) for t, d in zip(stepping.tensors, decays, strict=True)]
    )


def is_plain(stepping: Stepping) -> bool:
    """Whether steps follow the gradient itself, so that λmax of the Hessian is all that it takes."""
    return inverse_preconditioner(stepping) is None and isinstance(coupled_decay(stepping), float)


def gradient_scale(objective: Objective, theta: Tensor, stepping: Stepping) -> float:
    """Return by how much training's gradient exceeds that of the mean loss: 1, or the terms that it sums.

    Cost: nothing; 1/3 gradient-equivalent where training minimises a sum.
    """
    if not isinstance(objective, EmpiricalRisk) or not objective.summed:
        return 1.0
    terms = sum(objective.batch_values(theta)[1]) / objective.examples
    return terms * min(stepping.batch_size or objective.examples, objective.examples)


def measure_stability(
    hessian: Operator,
    largest: Extreme,
    stepping: Stepping,
    *,
    seed: int,
    gradient_scale: float = 1.0,
    noise: float = 0.0,
    max_products: int = PRODUCTS,
    progress: Progress | None = None,
) -> Stability | str:
    """Hold the largest curvature that an optimiser meets against its limit; or say why that cannot be.

    Args:
        hessian: of the mean loss.
        largest: its upper end, which is enough where the steps are not preconditioned.
        stepping: the optimiser with its state.
        seed: of the random start.
        gradient_scale: by how much the gradient that the optimiser sees is larger than that of the mean
            loss: the batch size where training minimises a sum.
        noise: the relative error of the products of ``hessian``; stretched coordinates are taken to keep it.
        max_products: to spend at most, on preconditioned curvature.
        progress: is told of each product.

    Cost: nothing, or ``max_products`` Hessian–vector products.
    """
    limit = stability_limit(stepping)
    if isinstance(limit, str):
        return limit
    inverse, decay = inverse_preconditioner(stepping), coupled_decay(stepping)
    if inverse is None and isinstance(decay, float):  # as `is_plain` says
        curvature, bound = gradient_scale * largest.value + decay, gradient_scale * largest.bound
    else:
        like = largest.vector
        inverse = torch.ones_like(like) if inverse is None else inverse.to(like)
        shift = decay if isinstance(decay, float) else decay.to(like)
        operator = Scaled(hessian, (gradient_scale * inverse).sqrt(), shift / gradient_scale)
        found = find_extremes(
            operator, seed=seed, max_products=max_products, open_gap=1.0, noise=noise, progress=progress
        )
        curvature, bound = found.lambda_max.value, found.lambda_max.bound
    return Stability(
        limit=limit,
        curvature=curvature,
        bound=bound,
        ratio=curvature / limit.curvature,
        preconditioned=stepping.rule in _ADAPTIVE,
        batch_size=stepping.batch_size,
    )


def _momenta(rule: str, group: Mapping[str, Any]) -> tuple[float, float, bool]:
    """Return momentum, dampening, and whether Nesterov looks ahead."""
    if rule == "Adam":
        beta = float(group["betas"][0])
        return beta, beta, False
    beta = float(group.get("momentum", 0.0))
    dampening = float(group.get("dampening", 0.0)) if beta else 0.0
    return beta, dampening, bool(beta and group.get("nesterov"))


def _names(rule: str, beta: float, dampening: float, nesterov: bool, decoupled: bool) -> tuple[str, str]:
    if rule == "Adam":
        numerator = "(2 − ηw)(1 + β₁)" if decoupled else "2(1 + β₁)"
        return "AdamW" if decoupled else "Adam", f"{numerator}/((1 − β₁)η)"
    if nesterov:
        return "Nesterov momentum", "2(1 + β)/((1 + 2β)η)"
    plain = "gradient descent" if rule == "SGD" else rule
    if not beta:
        return plain, "2/η"
    name = "heavy ball" if rule == "SGD" else f"{rule} with momentum"
    return name, "2(1 + β)/((1 − τ)η)" if dampening else "2(1 + β)/η"


def _is_decoupled(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay"))


def _num_steps(tensor: TensorStepping) -> float:
    return float(tensor.state.get("step", 0.0))


def _inverse(rule: str | None, tensor: TensorStepping, lr: float) -> Tensor:
    """Return the part of P⁻¹ that belongs to a tensor; zeros where it does not move."""
    settings, state = tensor.settings, tensor.state
    num_steps = _num_steps(tensor)
    if not settings or (rule in _ADAPTIVE and not num_steps):
        return torch.zeros(tensor.size, dtype=torch.float64)
    share = float(settings["lr"]) / lr
    if rule == "SGD":
        return torch.full((tensor.size,), share, dtype=torch.float64)
    if rule == "Adam":
        first, second = (1 - float(beta) ** num_steps for beta in settings["betas"])
        moments = state["max_exp_avg_sq" if settings.get("amsgrad") else "exp_avg_sq"].double()
        divisor = first * ((moments / second).sqrt() + settings["eps"])
    elif rule == "RMSprop":
        moments = state["square_avg"].double()
        if settings.get("centered"):
            moments = (moments - state["grad_avg"].double().square()).clamp_min(0)
        divisor = moments.sqrt() + settings["eps"]
    else:
        share /= 1 + (num_steps - 1) * settings["lr_decay"]
        divisor = state["sum"].double().sqrt() + settings["eps"]
    # A divisor of zero belongs to a weight that has never had a gradient, and so has no curvature either.
    return torch.where(divisor > 0, share / divisor, 0.0).reshape(-1).cpu()
