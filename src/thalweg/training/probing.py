"""Quantities on a fixed probe batch, in evaluation mode: how sharp the loss is where training goes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import intact
from thalweg.problem.objective import Objective
from thalweg.training.critical_sharpness import Crossing, crossing
from thalweg.training.leading_curvature import WarmLanczos
from thalweg.training.quantities import Moment, Values
from thalweg.training.schedule import Every, Schedule

__all__ = ["CriticalSharpness", "LargestCurvature", "Probe"]


@dataclass(frozen=True)
class Probe:
    """The loss over a fixed batch as a function of the weights, at the running statistics of the moment."""

    objective: Objective

    def now(self) -> Objective:
        """Return the function with the model's present buffers."""
        return self.objective.at_present() if isinstance(self.objective, EmpiricalRisk) else self.objective


@dataclass
class CriticalSharpness:
    """λ_c = 2/η_c, η_c the learning rate at which this step would begin to raise the loss ([kalra2026]).

    Recorded are ``step/critical`` (how many times as long the step could be), ``curv/critical`` (λ_c), and
    ``curv/critical_x_lr_half`` = 1/``step/critical``: 1 and more means that the step went too far. Nothing is
    recorded where the step raises the loss of the probe however short it is.

    For steps along the gradient λ_c ≤ λmax on a quadratic; for other steps (momentum, Adam) it is the
    curvature relative to what the step was meant to gain, to be compared with 2/η directly.
    """

    probe: Probe
    schedule: Schedule = field(default_factory=lambda: Every(50))
    name = "critical_sharpness"
    guess = 2.5
    at_gradient = False
    needs_before = True
    needs_captures = False
    _last: Crossing | None = None

    def measure(self, moment: Moment) -> Values:
        """Cost: about six forward passes over the probe, ten at most."""
        assert moment.before is not None
        start = 2.0
        if self._last is not None and math.isfinite(self._last.scale):
            start = min(max(self._last.scale, 1e-2), 1e3)
        with intact(moment.model):
            objective = self.probe.now()
            before, after = _flat(moment.before), _flat(moment.parameters)
            change = after - before

            def loss(scale: float) -> float:
                return objective.value(before + scale * change)

            found = crossing(loss, start=start, rounding=4 * objective.roundoff)
        self._last = found
        if not math.isfinite(found.scale):
            return {"step/critical": found.scale}
        values = {"step/critical": found.scale, "curv/critical_x_lr_half": 1 / found.scale}
        if moment.lr is not None and moment.lr > 0:
            values["curv/critical"] = found.sharpness(moment.lr)
        return values


@dataclass
class LargestCurvature:
    """λmax of the Hessian over the probe, by Lanczos from its last vector ([parlett1998], ch. 13).

    Recorded are ``curv/lambda_max``, ``curv/lambda_max_error`` (its residual) and, where there is a learning
    rate, ``curv/lambda_max_x_lr_half`` = λη/2: 1 is the edge of stability of gradient descent ([cohen2021]).
    """

    probe: Probe
    lanczos: WarmLanczos
    schedule: Schedule = field(default_factory=lambda: Every(100))
    name = "curvature"
    guess = 45.0
    at_gradient = False
    needs_before = False
    needs_captures = False

    def measure(self, moment: Moment) -> Values:
        """Cost: 40 to 60 gradients of the probe the first time, then about ten."""
        with intact(moment.model):
            found = self.lanczos.measure(self.probe.now(), _flat(moment.parameters))
        values = {"curv/lambda_max": found.value, "curv/lambda_max_error": found.residual}
        if moment.lr is not None:
            values["curv/lambda_max_x_lr_half"] = found.value * moment.lr / 2
        return values


def _flat(tensors: list[Tensor] | list[torch.nn.Parameter]) -> Tensor:
    """Join to one vector in the widest precision among them."""
    widest = torch.float32
    for tensor in tensors:
        widest = torch.promote_types(widest, tensor.dtype)
    return torch.cat([tensor.detach().reshape(-1).to(widest) for tensor in tensors])
