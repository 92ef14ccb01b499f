"""Beginning a recording, or going on with one that is there."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.problem.parameters import ParameterSpace
from thalweg.training.recorded import RecordedRun, read_run
from thalweg.training.schedule import AtSteps, Every, Schedule
from thalweg.training.selection import Chosen
from thalweg.training.sketch import CountSketch
from thalweg.training.storage import META, SCALARS, RunFolder
from thalweg.version import __version__

__all__ = ["Opened", "opened"]


@dataclass(frozen=True)
class Opened:
    """A folder ready to be written to.

    Attributes:
        folder: the same.
        sketch: of the weights, the same in all sessions of a run.
        start: the sketch of the weights at the start of the run; None for a new one.
        seconds: how long earlier sessions took.
    """

    folder: RunFolder
    sketch: CountSketch
    start: Tensor | None
    seconds: float


def opened(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    wanted: Sequence[Chosen],
    budget: float,
    resume_from: int | None,
    seed: int,
) -> Opened:
    """Begin a run in ``path``, or go on with the one that is there after ``resume_from`` steps.

    Raises:
        InputError: where there is a run already and none is to be gone on with, or the other way round, or
            the run is one of another model.
    """
    space = ParameterSpace.of(model)
    if resume_from is None:
        if any((path / name).exists() for name in (META, SCALARS)):
            raise InputError(
                f"there is a recorded run in {str(path)!r} already, and nothing is ever written over",
                hint="another folder, or go on with the run (resume_from=, thalweg train --resume)",
            )
        sketch = CountSketch(space.size, seed=seed, device=space.device)
        meta = _meta(model, space, optimizer, wanted, budget, sketch, seed)
        return Opened(RunFolder(path, meta, session=1, width=sketch.size), sketch, None, 0.0)
    run = read_run(path)
    _require_same(run, space)
    if not resume_from >= 0:
        raise InputError("a run is gone on with after 0 steps or more", got=str(resume_from))
    kept = run.meta["sketch"]
    sketch = CountSketch(space.size, size=kept["size"], seed=kept["seed"], device=space.device)
    session = run.sessions + 1
    folder = RunFolder(path, None, session=session, width=sketch.size)
    folder.scalars({"session": session, "from": resume_from})
    folder.event(resume_from, "session", f"the run was gone on with after {resume_from:,} steps")
    steps, rows = run.sketches()
    start = torch.from_numpy(rows[0]) if len(steps) and steps[0] == 0 else None
    times = run.series("time")
    before = times[1][times[0] <= resume_from]
    return Opened(folder, sketch, start, float(before[-1]) if len(before) else 0.0)


def _meta(
    model: nn.Module,
    space: ParameterSpace,
    optimizer: torch.optim.Optimizer,
    wanted: Sequence[Chosen],
    budget: float,
    sketch: CountSketch,
    seed: int,
) -> dict[str, Any]:
    return {
        "thalweg": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": str(space.device),
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": type(model).__name__,
        "num_parameters": space.size,
        "parameters": {name: list(shape) for name, shape in zip(space.names, space.shapes, strict=True)},
        "optimizer": type(optimizer).__name__,
        "quantities": {one.name: _described(one.schedule) for one in wanted},
        "budget": budget if budget != float("inf") else None,
        "sketch": {"size": sketch.size, "seed": seed, "exact": sketch.exact},
        "seed": seed,
    }


def _described(schedule: Schedule) -> str:
    if isinstance(schedule, Every):
        return f"every {schedule.steps} steps" if schedule.steps > 1 else "every step"
    if isinstance(schedule, AtSteps):
        return "at " + ", ".join(map(str, schedule.steps))
    return f"{schedule.per_decade} times a decade"


def _require_same(run: RecordedRun, space: ParameterSpace) -> None:
    stored = run.meta.get("parameters")
    if not isinstance(stored, dict) or not isinstance(run.meta.get("sketch"), dict):
        raise InputError(
            f"the run in {str(run.path)!r} cannot be gone on with: {META} is missing or damaged",
            hint="another folder; thalweg show still reads what was recorded",
        )
    own = {name: list(shape) for name, shape in zip(space.names, space.shapes, strict=True)}
    if stored != own:
        differing = sorted(name for name in stored.keys() | own.keys() if stored.get(name) != own.get(name))
        raise InputError(
            f"the run in {str(run.path)!r} is one of another model",
            got=f"{len(differing)} parameters that differ: {', '.join(differing[:3])}",
            hint="another folder",
        )
