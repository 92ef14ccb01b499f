"""The gradient with its sampling error, layer by layer, and what gradient descent would make of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Operator
from thalweg.diagnosis.agreement import agreement
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.objective import Objective
from thalweg.rng import generator, signs

__all__ = ["Forecast", "GradientEvidence", "LayerSignal", "forecast", "measure_gradient"]

# Batch gradients are kept whole up to this many bytes, as signed sums of SKETCH coordinates beyond.
KEEP_BYTES = 1 << 30
SKETCH = 1 << 16
SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class LayerSignal:
    """How much of the learning signal reaches a layer.

    ``signal`` is the root mean square over batches of ‖∂L_b/∂W‖, relative to ‖W‖: what a batch asks of the
    layer, whether or not the batches agree. At a minimum it stays; without signal it vanishes.
    """

    name: str
    signal: float


@dataclass(frozen=True)
class GradientEvidence:
    """The gradient of the training loss at the point.

    Attributes:
        norm: ‖g‖ over the whole sample.
        stderr: √(tr Σ/k): how far g lies from the population's gradient, typically, for sampling alone.
        significant: whether the batches agree on a direction (sign-flip test at 1 %); for a plain function,
            whether the norm is above rounding.
        p_value: of that test.
        unbiased_square: estimate of the population's ‖G‖² free of the noise's share; may be negative.
        interval: 95 % interval of the population's ‖G‖; without upper end where one batch cannot tell.
        noise_scale: tr Σ/‖G‖² in examples, the batch size at which noise and signal balance
            ([mccandlish2018], eq. (2.9)); None where no signal is seen.
        noise_scale_interval: 95 %, None where the signal may be nothing.
        layers: the learning signal layer by layer, from input to output.
        vector: g (n,).
    """

    norm: float
    stderr: float
    significant: bool
    p_value: float
    unbiased_square: float
    interval: tuple[float, float]
    noise_scale: float | None
    noise_scale_interval: tuple[float, float] | None
    layers: tuple[LayerSignal, ...]
    vector: Tensor = field(repr=False, metadata={"json": False})


@dataclass(frozen=True)
class Forecast:
    """What gradient descent buys on the quadratic model, from a short Lanczos run that starts at g.

    With Ritz values θ_i and weights ω_i of that run, t steps of length η lower the model by
    ‖g‖² Σ ω_i (1−(1−ηθ_i)^{2t}) / 2θ_i, exactly so for t < number of steps ([golub2009], §6.2); negative
    θ_i count as flat.
    """

    lr: float  # η: the step length of the forecast
    gradient_norm: float
    nodes: tuple[float, ...]
    weights: tuple[float, ...]

    def decrease(self, steps: float) -> float:
        """Return the predicted decrease of the loss after ``steps`` steps."""
        curvature = np.maximum(np.asarray(self.nodes), 0.0)
        share = np.asarray(self.weights)
        contraction = self.lr * curvature
        flat = contraction * steps < 1e-9
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            left = np.abs(1.0 - contraction) ** (2 * steps)
            gained = np.where(flat, self.lr * steps, (1.0 - left) / (2 * curvature))
        gained = np.maximum(gained, -1e30)  # steps beyond 2/λ raise the loss without end
        return float(self.gradient_norm**2 * np.sum(share * gained))

    def at(self, lr: float) -> Forecast:
        """Return the same forecast for another step length."""
        return replace(self, lr=lr)

    def steps_until(self, decrease: float, most: float = 1e12) -> float | None:
        """Return after how many steps the loss has fallen by ``decrease``; None if never."""
        if decrease <= 0:
            return 0.0
        if self.decrease(most) < decrease:
            return None
        low, high = 0.0, math.log(most)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.decrease(math.exp(middle)) >= decrease else (middle, high)
        return math.exp(high)


def measure_gradient(objective: Objective, theta: Tensor, *, seed: int) -> GradientEvidence:
    """Measure the gradient of each statistical batch once.

    What the batches say together (‖G‖² without the noise's share, its interval, the noise scale, whether
    they agree on a direction) is in `thalweg.diagnosis.agreement`.

    Cost: 1 gradient-equivalent.
    """
    rows: list[Tensor] = []
    counts: list[float] = []
    total = torch.zeros_like(theta, dtype=torch.float64)
    layers = _layer_slices(objective)
    squares = dict.fromkeys(layers, 0.0)
    reduce = _reducer(objective, theta, seed)
    for gradient, count in objective.batch_gradients(theta):
        total += gradient.double() * count
        counts.append(count)
        rows.append(reduce(gradient))
        for name, parts in layers.items():
            squares[name] += sum(float(gradient[part].double().square().sum()) for part in parts)
    vector = (total / sum(counts)).to(theta)
    signal = tuple(
        LayerSignal(name, math.sqrt(squares[name] / len(counts)) / _weight_norm(theta, parts))
        for name, parts in layers.items()
    )
    if len(counts) < 2:
        return _unsampled(objective, theta, vector, signal)
    gram = torch.stack(rows).double()
    together = agreement((gram @ gram.T).cpu().numpy(), np.asarray(counts), seed=seed)
    significant = together.p_value < SIGNIFICANCE
    size = objective.examples / len(counts)
    ratio = together.noise_ratio if significant else None
    bounds = together.ratio_interval if significant else None
    return GradientEvidence(
        norm=float(vector.double().norm()),
        stderr=math.sqrt(together.noise / len(counts)),
        significant=significant,
        p_value=together.p_value,
        unbiased_square=together.square,
        interval=together.norm_interval,
        noise_scale=None if ratio is None else size * ratio,
        noise_scale_interval=None if bounds is None else (size * bounds[0], size * bounds[1]),
        layers=signal,
        vector=vector,
    )


def _unsampled(
    objective: Objective, theta: Tensor, vector: Tensor, signal: tuple[LayerSignal, ...]
) -> GradientEvidence:
    """One batch cannot tell noise from signal; a plain function has no noise but rounding."""
    norm = float(vector.double().norm())
    exact = objective.examples == 1
    rounding = 8 * objective.roundoff * abs(objective.value(theta)) if exact and norm > 0 else math.inf
    sharp = norm * max(float(theta.double().norm()), 1e-30) > rounding
    interval = (norm, norm) if exact else (0.0, math.inf)
    return GradientEvidence(
        norm, 0.0, sharp, 0.0 if sharp else 1.0, norm**2, interval, None, None, signal, vector
    )


def forecast(operator: Operator, gradient: Tensor, *, lr: float | None, steps: int) -> Forecast:
    """Predict what gradient descent buys from here.

    Args:
        operator: the Hessian.
        gradient: g (n,).
        lr: the step length where no positive curvature sets one.
        steps: products to spend.
    """
    norm = float(gradient.double().norm())
    if norm == 0 or steps < 1:
        return Forecast(lr or 0.0, norm, (0.0,), (1.0,))
    krylov = tridiagonalise(operator, gradient, max_steps=steps)
    ritz = krylov.ritz()
    bound = float(np.abs(ritz.values).max())
    curved = float(ritz.values.max()) > 1e-6 * bound
    step = 1.0 / bound if curved else (lr or (1.0 / bound if bound > 0 else 1.0))
    return Forecast(step, norm, tuple(ritz.values.tolist()), tuple((ritz.vectors[0] ** 2).tolist()))


def _layer_slices(objective: Objective) -> dict[str, list[slice]]:
    """Group the parameters that the loss uses by the module that owns them, in the model's order."""
    if not isinstance(objective, EmpiricalRisk):
        return {}
    layers: dict[str, list[slice]] = {}
    for name, part in objective.space.slices().items():
        if name in objective.unused:
            continue
        layers.setdefault(name.rpartition(".")[0] or name, []).append(part)
    return layers


def _weight_norm(theta: Tensor, parts: list[slice]) -> float:
    norm = math.sqrt(sum(float(theta[part].double().square().sum()) for part in parts))
    return norm if norm > 0 else math.sqrt(sum(part.stop - part.start for part in parts))


def _reducer(objective: Objective, theta: Tensor, seed: int):  # type: ignore[no-untyped-def]
    """Return what is kept of a batch gradient: all of it, or a sketch that keeps inner products unbiased."""
    groups = len(objective.groups) if isinstance(objective, EmpiricalRisk) else 1
    n = theta.numel()
    if groups * n * theta.element_size() <= KEEP_BYTES:
        return lambda gradient: gradient
    flips = signs(n, generator(seed, "sketch"), like=theta)
    padding = -n % SKETCH

    def sketch(gradient: Tensor) -> Tensor:
        mixed = torch.nn.functional.pad(gradient * flips, (0, padding))
        return mixed.view(-1, SKETCH).sum(0)

    return sketch
