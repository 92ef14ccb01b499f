"""The evidence as labelled lines: every number with its error and what it means."""

from __future__ import annotations

import math

from thalweg.curvature.spectrum import describe_certificate
from thalweg.curvature.stability import Stability
from thalweg.diagnosis.evidence import Evidence
from thalweg.estimates import Estimate
from thalweg.report.document import signed, significant

__all__ = ["facts"]

NOTEWORTHY = 0.2  # the share of closed units in a layer from which on it is said
ALIKE = 0.01  # the variation below which a layer hardly tells its inputs apart
ABOUT_AS_MUCH = 2.0  # the ratio of the strongest layer's signal to the weakest's below which none stands out
ENOUGH_LAYERS = 4  # for the fall of the signal to be a fit


def facts(e: Evidence, examples: int) -> tuple[tuple[str, str], ...]:
    """Return (label, text) for all that was measured.

    Args:
        e: the evidence.
        examples: training examples measured; 1 for a plain function.
    """
    rows = [("loss", _loss(e)), ("gradient", _gradient(e, examples)), ("curvature", _curvature(e))]
    if examples > 1:
        rows.append(("held out", _confirmation(e)))
    if e.stability is not None:
        rows.append(("stability", _stability(e.stability)))
    if len(e.gradient.layers) > 1:
        rows.append(("signal", _signal(e)))
    if units := _units(e):
        rows.append(("units", units))
    if e.continuation is not None:
        c = e.continuation
        rows.append(
            (
                f"next {c.steps} steps",
                f"change the training loss by {_change(c.as_configured)}, "
                f"with a tenth of the learning rate by {_change(c.tenth)}",
            )
        )
    if e.gap is not None and e.heldout_loss is not None:
        low, high = e.gap.interval(0.95)
        rows.append(
            (
                "generalisation",
                f"training {significant(e.loss.value, 3)}, held-out {significant(e.heldout_loss.value, 3)}, "
                f"gap {significant(e.gap.value)} (95 %: {significant(low)} … {significant(high)})",
            )
        )
    return tuple(rows)


def _loss(e: Evidence) -> str:
    text = significant(e.loss.value, 4)
    if e.loss.stderr > 0:
        text += f" ± {significant(e.loss.stderr)} over the examples"
    return text + f", computed to ± {significant(e.rounding, 1)}"


def _gradient(e: Evidence, examples: int) -> str:
    g = e.gradient
    text = f"‖g‖ {significant(g.norm)}"
    if g.stderr > 0 and math.isfinite(g.interval[1]):
        low, high = g.interval
        text += f" over the sample, {significant(low)} … {significant(high)} over all such data (95 %)"
    bought = e.bought(100)[0]
    buys = "more than the loss itself" if bought > e.scale else significant(bought)
    text += f"; a hundred well-chosen steps would buy {buys}; from {significant(e.practical, 1)} on it counts"
    if examples > 1:
        text += "; " + (_noise_scale(e) if g.significant else "the batches do not agree on a direction")
    return text


def _noise_scale(e: Evidence) -> str:
    g = e.gradient
    text = f"noise scale {significant(g.noise_scale)} examples"
    if g.noise_scale_interval is not None:
        low, high = g.noise_scale_interval
        text += f" ({significant(low)} … {significant(high)})"
    return text


def _curvature(e: Evidence) -> str:
    c = e.curvature
    return (
        f"λmax {significant(c.lambda_max.value, 3)} ± {significant(c.lambda_max.bound, 1)}, "
        f"λmin {significant(c.lambda_min.value, 3)} ± {significant(c.lambda_min.bound, 1)}; "
        f"{describe_certificate(c.extremes)}"
    )


def _stability(s: Stability) -> str:
    what = "preconditioned λmax" if s.preconditioned else "λmax"
    return (
        f"{what} {significant(s.curvature, 3)} is {significant(s.ratio)} of {s.limit.formula} = "
        f"{significant(s.limit.curvature, 3)}, the edge for {s.limit.rule}; {s.judgement}"
    )


def _confirmation(e: Evidence) -> str:
    low, high = e.heldout_curvature.interval(0.95)
    line = e.line("lowest curvature")
    text = (
        f"in λmin's direction the {e.heldout_source} curve by {significant(e.heldout_curvature.value)} "
        f"(95 %: {significant(low)} … {significant(high)})"
    )
    if line is not None:
        text += f"; the best step there changes their loss by {_change(line.heldout)}"
    return text


def _signal(e: Evidence) -> str:
    layers = e.gradient.layers
    strongest = max(layer.signal for layer in layers)
    weakest = min(layers, key=lambda layer: layer.signal)
    if strongest == 0:
        return "no layer receives any"
    if weakest.signal == 0:
        return f"no gradient reaches layer {weakest.name}"
    ratio = strongest / weakest.signal
    if ratio < ABOUT_AS_MUCH:
        return "all layers receive about as much gradient, relative to their weights"
    text = (
        f"the gradient, relative to the weights, is {ratio:,.0f} times weaker in layer {weakest.name} "
        "than in the strongest"
    )
    fall = e.fall
    if fall is not None and fall.num_layers >= ENOUGH_LAYERS and fall.interval()[0] > 1:
        low, high = fall.interval()
        text += (
            f"; it falls ×{significant(fall.factor)} a layer (95 %: {significant(low)} … "
            f"{significant(high)}) from {fall.last} to {fall.first}"
        )
    return text


def _units(e: Evidence) -> str:
    """Name the layers whose units are closed, or that hardly tell inputs apart; "" where all is well."""
    parts = []
    for layer in e.activity:
        for share, word in ((layer.dead, "dead"), (layer.saturated, "saturated")):
            if share >= NOTEWORTHY:
                parts.append(f"{share:.0%} of the {layer.num_units} units of layer {layer.name} are {word}")
    if len(parts) > 3:
        parts = [*parts[:3], f"and so in {len(parts) - 3} more layers"]
    alike = [layer for layer in e.activity if layer.variation is not None and layer.variation < ALIKE]
    if alike:
        worst = min(alike, key=lambda layer: layer.variation or 0.0)
        share_told = significant(100 * (worst.variation or 0.0), 1)
        parts.append(
            f"layer {worst.name} tells inputs apart by only {share_told} % of the size of its outputs"
        )
    return "; ".join(parts)


def _change(change: Estimate) -> str:
    if change.value > 1e20:
        return "diverges"
    return signed(change.value) + (f" ± {significant(change.stderr, 1)}" if change.stderr > 0 else "")
