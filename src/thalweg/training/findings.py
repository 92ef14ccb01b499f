"""What a run has to say: pure rules over its windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thalweg.estimates import Estimate
from thalweg.report.document import Tone, signed, significant
from thalweg.training.windows import PathShape, Window

__all__ = ["Finding", "GradientEnd", "findings", "gradient_end", "trend"]

NEAR = 0.1  # of its largest value: near zero
ZIGZAG = -0.3

GradientEnd = Literal["near zero", "far from zero", "undecided"]


@dataclass(frozen=True)
class Finding:
    """Something that a run shows.

    Attributes:
        topic: "gradient", "noise", "steps", "stability", "path".
        sentence: what.
        since: the step from which on it holds to the end; None where it is about the whole.
    """

    topic: str
    sentence: str
    since: int | None = None


def trend(stretches: Sequence[Window]) -> tuple[str, str, Tone]:
    """Say in a word and a sentence what the loss did at the end: the last window against the one before."""
    losses = [w.loss for w in stretches if w.loss is not None]
    if not losses:
        return "recorded", "no loss was recorded", "neutral"
    first, last = losses[0], losses[-1]
    whole = f"the batch loss went from {significant(first.value, 3)} to {significant(last.value, 3)}"
    if len(losses) < 2:
        return "short", f"{whole}: too few steps to say more", "neutral"
    change = _difference(last, losses[-2])
    error = significant(change.stderr, 1)
    said = f"{significant(abs(change.value))} ± {error}"
    begin, end = stretches[-1].begin, stretches[-1].end
    where = f"in the last stretch (steps {begin:,} to {end:,}, against the one before)"
    low, high = change.interval()
    if high < 0:
        return "falling", f"{whole} and still falls, by {said} {where}", "good"
    if low > 0:
        return "rising", f"{whole} and rises, by {said} {where}", "bad"
    drift = f"{signed(change.value)} ± {error}"
    return "levelled", f"{whole}; no change is to be seen at the end, {drift} {where}", "neutral"


def gradient_end(stretches: Sequence[Window]) -> GradientEnd:
    """Say whether the gradient, without its noise, ends near zero: below a tenth of the largest there was."""
    norms = [w.norm for w in stretches if w.norm is not None]
    if len(norms) < 2:
        return "undecided"
    largest = max(value for value, _, _ in norms)
    _, low, high = norms[-1]
    if not largest > 0:
        return "undecided"
    if high < NEAR * largest:
        return "near zero"
    return "far from zero" if low > NEAR * largest else "undecided"


def findings(stretches: Sequence[Window], path: PathShape | None) -> tuple[Finding, ...]:
    """Return what the windows show, one finding for each topic that was measured."""
    found = [_gradient(stretches), _noise(stretches), _length(stretches), _stability(stretches)]
    found += [_turning(stretches), _path(path)]
    return tuple(one for one in found if one is not None)


def _gradient(stretches: Sequence[Window]) -> Finding | None:
    seen = [w for w in stretches if w.norm is not None and w.raw_norm is not None]
    if len(seen) < 2:
        return None
    raw = [w.raw_norm or 0.0 for w in seen]
    norms = [w.norm or (0.0, 0.0, 0.0) for w in seen]
    value, low, high = norms[-1]
    largest = max(v for v, _, _ in norms)
    if not max(raw) > 0:
        return Finding(
            "gradient", "it is zero all along: units are dead, or the loss does not depend on the weights"
        )
    if not largest > 0:
        return Finding(
            "gradient",
            f"the norm of a batch's gradient ends at {significant(raw[-1])}, {_percent(raw[-1] / max(raw))} "
            "of its largest value; all of it may be noise, so whether it ends near zero cannot be told",
        )
    noise = 1 - min(max((value / raw[-1]) ** 2, 0.0), 1.0) if raw[-1] > 0 else 0.0
    answer = {
        "near zero": f"it ends near zero: at {_percent(high / largest)} of its largest value at most",
        "far from zero": f"it does not end near zero: at {_percent(low / largest)} of its largest at least",
        "undecided": "whether it ends near zero cannot be told from this: it ends between "
        f"{_percent(low / largest)} and {_percent(high / largest)} of its largest value",
    }[gradient_end(stretches)]
    return Finding(
        "gradient",
        f"the norm of a batch's gradient ends at {significant(raw[-1])}, {_percent(raw[-1] / max(raw))} of "
        f"its largest value, but {_percent(noise)} of its square is noise; without that the gradient is "
        f"{significant(value)} (95 %: {significant(low)} … {significant(high)}), and {answer}",
    )


def _noise(stretches: Sequence[Window]) -> Finding | None:
    seen = [w for w in stretches if w.square is not None and w.examples is not None]
    if not seen:
        return None
    since = _since(seen, [w.noise_scale is None or w.noise_scale > (w.examples or 0.0) for w in seen])
    first, last = seen[0], seen[-1]
    scales = f"{_scale(first)} at first, {_scale(last)} at the end" if len(seen) > 1 else _scale(last)
    if since is None:
        return Finding(
            "noise", f"the noise scale is {scales}: steps on {last.examples:.0f} show the way well"
        )
    return Finding(
        "noise", f"the noise scale is {scales}: steps on {last.examples:.0f} examples are mostly noise", since
    )


def _scale(window: Window) -> str:
    if window.noise_scale is None:
        return "beyond what can be seen"
    return f"{significant(window.noise_scale)} examples"


def _length(stretches: Sequence[Window]) -> Finding | None:
    seen = [w for w in stretches if w.critical is not None]
    if not seen:
        return None
    last = seen[-1].critical or math.nan
    since = _since(seen, [(w.critical or math.inf) < 1 for w in seen])
    if since is not None:
        return Finding("steps", "steps are longer than what lowers the loss of the probe: too long", since)
    more = f"{significant(last)} times" if math.isfinite(last) else "any number of times"
    return Finding("steps", f"at the end a step could be {more} as long before the loss of the probe goes up")


def _stability(stretches: Sequence[Window]) -> Finding | None:
    seen = [w for w in stretches if w.edge is not None]
    if not seen:
        return None
    last = seen[-1].edge or 0.0
    since = _since(seen, [(w.edge or 0.0) >= 0.8 for w in seen])
    first = f"λmax·η/2 goes from {significant(seen[0].edge)} to {significant(last)}"
    if since is not None:
        return Finding(
            "stability", f"{first}: at the edge of stability of gradient descent, which is 1", since
        )
    return Finding("stability", f"{first}; the edge of stability of gradient descent is 1")


def _turning(stretches: Sequence[Window]) -> Finding | None:
    seen = [w for w in stretches if w.turning is not None]
    since = _since(seen, [w.turning is not None and w.turning.value < ZIGZAG for w in seen]) if seen else None
    if since is None:
        return None
    return Finding("steps", "two steps in a row point back on each other: the way is a zig-zag", since)


def _path(path: PathShape | None) -> Finding | None:
    if path is None:
        return None
    shares = " and ".join(_percent(share) for share in path.explained[:2])
    null = " and ".join(_percent(share) for share in path.random_walk[:2])
    return Finding(
        "path",
        f"two principal components explain {shares} of the way, those of a random walk {null}: the shape of "
        f"the picture alone says nothing. As the crow flies it is {_percent(path.straightness)} of the way",
    )


def _since(seen: Sequence[Window], holds: Sequence[bool]) -> int | None:
    """Return the step from which on something holds to the end; None where it does not hold at the end."""
    if not holds[-1]:
        return None
    first = len(holds) - 1
    while first and holds[first - 1]:
        first -= 1
    return seen[first].begin


def _difference(after: Estimate, before: Estimate) -> Estimate:
    """Return the change between two windows, whose batches are independent (Welch)."""
    error = math.hypot(after.stderr, before.stderr)
    return Estimate(after.value - before.value, error, min(after.num_samples, before.num_samples))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 or share <= 0 else f"{100 * share:.1g} %"
