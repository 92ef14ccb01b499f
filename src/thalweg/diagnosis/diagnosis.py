"""Point Thalweg at a problem and get a verdict."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.gathering import gather
from thalweg.diagnosis.moves import STEPS, Move, try_moves
from thalweg.diagnosis.purse import FULL, LEAST, Purse
from thalweg.diagnosis.rules import judge
from thalweg.diagnosis.verdict import Verdict
from thalweg.diagnosis.wording import describe
from thalweg.errors import InputError
from thalweg.landscape.plane_record import Plane
from thalweg.landscape.slice_record import Slice
from thalweg.problem.intact import intact
from thalweg.problem.problem import Problem
from thalweg.problem.stepping import Stepping
from thalweg.progress import Metered, Progress, Silent
from thalweg.records import Cost, Provenance, Record, current_provenance
from thalweg.report.document import Document

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Diagnosis(Record):
    """Where a training stands, how sure that is, what would move it, and what it cost to say so.

    Attributes:
        name: of the problem.
        verdict: the word.
        summary: the sentence that explains it.
        reasons: which rules did not hold before it.
        evidence: everything measured.
        moves: the remedies tried, the best first.
        notes: how it was measured.
        num_parameters: trainable coordinates.
        num_examples: training examples used.
        num_heldout: held-out examples used.
        cost: what it took.
        provenance: what is needed to repeat it.
        view: the loss around the weights for the page, by `thalweg.plane` or `thalweg.slice`;
            ``dataclasses.replace(diagnosis, view=thalweg.plane(problem))`` puts one in.
    """

    schema: ClassVar[str] = "thalweg/diagnosis@1"

    name: str
    verdict: Verdict
    summary: str
    reasons: tuple[str, ...]
    evidence: Evidence
    moves: tuple[Move, ...]
    notes: tuple[str, ...]
    num_parameters: int
    num_examples: int
    num_heldout: int
    cost: Cost
    provenance: Provenance
    view: Plane | Slice | None = field(default=None, metadata={"json": False}, compare=False)

    def __repr__(self) -> str:
        curvature = self.evidence.curvature
        return (
            f"Diagnosis({self.name!r}: {self.verdict.value}, gradient={self.evidence.gradient.norm:.2g}, "
            f"lambda_min={curvature.lambda_min.value:.2g}, lambda_max={curvature.lambda_max.value:.2g}, "
            f"loss={self.evidence.loss.value:.4g})"
        )

    def document(self) -> Document:
        """Describe the diagnosis for people."""
        return describe(
            name=self.name,
            verdict=self.verdict,
            summary=self.summary,
            evidence=self.evidence,
            moves=self.moves,
            move_steps=STEPS,
            notes=(*self.notes, *self._of_view()),
            sizes=(self.num_parameters, self.num_examples, self.num_heldout),
            cost=self.cost,
            view=self.view.figures() if self.view is not None else (),
        )

    def _of_view(self) -> tuple[str, ...]:
        if self.view is None:
            return ()
        spent = self.view.cost.gradient_equivalents
        return (f"The picture of the loss around the weights took {spent:,.0f} gradient-equivalents more.",)


def diagnose(
    problem: Problem,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    budget: float | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Say where the training of ``problem`` stands on its loss landscape.

    Args:
        problem: model, loss and data, or a function; left bit for bit as it is, also on an exception or
            Ctrl-C.
        optimizer: the one that trains it, where the problem does not hold it; lets steps be judged.
        seed: of the sample, the random starts and the batches; the answer repeats with it.
        budget: the most to spend, in gradient-equivalents (at least 30); None for a full answer. The checks
            that the model can be measured, at most 20 on a few examples, come on top.
        progress: is told how far the work is.

    Returns:
        A record: print it, ``save`` it, or read ``verdict``, ``evidence`` and ``moves``.

    Raises:
        InputError: for arguments, data or a model of the wrong form.
        ModelError: for a model that cannot be measured.
        NumericalError: for NaN and infinity.

    Cost: about 220 gradient-equivalents, 90 Hessian–vector products; less where the gradient decides alone.
    """
    if not isinstance(problem, Problem):
        raise InputError("there is nothing to diagnose", expected="a Problem", got=type(problem).__name__)
    if budget is not None and not budget >= LEAST:
        raise InputError(
            "the budget is too small for an answer",
            expected=f"at least {LEAST:.0f} gradient-equivalents",
            got=f"{budget:g}",
        )
    with intact(problem.model):
        return _diagnose(problem, optimizer, seed, budget, progress)


def _diagnose(
    problem: Problem,
    optimizer: torch.optim.Optimizer | None,
    seed: int,
    budget: float | None,
    progress: Progress | None,
) -> Diagnosis:
    begun = time.perf_counter()
    measured = problem.measured(seed=seed)
    stepping = problem.stepping(optimizer)
    purse = Purse(budget, measured.ledger)
    told = Metered(
        progress or Silent(), lambda: measured.ledger.gradient_equivalents, min(budget or FULL, FULL)
    )
    evidence = gather(measured, stepping, seed=seed, purse=purse, progress=told)
    judgement = judge(evidence)
    moves = try_moves(
        measured,
        evidence,
        judgement.verdict,
        stepping,
        model=problem.model,
        loss=problem.loss,
        seed=seed,
        purse=purse,
        progress=told,
    )
    theta = measured.train.theta
    return Diagnosis(
        name=problem.name,
        verdict=judgement.verdict,
        summary=judgement.summary,
        reasons=judgement.reasons,
        evidence=evidence,
        moves=moves,
        notes=(*measured.notes, *_optimizer_notes(problem, stepping, evidence)),
        num_parameters=theta.numel(),
        num_examples=measured.train.examples,
        num_heldout=measured.heldout.examples if measured.heldout is not None else 0,
        cost=measured.ledger.cost(begun),
        provenance=current_provenance(theta, seed),
    )


def _optimizer_notes(problem: Problem, stepping: Stepping | None, evidence: Evidence) -> tuple[str, ...]:
    if stepping is None:
        if problem.is_function:
            return ()
        return (
            "No optimiser is known, so its steps were not judged: pass optimizer=, or a checkpoint with the "
            "optimiser's state.",
        )
    notes = [
        f"Steps are those of {stepping.name}, learning rate {stepping.lr:g}, batches of {_size(stepping)}."
    ]
    if evidence.continuation is None:
        notes.append("They were not run: the budget did not reach, or they cannot be run on a copy.")
    if stepping.num_missing:
        notes.append(f"The optimiser leaves {stepping.num_missing} of the trainable tensors as they are.")
    return tuple(notes)


def _size(stepping: Stepping) -> str:
    return "all examples" if stepping.batch_size is None else f"{stepping.batch_size:,}"
