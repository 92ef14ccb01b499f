"""The rules as a table: evidence in, verdict out, no model needed."""

from dataclasses import replace

import pytest
import torch

from thalweg.curvature.certificate import Certificate
from thalweg.curvature.spectrum import Extreme, Extremes
from thalweg.diagnosis.continuation import Continuation
from thalweg.diagnosis.evidence import CurvatureEvidence, Evidence
from thalweg.diagnosis.gradient import Forecast, GradientEvidence, LayerSignal
from thalweg.diagnosis.line import LineProbe
from thalweg.diagnosis.readings import Thresholds
from thalweg.diagnosis.rules import judge
from thalweg.diagnosis.verdict import Verdict
from thalweg.estimates import Estimate

VECTOR = torch.zeros(3)


def estimate(value, stderr=0.0):
    return Estimate(value, stderr, 32)


def curvature(high=10.0, low=0.01, floor=1e-5, relative_gap=0.01, complete=False):
    ends = Extreme(high, 1e-4, 1e-5, VECTOR), Extreme(low, 1e-4, 1e-5, VECTOR)
    certificate = Certificate(0.99, relative_gap * (high - low), relative_gap)
    found = Extremes(
        *ends, floor, certificate, 60, estimate(30.0, 1.0), VECTOR.numpy(), VECTOR.numpy(), complete
    )
    return CurvatureEvidence(
        *ends, floor, certificate, 60, 2.0, "exact", "", estimate(30.0, 1.0), complete, found
    )


def gradient(norm=1e-6, significant=False, layers=(1.0, 0.8, 0.5)):
    signals = tuple(LayerSignal(str(i), s) for i, s in enumerate(layers))
    return GradientEvidence(
        norm, 0.0, significant, 0.5, norm**2, (0.9 * norm, 1.1 * norm), None, None, signals, VECTOR
    )


def forecast(norm=1e-6, lr=0.1, curvature=1.0):
    return Forecast(lr, norm, (curvature,), (1.0,))


def line(*changes, name="lowest curvature", stderr=0.0, slope=0.0, heldout=None):
    """A probe at steps ±1 … with these changes, the steps in order."""
    half = len(changes) // 2
    steps = tuple(float(s) for s in (*range(-half, 0), *range(1, half + 1)))
    measured = tuple(estimate(c, stderr) for c in changes)
    best = min(range(len(changes)), key=lambda i: changes[i])
    tested = estimate(changes[best] if heldout is None else heldout, stderr)
    return LineProbe(name, slope, steps, measured, steps[best], tested)


def evidence(**changes):
    """A clear minimum, changed as asked."""
    base = Evidence(
        loss=estimate(1.0, 0.02),
        heldout_loss=estimate(1.1, 0.02),
        gap=estimate(0.1, 0.03),
        rounding=1e-7,
        scale=1.0,
        gradient=gradient(),
        forecast=forecast(),
        curvature=curvature(),
        heldout_curvature=estimate(0.01, 0.001),
        heldout_source="held-out data",
        lines=(line(0.5, 0.1, 0.1, 0.5),),
        continuation=None,
        complete=True,
        heldout_share=0.25,
    )
    return replace(base, **changes)


def noise_only(norm, upper):
    """A gradient on a part of the data whose batches do not agree."""
    found = replace(gradient(norm), unbiased_square=0.0, interval=(0.0, upper))
    return {"gradient": found, "forecast": forecast(norm), "complete": False}


DOWN = line(-0.2, -0.1, -0.1, -0.2, stderr=0.001)
SADDLE = {
    "curvature": curvature(low=-0.5),
    "heldout_curvature": estimate(-0.5, 0.01),
    "lines": (DOWN,),
}
STEEP = {"gradient": gradient(1.0, significant=True), "forecast": forecast(1.0)}

TABLE = {
    "a clear minimum": ({}, "minimum"),
    "a gradient that buys something": (STEEP, "descending"),
    "the same where the batches do not agree, on all the data": (
        {**STEEP, "gradient": gradient(1.0)},
        "descending",
    ),
    "the same on a part of the data": (
        {**STEEP, "gradient": gradient(1.0), "complete": False},
        "undetermined",
    ),
    "a long valley, of which much is still to gain": (
        {"gradient": gradient(0.003, significant=True), "forecast": forecast(0.003, lr=0.1, curvature=1e-4)},
        "plateau",
    ),
    "a probe along the gradient that still goes down": (
        {"lines": (line(0.5, 0.1, 0.1, 0.5), line(-0.02, -0.01, -0.01, -0.02, name="−gradient"))},
        "undetermined",
    ),
    "a gradient that is noise, and bounded well below what counts": (noise_only(0.1, 0.005), "minimum"),
    "a gradient that is noise, but might be more": (noise_only(0.1, 0.1), "undetermined"),
    "steps that jump over the way down": (
        {
            **STEEP,
            "continuation": Continuation(10, estimate(0.1, 0.01), estimate(-0.1, 0.01), estimate(-0.2, 0.01)),
        },
        "bouncing",
    ),
    "steps that go down, shorter ones less": (
        {
            **STEEP,
            "continuation": Continuation(
                10, estimate(-0.1, 0.01), estimate(-0.01, 0.001), estimate(0.09, 0.01)
            ),
        },
        "descending",
    ),
    "steps that fail with the short ones too": (
        {
            **STEEP,
            "continuation": Continuation(
                10, estimate(0.1, 0.01), estimate(0.01, 0.01), estimate(-0.09, 0.01)
            ),
        },
        "descending",
    ),
    "a confirmed way down without gradient": (SADDLE, "saddle"),
    "a gradient beside the negative curvature": ({**SADDLE, **STEEP}, "descending"),
    "negative curvature that held-out data do not confirm": (
        {**SADDLE, "heldout_curvature": estimate(-0.5, 0.3)},
        "undetermined",
    ),
    "negative curvature along which the held-out loss does not fall": (
        {**SADDLE, "lines": (line(-0.2, -0.1, -0.1, -0.2, stderr=0.001, heldout=0.1),)},
        "undetermined",
    ),
    "negative curvature below the floor": (
        {"curvature": curvature(low=-0.009, floor=0.01), "heldout_curvature": estimate(0.01, 0.01)},
        "minimum",
    ),
    "no curvature beside a valley, and the loss falls there": (
        {"curvature": curvature(low=0.0), "lines": (line(-8e-3, -1e-3, 1e-3, 8e-3, stderr=1e-5),)},
        "degenerate",
    ),
    "the same where held-out data do not fall": (
        {
            "curvature": curvature(low=0.0),
            "lines": (line(-8e-3, -1e-3, 1e-3, 8e-3, stderr=1e-5, heldout=1e-3),),
        },
        "undetermined",
    ),
    "one weak layer of several": ({"gradient": gradient(layers=(1.0, 1e-5, 1.0))}, "minimum"),
    "confirmed negative curvature that leads down only a little": (
        {**SADDLE, "lines": (line(-2e-4, -1e-4, -1e-4, -2e-4, stderr=1e-5),)},
        "saddle",
    ),
    "curvature below zero within the flatness": (
        {"curvature": curvature(low=-0.005), "heldout_curvature": estimate(0.01, 0.01)},
        "minimum",
    ),
    "the same where every eigenvalue is known": (
        {"curvature": curvature(low=-0.005, complete=True), "heldout_curvature": estimate(0.01, 0.01)},
        "undetermined",
    ),
    "too few products for a certificate": ({"curvature": curvature(relative_gap=0.3)}, "undetermined"),
    "layers without a signal": ({"gradient": gradient(layers=(1e-6, 1e-5, 1.0))}, "plateau"),
    "layers without any signal": ({"gradient": gradient(layers=(0.0, 0.0, 1.0))}, "plateau"),
    "a weak but present signal": ({"gradient": gradient(layers=(1e-2, 0.1, 1.0))}, "minimum"),
    "a slope so slight that it never arrives": (
        {"gradient": gradient(1e-3, significant=True), "forecast": forecast(1e-3, curvature=0.0)},
        "plateau",
    ),
    "everything goes down": (
        {**SADDLE, "curvature": curvature(high=-0.1, low=-0.5)},
        "maximum",
    ),
    "everything found goes down, too few products": (
        {**SADDLE, "curvature": curvature(high=-0.1, low=-0.5, relative_gap=0.3)},
        "undetermined",
    ),
    "no curvature, a cubic": (
        {"curvature": curvature(0.0, 0.0, floor=0.0, complete=True), "lines": (line(-8, -1, 1, 8),)},
        "degenerate",
    ),
    "no curvature, a quartic": (
        {"curvature": curvature(0.0, 0.0, floor=0.0, complete=True), "lines": (line(16, 1, 1, 16),)},
        "degenerate",
    ),
    "no curvature and no change": (
        {"curvature": curvature(0.0, 0.0, floor=0.0, complete=True), "lines": (line(0.0, 0.0, 0.0, 0.0),)},
        "undetermined",
    ),
    "a change that the gradient explains": (
        {
            "curvature": curvature(0.0, 0.0, floor=0.0, complete=True),
            "lines": (line(-0.2, -0.1, 0.1, 0.2, slope=0.1),),
        },
        "undetermined",
    ),
    "products that are mostly noise": ({"curvature": curvature(floor=1.0)}, "undetermined"),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_table(case):
    changes, verdict = TABLE[case]
    judgement = judge(evidence(**changes))
    assert judgement.verdict is Verdict(verdict), judgement.summary
    assert judgement.summary
    assert judgement.summary[0].islower()


def test_every_verdict_is_in_the_table():
    assert {verdict for _, verdict in TABLE.values()} == {verdict.value for verdict in Verdict}


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("case", TABLE)
def test_a_loss_in_other_units_gets_the_same_verdict(case, factor):
    e = evidence(**TABLE[case][0])

    def scaled(x):
        return None if x is None else Estimate(x.value * factor, x.stderr * factor, x.num_samples)

    c = e.curvature

    def end(x):
        return replace(x, value=x.value * factor, bound=x.bound * factor, residual=x.residual * factor)

    high, low = end(c.lambda_max), end(c.lambda_min)
    certificate = replace(c.certificate, gap=c.certificate.gap * factor)
    extremes = replace(
        c.extremes, lambda_max=high, lambda_min=low, floor=c.floor * factor, certificate=certificate
    )
    other = replace(
        e,
        loss=scaled(e.loss),
        rounding=e.rounding * factor,
        scale=e.scale * factor,
        gradient=replace(
            e.gradient,
            norm=e.gradient.norm * factor,
            unbiased_square=e.gradient.unbiased_square * factor**2,
            interval=tuple(x * factor for x in e.gradient.interval),
        ),
        forecast=Forecast(
            e.forecast.lr / factor,
            e.forecast.gradient_norm * factor,
            tuple(x * factor for x in e.forecast.nodes),
            e.forecast.weights,
        ),
        curvature=replace(
            c,
            lambda_max=high,
            lambda_min=low,
            floor=c.floor * factor,
            certificate=certificate,
            extremes=extremes,
        ),
        heldout_curvature=scaled(e.heldout_curvature),
        lines=tuple(
            replace(x, slope=x.slope * factor, train=tuple(map(scaled, x.train)), heldout=scaled(x.heldout))
            for x in e.lines
        ),
        continuation=None
        if e.continuation is None
        else Continuation(
            10, *(scaled(getattr(e.continuation, n)) for n in ("as_configured", "tenth", "advantage"))
        ),
    )
    assert judge(other).verdict is judge(e).verdict


def test_thresholds_can_be_moved_without_measuring_again():
    e = evidence(curvature=curvature(relative_gap=0.3))
    assert judge(e).verdict is Verdict.UNDETERMINED
    assert judge(e, Thresholds(open_gap=0.5)).verdict is Verdict.MINIMUM


def test_undetermined_says_what_is_missing():
    open_ended = judge(evidence(curvature=curvature(relative_gap=0.3))).summary
    assert "would decide, at about" in open_ended
    assert "gradient-equivalents" in open_ended
    unconfirmed = TABLE["negative curvature that held-out data do not confirm"][0]
    assert "times as many held-out examples would decide" in judge(evidence(**unconfirmed)).summary
    assert "float64" in judge(evidence(curvature=curvature(floor=1.0))).summary
