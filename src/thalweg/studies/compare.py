"""Optimisers side by side: the same starts, data, order and tuning for all."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from thalweg.errors import InputError, NumericalError
from thalweg.optim.factory import Factory
from thalweg.optim.registry import COMMON, get
from thalweg.problem.batches import Batch, taken
from thalweg.problem.intact import random_state_kept
from thalweg.problem.problem import Problem
from thalweg.progress import Progress, Silent
from thalweg.records import Cost, current_provenance
from thalweg.studies.comparison import Comparison, Method
from thalweg.studies.execution import ExecutorChoice, opened, require_executor, run_trials
from thalweg.studies.runs_trial import RunsTrial, runs_or_refusal
from thalweg.studies.setting import Run, Setting, fingerprint, prepared, source_digest
from thalweg.studies.statistics import spread
from thalweg.studies.trial_folder import TrialFolder
from thalweg.training.ensemble import why_one_by_one
from thalweg.training.steps import NotFiniteError, Steps

__all__ = ["compare"]

TUNING_SEEDS = 3
STEP = 10**0.5  # from a learning rate to the next
USUAL_BATCH = 64
_TIMED_STEPS, _TIMED_SECONDS = 40, 1.5
_ALONE = 6.0  # times as long as side by side, about


def compare(
    problem: Problem | str,
    optimizers: Sequence[str] = COMMON,
    *,
    seeds: int = 5,
    rates: int = 8,
    epochs: float = 30,
    batch_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    executor: ExecutorChoice = "serial",
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare optimisers on a problem, with the same chances for each.

    For each seed all methods begin at the same fresh weights and see the same batches in the same order. Each
    method gets the same grid of learning rates, half a decade apart around its default; the rate is chosen on
    validation data, cut from the training data, with seeds of their own, and what is reported are the
    held-out data under the other seeds. Each run may spend ``epochs`` gradient-equivalents, whatever a step
    of the method costs. Methods meant for all the data at once get them.

    Args:
        problem: a model with data, or a name as for `load_problem`, which other processes need.
        optimizers: names of `thalweg.optim`, at least one.
        seeds: of the runs that are reported; below 5 little can be told apart.
        rates: learning rates of each method that has one.
        epochs: the budget of a run in gradient-equivalents.
        batch_size: examples a step; None for the loader's own, or 64.
        folder: where the trials are kept, and gone on from; None keeps them for this call only.
        executor: "serial", "processes", "processes:N", "dask://host:port" or a `concurrent.futures.Executor`.
            The numbers are the same with all.
        seed: of the study: data split, starts, orders.
        progress: is told how far the work is.

    Raises:
        InputError: for unknown optimisers, a problem that no optimiser here can train, or a folder with
            another study.
        ThalwegError: where a trial fails; what has ended by then stays in the folder.

    Cost: ``epochs`` · ``rates`` · (``seeds`` + 3) gradient-equivalents a method and a third of that again for
    the losses on the way.
    """
    begun = time.perf_counter()
    progress = progress or Silent()
    factories = _checked(optimizers, seeds, rates, epochs)
    require_executor(executor)
    progress.phase("building the problem")
    setting = prepared(opened(problem, seed), seed)
    size = _batch_size(setting, batch_size)
    plan = {
        "study": "compare",
        "source": source_digest(problem),
        "problem": fingerprint(setting),
        "optimizers": list(optimizers),
        **{"seeds": seeds, "rates": rates, "epochs": epochs, "batch_size": size, "seed": seed},
    }
    with ExitStack() as stack:
        where = (
            Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        kept = TrialFolder(where, plan)
        stack.callback(kept.close)
        asked = _Asked(tuple(factories), seeds, rates, float(epochs), size, seed)
        whys = {factory.name: _why_alone(setting, factory, size) for factory in factories}
        progress.phase("training")
        results = run_trials(_work, problem, _trials(asked, setting, whys), kept, executor, progress)
        methods = tuple(_method(factory, asked, setting, results, whys) for factory in factories)
        progress.phase("timing")
        timing = [_timing(method, asked, setting) for method in methods if method.refused is None]
        seconds = run_trials(_time, problem, timing, kept, "serial", progress)
        methods = tuple(_with_seconds(m, seconds) for m in methods)
        notes = tuple(kept.notes)
    if all(method.refused is not None for method in methods):
        raise InputError(f"none of the optimisers can train {setting.problem.name}", cause=methods[0].refused)
    return Comparison(
        name=setting.problem.name,
        methods=methods,
        epochs=float(epochs),
        batch_size=size,
        seeds=seeds,
        tuning_seeds=TUNING_SEEDS,
        examples=(setting.train.examples, setting.validation.examples, setting.test.examples),
        classes=setting.classes,
        own_heldout=setting.problem.heldout_data is not None,
        num_parameters=setting.space.size,
        notes=notes,
        cost=Cost(
            gradient_equivalents=round(
                sum(r.points[-1].cost for m in methods for r in (*m.tuning, *m.runs)), 1
            ),
            num_hvps=0,
            seconds=round(time.perf_counter() - begun, 2),
        ),
        provenance=current_provenance(setting.start(0), seed),
    )


@dataclass(frozen=True)
class _Asked:
    factories: tuple[Factory, ...]
    seeds: int
    rates: int
    epochs: float
    batch_size: int
    seed: int

    @property
    def at(self) -> tuple[float, ...]:
        """The costs at which runs are measured: 0, then in growing distances up to the budget."""
        shares = (0.01, 0.02, 0.035, 0.06, 0.1, 0.15, 0.22, 0.33, 0.5, 0.7, 0.85, 1.0)
        return (0.0, *(share * self.epochs for share in shares))

    @property
    def reported(self) -> tuple[int, ...]:
        return tuple(1000 * self.seed + i for i in range(self.seeds))

    @property
    def choosing(self) -> tuple[int, ...]:
        return tuple(1000 * self.seed + 500 + i for i in range(TUNING_SEEDS))

    def grid(self, factory: Factory) -> tuple[float | None, ...]:
        """Return the learning rates of a method, half a decade apart; (None,) where it has none."""
        if factory.lr is None:
            return (None,)
        below = (self.rates - 1) // 2
        return tuple(float(f"{factory.lr * STEP ** (i - below):.3g}") for i in range(self.rates))

    def size(self, factory: Factory, setting: Setting) -> int:
        return setting.train.examples if factory.whole else self.batch_size


def _trials(asked: _Asked, setting: Setting, whys: dict[str, str | None]) -> list[RunsTrial]:
    """Return the trials: of methods that can be stacked all rates together, of others rate by rate."""
    found = []
    for factory in asked.factories:
        grid, alone = asked.grid(factory), whys[factory.name] is not None
        for role, seeds in (("choosing", asked.choosing), ("reported", asked.reported)):
            for i, some in enumerate([(rate,) for rate in grid] if alone else [grid]):
                nets = tuple((seed, rate) for seed in seeds for rate in some)
                found.append(
                    RunsTrial(
                        key=f"{factory.name}-{role}-{i}",
                        size=len(nets) * (_ALONE if alone else 1.0),
                        problem_seed=asked.seed,
                        optimizer=factory.name,
                        nets=nets,
                        batch_size=asked.size(factory, setting),
                        at=asked.at,
                        choosing=role == "choosing",
                    )
                )
    return found


def _work(problem: Problem, trial: RunsTrial) -> dict[str, Any]:
    """Run the nets of a trial."""
    return runs_or_refusal(prepared(problem, trial.problem_seed), trial)


def _method(
    factory: Factory,
    asked: _Asked,
    setting: Setting,
    results: dict[str, dict[str, Any]],
    whys: dict[str, str | None],
) -> Method:
    mine = {key: r for key, r in results.items() if key.startswith(f"{factory.name}-")}
    wanted = [t.key for t in _trials(asked, setting, whys) if t.optimizer == factory.name]
    refused = next((mine[key]["refused"] for key in wanted if "refused" in mine[key]), None)
    runs = {
        role: tuple(
            Run.from_plain(plain)
            for key in wanted
            if f"-{role}-" in key
            for plain in mine[key].get("runs", ())
        )
        for role in ("choosing", "reported")
    }
    grid = asked.grid(factory)
    losses = [
        spread([run.last("validation") for run in runs["choosing"] if run.lr == rate]).median for rate in grid
    ]
    return Method(
        name=factory.name,
        refused=refused,
        alone=whys[factory.name],
        whole=factory.whole,
        default=factory.lr,
        rates=grid,
        chosen=min(range(len(grid)), key=lambda i: losses[i]) if refused is None else 0,
        tuning=runs["choosing"],
        runs=runs["reported"],
        seconds=float("nan"),
    )


def _timing(method: Method, asked: _Asked, setting: Setting) -> RunsTrial:
    return RunsTrial(
        key=f"{method.name}-time",
        size=1.0,
        problem_seed=asked.seed,
        optimizer=method.name,
        nets=((asked.reported[0], method.rates[method.chosen]),),
        batch_size=setting.train.examples if method.whole else asked.batch_size,
        at=(asked.epochs,),
        choosing=False,
    )


def _time(problem: Problem, trial: RunsTrial) -> dict[str, Any]:
    """Time steps of one net alone; return the median seconds of a gradient-equivalent."""
    setting = prepared(problem, trial.problem_seed)
    seed, rate = trial.nets[0]
    own = copy.copy(setting.problem)
    own.model = copy.deepcopy(setting.problem.model)
    assert own.model is not None
    setting.space.write(own.model.train(), setting.start(seed))
    factory = get(trial.optimizer)
    optimizer = factory(own.parameters(), **({} if rate is None else {"lr": rate}))
    steps = Steps(own, optimizer, factory.closure, setting.train.examples)
    rows = torch.arange(min(trial.batch_size, setting.train.examples))
    batch = Batch(taken(setting.train.data, rows), len(rows))
    found: list[float] = []
    begun = time.perf_counter()
    with random_state_kept(seed), torch.enable_grad():
        for i in range(_TIMED_STEPS + 3):
            before, started = steps.gradient_equivalents, time.perf_counter()
            try:
                steps.step(batch)
            except (NotFiniteError, NumericalError):
                break
            ended = time.perf_counter()
            if i >= 3 or ended - begun > _TIMED_SECONDS:  # the first ones make the state
                found.append((ended - started) / (steps.gradient_equivalents - before))
            if ended - begun > _TIMED_SECONDS and found:
                break
    return {"seconds": statistics.median(found) if found else None}


def _with_seconds(method: Method, results: dict[str, dict[str, Any]]) -> Method:
    seconds = results.get(f"{method.name}-time", {}).get("seconds")
    return method if seconds is None else replace(method, seconds=seconds)


def _checked(optimizers: Sequence[str], seeds: int, rates: int, epochs: float) -> list[Factory]:
    if isinstance(optimizers, str) or not optimizers or len(set(optimizers)) != len(optimizers):
        raise InputError(
            "the optimisers cannot be compared",
            expected="different names, at least one",
            got=repr(optimizers),
        )
    for name, value, least in (("seeds", seeds, 2), ("rates", rates, 1), ("epochs", epochs, 1)):
        if not value >= least:
            raise InputError(f"too few {name}", expected=f"at least {least}", got=str(value))
    if seeds > 500:
        raise InputError("too many seeds", expected="at most 500", got=str(seeds))
    return [get(name) for name in optimizers]


def _batch_size(setting: Setting, asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise InputError("the batch size cannot be used", expected="1 or more", got=str(asked))
    data = setting.problem.training_data
    own = data.batch_size if isinstance(data, DataLoader) else None
    return min(asked or own or USUAL_BATCH, setting.train.examples)


def _why_alone(setting: Setting, factory: Factory, batch_size: int) -> str | None:
    own = copy.copy(setting.problem)
    own.model = copy.deepcopy(setting.problem.model)
    assert own.model is not None
    own.model.train()
    rows = torch.arange(min(batch_size, setting.train.examples))
    return why_one_by_one(own, factory, Batch(taken(setting.train.data, rows), len(rows)))
