"""What an open case lacks, and what it would cost in gradient-equivalents. Pure."""

from __future__ import annotations

import math

from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.readings import Thresholds, falls, falls_beyond_first_order
from thalweg.estimates import Estimate
from thalweg.problem.cost import HVP_REBUILT
from thalweg.report.document import signed, significant

__all__ = ["more", "what_is_missing"]

MOST_FACTOR = 1e4  # times as many examples: beyond it more data is no advice


def what_is_missing(e: Evidence, t: Thresholds) -> str:
    """Say what would decide, and what that costs."""
    c, line = e.curvature, e.line("lowest curvature")
    depth = significant(c.lambda_min.value)
    down = falls_beyond_first_order(e, t)
    if c.lambda_min.value < -c.floor and down and e.heldout_curvature.upper(t.confidence) >= 0:
        return (
            f"negative curvature ({depth}) was found on the training sample, but {e.heldout_source} do not "
            f"confirm it; {_more_heldout(e, e.heldout_curvature, c.lambda_min.value, t)}"
        )
    if down and line is not None:
        along = (
            f"there is negative curvature ({depth}), but the step that"
            if c.lambda_min.value < -c.floor
            else ("along a direction without curvature the training loss falls, but the step that")
        )
        return (
            f"{along} lowers the training loss does not lower that of {e.heldout_source}; "
            f"{_more_heldout(e, line.heldout, line.best.value, t)}"
        )
    if c.lambda_min.value < -max(c.floor, t.flat * c.extremes.scale):
        if line is None or line.best.value >= 0:
            return f"there is negative curvature ({depth}), but no step along it lowers the loss"
        noise = line.best.upper(t.confidence) - line.best.value
        return (
            f"there is negative curvature ({depth}), but the fall along it ({signed(line.best.value)}) is "
            f"within its noise ± {significant(noise)}; {_more_heldout(e, line.heldout, line.best.value, t)}"
        )
    if (
        line := next((line for line in e.lines if falls(line, t, t.at_rest * e.practical)), None)
    ) is not None:
        return f"a step along {line.name} still lowers the training loss by {significant(-line.best.value)}"
    if c.certificate.relative_gap > t.open_gap:
        # What a run leaves open falls with the square of its length.
        run = max(c.num_hvps - 2, 1)
        more = max(math.ceil(run * (math.sqrt(c.certificate.relative_gap / t.open_gap) - 1)), 1)
        return (
            f"nothing negative was found, but {c.num_hvps} products leave {c.certificate.relative_gap:.0%} "
            f"of the spectrum open; at least {more} more would decide, at about "
            f"{significant(more * c.product_cost)} "
            "gradient-equivalents"
        )
    return "the function is constant around this point, as far as its precision tells"


def _more_heldout(e: Evidence, seen: Estimate, expected: float, t: Thresholds) -> str:
    """How much more held-out data would decide, if what the training sample shows is true of them too."""
    if e.heldout_source == "loss differences":
        return "double precision, or a probe of another length, might decide"
    wanted = abs(seen.value) if seen.value < 0 else abs(expected)
    error = seen.upper(t.confidence) - seen.value
    if wanted == 0 or not math.isfinite(error):
        return f"more of {e.heldout_source} would decide"
    factor = max((error / wanted) ** 2, 2.0)
    return more(factor, "held-out examples", HVP_REBUILT * (e.heldout_share or 1.0))


def more(factor: float, what: str, cost: float) -> str:
    """Say what ``factor`` times as many examples would cost, ``cost`` being that of the present ones."""
    if factor > MOST_FACTOR:
        return f"no affordable number of {what} would decide"
    return (
        f"about {significant(factor)} times as many {what} would decide, at about "
        f"{significant(factor * cost)} gradient-equivalents"
    )
