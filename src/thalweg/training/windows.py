"""A run in a dozen stretches: what held on average in each, with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thalweg.estimates import Estimate, weighted_mean
from thalweg.training.recorded import RecordedRun

__all__ = ["PathShape", "Window", "path_shape", "windows"]

Floats = NDArray[np.float64]
MOST, FEWEST = 12, 4  # windows; measurements in each


@dataclass(frozen=True)
class Window:
    """A stretch of a run, from after step ``begin`` to step ``end``.

    Attributes:
        begin: see there.
        end: see there.
        loss: the mean batch loss.
        raw_square: mean ‖g‖² of the batches' gradients, noise included, over the layers that the noise is
            known of.
        square: mean ‖G‖², free of noise; the steps' batches are taken as independent.
        noise_scale: mean noise over mean signal, in examples; None where no signal is seen.
        examples: in a step, where they are known.
        critical: median of how many times as long a step could be before the loss goes up.
        edge: median of λmax·η/2; None where it was not measured.
        turning: mean cosine of two steps in a row.
    """

    begin: int
    end: int
    loss: Estimate | None
    raw_square: Estimate | None
    square: Estimate | None
    noise_scale: float | None
    examples: float | None
    critical: float | None
    edge: float | None
    turning: Estimate | None

    @property
    def norm(self) -> tuple[float, float, float] | None:
        """‖G‖ without the noise, and its 95 % interval; zero where the estimate of ‖G‖² is negative."""
        if self.square is None:
            return None
        low, high = self.square.interval()
        return _root(self.square.value), _root(low), _root(high)

    @property
    def raw_norm(self) -> float | None:
        """The root mean square of ‖g‖, noise included."""
        return None if self.raw_square is None else _root(self.raw_square.value)


@dataclass(frozen=True)
class PathShape:
    """The way of the weights in its first two principal components.

    Attributes:
        steps: at which the weights were sketched (m,).
        points: of the way in the plane (m, 2).
        explained: the share of the first components in the variance.
        random_walk: what a long random walk in many dimensions has: 6/(π²k²) for the k-th ([antognini2018],
            eq. (11)).
        straightness: from start to end as the crow flies, over the length of the way through the sketches.
        error: relative standard error of a distance, from sketching.
    """

    steps: tuple[int, ...]
    points: tuple[tuple[float, float], ...]
    explained: tuple[float, ...]
    random_walk: tuple[float, ...]
    straightness: float
    error: float


def windows(run: RecordedRun) -> tuple[Window, ...]:
    """Cut a run into at most twelve stretches with equally many measurements of the noise.

    Where those are too few for four stretches, of the loss.
    """
    for name, least in (
        ("grad/noise", 4 * FEWEST),
        ("loss/train", 1),
        ("grad/norm", 1),
        ("lr", 1),
        ("grad/noise", 1),
    ):
        steps, _ = run.series(name)
        if len(steps) >= least:
            break
    else:
        return ()
    number = max(1, min(MOST, len(steps) // FEWEST))
    ends = [int(steps[min(len(steps), round(len(steps) * (i + 1) / number)) - 1]) for i in range(number)]
    ends[-1] = max(ends[-1], run.last_step)
    return tuple(_window(run, a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True) if b > a)


def _window(run: RecordedRun, begin: int, end: int) -> Window:
    def within(name: str) -> Floats:
        steps, values = run.series(name)
        chosen: Floats = values[(steps > begin) & (steps <= end) & np.isfinite(values)]
        return chosen

    noise, square, examples = within("grad/noise"), within("grad/square"), within("grad/examples")
    signal, size = _mean(square), float(examples.mean()) if len(examples) else None
    seen = signal is not None and size is not None and signal.value > 0
    critical, edge = within("step/critical"), within("curv/lambda_max_x_lr_half")
    return Window(
        begin=begin,
        end=end,
        loss=_mean(within("loss/train")),
        raw_square=_mean(within("grad/covered" if len(noise) else "grad/norm") ** 2),
        square=signal,
        noise_scale=size * float(noise.mean()) / signal.value if seen and signal and size else None,
        examples=size,
        critical=float(np.median(critical)) if len(critical) else None,
        edge=float(np.median(edge)) if len(edge) else None,
        turning=_mean(within("step/cos_prev")),
    )


def path_shape(run: RecordedRun) -> PathShape | None:
    """Return the principal components of the way; None with fewer than three sketches.

    Cost: the singular values of a matrix of sketches by their width.
    """
    steps, rows = run.sketches()
    if len(steps) < 3:
        return None
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((values**2).sum())
    if not total > 0:
        return None
    legs = np.linalg.norm(np.diff(rows, axis=0), axis=1).sum()
    plane = left[:, :2] * values[:2]
    plane = plane - plane[0]
    sketch = run.meta.get("sketch", {})
    return PathShape(
        steps=tuple(int(s) for s in steps),
        points=tuple((float(x), float(y)) for x, y in plane),
        explained=tuple(float(v) for v in values[:4] ** 2 / total),
        random_walk=tuple(6 / (math.pi * k) ** 2 for k in range(1, 5)),
        straightness=float(np.linalg.norm(rows[-1] - rows[0]) / legs),
        error=0.0 if sketch.get("exact") else float((2 * rows.shape[1]) ** -0.5),
    )


def _mean(values: Floats) -> Estimate | None:
    return weighted_mean(list(values), [1.0] * len(values)) if len(values) else None


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0))
