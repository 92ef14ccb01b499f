"""The way that the weights take: how far from the start, and how consecutive steps lie to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.training.quantities import Moment, Values
from thalweg.training.schedule import Every, Schedule
from thalweg.training.sketch import CountSketch

__all__ = ["PathSketch"]


@dataclass
class PathSketch:
    """Sketches of the weights: ``dist/init`` = ‖θ − θ₀‖, and ``step/cos_prev`` of two steps in a row.

    The latter is the cosine between the step before a measurement and the one after it; −1 is a step back, as
    at the edge of stability ([cohen2021], §3). The sketches themselves go to the run's folder: distances
    between any two moments and principal components follow from them afterwards.

    Args:
        sketch: of the weights.
        start: the sketch of the weights at the start of the run.
        keep: is given step and sketch, to be stored.
    """

    sketch: CountSketch
    start: Tensor
    keep: Callable[[int, NDArray[np.float64]], None]
    schedule: Schedule = field(default_factory=lambda: Every(10))
    name = "path"
    guess = 0.05
    at_gradient = False
    needs_before = True
    needs_captures = False
    _last: tuple[int, Tensor] | None = None

    @property
    def again(self) -> bool:
        """Whether the very next step is wanted too, to compare the two."""
        return self._last is not None

    def measure(self, moment: Moment) -> Values:
        """Cost: a copy of the weights and a few passes over them."""
        assert moment.before is not None
        step = self.sketch.of([p - b for p, b in zip(moment.parameters, moment.before, strict=True)])
        found: dict[str, float | Tensor] = {}
        last, self._last = self._last, None
        follows = last is not None and last[0] == moment.step - 1
        if follows and last is not None and (size := step.norm() * last[1].norm()) > 0:
            found["step/cos_prev"] = float((step @ last[1] / size).clamp(-1, 1))
        if not follows or self.schedule == Every(1):
            now = self.sketch.of(moment.parameters)
            self._last = (moment.step, step)
            self.keep(moment.step, now.numpy())
            found["dist/init"] = float(torch.dist(now, self.start))
        return found
