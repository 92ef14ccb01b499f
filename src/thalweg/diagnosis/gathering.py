"""Measure everything the rules ask for. Deciding what it means is their business."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg.curvature.hessian import HessianChoice, choose_hessian
from thalweg.curvature.spectrum import MAX_PRODUCTS, Extremes, find_extremes
from thalweg.curvature.stability import Stability, gradient_scale, is_plain, measure_stability
from thalweg.diagnosis.activity import measure_activity, signal_fall
from thalweg.diagnosis.causes import find_causes
from thalweg.diagnosis.continuation import (
    MOST_REPLICATES,
    REPLICATES,
    Continuation,
    continuation_cost,
    measure_continuation,
)
from thalweg.diagnosis.evidence import PRACTICAL, CurvatureEvidence, Evidence
from thalweg.diagnosis.gradient import Forecast, GradientEvidence, forecast, measure_gradient
from thalweg.diagnosis.line import OVERFLOW, LineProbe, probe_line
from thalweg.diagnosis.purse import Purse
from thalweg.errors import FOREIGN_FAILURES, ThalwegError
from thalweg.estimates import Estimate, weighted_mean
from thalweg.problem.blur import largest_number
from thalweg.problem.cost import FORWARD, HVP_REBUILT
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.finite import require_finite_gradient, require_finite_loss
from thalweg.problem.objective import Objective
from thalweg.problem.problem import Measured
from thalweg.problem.stepping import Stepping
from thalweg.progress import Progress, Silent
from thalweg.rng import generator, signs

__all__ = ["gather", "loss_gap", "measure_rounding"]

FORECAST_STEPS = 10
# Where the gradient alone decides, the curvature is only looked at, not searched to the end.
GLANCE = 24
OVERWHELMING = 30.0
NEGLIGIBLE = 1e-3  # of the variation nearby: a loss that passes through zero has no size of its own
STABILITY_PRODUCTS = 12  # on the preconditioned curvature, whose bound says how well that was enough


@dataclass(frozen=True)
class _Site:
    """The place that is measured, and the means."""

    train: Objective
    heldout: Objective | None
    theta: Tensor
    stepping: Stepping | None
    seed: int
    purse: Purse
    told: Progress

    @property
    def share(self) -> float:
        """Held-out examples relative to training examples."""
        return self.heldout.examples / self.train.examples if self.heldout is not None else 0.0

    @property
    def ladder(self) -> int:
        """How many lengths a line is probed at."""
        return 4 if self.purse.tight else 9

    @property
    def reserve(self) -> float:
        """What has to be left for the probes after the search, in gradient-equivalents."""
        return HVP_REBUILT * (self.share or 1.0) + self.ladder * FORWARD * 3 + 2 + 2 * self.share


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
    train, heldout = measured.train, measured.heldout
    site = _Site(train, heldout, train.theta, stepping, seed, purse, progress or Silent())
    site.told.phase("loss and gradient")
    loss = _mean_loss(train, site.theta, "the training loss")
    if train.examples == 1 and heldout is None:
        loss = Estimate(loss.value, 0.0)
    repeats = 1 if purse.tight else 3
    rounding = measure_rounding(train, site.theta, loss.value, seed=seed, repeats=repeats)
    gradient = measure_gradient(train, site.theta, seed=seed)
    require_finite_gradient(train, gradient.vector)
    causes = find_causes(measured, stepping, gradient, loss, seed=seed)
    site.told.phase("curvature")
    scale = _scale(site, loss)
    curvature, ahead, stability = _search(site, gradient, scale)
    site.told.phase("probing the loss")
    heldout_curvature, source = _confirm(site, curvature.extremes)
    lines = _lines(site, gradient, curvature.extremes, ahead)
    if train.examples == 1 and scale != abs(loss.value):
        scale = _size(loss, max([scale, *(_typical(line) for line in lines)]))
    heldout_loss = _mean_loss(heldout, site.theta, "the held-out loss") if heldout is not None else None
    return Evidence(
        loss=loss,
        heldout_loss=heldout_loss,
        gap=None if heldout_loss is None else loss_gap(loss, heldout_loss, complete=measured.complete),
        rounding=rounding,
        scale=scale,
        gradient=gradient,
        forecast=ahead,
        curvature=curvature,
        heldout_curvature=heldout_curvature,
        heldout_source=source,
        lines=lines,
        continuation=_continuation(site),
        complete=measured.complete,
        heldout_share=site.share,
        causes=causes,
        activity=measure_activity(train, site.theta) if isinstance(train, EmpiricalRisk) else (),
        fall=signal_fall(gradient.layers),
        optimizer=stepping.name if stepping is not None else None,
        stability=stability,
    )


def _mean_loss(objective: Objective, theta: Tensor, what: str) -> Estimate:
    values, counts = objective.batch_values(theta)
    require_finite_loss(objective, theta, values, what)
    return weighted_mean(values, counts)


def measure_rounding(objective: Objective, theta: Tensor, here: float, *, seed: int, repeats: int) -> float:
    """Move every weight by one unit in the last place, up or down, and see how far the loss moves.

    Where it does not move at all, it stands on a step of its own rounding (the cross-entropy of a classifier
    that is certain of everything comes out as 0): a unit of the largest number on the way is then the least.

    Cost: 1/3 gradient-equivalent each time, and once more where the loss does not move.
    """
    unit = objective.roundoff
    moves = []
    for i in range(repeats):
        nudged = theta * (1 + unit * signs(theta.numel(), generator(seed, "rounding", i), like=theta))
        moves.append(abs(objective.value(nudged) - here))
    if max(moves) == 0:
        _, largest = largest_number(objective, theta)
        moves.append(unit * largest)
    return max([*moves, unit * abs(here)])


def loss_gap(loss: Estimate, heldout: Estimate, *, complete: bool) -> Estimate:
    """Return how much worse it does on new data: population loss minus training loss.

    With ``complete``, ``loss`` is over all the training data, and has no sampling error of its own.
    """
    value = heldout.value - loss.value
    if complete:
        return Estimate(value, heldout.stderr, heldout.num_samples)
    both = float(np.hypot(heldout.stderr, loss.stderr))
    return Estimate(value, both, min(heldout.num_samples, loss.num_samples))


def _search(
    site: _Site, gradient: GradientEvidence, scale: float
) -> tuple[CurvatureEvidence, Forecast, Stability | None]:
    """Look from the gradient first, then search both ends as far as the purse reaches."""
    stepping, purse = site.stepping, site.purse
    lr = stepping.effective_lr if stepping is not None and stepping.is_gradient_descent else None
    choice = choose_hessian(site.train, site.theta, seed=site.seed)

    def affordable(part: float) -> float:
        return part * (purse.left - site.reserve) / choice.cost

    steps = int(max(2, min(FORECAST_STEPS, affordable(0.25))))
    glance = forecast(choice.operator, gradient.vector, lr=lr, steps=steps)
    products = int(max(3, min(MAX_PRODUCTS, affordable(1.0 if purse.tight else 0.75))))
    if glance.decrease(100) > OVERWHELMING * PRACTICAL * scale:
        products = min(GLANCE, products)
    found = find_extremes(
        choice.operator, seed=site.seed, max_products=products, noise=choice.noise, progress=site.told
    )
    curvature = CurvatureEvidence(
        lambda_max=found.lambda_max,
        lambda_min=found.lambda_min,
        floor=found.floor,
        certificate=found.certificate,
        num_hvps=found.num_hvps,
        product_cost=choice.cost,
        backend=choice.name,
        reason=choice.reason,
        trace=found.trace,
        complete=found.complete,
        extremes=found,
    )
    return curvature, _rescaled(glance, found, lr), _stability(site, choice, found)


def _stability(site: _Site, choice: HessianChoice, found: Extremes) -> Stability | None:
    """Hold the curvature that the optimiser's steps meet against what they can take."""
    stepping = site.stepping
    price = site.reserve + STABILITY_PRODUCTS * choice.cost
    if stepping is None or stepping.lr == 0 or not (is_plain(stepping) or site.purse.affords(price)):
        return None
    with contextlib.suppress(*FOREIGN_FAILURES, ThalwegError):
        stability = measure_stability(
            choice.operator,
            found.lambda_max,
            stepping,
            seed=site.seed,
            noise=choice.noise,
            gradient_scale=gradient_scale(site.train, site.theta, stepping),
            max_products=STABILITY_PRODUCTS,
        )
        return None if isinstance(stability, str) else stability
    return None


def _scale(site: _Site, loss: Estimate) -> float:
    """The size of the loss, or of its variation nearby where a plain function passes through zero."""
    if site.train.examples > 1:
        return abs(loss.value)
    theta = site.theta
    flips = signs(theta.numel(), generator(site.seed, "scale"), like=theta)
    size = torch.maximum(theta.abs(), theta.abs().mean())
    step = 0.1 * torch.where(size > 0, size, torch.ones_like(size)) * flips
    nearby = [abs(site.train.value(theta + s * step) - loss.value) for s in (1.0, -1.0)]
    return _size(loss, min((value for value in nearby if np.isfinite(value)), default=0.0))


def _size(loss: Estimate, variation: float) -> float:
    """The loss itself, unless it is next to nothing beside how it varies."""
    return abs(loss.value) if abs(loss.value) > NEGLIGIBLE * variation else variation


def _typical(line: LineProbe) -> float:
    """The median change along the ladder, where the function is defined."""
    finite = [abs(change.value) for change in line.train if abs(change.value) < OVERFLOW]
    return float(np.median(finite)) if finite else 0.0


def _rescaled(glance: Forecast, found: Extremes, lr: float | None) -> Forecast:
    """Take the step length from λmax, now that it is known; few products may leave it below the glance's."""
    positive = max(found.lambda_max.value, *glance.nodes)
    curved = positive > max(found.floor, 1e-6 * found.scale)
    return glance.at(1.0 / positive if curved else (lr or glance.lr))


def _confirm(site: _Site, found: Extremes) -> tuple[Estimate, str]:
    """Measure the lowest curvature again, where it was not found."""
    train, theta, v = site.train, site.theta, found.lambda_min.vector
    if site.heldout is not None:
        return weighted_mean(*site.heldout.batch_curvatures(theta, v)), "held-out data"
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
    site: _Site, gradient: GradientEvidence, found: Extremes, ahead: Forecast
) -> tuple[LineProbe, ...]:
    reach = 0.5 * max(float(site.theta.double().norm()), 1.0)

    def probe(direction: Tensor, farthest: float, name: str, slope: float, both_ways: bool) -> LineProbe:
        return probe_line(
            site.train,
            site.heldout,
            site.theta,
            direction,
            np.geomspace(farthest * 1e-3, farthest, site.ladder).tolist(),
            name=name,
            slope=slope,
            both_ways=both_ways,
        )

    lines = []
    if gradient.norm > 0:
        farthest = max(min(100 * ahead.lr * gradient.norm, reach), 1e-12)
        down = -gradient.vector / gradient.norm
        lines.append(probe(down, farthest, "−gradient", -gradient.norm, False))
    lowest = found.lambda_min.vector
    slope = float(gradient.vector.double() @ lowest.double())
    lines.append(probe(lowest, reach, "lowest curvature", slope, True))
    return tuple(lines)


def _continuation(site: _Site) -> Continuation | None:
    """Run the user's optimiser on a copy; one that cannot be (sparse gradients, say) stays unjudged."""
    stepping, train = site.stepping, site.train
    if stepping is None or not site.purse.affords(continuation_cost(train, stepping)):
        return None
    many = site.purse.affords(continuation_cost(train, stepping, replicates=MOST_REPLICATES))
    replicates = REPLICATES, MOST_REPLICATES if many else REPLICATES
    site.told.phase("the next training steps")
    with contextlib.suppress(*FOREIGN_FAILURES, ThalwegError):
        return measure_continuation(train, site.theta, stepping, seed=site.seed, replicates=replicates)
    return None
