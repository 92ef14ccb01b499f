"""What would move it: remedies tried for a few steps on a copy, measured on held-out data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.diagnosis.continuation import continue_training, stream
from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.rebuild import rebuilt
from thalweg.diagnosis.verdict import Verdict
from thalweg.estimates import Estimate, paired_difference
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import intact
from thalweg.problem.loss import BatchLoss
from thalweg.problem.objective import Objective
from thalweg.problem.problem import Measured
from thalweg.problem.stepping import Stepping
from thalweg.progress import Progress, Silent
from thalweg.rng import generator

__all__ = ["STEPS", "Move", "try_moves"]

STEPS = 20


@dataclass(frozen=True)
class Move:
    """One remedy and what it did.

    Attributes:
        name: what was tried.
        predicted: the change of the training loss that the quadratic model promises; None where it says
            nothing.
        measured: the change of the held-out loss (of the training loss where there is no other).
        stderr: of the measured change, paired over batches; None where nothing was sampled.
    """

    name: str
    predicted: float | None
    measured: float | None
    stderr: float | None


def try_moves(
    measured: Measured,
    evidence: Evidence,
    verdict: Verdict,
    stepping: Stepping | None,
    *,
    model: nn.Module | None,
    loss: BatchLoss | None,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Move, ...]:
    """Try the remedies that fit ``verdict`` and rank them by what they gained.

    Cost: 20 gradients over a training batch and 2/3 gradient-equivalent each.
    """
    told = progress or Silent()
    told.phase("trying moves")
    moves = [_line_move(evidence, "−gradient", "a gradient step, its length searched")]
    moves.append(_curvature_move(evidence))
    if stepping is not None:
        moves += _training_moves(measured, evidence, stepping, verdict, seed)
    if model is not None and loss is not None and verdict in {Verdict.PLATEAU, Verdict.UNDETERMINED}:
        moves += _rebuilt_moves(measured, stepping, model, loss, seed)
    tried = [move for move in moves if move is not None]
    return tuple(sorted(tried, key=lambda move: np.inf if move.measured is None else move.measured))


def _line_move(evidence: Evidence, line_name: str, name: str) -> Move | None:
    line = evidence.line(line_name)
    if line is None:
        return None
    s = line.best_step
    # One step of this length along −g on the quadratic model: −s‖g‖ + ½s² gᵀHg/‖g‖².
    curvature = float(np.dot(evidence.forecast.nodes, evidence.forecast.weights))
    predicted = s * line.slope + 0.5 * s**2 * curvature
    return _move(name, predicted, line.heldout)


def _curvature_move(evidence: Evidence) -> Move | None:
    name = "a step along negative curvature"
    line, low = evidence.line("lowest curvature"), evidence.curvature.lambda_min
    if line is None or low.value >= -evidence.curvature.floor:
        return Move(name + ": none found", None, None, None)
    s = line.best_step
    return _move(name, s * line.slope + 0.5 * low.value * s**2, line.heldout)


def _training_moves(
    measured: Measured, evidence: Evidence, stepping: Stepping, verdict: Verdict, seed: int
) -> list[Move | None]:
    train, judge = measured.train, measured.heldout or measured.train
    theta = train.theta
    moves: list[Move | None] = []
    means: dict[float, Tensor] = {}
    for factor, name in ((1.0, "carry on"), (0.1, "learning rate × 0.1"), (10.0, "learning rate × 10")):
        batches = stream(train, stepping, seed, "moves")  # the same batches for every learning rate
        last, means[factor] = continue_training(
            train, theta, stepping, batches, steps=STEPS, lr_factor=factor
        )
        predicted = None
        if stepping.is_gradient_descent:
            predicted = -evidence.forecast.at(stepping.effective_lr * factor).decrease(STEPS)
        moves.append(_move(name, predicted, _change(judge, theta, last)))
    if verdict is Verdict.BOUNCING:
        moves.append(_move("average of the iterates", None, _change(judge, theta, means[1.0])))
    return moves


def _rebuilt_moves(
    measured: Measured, stepping: Stepping | None, model: nn.Module, loss: BatchLoss, seed: int
) -> list[Move | None]:
    """Train variants of the model from a fresh start and compare them with where the model stands."""
    moves: list[Move | None] = []
    for name, relu, batch_norm in (
        ("ReLU + He initialisation", True, False),
        ("batch normalisation + Glorot initialisation", False, True),
    ):
        variant = rebuilt(model, relu=relu, batch_norm=batch_norm, seed=seed)
        if variant is not None and isinstance(measured.train, EmpiricalRisk):
            moves.append(_move(name, None, _train_variant(measured, stepping, variant, loss, seed)))
    return moves


def _train_variant(
    measured: Measured, stepping: Stepping | None, variant: nn.Module, loss: BatchLoss, seed: int
) -> Estimate:
    train, judge = measured.train, measured.heldout or measured.train
    assert isinstance(train, EmpiricalRisk)
    assert isinstance(judge, EmpiricalRisk)
    lr = stepping.effective_lr if stepping is not None and stepping.is_gradient_descent else 0.1
    optimizer = torch.optim.SGD(variant.parameters(), lr=min(lr, 0.5))
    size = (stepping.batch_size if stepping is not None else None) or min(64, train.examples)
    epoch = [b for e in range(STEPS) for b in train.sample.rebatched(size, generator(seed, "variant", e))][
        :STEPS
    ]
    variant.train()
    with intact(None):
        for batch in epoch:
            terms = loss(variant, batch.data)
            gradients = torch.autograd.grad(terms.mean * terms.scale, list(variant.parameters()))
            for parameter, gradient in zip(variant.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            train.ledger.spend(1.0, batch.examples)
    there = EmpiricalRisk(variant, loss, judge.sample, ledger=train.ledger)
    before, counts = judge.batch_values(judge.theta)
    after, _ = there.batch_values(there.theta)
    return paired_difference(after, before, counts)


def _change(objective: Objective, before: Tensor, after: Tensor) -> Estimate:
    here, counts = objective.batch_values(before)
    there, _ = objective.batch_values(after)
    change = paired_difference([v if np.isfinite(v) else 1e30 for v in there], here, counts)
    return Estimate(change.value, 0.0) if objective.examples == 1 else change


def _move(name: str, predicted: float | None, change: Estimate) -> Move:
    stderr = change.stderr if np.isfinite(change.stderr) and change.stderr > 0 else None
    return Move(name, predicted, change.value, stderr)
