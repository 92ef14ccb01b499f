"""What would move it: remedies tried for a few steps on a copy, measured on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.diagnosis.continuation import NORMS, continue_training, stream, takes_all, typical_norm
from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.line import finite
from thalweg.diagnosis.purse import Purse
from thalweg.diagnosis.rebuild import initialisation_for
from thalweg.diagnosis.remedies import FreshStart, Remedy, calls_for_clipping, fresh_starts, remedies
from thalweg.diagnosis.retraining import PLAIN_LR, restart_cost, retrained
from thalweg.diagnosis.verdict import Verdict
from thalweg.errors import FOREIGN_FAILURES, ThalwegError
from thalweg.estimates import Estimate, paired_difference
from thalweg.problem.cost import FORWARD, GRADIENT
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.loss import BatchLoss
from thalweg.problem.objective import Objective
from thalweg.problem.problem import Measured
from thalweg.problem.stepping import Stepping, stepping_from_optimizer
from thalweg.progress import Progress, Silent
from thalweg.rng import gaussian, generator

__all__ = ["STEPS", "Move", "try_moves"]

STEPS = 20
# A remedy is run over this many batch orders where that is cheap, else over the least that show a spread.
RUNS = 3
FEWEST_RUNS = 2
CHEAP = 2.0  # gradient-equivalents a run
BATCH_SIZE = 64  # of fresh starts, where training takes everything at once or its batch size is not known


@dataclass(frozen=True)
class Move:
    """One remedy and what it did.

    Attributes:
        name: what was tried.
        predicted: the change of the training loss that the quadratic model promises; None where it says
            nothing.
        measured: the change of the held-out loss (of the training loss where there is no other), the mean
            over the runs.
        stderr: of the measured change: the spread between held-out batches, paired with the loss before the
            move, and between runs over other batch orders, other initialisations and other perturbations.
            None where nothing was sampled, or nothing can be said from one batch.
        cost: gradient-equivalents that the trial took; 0 where it was part of the evidence.
    """

    name: str
    predicted: float | None
    measured: float | None
    stderr: float | None
    cost: float = 0.0


@dataclass(frozen=True)
class _Bench:
    """What the remedies are tried on and compared with."""

    train: Objective
    judge: Objective
    evidence: Evidence
    before: list[float]
    counts: list[float]
    purse: Purse
    seed: int

    def judging(self) -> float:
        """The cost of judging one run."""
        return FORWARD * self.judge.examples / self.train.examples

    def change(self, runs: list[list[float]]) -> Estimate:
        """Estimate the mean change from the losses of each batch after each run (runs, batches)."""
        after = np.array([finite(values) for values in runs])
        change = paired_difference(after.mean(0).tolist(), self.before, self.counts)
        data = 0.0 if self.judge.examples == 1 else change.stderr
        means = after @ np.asarray(self.counts) / np.sum(self.counts)
        between = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0
        return Estimate(change.value, float(np.hypot(data, between)), change.num_samples)

    def move(self, name: str, runs: list[list[float]], cost: float, predicted: float | None = None) -> Move:
        """Make a move of what the runs did."""
        return _move(name, predicted, self.change(runs), self.evidence, cost)


def try_moves(
    measured: Measured,
    evidence: Evidence,
    verdict: Verdict,
    stepping: Stepping | None,
    *,
    model: nn.Module | None,
    loss: BatchLoss | None,
    seed: int,
    purse: Purse,
    progress: Progress | None = None,
) -> tuple[Move, ...]:
    """Try the remedies that fit ``verdict``, as far as the purse reaches, and rank them by what they gained.

    Each is run for 20 steps over several batch orders, which are the same for all remedies. One that does
    not apply to the model, or that the purse does not afford, is left out. Where no optimiser is known, the
    weights are perturbed, or started anew, and followed by plain gradient descent.

    Cost: for each remedy 60 gradients over a training batch (40 for batches above a tenth of the sample, 20
    where a step takes all of it), four times as many for the larger batch, and a third of a gradient over the
    held-out data a run.
    """
    (progress or Silent()).phase("trying moves")
    tried: list[Move | None] = [_line_move(evidence), _curvature_move(evidence)]
    train, judge = measured.train, measured.heldout or measured.train
    theta = train.theta
    if purse.affords(FORWARD * judge.examples / train.examples):
        before, counts = judge.batch_values(theta)
        bench = _Bench(train, judge, evidence, before, counts, purse, seed)
        if model is not None and loss is not None:
            tried += _started_anew(bench, verdict, stepping, model, loss)
        tried += _continued(bench, verdict, stepping, theta)
    moves = [move for move in tried if move is not None]
    return tuple(sorted(moves, key=lambda move: np.inf if move.measured is None else move.measured))


def _line_move(evidence: Evidence) -> Move | None:
    line = evidence.line("−gradient")
    if line is None:
        return None
    s = line.best_step
    # One step of this length along −g on the quadratic model: −s‖g‖ + ½s² gᵀHg/‖g‖².
    curvature = float(np.dot(evidence.forecast.nodes, evidence.forecast.weights))
    predicted = s * line.slope + 0.5 * s**2 * curvature
    return _move("a gradient step, its length searched", predicted, line.heldout, evidence)


def _curvature_move(evidence: Evidence) -> Move | None:
    name = "a step along negative curvature"
    line, low = evidence.line("lowest curvature"), evidence.curvature.lambda_min
    if line is None or low.value >= -evidence.curvature.floor:
        return Move(name + ": none found", None, None, None)
    s = line.best_step
    return _move(name, s * line.slope + 0.5 * low.value * s**2, line.heldout, evidence)


def _continued(
    bench: _Bench, verdict: Verdict, stepping: Stepping | None, theta: Tensor
) -> list[Move | None]:
    """Go on from where the model stands, each time with something changed."""
    known = stepping is not None
    stepping = stepping or _gradient_descent(bench, theta)
    share = min(stepping.batch_size or bench.train.examples, bench.train.examples) / bench.train.examples
    clip = None
    if known and calls_for_clipping(verdict) and bench.purse.affords(NORMS * share):
        norm = typical_norm(bench.train, theta, stream(bench.train, stepping, bench.seed, "moves-0"))
        clip = norm if np.isfinite(norm) and norm > 0 else None
    moves: list[Move] = []
    for remedy in remedies(verdict, bench.evidence, stepping, examples=bench.train.examples, clip=clip):
        if not known and remedy.perturbation == 0:
            continue
        cost = _training_cost(bench.train, share * remedy.together)
        runs = _runs(cost) if isinstance(bench.train, EmpiricalRisk) else RUNS
        if takes_all(bench.train, stepping) and remedy.perturbation == 0:
            runs = 1  # nothing is random
        if bench.purse.affords(runs * (cost + (1 + remedy.averaged) * bench.judging())):
            moves += _attempt(partial(_continue, bench, stepping, remedy, theta, runs))
    return list(moves)


def _training_cost(train: Objective, share: float) -> float:
    """What a run costs: a plain function takes its value beside its gradient."""
    return STEPS * (share if isinstance(train, EmpiricalRisk) else GRADIENT + FORWARD)


def _runs(cost: float) -> int:
    return RUNS if cost <= CHEAP else FEWEST_RUNS


def _continue(bench: _Bench, stepping: Stepping, remedy: Remedy, theta: Tensor, runs: int) -> list[Move]:
    spent = bench.purse.ledger.gradient_equivalents
    last, mean = [], []
    for run in range(runs):
        start = theta
        if remedy.perturbation:
            push = gaussian(theta.numel(), generator(bench.seed, "perturbation", run), like=theta)
            push[0] = push[0].abs() * (-1) ** run  # so that a line is tried both ways
            length = remedy.perturbation * max(float(theta.norm()), 1.0)
            start = theta + length * push / push.norm()
        batches = stream(bench.train, stepping, bench.seed, f"moves-{run}", together=remedy.together)
        there, average = continue_training(
            bench.train,
            start,
            stepping,
            batches,
            steps=STEPS,
            lr_factor=remedy.lr_factor,
            momentum=remedy.momentum,
            clip=remedy.clip,
        )
        last.append(bench.judge.batch_values(there)[0])
        if remedy.averaged:
            mean.append(bench.judge.batch_values(average)[0])
    cost = bench.purse.ledger.gradient_equivalents - spent
    moves = [bench.move(remedy.name, last, cost, _predicted(bench.evidence, stepping, remedy))]
    if mean:
        moves.append(bench.move("average of the iterates", mean, cost))
    return moves


def _predicted(evidence: Evidence, stepping: Stepping, remedy: Remedy) -> float | None:
    """What the quadratic model promises, where the remedy changes no more than the learning rate."""
    if not stepping.is_gradient_descent or not remedy.keeps_the_method:
        return None
    return -evidence.forecast.at(stepping.effective_lr * remedy.lr_factor).decrease(STEPS)


def _gradient_descent(bench: _Bench, theta: Tensor) -> Stepping:
    """Plain gradient descent, where no optimiser is known: a step of 1/λmax where something curves up."""
    train = bench.train
    tensors = train.space.unflatten(theta) if isinstance(train, EmpiricalRisk) else [theta]
    leaves = [nn.Parameter(tensor.clone()) for tensor in tensors]
    optimizer = torch.optim.SGD(leaves, lr=bench.evidence.forecast.lr or PLAIN_LR)
    size = min(BATCH_SIZE, train.examples) if isinstance(train, EmpiricalRisk) else None
    return stepping_from_optimizer(optimizer, leaves, size)


def _started_anew(
    bench: _Bench, verdict: Verdict, stepping: Stepping | None, model: nn.Module, loss: BatchLoss
) -> list[Move | None]:
    """Begin again with a variant of the model."""
    examples = bench.train.examples
    size = min((stepping.batch_size if stepping is not None else None) or BATCH_SIZE, examples)
    cost = restart_cost(examples, size, steps=STEPS)
    runs = _runs(cost)
    moves: list[Move] = []
    for start in fresh_starts(verdict):
        if bench.purse.affords(runs * (cost + bench.judging())):
            moves += _attempt(partial(_start_anew, bench, start, stepping, model, loss, size, runs))
    return list(moves)


def _start_anew(
    bench: _Bench,
    start: FreshStart,
    stepping: Stepping | None,
    model: nn.Module,
    loss: BatchLoss,
    size: int,
    runs: int,
) -> list[Move]:
    spent = bench.purse.ledger.gradient_equivalents
    after = []
    for run in range(runs):
        variant = retrained(
            model,
            loss,
            start,
            stepping,
            bench.train,
            bench.judge,
            batch_size=size,
            steps=STEPS,
            seed=bench.seed,
            run=run,
        )
        if variant is None:
            return []
        after.append(variant)
    name = start.name(initialisation_for(model, relu=start.relu))
    return [bench.move(name, after, bench.purse.ledger.gradient_equivalents - spent)]


def _attempt(remedy: Callable[[], list[Move]]) -> list[Move]:
    """Try a remedy; one that fails on this model does not apply to it."""
    try:
        return remedy()
    except (*FOREIGN_FAILURES, ThalwegError):
        return []


def _move(
    name: str, predicted: float | None, change: Estimate, evidence: Evidence, cost: float = 0.0
) -> Move:
    stderr = change.stderr if np.isfinite(change.stderr) and change.stderr > 0 else None
    # The quadratic model has lost its meaning where it promises more than there is to gain.
    if predicted is not None and abs(predicted) > evidence.scale:
        predicted = None
    return Move(name, predicted, change.value, stderr, round(cost, 2))
