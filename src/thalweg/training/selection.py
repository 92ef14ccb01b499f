"""Which quantities are recorded, and when: from what the user asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from thalweg.errors import InputError
from thalweg.problem.batches import draw_sample
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.loss import batch_loss
from thalweg.training.gradient_noise import GradientNoise
from thalweg.training.leading_curvature import WarmLanczos
from thalweg.training.probing import CriticalSharpness, LargestCurvature, Probe
from thalweg.training.quantities import (
    EffectiveRank,
    GradientNorm,
    LayerSignal,
    LearningRate,
    Loss,
    Own,
    Quantity,
    UpdateRatio,
)
from thalweg.training.schedule import Every, Schedule, as_schedule

__all__ = ["Chosen", "chosen", "probe_over"]

Make = Callable[[Schedule, Probe | None, int], Quantity]


@dataclass(frozen=True)
class Chosen:
    """A quantity to be made: None is the path, which needs the run's sketch."""

    name: str
    schedule: Schedule
    make: Make | None


def _critical(schedule: Schedule, probe: Probe | None, seed: int) -> Quantity:
    assert probe is not None
    return CriticalSharpness(probe, schedule)


def _curvature(schedule: Schedule, probe: Probe | None, seed: int) -> Quantity:
    assert probe is not None
    return LargestCurvature(probe, WarmLanczos(seed), schedule)


# name -> usual interval, how it is made
_BUILT_IN: dict[str, tuple[int, Make | None]] = {
    "loss": (1, lambda schedule, probe, seed: Loss(schedule)),
    "lr": (1, lambda schedule, probe, seed: LearningRate(schedule)),
    "gradient": (1, lambda schedule, probe, seed: GradientNorm(schedule)),
    "noise": (10, lambda schedule, probe, seed: GradientNoise(schedule)),
    "update": (20, lambda schedule, probe, seed: UpdateRatio(schedule)),
    "path": (20, None),
    "critical_sharpness": (50, _critical),
    "curvature": (100, _curvature),
    "signal": (200, lambda schedule, probe, seed: LayerSignal(schedule)),
    "rank": (500, lambda schedule, probe, seed: EffectiveRank(schedule)),
}
_PROBED = {"critical_sharpness", "curvature"}


def chosen(quantities: Mapping[Any, Any] | Iterable[Any] | None, *, probed: bool) -> list[Chosen]:
    """Return what is to be recorded.

    Args:
        quantities: names or functions, with their schedules where it is a mapping; None for all there are.
        probed: whether there is a probe to measure on.

    Raises:
        InputError: for an unknown name, something that is no schedule, or a quantity that lacks its probe.
    """
    if quantities is None:
        quantities = [name for name in _BUILT_IN if probed or name not in _PROBED]
    if isinstance(quantities, str):
        quantities = [quantities]
    asked = quantities.items() if isinstance(quantities, Mapping) else ((key, None) for key in quantities)
    found = [_choose(key, given, probed) for key, given in asked]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise InputError("a quantity is asked for twice", got=", ".join(names))
    return found


def _choose(key: Any, given: Any, probed: bool) -> Chosen:
    if callable(key):
        name = str(getattr(key, "__name__", type(key).__name__))
        return Chosen(
            name,
            Every(10) if given is None else as_schedule(given),
            lambda schedule, probe, seed: Own(key, name, schedule),
        )
    if key not in _BUILT_IN:
        close = difflib.get_close_matches(str(key), _BUILT_IN, n=1, cutoff=0.4)
        raise InputError(
            f"there is no quantity {key!r}",
            expected="a function of a Moment, or one of " + ", ".join(_BUILT_IN),
            hint=f"{close[0]!r}" if close else None,
        )
    if key in _PROBED and not probed:
        raise InputError(
            f"{key!r} needs a loss and a probe batch to measure it on",
            hint="Recorder(…, loss=criterion, probe=(inputs, targets))",
        )
    interval, make = _BUILT_IN[key]
    return Chosen(key, Every(interval) if given is None else as_schedule(given), make)


def probe_over(model: nn.Module, loss: Any, probe: Any) -> Probe | None:
    """Make the function that is probed; None where there is nothing to make it of.

    Args:
        model: what is trained.
        loss: a criterion on (outputs, targets), or loss(model, batch).
        probe: a batch, or an objective that has been made already.

    Raises:
        InputError: where one of the two is missing, or the model fails on the batch.
    """
    if isinstance(probe, EmpiricalRisk | FunctionObjective):
        return Probe(probe)
    if probe is None:
        return None
    if loss is None:
        raise InputError("there is a probe but no loss to measure on it", hint="Recorder(…, loss=criterion)")
    sample = draw_sample([probe], limit=1 << 40, seed=0, role="probe")
    return Probe(EmpiricalRisk(model, batch_loss(loss), sample, num_groups=1))
