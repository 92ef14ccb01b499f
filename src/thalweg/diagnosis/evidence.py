"""Everything measured at a point. Deciding what it means is the business of the rules."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.certificate import Certificate
from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.spectrum import MAX_PRODUCTS, Extreme, Extremes, find_extremes
from thalweg.diagnosis.continuation import Continuation, continuation_cost, measure_continuation
from thalweg.diagnosis.gradient import Forecast, GradientEvidence, forecast, measure_gradient
from thalweg.diagnosis.line import OVERFLOW, LineProbe, probe_line
from thalweg.diagnosis.purse import Purse
from thalweg.errors import FOREIGN_FAILURES, ThalwegError
from thalweg.estimates import Estimate, weighted_mean
from thalweg.problem.cost import FORWARD, HVP_REBUILT
from thalweg.problem.objective import Objective, require_finite
from thalweg.problem.problem import Measured
from thalweg.problem.stepping import Stepping
from thalweg.progress import Progress, Silent
from thalweg.rng import generator, signs

__all__ = ["CurvatureEvidence", "Evidence", "gather", "measure_rounding"]

FORECAST_STEPS = 10
# Where the gradient alone decides, the curvature is only looked at, not searched to the end.
GLANCE = 24
OVERWHELMING = 30.0
PRACTICAL = 1e-3


@dataclass(frozen=True)
class CurvatureEvidence:
    """Both ends of the Hessian of the training loss, with what may have been missed."""

    lambda_max: Extreme
    lambda_min: Extreme
    floor: float
    certificate: Certificate
    num_hvps: int
    backend: str
    reason: str
    trace: Estimate
    complete: bool
    extremes: Extremes = field(repr=False, metadata={"json": False})


@dataclass(frozen=True)
class Evidence:
    """What was measured at a point.

    Attributes:
        loss: mean training loss with its sampling error.
        heldout_loss: the same over held-out data, None without.
        gap: held-out minus training loss.
        rounding: how far the training loss moves when every weight moves by one unit in the last place.
        scale: the size against which a change of the loss is called practical.
        gradient: see `GradientEvidence`.
        forecast: what gradient descent would buy.
        curvature: both ends of the spectrum.
        heldout_curvature: vᵀHv of the lowest direction over data that had no part in finding it.
        heldout_source: "held-out data", "training data" where there is no other, or "loss differences" for
            a plain function.
        lines: the loss along −g and ±v.
        continuation: what the user's next steps do; None where no optimiser is known.
        complete: whether the sample is all the training data.
    """

    loss: Estimate
    heldout_loss: Estimate | None
    gap: Estimate | None
    rounding: float
    scale: float
    gradient: GradientEvidence
    forecast: Forecast
    curvature: CurvatureEvidence
    heldout_curvature: Estimate
    heldout_source: str
    lines: tuple[LineProbe, ...]
    continuation: Continuation | None
    complete: bool

    @property
    def practical(self) -> float:
        """The smallest change of the loss that counts.

        0.1 % of its scale or, if that is less, its sampling error (which a constant added to the loss does
        not change); but at least a hundredth of the former, and above the rounding.
        """
        share = PRACTICAL * self.scale
        known = self.loss.stderr if 0 < self.loss.stderr < np.inf else share
        return max(min(share, max(known, 0.01 * share)), 4 * self.rounding)

    def line(self, name: str) -> LineProbe | None:
        """Return the probe along a direction, None where it was not made."""
        return next((line for line in self.lines if line.name == name), None)


def gather(
    measured: Measured,
    stepping: Stepping | None,
    *,
    seed: int,
    purse: Purse,
    progress: Progress | None = None,
) -> Evidence:
    """Measure everything the rules ask for, as far as the purse reaches.

    Cost: about 220 gradient-equivalents in full, 24 at the least.
    """
    told = progress or Silent()
    train, heldout = measured.train, measured.heldout
    theta = train.theta
    told.phase("loss and gradient")
    values, counts = train.batch_values(theta)
    loss = weighted_mean(values, counts)
    require_finite(loss.value, "the training loss")
    if train.examples == 1 and heldout is None:
        loss = Estimate(loss.value, 0.0)
    rounding = measure_rounding(train, theta, loss.value, seed, repeats=1 if purse.tight else 3)
    gradient = measure_gradient(train, theta, seed=seed)
    told.phase("curvature")
    scale = _scale(train, theta, loss, seed)
    ladder = 4 if purse.tight else 9
    share = heldout.examples / train.examples if heldout is not None else 0.0
    reserve = HVP_REBUILT * (share or 1.0) + ladder * FORWARD * 3 + 1 + 2 * share  # for what comes after
    curvature, ahead = _search(train, theta, gradient, stepping, scale, purse, reserve, seed, told)
    found = curvature.extremes
    told.phase("probing the loss")
    heldout_curvature, source = _confirm(train, heldout, theta, found)
    lines = _lines(train, heldout, theta, gradient, found, ahead, ladder)
    scale = max([scale, *(_typical(line) for line in lines)]) if train.examples == 1 else scale
    continuation = None
    if stepping is not None and purse.affords(continuation_cost(train, stepping)):
        told.phase("the next training steps")
        with contextlib.suppress(*FOREIGN_FAILURES, ThalwegError):
            # An optimiser that cannot be run on a copy (sparse gradients, say) leaves its steps unjudged.
            continuation = measure_continuation(train, theta, stepping, seed=seed)
    heldout_loss = weighted_mean(*heldout.batch_values(theta)) if heldout is not None else None
    return Evidence(
        loss=loss,
        heldout_loss=heldout_loss,
        gap=_gap(loss, heldout_loss),
        rounding=rounding,
        scale=scale,
        gradient=gradient,
        forecast=ahead,
        curvature=curvature,
        heldout_curvature=heldout_curvature,
        heldout_source=source,
        lines=lines,
        continuation=continuation,
        complete=measured.complete,
    )


def _search(
    train: Objective,
    theta: Tensor,
    gradient: GradientEvidence,
    stepping: Stepping | None,
    scale: float,
    purse: Purse,
    reserve: float,
    seed: int,
    told: Progress,
) -> tuple[CurvatureEvidence, Forecast]:
    """Look from the gradient first, then search both ends as far as the purse less ``reserve`` reaches."""
    lr = stepping.effective_lr if stepping is not None and stepping.is_gradient_descent else None
    choice = choose_hessian(train, theta, seed=seed)

    def affordable(part: float) -> float:
        return part * (purse.left - reserve) / choice.cost

    steps = int(max(2, min(FORECAST_STEPS, affordable(0.25))))
    glance = forecast(choice.operator, gradient.vector, lr=lr, steps=steps)
    products = int(max(3, min(MAX_PRODUCTS, affordable(1.0 if purse.tight else 0.75))))
    if glance.decrease(100) > OVERWHELMING * PRACTICAL * scale:
        products = min(GLANCE, products)
    found = find_extremes(choice.operator, seed=seed, max_products=products, progress=told)
    curvature = CurvatureEvidence(
        found.lambda_max,
        found.lambda_min,
        found.floor,
        found.certificate,
        found.num_hvps,
        choice.name,
        choice.reason,
        found.trace,
        found.complete,
        found,
    )
    return curvature, _rescaled(glance, found, lr)


def measure_rounding(objective: Objective, theta: Tensor, here: float, seed: int, *, repeats: int) -> float:
    """Move every weight by one unit in the last place, up or down, and see how far the loss moves."""
    unit = objective.roundoff
    moves = []
    for i in range(repeats):
        nudged = theta * (1 + unit * signs(theta.numel(), generator(seed, "rounding", i), like=theta))
        moves.append(abs(objective.value(nudged) - here))
    return max([*moves, unit * abs(here)])


def _scale(objective: Objective, theta: Tensor, loss: Estimate, seed: int) -> float:
    """The size of the loss, or of its variation nearby where a plain function passes through zero."""
    if objective.examples > 1:
        return abs(loss.value)
    flips = signs(theta.numel(), generator(seed, "scale"), like=theta)
    step = 0.1 * (1 + theta.abs()) * flips
    nearby = [abs(objective.value(theta + s * step) - loss.value) for s in (1.0, -1.0)]
    return max([abs(loss.value), *(value for value in nearby if np.isfinite(value))])


def _typical(line: LineProbe) -> float:
    """The median change along the ladder, where the function is defined."""
    finite = [abs(change.value) for change in line.train if abs(change.value) < OVERFLOW]
    return float(np.median(finite)) if finite else 0.0


def _rescaled(glance: Forecast, found: Extremes, lr: float | None) -> Forecast:
    """Take the step length from λmax, now that it is known."""
    positive = found.lambda_max.value
    curved = positive > max(found.floor, 1e-6 * found.scale)
    return glance.at(1.0 / positive if curved else (lr or glance.lr))


def _confirm(
    train: Objective, heldout: Objective | None, theta: Tensor, found: Extremes
) -> tuple[Estimate, str]:
    """Measure the lowest curvature again, where it was not found."""
    v = found.lambda_min.vector
    if heldout is not None:
        return weighted_mean(*heldout.batch_curvatures(theta, v)), "held-out data"
    if train.examples > 1:
        return weighted_mean(*train.batch_curvatures(theta, v)), "training data"
    # A plain function: second differences of its values share no code with its second derivative.
    eps = float(torch.finfo(theta.dtype).eps)
    step = eps**0.25 * (1 + float(theta.norm()))
    here = train.value(theta)
    second = []
    for h in (step, 2 * step):
        around = train.value(theta + h * v) + train.value(theta - h * v) - 2 * here
        second.append(around / h**2)
    rounding = 4 * eps * max(abs(here), 1e-300) / step**2
    return Estimate(second[0], abs(second[1] - second[0]) / 3 + rounding), "loss differences"


def _lines(
    train: Objective,
    heldout: Objective | None,
    theta: Tensor,
    gradient: GradientEvidence,
    found: Extremes,
    ahead: Forecast,
    ladder: int,
) -> tuple[LineProbe, ...]:
    lines = []
    reach = 0.5 * max(float(theta.double().norm()), 1.0)
    if gradient.norm > 0:
        farthest = max(min(100 * ahead.lr * gradient.norm, reach), 1e-12)
        lengths = np.geomspace(farthest * 1e-3, farthest, ladder).tolist()
        direction = -gradient.vector / gradient.norm
        lines.append(
            probe_line(
                train,
                heldout,
                theta,
                direction,
                lengths,
                name="−gradient",
                slope=-gradient.norm,
                both_ways=False,
            )
        )
    lengths = np.geomspace(reach * 1e-3, reach, ladder).tolist()
    lowest = found.lambda_min.vector
    slope = float(gradient.vector.double() @ lowest.double())
    lines.append(
        probe_line(
            train, heldout, theta, lowest, lengths, name="lowest curvature", slope=slope, both_ways=True
        )
    )
    return tuple(lines)


def _gap(loss: Estimate, heldout: Estimate | None) -> Estimate | None:
    if heldout is None:
        return None
    return Estimate(
        heldout.value - loss.value,
        float(np.hypot(heldout.stderr, loss.stderr)),
        min(heldout.num_samples, loss.num_samples),
    )
