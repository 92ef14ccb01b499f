"""What would move it: remedies tried for a few steps on a copy, measured on held-out data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.diagnosis.continuation import continue_training, shuffled, stream
from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.line import finite
from thalweg.diagnosis.purse import Purse
from thalweg.diagnosis.rebuild import rebuilt
from thalweg.diagnosis.verdict import Verdict
from thalweg.errors import FOREIGN_FAILURES, ThalwegError
from thalweg.estimates import Estimate, paired_difference
from thalweg.problem.cost import FORWARD, GRADIENT
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import random_state_kept
from thalweg.problem.loss import BatchLoss
from thalweg.problem.objective import Objective
from thalweg.problem.problem import Measured
from thalweg.problem.stepping import Stepping
from thalweg.progress import Progress, Silent

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
    purse: Purse,
    progress: Progress | None = None,
) -> tuple[Move, ...]:
    """Try the remedies that fit ``verdict``, as far as the purse reaches, and rank them by what they gained.

    A remedy that does not apply to the model is left out.

    Cost: 20 gradients over a training batch and 2/3 gradient-equivalent each.
    """
    told = progress or Silent()
    told.phase("trying moves")
    moves = [_line_move(evidence), _curvature_move(evidence)]
    train = measured.train
    if stepping is not None:
        size = min(stepping.batch_size or train.examples, train.examples)
        for factor, name in _FACTORS:
            if purse.affords(_cost(measured, size)):
                moves += _attempt(
                    lambda f=factor, n=name: _training_move(  # type: ignore[misc]
                        measured, evidence, stepping, f, n, verdict, seed
                    )
                )
    if model is not None and loss is not None and verdict in {Verdict.PLATEAU, Verdict.UNDETERMINED}:
        size = min((stepping.batch_size if stepping is not None else None) or 64, train.examples)
        for name, relu, batch_norm in _VARIANTS:
            variant = rebuilt(model, relu=relu, batch_norm=batch_norm, seed=seed)
            if variant is not None and purse.affords(_cost(measured, size)):
                moves += _attempt(
                    lambda v=variant, n=name, s=size: [  # type: ignore[misc]
                        _move(n, None, _train_variant(measured, stepping, v, loss, s, seed), evidence)
                    ]
                )
    tried = [move for move in moves if move is not None]
    return tuple(sorted(tried, key=lambda move: np.inf if move.measured is None else move.measured))


_FACTORS = ((1.0, "carry on"), (0.1, "learning rate × 0.1"), (10.0, "learning rate × 10"))
_VARIANTS = (
    ("ReLU + He initialisation", True, False),
    ("batch normalisation + Glorot initialisation", False, True),
)


def _cost(measured: Measured, batch_size: int) -> float:
    judge = measured.heldout or measured.train
    return (STEPS * batch_size + 2 * FORWARD * judge.examples) / measured.train.examples


def _attempt(remedy: Callable[[], list[Move]]) -> list[Move]:
    """Try a remedy; one that fails on this model does not apply to it."""
    try:
        return remedy()
    except (*FOREIGN_FAILURES, ThalwegError):
        return []


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


def _training_move(
    measured: Measured,
    evidence: Evidence,
    stepping: Stepping,
    factor: float,
    name: str,
    verdict: Verdict,
    seed: int,
) -> list[Move]:
    """Train on with the learning rate times ``factor``, the same batches for every factor."""
    train, judge = measured.train, measured.heldout or measured.train
    theta = train.theta
    batches = stream(train, stepping, seed, "moves")
    last, mean = continue_training(train, theta, stepping, batches, steps=STEPS, lr_factor=factor)
    predicted = None
    if stepping.is_gradient_descent:
        predicted = -evidence.forecast.at(stepping.effective_lr * factor).decrease(STEPS)
    moves = [_move(name, predicted, _change(judge, theta, last), evidence)]
    if verdict is Verdict.BOUNCING and factor == 1.0:
        moves.append(_move("average of the iterates", None, _change(judge, theta, mean), evidence))
    return moves


def _train_variant(
    measured: Measured,
    stepping: Stepping | None,
    variant: nn.Module,
    loss: BatchLoss,
    batch_size: int,
    seed: int,
) -> Estimate:
    """Train a variant of the model from a fresh start and compare it with where the model stands."""
    train, judge = measured.train, measured.heldout or measured.train
    assert isinstance(train, EmpiricalRisk)
    assert isinstance(judge, EmpiricalRisk)
    lr = stepping.effective_lr if stepping is not None and stepping.is_gradient_descent else 0.1
    optimizer = torch.optim.SGD(variant.parameters(), lr=min(lr, 0.5))
    batches = shuffled(train.sample, batch_size, seed, "variant")
    variant.train()
    with random_state_kept(seed), torch.enable_grad():
        for batch in itertools.islice(batches, STEPS):
            terms = loss(variant, batch.data)
            parameters = list(variant.parameters())
            gradients = torch.autograd.grad(terms.mean, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            train.ledger.spend(GRADIENT, batch.examples)
    there = EmpiricalRisk(variant, loss, judge.sample, ledger=train.ledger)
    before, counts = judge.batch_values(judge.theta)
    after, _ = there.batch_values(there.theta)
    return paired_difference(after, before, counts)


def _change(objective: Objective, before: Tensor, after: Tensor) -> Estimate:
    here, counts = objective.batch_values(before)
    there, _ = objective.batch_values(after)
    change = paired_difference(finite(there), here, counts)
    return Estimate(change.value, 0.0) if objective.examples == 1 else change


def _move(name: str, predicted: float | None, change: Estimate, evidence: Evidence) -> Move:
    stderr = change.stderr if np.isfinite(change.stderr) and change.stderr > 0 else None
    # The quadratic model has lost its meaning where it promises more than there is to gain.
    if predicted is not None and abs(predicted) > evidence.scale:
        predicted = None
    return Move(name, predicted, change.value, stderr)
