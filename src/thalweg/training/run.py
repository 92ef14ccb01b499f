"""A training under way: epoch after epoch, measured after each, until something ends it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from thalweg.errors import InputError
from thalweg.problem.cost import FORWARD
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.epochs import Epochs
from thalweg.problem.intact import intact
from thalweg.problem.interrupt import safe_point
from thalweg.problem.objective import Objective, require_finite
from thalweg.problem.problem import Measured, Problem
from thalweg.progress import Progress
from thalweg.training.recorded_training import Keeper
from thalweg.training.saved_state import random_states, set_random_states
from thalweg.training.steps import NotFiniteError, Snapshot, Steps
from thalweg.training.stopping import End, Limit, best_of, diverged, ended, require_not_past
from thalweg.training.trajectory import Epoch

__all__ = ["Run"]


class Run:
    """A training under way.

    Attributes:
        record: where it stood at the end of each epoch, the start first.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        steps: Steps,
        measured: Measured,
        data: Epochs,
        limit: Limit,
        progress: Progress,
        keeper: Keeper | None = None,
    ) -> None:
        self._problem, self._optimizer, self._steps = problem, optimizer, steps
        self._measured, self._data, self._limit, self._progress = measured, data, limit, progress
        self._keeper = keeper
        self.record: list[Epoch] = []
        self._taken = 0
        self._at_end = True  # of an epoch, so that the next one can begin
        early = limit.rule is not None and limit.rule.max_fail is not None and measured.heldout is not None
        self._best = Snapshot(problem) if early else None

    def to_its_end(self) -> End:
        """Train until something ends it.

        Raises:
            NumericalError: where the loss is not finite to begin with.
        """
        self._progress.phase("training")
        if not self.record:
            self.record.append(self._now())
            require_finite(self.record[0].loss, "the training loss")
        while (end := ended(self.record, self._steps.gradient_norm, self._limit)) is None:
            bad = self._epoch(len(self.record))
            now = self._now()
            if bad is None and not math.isfinite(now.loss):
                bad = now.loss
                self._steps.back()
                now = self._now()
            self.record.append(now)
            if bad is not None:
                return diverged(bad, self.record, self._taken)
            if self._best is not None and best_of(self.record) == len(self.record) - 1:
                self._best.take()
            if self._keeper is not None and self._at_end:
                self._keeper.keep(self.state, last=False)
        if self._keeper is not None and self._at_end and len(self.record) > 1:
            self._keeper.keep(self.state, last=True)
        if end.stopped == "held-out" and self._best is not None:
            self._best.restore()
        return end

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on, as what a file can hold."""
        return {
            "now": Snapshot(self._problem).tensors,
            "best": self._best.tensors if self._best is not None else None,
            "optimizer": self._optimizer.state_dict(),
            "steps": self._steps.state(),
            "record": [asdict(epoch) for epoch in self.record],
            "taken": self._taken,
            "random": random_states(),
        }

    def require_resumable(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on from what `state` returned, before anything is written.

        Raises:
            InputError: where the problem's loss at its start is not what it was, or the training has gone on
                for longer than is asked for.
        """
        record = [Epoch(**epoch) for epoch in state["record"]]
        require_not_past(record, self._limit)
        begins = self._now().loss
        if not math.isclose(begins, record[0].loss, rel_tol=1e-6, abs_tol=1e-12):
            raise InputError(
                "the problem is not the one that the training began with",
                expected=f"a loss of {record[0].loss:.8g} at the start",
                got=f"{begins:.8g}",
                cause="model, data or loss have changed since",
                hint="another folder for the new problem",
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, in a process that has built the same problem anew."""
        record = [Epoch(**epoch) for epoch in state["record"]]
        start = Snapshot(self._problem)
        start.adopt(state["now"])
        start.restore()
        if self._best is not None and state["best"] is not None:
            self._best.adopt(state["best"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._steps.restore(state["steps"])
        self.record, self._taken = record, state["taken"]
        set_random_states(state["random"])

    def _epoch(self, number: int) -> float | None:
        """Take the steps of an epoch, or as many of them as are still wanted; return a loss not finite."""
        if self._problem.model is not None:
            self._problem.model.train()
        begun = self._taken
        self._at_end = False
        for batch in self._data.epoch(number):
            if self._taken == self._limit.steps:
                return None
            safe_point()
            try:
                self._steps.step(batch)
            except NotFiniteError as error:
                return error.loss
            self._taken += 1
            self._tell(number, self._taken - begun)
        self._at_end = True
        if self._taken == begun:
            raise InputError("the training data is empty", expected="at least one batch in an epoch")
        return None

    def _now(self) -> Epoch:
        """Measure where training stands."""
        heldout = self._measured.heldout
        rates = [float(group["lr"]) for group in self._optimizer.param_groups if "lr" in group]
        return Epoch(
            steps=self._taken,
            loss=self._mean_loss(self._measured.train),
            heldout=self._mean_loss(heldout) if heldout is not None else None,
            lr=max(rates, default=None),
            gradient_equivalents=round(self._steps.gradient_equivalents, 4),
        )

    def _mean_loss(self, objective: Objective) -> float:
        """Return the loss over a sample in evaluation mode, at the present weights and running statistics.

        The objective itself keeps the statistics that the model had when it was made.
        """
        batches = objective.chunks if isinstance(objective, EmpiricalRisk) else ()
        data: Sequence[object] = [batch.data for batch in batches] or [None]
        total, weight = 0.0, 0.0
        with intact(self._problem.model), torch.no_grad():
            for part in data:
                terms = self._problem.terms(part)
                total += float(terms.mean) * terms.count
                weight += terms.count
        objective.ledger.spend(FORWARD, objective.examples)
        return total / weight

    def _tell(self, number: int, taken: int) -> None:
        if self._limit.steps is not None:
            self._progress.advance(self._taken, self._limit.steps)
        elif self._limit.epochs is not None:
            part = taken / self._data.num_batches if self._data.num_batches else 0.5
            self._progress.advance(number - 1 + min(part, 1.0), self._limit.epochs)
