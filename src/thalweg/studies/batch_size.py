"""From one example a step to all of them: what a larger batch costs, buys and changes."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from thalweg.errors import InputError
from thalweg.optim.factory import Factory
from thalweg.optim.registry import get
from thalweg.problem.problem import Problem
from thalweg.progress import Progress, Silent
from thalweg.records import Cost, current_provenance
from thalweg.studies.batch_findings import Marks, Rescue, SizeResult, SolutionPair
from thalweg.studies.batch_fits import fit_update_time
from thalweg.studies.batch_plan import BatchPlan, Tuned, critical_batch, fastest, loss_at, updates_needed
from thalweg.studies.batch_sizes import BatchSizes
from thalweg.studies.batch_trials import NoiseTrial, SharpnessTrial, TimeTrial, work
from thalweg.studies.execution import ExecutorChoice, opened, require_executor, run_trials
from thalweg.studies.runs_trial import RunsTrial
from thalweg.studies.setting import Run, Setting, fingerprint, prepared, source_digest
from thalweg.studies.statistics import spread
from thalweg.studies.trial_folder import TrialFolder

__all__ = ["batch_size"]

RESCUERS = ("lamb", "lars")
_NOISE_POINTS = 8

_Found = dict[str, dict[str, Any]]
_Run = Callable[..., _Found]
AnyTrial = RunsTrial | TimeTrial | NoiseTrial | SharpnessTrial


def batch_size(
    problem: Problem | str,
    sizes: Sequence[int] | None = None,
    *,
    optimizer: str = "sgd",
    seeds: int = 5,
    rates: int = 6,
    epochs: float = 10,
    updates: int = 100,
    folder: str | os.PathLike[str] | None = None,
    executor: ExecutorChoice = "serial",
    seed: int = 0,
    progress: Progress | None = None,
) -> BatchSizes:
    """Study what the batch size does to a problem, from one example to all of them.

    Measured are the time of an update ([goyal2017], figure 7), what is reached in equal epochs and in equal
    updates, with one rate kept for all sizes and with a rate chosen for each ([shallue2019]), the updates
    that a target loss takes, with the critical batch size, and the noise scale that predicts it
    ([mccandlish2018]), sharpness of and the line between solutions of small and large batches ([keskar2017]),
    and LAMB and LARS on the large ones. Rates are chosen on validation data cut from the training data, with
    seeds of their own.

    Args:
        problem: a model with data, or a name as for `load_problem`, which other processes need.
        sizes: of the batches, ascending; None for 1, 4, 16, … and all.
        optimizer: a first-order method with a learning rate.
        seeds: of the runs that are reported.
        rates: learning rates that are tried at each size, half a decade apart, most above the default.
        epochs: that runs are compared at.
        updates: that runs are compared at.
        folder: where the trials are kept, and gone on from; None keeps them for this call only.
        executor: as for `compare`.
        seed: of the study.
        progress: is told how far the work is.

    Raises:
        InputError: for sizes or an optimiser that cannot be used, or a folder with another study.
        ThalwegError: where a trial fails; what has ended by then stays in the folder.

    Cost: for each size up to ``epochs`` or ``updates``·B/N gradient-equivalents, whichever is more, for
    2·``rates`` + 3·``seeds`` runs; the full batch sets the pace.
    """
    begun = time.perf_counter()
    progress = progress or Silent()
    factory = _checked(optimizer, seeds, rates, epochs, updates)
    require_executor(executor)
    progress.phase("building the problem")
    setting = prepared(opened(problem, seed), seed)
    asked = BatchPlan(
        factory, _sizes(sizes, setting), setting.train.examples, seeds, rates, epochs, updates, seed
    )
    plan = {
        "study": "batch-size",
        "source": source_digest(problem),
        "problem": fingerprint(setting),
        "sizes": list(asked.sizes),
        **{"optimizer": optimizer, "seeds": seeds, "rates": rates, "epochs": epochs, "updates": updates},
        "seed": seed,
    }
    with ExitStack() as stack:
        where = (
            Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        kept = TrialFolder(where, plan)
        stack.callback(kept.close)

        def run(label: str, trials: Sequence[AnyTrial], by: ExecutorChoice = executor) -> _Found:
            progress.phase(label)
            return run_trials(work, problem, trials, kept, by, progress)

        return _told(asked, setting, run, kept, begun)


def _told(asked: BatchPlan, setting: Setting, run: _Run, kept: TrialFolder, begun: float) -> BatchSizes:
    """Run the trials stage by stage, each planned by what the one before chose; return the record."""
    name = asked.factory.name
    timed = run("timing", [asked.timing()], "serial")["time"]
    large = asked.sizes[-1:]
    kinds = [*((name, size) for size in asked.sizes), *((n, size) for n in RESCUERS for size in large)]
    chosen = _read(run("choosing rates", [asked.choosing(n, size) for n, size in kinds]))
    if (name, asked.sizes[0]) not in chosen:
        raise InputError(f"{name} cannot train {setting.problem.name}")
    tuned = {key: asked.best(key, runs) for key, runs in chosen.items()}
    second = [asked.reporting(n, size, tuned) for n, size in kinds]
    reported = _read(run("reported runs", [trial for trial in second if trial.nets]))
    critical, target = critical_batch(asked, chosen)
    pairs = run("sharpness", _sharpness_trials(asked, tuned, reported))
    noise = run("noise scale", _noise_trials(asked, chosen, target))
    everything = [r for runs in (*chosen.values(), *reported.values()) for r in runs]
    medians = (spread(times).median for times in zip(*timed["rounds"], strict=True))
    return BatchSizes(
        name=setting.problem.name,
        optimizer=name,
        examples=(setting.train.examples, setting.validation.examples, setting.test.examples),
        num_parameters=setting.space.size,
        classes=setting.classes,
        marks=Marks(asked.epochs, asked.updates),
        seeds=asked.seeds,
        kept_rate=tuned[name, asked.small].epochs,
        small=asked.small,
        sizes=tuple(_size_result(asked, size, tuned, reported) for size in asked.sizes),
        timed=tuple(zip(timed["sizes"], medians, strict=True)),
        time=fit_update_time(timed["sizes"], timed["rounds"]),
        needed=updates_needed(asked, chosen, target),
        critical=critical,
        noise=tuple(tuple(row) for result in noise.values() for row in result["rows"]),
        pairs=tuple(SolutionPair.from_plain(p) for p in pairs.values() if "nets" in p),
        rescues=tuple(_rescue(asked, n, size, tuned, reported) for n in RESCUERS for size in large),
        notes=(*kept.notes, *dict.fromkeys(p["failed"] for p in pairs.values() if "failed" in p)),
        cost=Cost(
            gradient_equivalents=round(sum(run.points[-1].cost for run in everything), 1),
            num_hvps=0,
            seconds=round(time.perf_counter() - begun, 2),
        ),
        provenance=current_provenance(setting.start(0), asked.seed),
    )


def _read(results: dict[str, dict[str, Any]]) -> dict[tuple[str, int], list[Run]]:
    found = {}
    for key, result in results.items():
        if "runs" in result:
            _, rest = key.split("-", 1)
            name, _, size = rest.rpartition("-")
            found[name, int(size)] = [Run.from_plain(plain) for plain in result["runs"]]
    return found


def _size_result(
    asked: BatchPlan,
    size: int,
    tuned: dict[tuple[str, int], Tuned],
    reported: dict[tuple[str, int], list[Run]],
) -> SizeResult:
    name = asked.factory.name
    own, runs = tuned[name, size], reported[name, size]
    kept, marks = tuned[name, asked.small].epochs, asked.marks(size)

    def values(rate: float | None, mark: float, what: str) -> tuple[float, ...]:
        return tuple(loss_at(run, mark, what) for run in runs if run.lr == rate)

    cells = ((kept, marks[0]), (kept, marks[1]), (own.epochs, marks[0]), (own.updates, marks[1]))
    return SizeResult(
        size=size,
        rates=(own.epochs, own.updates),
        edge=own.edge,
        loss=tuple(values(rate, mark, "test") for rate, mark in cells),
        right=tuple(values(rate, mark, "right") for rate, mark in cells),
        train=tuple(values(rate, mark, "train") for rate, mark in cells),
    )


def _rescue(
    asked: BatchPlan,
    name: str,
    size: int,
    tuned: dict[tuple[str, int], Tuned],
    reported: dict[tuple[str, int], list[Run]],
) -> Rescue:
    own, runs = tuned.get((name, size)), reported.get((name, size), [])
    rates = (own.epochs, own.updates) if own is not None else (None, None)
    pairs = tuple(zip(rates, asked.marks(size), strict=True))

    def values(what: str) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(loss_at(r, mark, what) for r in runs if r.lr == rate) for rate, mark in pairs)

    return Rescue(name, size, rates, own is not None and own.edge, values("test"), values("right"))


def _noise_trials(
    asked: BatchPlan, chosen: dict[tuple[str, int], list[Run]], target: float
) -> list[NoiseTrial]:
    rate, steps = fastest(asked, chosen, target)
    if not math.isfinite(steps):
        return []
    points = sorted({round(steps * i / _NOISE_POINTS) for i in range(_NOISE_POINTS + 1)})
    return [
        NoiseTrial(
            f"noise-{seed}",
            20.0,
            asked.seed,
            asked.factory.name,
            (seed, rate),
            tuple(float(p) for p in points),
        )
        for seed in (1000 * asked.seed + 500, 1000 * asked.seed + 501)
    ]


def _sharpness_trials(
    asked: BatchPlan,
    tuned: dict[tuple[str, int], Tuned],
    reported: dict[tuple[str, int], list[Run]],
) -> list[SharpnessTrial]:
    """Let small and large batches go to the loss that the large ones reach in the given updates."""
    name, sizes = asked.factory.name, (asked.small, asked.sizes[-1])
    if sizes[0] == sizes[1]:
        return []
    own = tuned[name, sizes[1]]
    target = spread(
        [
            loss_at(r, asked.marks(sizes[1])[1], "train")
            for r in reported[name, sizes[1]]
            if r.lr == own.updates
        ]
    ).median
    if not math.isfinite(target):
        return []
    return [
        SharpnessTrial(
            key=f"sharpness-{seed}",
            size=20.0,
            problem_seed=asked.seed,
            optimizer=name,
            seed=seed,
            sizes=sizes,
            rates=(tuned[name, sizes[0]].epochs, own.updates),
            budgets=(2 * asked.epochs, 2.0 * asked.updates),
            target=target,
        )
        for seed in asked.reported
    ]


def _sizes(asked: Sequence[int] | None, setting: Setting) -> tuple[int, ...]:
    most = setting.train.examples
    if asked is None:
        return (*(4**i for i in range(12) if 4**i <= most / 2), most)
    if not asked or any(size < 1 for size in asked):
        raise InputError(
            "the batch sizes cannot be used", expected="whole numbers of at least 1", got=str(asked)
        )
    return tuple(sorted({min(int(size), most) for size in asked}))


def _checked(optimizer: str, seeds: int, rates: int, epochs: float, updates: int) -> Factory:
    factory = get(optimizer)
    if factory.lr is None or factory.whole or factory.closure != "standard":
        raise InputError(
            f"{optimizer} is no method for batches of any size", expected="one such as sgd, momentum or adam"
        )
    for name, value, least in (
        ("seeds", seeds, 2),
        ("rates", rates, 1),
        ("epochs", epochs, 1),
        ("updates", updates, 1),
    ):
        if not value >= least:
            raise InputError(f"too few {name}", expected=f"at least {least}", got=str(value))
    return factory
