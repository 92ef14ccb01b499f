"""The spectrum as a picture: where curvatures were found, both ends, the certificate and the floor."""

from __future__ import annotations

import numpy as np

from thalweg.curvature.spectrum import Extremes
from thalweg.report.document import significant
from thalweg.report.figures import Axis, Band, Figure, LinePlot, Mark, Reference, Series

__all__ = ["spectrum_figure"]


def spectrum_figure(found: Extremes) -> Figure | None:
    """Return where curvatures were found, with both ends and what is certified; None where all is flat."""
    nodes, weights = np.asarray(found.nodes), np.asarray(found.weights)
    if found.scale == 0 or not len(nodes) or not np.isfinite(nodes).all():
        return None
    low, high = found.lambda_min, found.lambda_max
    closed = found.complete or found.certificate.gap == 0
    within = max(found.floor, 1e-3 * found.scale)
    stripe = Band(-found.floor, found.floor, "rounding: no sign is believed here", "x")
    references = [Reference(0.0, "no curvature", "x")]
    if not closed and found.certificate.relative_gap < 1:
        below = low.value - found.certificate.gap
        sure = f"{found.certificate.confidence:.0%}"
        references.append(Reference(below, f"nothing lies left of {significant(below)} ({sure} sure)", "x"))
    share = np.maximum(weights, 1e-12)
    bottom = float(share[weights > 1e-9].min(initial=1.0)) / 3
    ends = [(low, "lowest"), (high, "highest")] if len(nodes) > 1 else [(low, "the only one")]
    marks = tuple(
        Mark(
            end.value,
            float(share[int(np.abs(nodes - end.value).argmin())]),
            "point",
            f"{word} {significant(end.value)}",
        )
        for end, word in ends
    )
    return Figure(
        name="spectrum",
        title="How the loss curves: the spectrum of its Hessian",
        alt=f"Curvatures of the training loss run from {significant(low.value)} ± "
        f"{significant(low.bound, 1)} to {significant(high.value)} ± {significant(high.bound, 1)}; within ± "
        f"{significant(found.floor, 1)} of zero a sign is rounding.",
        panels=(
            LinePlot(
                "",
                Axis("curvature", "symlog", linear_within=within),
                Axis("share of all directions", "log", limits=(bottom, 2.0)),
                (Series("curvatures found", tuple(nodes.tolist()), tuple(share.tolist()), style="stems"),),
                marks=marks,
                references=tuple(references),
                bands=(stripe,) if found.floor > 0.02 * within else (),  # what is thinner cannot be seen
            ),
        ),
        caption="A direction left of zero curves down, one right of zero up. "
        + (
            "These are all there are."
            if closed
            else "Inner ones stand for those around them; both ends are exact to the error given."
        ),
    )
