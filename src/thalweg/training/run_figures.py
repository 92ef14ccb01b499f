"""Pictures of a run: loss, gradient with and without noise, stability, the way of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thalweg.report.document import significant
from thalweg.report.figures import Axis, Bar, BarPlot, Figure, LinePlot, Mark, Reference, Series
from thalweg.training.recorded import RecordedRun
from thalweg.training.windows import PathShape, Window

__all__ = ["gradient_figure", "run_figures"]

Floats = NDArray[np.float64]
POINTS = 300  # of a curve
STEP = Axis("step")


def run_figures(run: RecordedRun, stretches: Sequence[Window], path: PathShape | None) -> tuple[Figure, ...]:
    """Return the pictures that there is something to draw for."""
    found = [
        _loss(run),
        gradient_figure(run, stretches),
        _stability(run),
        _noise(run),
        _path(path),
        _layers(run),
    ]
    return tuple(figure for figure in found if figure is not None)


def gradient_figure(run: RecordedRun, stretches: Sequence[Window]) -> Figure | None:
    """Draw the gradient's norm along the run, as batches show it and without their noise."""
    seen = [w for w in stretches if w.norm is not None and w.raw_norm is not None]
    if len(seen) < 2:
        return None
    middle = tuple((w.begin + w.end) / 2 for w in seen)
    norms = [w.norm or (0.0, 0.0, 0.0) for w in seen]
    steps, raw = _thinned(*run.series("grad/covered"))
    positive = [v for _, _, v in norms if v > 0] + [w.raw_norm or 0.0 for w in seen]
    floor = (
        min(min(v for v in positive if v > 0), min((v for v, _, _ in norms if v > 0), default=math.inf)) / 3
    )
    series = (
        Series("one batch, as measured", steps, raw, style="points"),
        Series("batches, root mean square", middle, tuple(w.raw_norm or 0.0 for w in seen), style="joined"),
        Series(
            "without the noise, 95 %",
            middle,
            tuple(max(v, floor) for v, _, _ in norms),
            tuple(max(low, floor) for _, low, _ in norms),
            tuple(max(high, floor) for _, _, high in norms),
            style="joined",
        ),
    )
    first, last = norms[0], norms[-1]
    return Figure(
        "gradient",
        "Gradient norm along training",
        f"A batch's gradient goes from {significant(seen[0].raw_norm)} to {significant(seen[-1].raw_norm)}; "
        f"without noise from {significant(first[0])} to {significant(last[0])} "
        f"(95 %: {significant(last[1])} to {significant(last[2])}).",
        (LinePlot("", STEP, Axis("‖g‖", "log"), series),),
        "For each stretch of the run the mean of ‖g‖² − tr Σ/B over its measured steps, with Student's "
        "interval. One that reaches the bottom holds zero; a mark there is an estimate of nothing at all.",
    )


def _loss(run: RecordedRun) -> Figure | None:
    steps, values = run.series("loss/train")
    if len(steps) < 2:
        return None
    x, y = _averaged(steps, values)
    scale = Axis("batch loss", "log") if min(y) > 0 and max(y) > 20 * min(y) else Axis("batch loss")
    return Figure(
        "loss",
        "Loss along training",
        f"The batch loss goes from {significant(y[0], 3)} to {significant(y[-1], 3)}.",
        (LinePlot("", STEP, scale, (Series("", x, y),)),),
        "Means over neighbouring steps.",
    )


def _stability(run: RecordedRun) -> Figure | None:
    series = []
    for name, label in (
        ("curv/critical_x_lr_half", "this step over the critical one"),
        ("curv/lambda_max_x_lr_half", "λmax·η/2"),
    ):
        steps, values = run.series(name)
        if len(steps) > 1:
            series.append(Series(label, *_thinned(steps, values), style="joined"))
    if not series:
        return None
    last = ", ".join(f"{one.label} ends at {significant(one.y[-1])}" for one in series)
    return Figure(
        "stability",
        "How near the steps are to too long",
        f"{last}; 1 is the edge.",
        (
            LinePlot(
                "", STEP, Axis("1 is the edge", "log"), tuple(series), references=(Reference(1.0, "edge"),)
            ),
        ),
        "Above the line a step raises the loss of the probe.",
    )


def _noise(run: RecordedRun) -> Figure | None:
    steps, scale = run.noise_scale()
    good = np.isfinite(scale) & (scale > 0)
    if good.sum() < 2:
        return None
    size = float(run.series("grad/examples")[1][-1])
    x, y = _thinned(steps[good], scale[good])
    return Figure(
        "noise-scale",
        "Noise scale along training",
        f"It goes from {significant(y[0])} to {significant(y[-1])} examples; a step has {size:.0f}.",
        (
            LinePlot(
                "",
                STEP,
                Axis("examples", "log"),
                (Series("tr Σ/‖G‖²", x, y),),
                references=(Reference(size, f"batch of {size:.0f}"),),
            ),
        ),
        "The batch size at which noise and signal balance; a ratio of moving averages.",
    )


def _path(path: PathShape | None) -> Figure | None:
    if path is None:
        return None
    x, y = (tuple(point[i] for point in path.points) for i in (0, 1))
    shares = [f"{100 * share:.0f} %" for share in path.explained]
    across, up = (Axis(f"component {i + 1}, {shares[i]} of the variance") for i in (0, 1))
    marks = (Mark(x[0], y[0], "start", "start"), Mark(x[-1], y[-1], "end", f"step {path.steps[-1]:,}"))
    bars = tuple(
        Bar(f"component {i + 1}", share, note=f"random walk {100 * path.random_walk[i]:.0f} %")
        for i, share in enumerate(path.explained)
    )
    return Figure(
        "path",
        "The way of the weights",
        f"The first two components explain {100 * sum(path.explained[:2]):.0f} % of the way, those of a "
        f"random walk {100 * sum(path.random_walk[:2]):.0f} %.",
        (
            LinePlot(
                "in the plane of its first two principal components", across, up, (Series("", x, y),), marks
            ),
            BarPlot(
                "explained variance",
                Axis("share"),
                bars,
                tuple(Reference(share, "", "x") for share in path.random_walk[:1]),
            ),
        ),
        "A random walk in many dimensions has 61 %, 15 %, 7 % … and draws the same smooth curves: neither "
        f"shares nor shape prove a valley. From sketches: distances within ± {100 * path.error:.0f} %.",
    )


def _layers(run: RecordedRun) -> Figure | None:
    names = [name for name in run.names if name.startswith("signal/") and len(run.series(name)[0]) > 1]
    if not names:
        return None
    if len(names) > 6:  # first, last and some between
        names = [names[round(i * (len(names) - 1) / 5)] for i in range(6)]
    series = tuple(
        Series(n.removeprefix("signal/"), *_thinned(*run.series(n)), style="joined") for n in names
    )
    return Figure(
        "signal",
        "Learning signal, layer by layer",
        "; ".join(f"{s.label} ends at {significant(s.y[-1])}" for s in series),
        (LinePlot("", STEP, Axis("‖∂L/∂W‖ / ‖W‖", "log"), series),),
        "How much of the gradient reaches a layer, relative to its weights.",
    )


def _thinned(steps: Floats, values: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    every = max(1, -(-len(steps) // POINTS))
    return tuple(steps[::-1][::every][::-1].tolist()), tuple(values[::-1][::every][::-1].tolist())


def _averaged(steps: Floats, values: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means over equally many neighbours."""
    pieces = min(len(steps), POINTS)
    x = [float(part.mean()) for part in np.array_split(steps, pieces)]
    y = [
        float(np.nanmean(part)) if np.isfinite(part).any() else math.nan
        for part in np.array_split(values, pieces)
    ]
    return tuple(x), tuple(y)
