"""What people read: a diagnosis as a document, every number with its error and its meaning."""

from __future__ import annotations

import math

from thalweg.diagnosis.certainty import MEANING, how_sure
from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.facts import facts
from thalweg.diagnosis.moves import Move
from thalweg.diagnosis.pictures import evidence_figures, moves_figure
from thalweg.diagnosis.readings import Thresholds, lost_layers
from thalweg.diagnosis.verdict import Verdict
from thalweg.records import Cost
from thalweg.report.document import (
    Block,
    Document,
    Facts,
    Heading,
    Headline,
    Note,
    Table,
    signed,
    significant,
)

__all__ = ["ADVICE", "advise", "describe"]

_TONES = {Verdict.MINIMUM: "good", Verdict.DESCENDING: "good", Verdict.UNDETERMINED: "neutral"}

ADVICE = {
    Verdict.DESCENDING: "carry on.",
    Verdict.BOUNCING: "take shorter steps, or steps on more examples, or average the weights.",
    Verdict.SADDLE: "take the step along negative curvature: `thalweg escape` finds it and keeps it only if "
    "held-out data confirm it; first-order steps leave slowly.",
    Verdict.MINIMUM: "stop: only other data, another model or another loss would change this.",
    Verdict.MAXIMUM: "take any step, and check the sign of the loss.",
    Verdict.PLATEAU: "do not train longer; restore the signal: initialisation, activation, normalisation, "
    "skip connections.",
    Verdict.DEGENERATE: "only a step of some size can tell: perturb the weights and go on.",
    Verdict.UNDETERMINED: "the sentence above says what would decide it.",
}


VALLEY = (
    "longer steps along the flat directions: momentum, Adam or a method of second order, inputs scaled to "
    "one size, or a higher learning rate."
)


def advise(verdict: Verdict, evidence: Evidence, moves: tuple[Move, ...]) -> str:
    """Say what to do: remove what blocks training whatever the landscape, else by what the moves showed."""
    blocking = [cause.advice for cause in evidence.causes if cause.blocks_training]
    if blocking and verdict is not Verdict.MINIMUM:
        return f"{blocking[0]}."
    if verdict is Verdict.PLATEAU and not lost_layers(evidence, Thresholds()):
        return VALLEY + _what_helped(verdict, moves)
    if verdict is not Verdict.DESCENDING:
        return ADVICE[verdict] + _what_helped(verdict, moves)
    tried = {move.name: move for move in moves if move.measured is not None}
    onward = tried.get("carry on")
    if onward is None:
        return ADVICE[verdict]
    for name, advice in (
        ("learning rate × 0.1", "lower the learning rate: a tenth of it does better."),
        ("learning rate × 10", "raise the learning rate: ten times as much does better."),
    ):
        if name in tried and _clearly_better(tried[name], onward):
            return advice
    if _clearly_above(onward) and evidence.continuation and evidence.continuation.as_configured.upper() < 0:
        return (
            "stop or regularise: the training loss still falls, but the held-out loss rises with it "
            "(overfitting)."
        )
    return ADVICE[verdict]


def _what_helped(verdict: Verdict, moves: tuple[Move, ...]) -> str:
    """Name the remedy that did most in trial, where it did clearly more than to carry on."""
    tried = [move for move in moves if move.measured is not None]
    if verdict in {Verdict.MINIMUM, Verdict.UNDETERMINED} or not tried:
        return ""
    best = min(tried, key=lambda move: move.measured or 0.0)
    onward = next((move for move in tried if move.name == "carry on"), None)
    still = Move("stay", None, 0.0, None)
    if best is onward or not _clearly_better(best, still) or not _clearly_better(best, onward or still):
        return ""
    return f" In trial this did most: {best.name}."


def _clearly_better(move: Move, other: Move) -> bool:
    """The moves are paired, so their errors, taken as independent, are on the safe side."""
    error = math.hypot(move.stderr or 0.0, other.stderr or 0.0)
    return (move.measured or 0.0) + 2 * error < (other.measured or 0.0)


def _clearly_above(move: Move) -> bool:
    return (move.measured or 0.0) > 2 * (move.stderr or 0.0)


def describe(
    *,
    name: str,
    verdict: Verdict,
    summary: str,
    evidence: Evidence,
    moves: tuple[Move, ...],
    move_steps: int,
    notes: tuple[str, ...],
    sizes: tuple[int, int, int],
    cost: Cost,
) -> Document:
    """Return the document of a diagnosis."""
    parameters, examples, heldout = sizes
    title = f"{name} · {_count(parameters, 'parameter')}"
    if examples > 1:
        title += f" · {examples:,} training" + (f" and {heldout:,} held-out" if heldout else "") + " examples"
    tone = _TONES.get(verdict, "bad")
    blocks: list[Block] = [Note(f"{c.sentence}.", "Before the landscape") for c in evidence.causes]
    blocks += [
        Headline(verdict.value, summary, tone, MEANING[verdict], how_sure(verdict, evidence)),  # type: ignore[arg-type]
        Note(advise(verdict, evidence, moves), "What to do"),
        Heading("The evidence"),
        *evidence_figures(evidence),
        Facts(facts(evidence, examples)),
    ]
    if moves:
        blocks.append(Heading("The next moves"))
        if picture := moves_figure(
            moves, move_steps, "held-out" if heldout else "training", evidence.practical
        ):
            blocks.append(picture)
        blocks.append(_moves_table(moves, move_steps, bool(heldout)))
    blocks.append(Heading("How it was measured"))
    blocks.extend(Note(note) for note in notes)
    blocks.append(
        Note(
            "± is one standard error"
            + (", over held-out batches and batch orders. " if moves and heldout else ". ")
            + f"{cost.gradient_equivalents:.0f} gradient-equivalents, "
            f"{cost.num_hvps} Hessian–vector products "
            f"({evidence.curvature.backend}), {cost.seconds:.1f} s"
        )
    )
    return Document(title, tuple(blocks))


def _moves_table(moves: tuple[Move, ...], steps: int, heldout: bool) -> Table:
    where = "held-out" if heldout else "training"
    return Table(
        f"What would move it   ({steps} steps on a copy each; change of the {where} loss, less is better)",
        ("", "measured", "predicted (training)"),
        tuple((move.name, _measured(move), significant(move.predicted)) for move in moves),
    )


def _measured(move: Move) -> str:
    if move.measured is None:
        return "–"
    if move.measured > 1e20:
        return "diverges"
    text = signed(move.measured)
    return text if move.stderr is None else f"{text} ± {significant(move.stderr, 1)}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
