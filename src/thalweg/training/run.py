"""A training under way: epoch after epoch, measured after each, until something ends it."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from thalweg.training.steps import NotFiniteError, Snapshot, Steps
from thalweg.training.stopping import End, Limit, best_of, diverged, ended
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
    ) -> None:
        self._problem, self._optimizer, self._steps = problem, optimizer, steps
        self._measured, self._data, self._limit, self._progress = measured, data, limit, progress
        self.record: list[Epoch] = []
        self._taken = 0
        early = limit.rule is not None and limit.rule.max_fail is not None and measured.heldout is not None
        self._best = Snapshot(problem) if early else None

    def to_its_end(self) -> End:
        """Train until something ends it.

        Raises:
            NumericalError: where the loss is not finite to begin with.
        """
        self._progress.phase("training")
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
        if end.stopped == "held-out" and self._best is not None:
            self._best.restore()
        return end

    def _epoch(self, number: int) -> float | None:
        """Take the steps of an epoch, or as many of them as are still wanted; return a loss not finite."""
        if self._problem.model is not None:
            self._problem.model.train()
        begun = self._taken
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
