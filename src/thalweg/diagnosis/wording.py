"""What people read: a diagnosis as a document, every number with its error and its meaning."""

from __future__ import annotations

import math

from thalweg.curvature.spectrum import describe_certificate
from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.moves import Move
from thalweg.diagnosis.verdict import Verdict
from thalweg.estimates import Estimate
from thalweg.records import Cost
from thalweg.report.document import Block, Document, Facts, Headline, Note, Table, signed, significant

__all__ = ["ADVICE", "advise", "describe"]

_TONES = {Verdict.MINIMUM: "good", Verdict.DESCENDING: "good", Verdict.UNDETERMINED: "neutral"}

ADVICE = {
    Verdict.DESCENDING: "carry on.",
    Verdict.BOUNCING: "lower the learning rate, enlarge the batch, or average the weights.",
    Verdict.SADDLE: "take the step along negative curvature; first-order steps leave slowly.",
    Verdict.MINIMUM: "stop: only other data, another model or another loss would change this.",
    Verdict.MAXIMUM: "take any step, and check the sign of the loss.",
    Verdict.PLATEAU: "do not train longer; restore the signal: initialisation, activation, normalisation, "
    "skip connections.",
    Verdict.DEGENERATE: "only a step of some size can tell: perturb the weights and go on.",
    Verdict.UNDETERMINED: "the sentence above says what would decide it.",
}


def advise(verdict: Verdict, evidence: Evidence, moves: tuple[Move, ...]) -> str:
    """Say what to do, by what the moves showed."""
    if verdict is not Verdict.DESCENDING:
        return ADVICE[verdict]
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
    blocks: list[Block] = [
        Headline(verdict.value, summary, tone),  # type: ignore[arg-type]
        Note(f"What to do: {advise(verdict, evidence, moves)}"),
        Facts(tuple(_facts(evidence, examples))),
    ]
    if moves:
        blocks.append(_moves_table(moves, move_steps, bool(heldout)))
    blocks.extend(Note(note) for note in notes)
    blocks.append(
        Note(
            f"± is one standard error. {cost.gradient_equivalents:.0f} gradient-equivalents, "
            f"{cost.num_hvps} Hessian–vector products "
            f"({evidence.curvature.backend}), {cost.seconds:.1f} s"
        )
    )
    return Document(title, tuple(blocks))


def _facts(e: Evidence, examples: int) -> list[tuple[str, str]]:
    rows = [("loss", _loss(e)), ("gradient", _gradient(e, examples)), ("curvature", _curvature(e))]
    if examples > 1:
        rows.append(("held out", _confirmation(e)))
    if len(e.gradient.layers) > 1:
        rows.append(("signal", _signal(e)))
    if e.continuation is not None:
        c = e.continuation
        rows.append(
            (
                f"next {c.steps} steps",
                f"change the training loss by {_change(c.as_configured)}, "
                f"with a tenth of the learning rate by {_change(c.tenth)}",
            )
        )
    if e.gap is not None and e.heldout_loss is not None:
        rows.append(
            (
                "generalisation",
                f"training {significant(e.loss.value, 3)}, held-out {significant(e.heldout_loss.value, 3)}, "
                f"gap {significant(e.gap.value)} ± {significant(e.gap.stderr)}",
            )
        )
    return rows


def _loss(e: Evidence) -> str:
    text = significant(e.loss.value, 4)
    if e.loss.stderr > 0:
        text += f" ± {significant(e.loss.stderr)} over the examples"
    return text + f", computed to ± {significant(e.rounding, 1)}"


def _gradient(e: Evidence, examples: int) -> str:
    g = e.gradient
    text = f"‖g‖ {significant(g.norm)}"
    if g.stderr > 0:
        text += f", sampling noise ± {significant(g.stderr)}"
    bought = e.forecast.decrease(100)
    buys = "more than the loss itself" if bought > e.scale else significant(bought)
    text += f"; a hundred well-chosen steps would buy {buys}; from {significant(e.practical, 1)} on it counts"
    if examples > 1:
        text += "; " + (
            f"noise scale {significant(g.noise_scale)} examples"
            if g.noise_scale is not None
            else "the batches do not agree on a direction"
        )
    return text


def _curvature(e: Evidence) -> str:
    c = e.curvature
    return (
        f"λmax {significant(c.lambda_max.value, 3)} ± {significant(c.lambda_max.bound, 1)}, "
        f"λmin {significant(c.lambda_min.value, 3)} ± {significant(c.lambda_min.bound, 1)}; "
        f"{describe_certificate(c.extremes)}"
    )


def _confirmation(e: Evidence) -> str:
    low, high = e.heldout_curvature.interval(0.95)
    line = e.line("lowest curvature")
    text = (
        f"in λmin's direction the {e.heldout_source} curve by {significant(e.heldout_curvature.value)} "
        f"(95 %: {significant(low)} … {significant(high)})"
    )
    if line is not None:
        text += f"; the best step there changes their loss by {_change(line.heldout)}"
    return text


def _signal(e: Evidence) -> str:
    layers = e.gradient.layers
    strongest = max(layer.signal for layer in layers)
    weakest = min(layers, key=lambda layer: layer.signal)
    if strongest == 0:
        return "no layer receives any"
    if weakest.signal == 0:
        return f"no gradient reaches layer {weakest.name}"
    return (
        f"the gradient, relative to the weights, is {strongest / weakest.signal:,.0f} times weaker in layer "
        f"{weakest.name} than in the strongest"
    )


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


def _change(change: Estimate) -> str:
    if change.value > 1e20:
        return "diverges"
    return signed(change.value) + (f" ± {significant(change.stderr, 1)}" if change.stderr > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
