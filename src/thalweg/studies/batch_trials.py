"""The pieces of work of a batch-size study, each of which ends on disk."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.keskar import keskar_sharpness
from thalweg.curvature.spectrum import find_extremes
from thalweg.curvature.stability import PRODUCTS
from thalweg.optim.registry import get
from thalweg.problem.batches import Batch, Sample, taken
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import intact, random_state_kept
from thalweg.problem.problem import Problem
from thalweg.studies.batch_noise import noise_scale
from thalweg.studies.runs_trial import RunsTrial, runs_or_refusal
from thalweg.studies.setting import Setting, prepared
from thalweg.training.ensemble import Member, train_ensemble
from thalweg.training.stacked import StackedModel
from thalweg.training.steps import Steps

__all__ = ["LINE", "NoiseTrial", "SharpnessTrial", "TimeTrial", "work"]

EPSILON = 1e-3
LINE = tuple(i / 8 - 1 for i in range(25))  # from −1 to 2, as in the paper
_ROUNDS, _UPDATES, _SECONDS = 7, 8, 1.0


@dataclass(frozen=True)
class TimeTrial:
    """The time of an update at several batch sizes."""

    key: str
    size: float
    problem_seed: int
    optimizer: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class NoiseTrial:
    """The noise scale along a full-batch run."""

    key: str
    size: float
    problem_seed: int
    optimizer: str
    net: tuple[int, float | None]
    at: tuple[float, ...]


@dataclass(frozen=True)
class SharpnessTrial:
    """Two nets from one start, small and large batches, trained to one loss and measured there.

    ``sizes``, ``rates`` and ``budgets`` (gradient-equivalents) are of the small and the large one.
    """

    key: str
    size: float
    problem_seed: int
    optimizer: str
    seed: int
    sizes: tuple[int, int]
    rates: tuple[float | None, float | None]
    budgets: tuple[float, float]
    target: float


def work(problem: Problem, trial: RunsTrial | TimeTrial | NoiseTrial | SharpnessTrial) -> dict[str, Any]:
    """Do a piece of work; what it returns JSON can say."""
    setting = prepared(problem, trial.problem_seed)
    match trial:
        case RunsTrial():
            return runs_or_refusal(setting, trial)
        case TimeTrial():
            return _times(setting, trial)
        case NoiseTrial():
            return _noise(setting, trial)
        case SharpnessTrial():
            return _sharpness(setting, trial)


def _times(setting: Setting, trial: TimeTrial) -> dict[str, Any]:
    """Time updates of one net alone; the sizes take turns, so that other load meets all of them."""
    own = copy.copy(setting.problem)
    own.model = copy.deepcopy(setting.problem.model)
    assert own.model is not None
    setting.space.write(own.model.train(), setting.start(0))
    factory = get(trial.optimizer)
    # so slow a rate that the net stays where it is: the time does not depend on it
    optimizer = factory(own.parameters(), **({} if factory.lr is None else {"lr": 1e-9}))
    steps = Steps(own, optimizer, factory.closure, setting.train.examples)
    rounds: list[list[float]] = []
    with random_state_kept(0), torch.enable_grad():
        for i in range(_ROUNDS + 1):
            row = []
            for size in trial.sizes:
                batch = Batch(taken(setting.train.data, torch.arange(size)), size)
                found: list[float] = []
                while len(found) < _UPDATES and sum(found) < _SECONDS / _ROUNDS:
                    begun = time.perf_counter()
                    steps.step(batch)
                    found.append(time.perf_counter() - begun)
                row.append(statistics.median(found))
            if i:  # the first round warms up
                rounds.append(row)
    return {"sizes": list(trial.sizes), "rounds": rounds}


def _noise(setting: Setting, trial: NoiseTrial) -> dict[str, Any]:
    """Measure the noise scale at points of a run on all the data."""
    seed, lr = trial.net
    rows: list[list[float]] = []

    def watch(member: int, steps: int, cost: float, theta: Tensor, scale: float | None) -> None:
        found = noise_scale(setting.problem, theta, setting.train, seed=seed)
        rows.append([cost, found.trace, found.squared, found.bent, found.along])

    train_ensemble(
        setting.problem,
        trial.optimizer,
        [Member(setting.start(seed), lr, seed)],
        setting.train,
        batch_size=setting.train.examples,
        at=trial.at,
        watch=watch,
    )
    return {"rows": rows}


def _sharpness(setting: Setting, trial: SharpnessTrial) -> dict[str, Any]:
    sample = Sample((setting.train,), None, complete=True, origin="all")
    model, loss = setting.problem.model, setting.problem.loss
    assert model is not None
    assert loss is not None
    nets: list[dict[str, float]] = []
    thetas = []
    looking = StackedModel(setting.problem, setting.space)
    for size, rate, budget in zip(trial.sizes, trial.rates, trial.budgets, strict=True):
        reached = _to_target(setting, trial, size, rate, budget)
        if reached is None:
            return {"failed": f"at rate {rate:g} the training with batches of {size} diverged"}
        theta, cost = reached
        thetas.append(theta)
        with intact(model):
            objective = EmpiricalRisk(model, loss, sample)
            choice = choose_hessian(objective, theta, seed=trial.seed)
            largest = find_extremes(
                choice.operator, seed=trial.seed, max_products=PRODUCTS, open_gap=1.0, noise=choice.noise
            ).lambda_max
            keskar = keskar_sharpness(
                objective, theta, epsilon=EPSILON, seed=trial.seed, steepest=largest.vector, random_starts=1
            )
            nets.append(
                {
                    "train": objective.value(theta),
                    "test": looking.mean_loss(theta, setting.test.data),
                    "cost": cost,
                    "lambda_max": largest.value,
                    "keskar": keskar.value,
                    "distance": float((theta - setting.start(trial.seed)).norm()),
                }
            )
    with intact(model):
        line = [_on_line(setting, looking, thetas, alpha) for alpha in LINE]
    return {"nets": nets, "line": line}


def _on_line(
    setting: Setting, looking: StackedModel, thetas: Sequence[Tensor], alpha: float
) -> list[float | None]:
    theta = (1 - alpha) * thetas[0] + alpha * thetas[1]
    values = looking.mean_loss(theta, setting.train.data), looking.mean_loss(theta, setting.test.data)
    return [v if math.isfinite(v) else None for v in values]


def _to_target(
    setting: Setting, trial: SharpnessTrial, size: int, rate: float | None, budget: float
) -> tuple[Tensor, float] | None:
    """Train until the training loss is at the target, or the budget is spent.

    Returns:
        The weights and the cost; None where the training diverged before it was looked at.
    """
    last: list[tuple[Tensor, float]] = []
    model = setting.problem.model
    assert model is not None
    looking = StackedModel(setting.problem, setting.space)

    def watch(member: int, steps: int, cost: float, theta: Tensor, scale: float | None) -> bool:
        last[:] = [(theta.clone(), cost)]
        with intact(model):
            return looking.mean_loss(theta, setting.train.data) <= trial.target

    points = max(int(4 * budget), 1) if size < setting.train.examples else max(int(budget), 1)
    train_ensemble(
        setting.problem,
        trial.optimizer,
        [Member(setting.start(trial.seed), rate, trial.seed)],
        setting.train,
        batch_size=size,
        at=tuple(budget * (i + 1) / points for i in range(points)),
        watch=watch,
    )
    return last[0] if last else None
