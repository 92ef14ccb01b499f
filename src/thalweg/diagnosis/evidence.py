"""What is known about a point: the measurements, and what follows from them without another one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from thalweg.curvature.certificate import Certificate
from thalweg.curvature.spectrum import Extreme, Extremes
from thalweg.curvature.stability import Stability
from thalweg.diagnosis.activity import LayerActivity, SignalFall
from thalweg.diagnosis.causes import Cause
from thalweg.diagnosis.continuation import Continuation
from thalweg.diagnosis.gradient import Forecast, GradientEvidence
from thalweg.diagnosis.line import LineProbe
from thalweg.estimates import Estimate

__all__ = ["PRACTICAL", "CurvatureEvidence", "Evidence"]

PRACTICAL = 1e-3


@dataclass(frozen=True)
class CurvatureEvidence:
    """Both ends of the Hessian of the training loss, with what may have been missed.

    ``product_cost`` is that of one more product, in gradient-equivalents.
    """

    lambda_max: Extreme
    lambda_min: Extreme
    floor: float
    certificate: Certificate
    num_hvps: int
    product_cost: float
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
        causes: what keeps the training from moving that is not the landscape.
        activity: what each layer's activation passes on; empty for a plain function.
        fall: how the learning signal falls from layer to layer.
        optimizer: what trains it; None where that is not known.
        stability: the largest curvature its steps meet, against what they can take; None where unknown.
        heldout_share: held-out examples relative to the training examples measured; 0 without.
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
    heldout_share: float
    causes: tuple[Cause, ...] = ()
    activity: tuple[LayerActivity, ...] = ()
    fall: SignalFall | None = None
    optimizer: str | None = None
    stability: Stability | None = None

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

    def bought(self, steps: float) -> tuple[float, float]:
        """Return what ``steps`` of gradient descent buy: as estimated, and at the most.

        Over all the training data the two are one. On a part of them the sample's gradient holds noise
        that more data would take out: the estimate goes by the unbiased ‖G‖², the most by the upper end of
        its 95 % interval.
        """
        decrease, square = self.forecast.decrease(steps), self.gradient.norm**2
        if self.complete or square == 0:
            return decrease, decrease
        most = self.gradient.interval[1] ** 2
        likely = min(max(self.gradient.unbiased_square, 0.0), most)
        return decrease * likely / square, decrease * most / square
