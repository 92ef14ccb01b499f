"""What `thalweg.train` keeps in a folder: the recording, and the state from which it can be gone on."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.optim.factory import ClosureKind
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.objective import Objective
from thalweg.problem.problem import Problem
from thalweg.training.recorder import Recorder
from thalweg.training.saved_state import load_state, require_same_training, save_state
from thalweg.training.storage import META, SCALARS

__all__ = ["Keeper", "open_recorder"]

STATE = "training.pt"
PROBE = 128  # examples
SHARE = 0.02  # of the training time may go into saving its state


class Keeper:
    """Saves the state of a training at the ends of epochs, as often as 2 % of its time allow.

    A full disk is told once and does not stop the training; the last state that could be written stays.

    Args:
        folder: of the run.
        settings: by which the training is known again.
        resume: go on with what is there; otherwise there must be nothing.

    Attributes:
        stored: the state to go on from; None for a training that begins.

    Raises:
        InputError: where there is a training already, one of other settings, or another recording.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self._path, self._settings = folder / STATE, dict(settings)
        kept, self._again = load_state(self._path), (folder / META).exists()
        self.stored: dict[str, Any] | None = kept["run"] if kept is not None else None
        fresh = self.stored is None and not self._again
        if not resume and (not fresh or (folder / SCALARS).exists()):
            raise InputError(
                f"there is a recorded training in {str(folder)!r} already, and nothing is ever written over",
                hint="another folder, or go on with it (resume=True, --resume)",
            )
        if kept is not None and not fresh:
            require_same_training(kept["settings"], self._settings, self._path)
        elif self._again:
            raise InputError(
                f"the training in {str(folder)!r} cannot be gone on with",
                got="a recording without the state of the training",
                cause="it was recorded in a loop of one's own, or the file training.pt is gone",
                hint="another folder; what was recorded stays readable with thalweg show",
            )
        self._saved, self._took, self._failed = time.perf_counter(), 0.0, False
        if fresh:
            self._begin(folder)

    @property
    def resume_from(self) -> int | None:
        """After how many steps the recording goes on; None for a new one."""
        if not self._again:
            return None
        return int(self.stored["taken"]) if self.stored is not None else 0

    def _begin(self, folder: Path) -> None:
        """Write down which training this is before anything else is there, so that it is known again."""
        with suppress(OSError):  # the recorder says what is wrong with the folder
            folder.mkdir(parents=True, exist_ok=True)
            save_state({"settings": self._settings, "run": None}, self._path)

    def keep(self, run: Callable[[], dict[str, Any]], *, last: bool) -> None:
        """Save the state at the end of an epoch, unless that was done only just now.

        Args:
            run: returns the state.
            last: save it in any case.
        """
        begun = time.perf_counter()
        if not last and begun - self._saved < self._took / SHARE:
            return
        try:
            save_state({"settings": self._settings, "run": run()}, self._path)
        except OSError as error:
            if not self._failed:
                warnings.warn(
                    f"the state of the training cannot be saved in {str(self._path.parent)!r} "
                    f"({error.strerror or error}); training goes on, and can be gone on with from the last "
                    "state that was saved",
                    stacklevel=2,
                )
            self._failed = True
        self._saved = time.perf_counter()
        self._took = self._saved - begun


def open_recorder(
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    closure: ClosureKind,
    objective: Objective,
    folder: str | os.PathLike[str],
    resume_from: int | None,
    budget: float,
    seed: int,
) -> Recorder:
    """Make the recorder of a training; its probe are the first 128 examples of the training sample.

    Methods that differentiate the loss by themselves show no batch gradient, and so no noise.
    """
    if isinstance(objective, EmpiricalRisk):
        few = objective.sample.few(PROBE)
        assert problem.loss is not None
        assert problem.model is not None
        objective = EmpiricalRisk(problem.model, problem.loss, few, num_groups=1)
    names = ["loss", "lr", "gradient", "noise", "update", "path", "critical_sharpness", "curvature"]
    names += ["signal", "rank"]
    if closure != "standard" or problem.model is None:
        names.remove("noise")
    if problem.model is None:
        names.remove("signal")
        names.remove("rank")
    model = problem.model if problem.model is not None else _Point(problem.parameters()[0])
    return Recorder(
        folder,
        model,
        optimizer,
        probe=objective,
        quantities=names,
        resume_from=resume_from,
        seed=seed,
        budget=budget,
    )


class _Point(nn.Module):
    """The point of a plain function as a module, for its parameter's name."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        assert isinstance(point, nn.Parameter)
        self.theta = point
