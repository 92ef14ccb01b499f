"""The noise scale of the gradient: the batch size up to which more examples buy better steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from thalweg.errors import FOREIGN_FAILURES
from thalweg.problem.batches import Batch, Sample, taken
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import intact
from thalweg.problem.loss import minimised
from thalweg.problem.problem import Problem
from thalweg.rng import generator

__all__ = ["NoiseScale", "noise_scale"]

PROBES = 16
_CHUNK = 64  # examples differentiated at once
_FEW = 256  # examples, where they must be differentiated one by one


@dataclass(frozen=True)
class NoiseScale:
    """Noise against signal of the gradient at one point, in examples.

    Attributes:
        trace: tr Σ, with Σ the covariance of an example's gradient.
        squared: ‖G‖² of their mean, de-biased; it may be negative where G is within its own error.
        bent: tr(HΣ), with H the curvature: noise along flat directions does not matter.
        along: GᵀHG, de-biased.
        examples: on which it was measured.
    """

    trace: float
    squared: float
    bent: float
    along: float
    examples: int

    @property
    def simple(self) -> float:
        """Tr Σ/‖G‖²; NaN where the signal is not positive."""
        return self.trace / self.squared if self.squared > 0 else float("nan")

    @property
    def curved(self) -> float:
        """tr(HΣ)/GᵀHG; NaN where either is not positive."""
        return self.bent / self.along if self.bent > 0 and self.along > 0 else float("nan")


def noise_scale(problem: Problem, theta: Tensor, data: Batch, *, seed: int) -> NoiseScale:
    """Measure the noise scale at ``theta`` (n,) from every example's gradient.

    The two are equations (2.8) and (2.9) of [mccandlish2018]. ‖G‖² is de-biased by tr Σ/N, the part that the
    sampling of N examples adds. tr(HΣ) is the mean of uᵀHu over random sign sums u of the centred gradients.

    Args:
        problem: model and loss; the model is left as it is.
        theta: the weights.
        data: the training examples, in one batch.
        seed: of the signs.

    Cost: 2 gradient-equivalents and 17 Hessian–vector products.
    """
    model, loss = problem.model, problem.loss
    assert model is not None
    assert loss is not None
    sample = Sample((data,), None, complete=True, origin="all")
    objective = EmpiricalRisk(model, loss, sample)
    rng = generator(seed, "noise scale")
    with intact(model):
        gradients = _each(problem, objective, theta, data)
        count = len(gradients)
        mean = gradients.mean(dim=0)
        centred = gradients - mean
        trace = float(centred.double().square().sum()) / max(count - 1, 1)
        squared = float(mean.double().square().sum()) - trace / count
        signs = (torch.randint(0, 2, (PROBES, count), generator=rng) * 2 - 1).to(centred)
        sums = signs @ centred / max(count - 1, 1) ** 0.5
        bent = sum(float(u.double() @ objective.hvp(theta, u).double()) for u in sums) / PROBES
        along = float(mean.double() @ objective.hvp(theta, mean).double()) - bent / count
    return NoiseScale(trace, squared, bent, along, count)


def _each(problem: Problem, objective: EmpiricalRisk, theta: Tensor, data: Batch) -> Tensor:
    """Return the gradient of each example (N, n)."""
    space = objective.space
    holder = _Holder(problem)
    names = [f"model.{name}" for name in space.names]
    weights = dict(zip(names, space.unflatten(theta), strict=True))

    def of_one(w: dict[str, Tensor], example: object) -> Tensor:
        loss: Tensor = functional_call(holder, w, (example,))
        return loss

    rows = torch.arange(data.examples)
    try:
        parts = []
        for some in rows.split(_CHUNK):
            found = vmap(grad(of_one), in_dims=(None, 0))(weights, taken(data.data, some[:, None]))
            parts.append(torch.cat([found[name].reshape(len(some), -1) for name in names], dim=1))
        return torch.cat(parts).detach()
    except FOREIGN_FAILURES:
        few = rows[torch.randperm(len(rows), generator=generator(0, "noise scale", "few"))[:_FEW]]
        return torch.stack(
            [objective.training_step(theta, [Batch(taken(data.data, i[None]), 1)])[1] for i in few]
        )


class _Holder(torch.nn.Module):
    """Model and loss as one module, so that whatever the loss touches sees the substituted weights."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        assert problem.model is not None
        self.model = problem.model
        self._problem = copy.copy(problem)

    def forward(self, data: object) -> Tensor:
        """Return the loss of a batch."""
        assert self._problem.loss is not None
        return minimised(self._problem.loss, self.model, data)
