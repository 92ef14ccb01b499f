"""What a fresh start buys: a rebuilt variant of the model, trained for a few steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from thalweg.diagnosis.continuation import shuffled
from thalweg.diagnosis.rebuild import rebuilt
from thalweg.diagnosis.remedies import FreshStart
from thalweg.errors import ModelError
from thalweg.problem.batches import Batch
from thalweg.problem.cost import FORWARD, GRADIENT, Ledger
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import random_state_kept
from thalweg.problem.interrupt import safe_point
from thalweg.problem.loss import BatchLoss
from thalweg.problem.objective import Objective
from thalweg.problem.stepping import Stepper, Stepping
from thalweg.rng import generator

__all__ = ["PLAIN_LR", "restart_cost", "retrained"]

PLAIN_LR = 0.1  # of the gradient descent that stands in where no optimiser is known
MOST_PLAIN_LR = 0.5


def restart_cost(examples: int, batch_size: int, *, steps: int) -> float:
    """Return what a run of `retrained` costs before it is judged, in gradient-equivalents."""
    return (steps + FORWARD * (1 + _statistics(examples, batch_size, steps))) * batch_size / examples


def retrained(
    model: nn.Module,
    loss: BatchLoss,
    start: FreshStart,
    stepping: Stepping | None,
    train: Objective,
    judge: Objective,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    run: int,
) -> list[float] | None:
    """Train a variant of ``model`` from fresh weights; return its mean losses over the batches of ``judge``.

    The optimiser is of the user's kind with the user's settings and no state; plain gradient descent where
    none is known or it cannot be made anew. Layers that keep running statistics of the data have had no time
    to gather them in a few steps, so these are taken anew before the model is judged ([ioffe2015],
    algorithm 2).

    Args:
        model: copied, never written to.
        loss: as the user trains.
        start: what to change in the model.
        stepping: the user's, None where it is not known.
        train: whose sample is cut into batches.
        judge: whose batches tell the loss.
        batch_size: of the steps.
        steps: how many to take.
        seed: of the diagnosis.
        run: which of its runs: another initialisation, and the batches of order ``moves-<run>``.

    Returns:
        None where the model has no such variant.

    Raises:
        ModelError: when the loss does not depend on the weights of the variant.

    Cost: one gradient over a training batch a step, a third of one for each batch of statistics (those of an
    epoch, or as many as the steps), and a third of a gradient over the data of ``judge``.
    """
    if not isinstance(train, EmpiricalRisk) or not isinstance(judge, EmpiricalRisk):
        return None
    sample, ledger = train.sample, train.ledger
    own = generator(seed, "fresh start", run).initial_seed()
    (probe,) = next(shuffled(sample, batch_size, seed, "probe"))
    variant = rebuilt(
        model,
        lambda module: loss(module, probe.data),
        relu=start.relu,
        batch_norm=start.batch_norm,
        seed=own,
    )
    if variant is None:
        return None
    ledger.spend(FORWARD if start.batch_norm else 0.0, probe.examples)
    batches = shuffled(sample, batch_size, seed, f"moves-{run}")
    with random_state_kept(own), torch.enable_grad():  # dropout draws from the global state
        _train(variant, loss, stepping, itertools.islice(batches, steps), ledger)
        epoch = itertools.islice(batches, _statistics(train.examples, batch_size, steps))
        _gather_statistics(variant, loss, epoch, ledger)
    return _values(variant, loss, judge)


def _statistics(examples: int, batch_size: int, steps: int) -> int:
    """Over how many batches the statistics of the data are taken."""
    return min(steps, -(-examples // batch_size))


def _train(
    variant: nn.Module,
    loss: BatchLoss,
    stepping: Stepping | None,
    batches: Iterator[Sequence[Batch]],
    ledger: Ledger,
) -> None:
    """Take a step for each of ``batches``, in place, in training mode."""
    stepper = _stepper([p for p in variant.parameters() if p.requires_grad], stepping)
    variant.train()
    for batch in batches:

        def evaluate(leaves: Sequence[Tensor], batch: Sequence[Batch] = batch) -> tuple[float, list[Tensor]]:
            return _value_and_gradient(variant, loss, leaves, batch, ledger)

        stepper.step(evaluate)


def _stepper(parameters: list[nn.Parameter], stepping: Stepping | None) -> Stepper:
    own = stepping.afresh(parameters) if stepping is not None else None
    if own is not None:
        return own
    lr = stepping.effective_lr if stepping is not None and stepping.is_gradient_descent else PLAIN_LR
    return Stepper(torch.optim.SGD(parameters, lr=min(lr, MOST_PLAIN_LR)), parameters)


def _value_and_gradient(
    variant: nn.Module, loss: BatchLoss, leaves: Sequence[Tensor], batches: Sequence[Batch], ledger: Ledger
) -> tuple[float, list[Tensor]]:
    """Return value and gradient over ``batches`` as training sees them: a sum where the loss is one."""
    gradient = [torch.zeros_like(leaf) for leaf in leaves]
    value, weight, summed = 0.0, 0.0, False
    for batch in batches:
        safe_point()
        terms = loss(variant, batch.data)
        parts = torch.autograd.grad(terms.mean, list(leaves), allow_unused=True)
        if all(part is None for part in parts):
            raise ModelError("the loss does not use the weights of the model it is given")
        for total, part in zip(gradient, parts, strict=True):
            if part is not None:
                total += part * terms.count
        value += float(terms.mean.detach()) * terms.count
        weight += terms.count
        summed = summed or terms.summed
        ledger.spend(GRADIENT, batch.examples)
    share = 1.0 if summed else 1.0 / weight
    return value * share, [total * share for total in gradient]


@torch.no_grad()
def _gather_statistics(
    variant: nn.Module, loss: BatchLoss, batches: Iterator[Sequence[Batch]], ledger: Ledger
) -> None:
    """Average the statistics of normalisation layers over ``batches``."""
    layers = [m for m in variant.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    layers = [layer for layer in layers if layer.track_running_stats and layer.training]
    if not layers:
        return
    variant.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average
        layer.train()
    for batch in batches:
        for part in batch:
            safe_point()
            loss(variant, part.data)
            ledger.spend(FORWARD, part.examples)


@torch.no_grad()
def _values(variant: nn.Module, loss: BatchLoss, judge: EmpiricalRisk) -> list[float]:
    variant.eval()
    values = []
    for batch in judge.groups:
        safe_point()
        values.append(float(loss(variant, batch.data).mean))
        judge.ledger.spend(FORWARD, batch.examples)
    return values
