"""Training: any optimiser on any problem, on one example, a few or all of them a step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.optim.factory import Factory
from thalweg.optim.registry import closure_of, get
from thalweg.problem.epochs import BatchSize, open_epochs
from thalweg.problem.intact import random_state_kept
from thalweg.problem.interrupt import at_safe_points
from thalweg.problem.problem import Problem
from thalweg.progress import Progress, Silent
from thalweg.records import Cost, current_provenance, to_plain
from thalweg.training.recorded_training import Keeper, open_recorder
from thalweg.training.resume import adopt
from thalweg.training.run import Run
from thalweg.training.steps import Steps
from thalweg.training.stopping import Limit
from thalweg.training.trajectory import Trajectory

__all__ = ["Trajectory", "train"]

EPOCHS = 20


def train(
    problem: Problem,
    optimizer: str | torch.optim.Optimizer = "adam",
    *,
    lr: float | None = None,
    batch_size: BatchSize = None,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    record: str | os.PathLike[str] | None = None,
    resume: bool = False,
    budget: float = 0.05,
    progress: Progress | None = None,
) -> Trajectory:
    """Train the model of ``problem`` in place, and tell how it went.

    The model runs in training mode, in its own dtype and on its own device. Its weights, buffers and
    gradients (None afterwards) change; its modes and the global random states are put back, on an exception
    too. Where the loss of a batch becomes NaN or infinite, training stops, and the weights are the last ones
    at which it was finite. Ctrl-C comes between two steps. Of a plain function the start point moves, and an
    epoch is a step.

    An optimiser state that the problem has adopted from a checkpoint is gone on from where it is of the same
    kind as the optimiser named here, with its learning rate unless ``lr`` is given.

    Args:
        problem: what is trained.
        optimizer: a name (see `thalweg.optim.names`), or an optimiser over the problem's parameters.
        lr: the learning rate; None for the default of the name.
        batch_size: examples per step, "all" for all of them at once; None as the data come (tensors and
            datasets in batches of 64), or all of them for a method that is meant for that.
        epochs: passes over the training data; 20 by default, or what the stop rule of the name says (those
            that begin with ``matlab:`` have one).
        steps: how many steps, in place of ``epochs``.
        seed: of the order of the examples and of what the model draws; the same seed from the same weights
            gives the same weights.
        record: a folder in which a `thalweg.Recorder` writes down what happens along the way, and in which
            the state of the training is kept at the ends of epochs; `thalweg.read_run` reads it. Training
            goes as it would without, bit for bit.
        resume: go on with the training in ``record``, from the last state that was kept, as if it had never
            been interrupted, bit for bit; the problem is the one it began with. ``epochs`` and ``steps`` may
            be others and count from its beginning. Where nothing was kept yet it begins.
        budget: what recording may take, relative to the time of training.
        progress: is told how far the work is.

    Returns:
        A record: the losses in evaluation mode from before the first step on, why it ended, what it cost.

    Raises:
        InputError: for arguments of the wrong kind, an unknown name, a loss that the method cannot take, a
            folder with another training.
        ModelError: for a model that cannot be measured.
        NumericalError: where the loss is not finite to begin with.

    Cost: per epoch what the optimiser evaluates (one gradient-equivalent for a first-order method), and a
    third of one for the losses that are recorded.
    """
    if not isinstance(problem, Problem):
        raise InputError("there is nothing to train", expected="a Problem", got=type(problem).__name__)
    begun = time.perf_counter()
    factory = get(optimizer) if isinstance(optimizer, str) else None
    if factory is not None and factory.whole and batch_size is None:
        batch_size = None if problem.is_function else "all"
    limit = _limit(factory, epochs, steps)
    measured = problem.measured(seed=seed)
    device = problem.parameters()[0].device
    data = open_epochs(problem.training_data, batch_size, seed=seed, device=device)
    with random_state_kept():  # for what is imported only now
        made, note = _optimizer(problem, optimizer, factory, lr)
    closure = factory.closure if factory is not None else closure_of(made)
    settings = _plain(made)
    name = factory.name if factory is not None else type(made).__name__
    known = {"optimizer": name, "settings": to_plain(settings), "batch size": data.batch_size, "seed": seed}
    known |= {"parameters": measured.train.theta.numel(), "examples": data.examples}
    keeper = Keeper(Path(record), known, resume=resume) if record is not None else None
    with ExitStack() as stack:
        taken = Steps(problem, made, closure, data.examples or measured.train.examples)
        run = Run(problem, made, taken, measured, data, limit, progress or Silent(), keeper)
        stored = keeper.stored if keeper is not None else None
        if stored is not None:
            run.require_resumable(stored)
        if keeper is not None and record is not None:
            taken.recorder = stack.enter_context(
                open_recorder(
                    problem, made, closure, measured.train, record, keeper.resume_from, budget, seed
                )
            )
        stack.enter_context(_conditions(problem.model, seed))
        if stored is not None:
            run.restore(stored)
        ended = run.to_its_end()
    ledger = measured.ledger
    return Trajectory(
        name=problem.name,
        optimizer=name,
        settings=settings,
        batch_size=data.batch_size,
        epochs=tuple(run.record),
        stopped=ended.stopped,
        reason=ended.reason,
        kept=ended.kept,
        point=tuple(problem.parameters()[0].tolist()) if _is_small(problem) else None,
        saved_to=None,
        notes=(*measured.notes, *note),
        num_parameters=measured.train.theta.numel(),
        num_examples=data.examples,
        cost=Cost(
            gradient_equivalents=round(ledger.gradient_equivalents + taken.gradient_equivalents, 1),
            num_hvps=ledger.num_hvps + taken.num_products,
            seconds=round(time.perf_counter() - begun, 2),
        ),
        provenance=current_provenance(measured.train.theta, seed),
        optimizer_state=made.state_dict(),
    )


def _limit(factory: Factory | None, epochs: int | None, steps: int | None) -> Limit:
    for name, number in (("epochs", epochs), ("steps", steps)):
        if number is not None and not number >= 0:
            raise InputError(f"the number of {name} is negative", got=str(number))
    if epochs is not None and steps is not None:
        raise InputError(
            "how long to train is said twice", got=f"{epochs} epochs and {steps} steps", hint="one of them"
        )
    rule = factory.stop if factory is not None else None
    if epochs is None and steps is None:
        epochs = rule.epochs if rule is not None else EPOCHS
    return Limit(epochs, steps, rule)


def _optimizer(
    problem: Problem, optimizer: str | torch.optim.Optimizer, factory: Factory | None, lr: float | None
) -> tuple[torch.optim.Optimizer, tuple[str, ...]]:
    """Return the optimiser, and what is to be said about a state taken over from a checkpoint."""
    if factory is not None:
        made = factory(problem.parameters(), **({} if lr is None else {"lr": lr}))
        return made, adopt(made, problem.optimizer_state, keep_lr=lr is not None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            "the optimiser is of the wrong type",
            expected="a name, or a torch.optim.Optimizer over the problem's parameters",
            got=type(optimizer).__name__,
        )
    if lr is not None:
        raise InputError("the optimiser has a learning rate already", hint="a name with lr, or leave lr out")
    own = {id(p) for p in problem.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise InputError(
            "the optimiser holds none of the problem's trainable parameters",
            cause="it was built for another copy of the model",
            hint="build it with problem.parameters()",
        )
    return optimizer, ()


@contextmanager
def _conditions(model: nn.Module | None, seed: int) -> Iterator[None]:
    """Train with gradients and seeded random states; put modes, states and gradients in order afterwards."""
    modes = [(module, module.training) for module in model.modules()] if model is not None else []
    with ExitStack() as stack:
        stack.enter_context(at_safe_points())
        stack.enter_context(random_state_kept(seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter in model.parameters() if model is not None else ():
                parameter.grad = None


def _plain(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the settings of the first group as what JSON can say."""
    group = optimizer.param_groups[0]
    return {
        name: float(value) if isinstance(value, Tensor) else value
        for name in optimizer.defaults
        if isinstance(value := group.get(name), bool | int | float | str | tuple | list | Tensor | None)
    }


def _is_small(problem: Problem) -> bool:
    return problem.is_function and problem.parameters()[0].numel() <= 16
