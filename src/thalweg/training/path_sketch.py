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
    _last: tuple[int, Tensor, Tensor] | None = None

    @property
    def again(self) -> bool:
        """Whether the very next step is wanted too, to compare the two."""
        return self._last is not None

    def measure(self, moment: Moment) -> Values:
        """Cost: a copy of the weights and a few passes over them."""
        assert moment.before is not None
        step = self.sketch.of([p - b for p, b in zip(moment.parameters, moment.before, strict=True)])
        if self._last is not None and self._last[0] == moment.step - 1:
            _, _, last = self._last
            self._last = None
            size = step.norm() * last.norm()
            return {"step/cos_prev": float((step @ last / size).clamp(-1, 1))} if size > 0 else {}
        now = self.sketch.of(moment.parameters)
        self._last = (moment.step, now, step)
        self.keep(moment.step, now.numpy())
        return {"dist/init": float(torch.dist(now, self.start))}
