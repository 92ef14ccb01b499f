"""What people read: a diagnosis as a document, every number with its error and its meaning."""

from __future__ import annotations

from thalweg.curvature.spectrum import describe_certificate
from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.moves import Move
from thalweg.diagnosis.verdict import Verdict
from thalweg.estimates import Estimate
from thalweg.records import Cost
from thalweg.report.document import Block, Document, Facts, Headline, Note, Table, signed, significant

__all__ = ["ADVICE", "describe"]

_TONES = {Verdict.MINIMUM: "good", Verdict.DESCENDING: "good", Verdict.UNDETERMINED: "neutral"}

ADVICE = {
    Verdict.DESCENDING: "Carry on; the table shows which step goes fastest.",
    Verdict.BOUNCING: "Lower the learning rate, enlarge the batch, or average the weights.",
    Verdict.SADDLE: "Take the step along negative curvature; first-order steps leave slowly.",
    Verdict.MINIMUM: "Training has arrived; only other data, another model or another loss would change it.",
    Verdict.MAXIMUM: "Any step goes down; check the sign of the loss.",
    Verdict.PLATEAU: "Longer training will not help; restore the signal: activation, initialisation, "
    "normalisation, skip connections.",
    Verdict.DEGENERATE: "Only a step of some size can tell; perturb the weights and go on.",
    Verdict.UNDETERMINED: "The sentence above says what would decide it.",
}


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
        Facts(tuple(_facts(evidence, examples))),
    ]
    if moves:
        blocks.append(_moves_table(moves, move_steps, bool(heldout)))
    blocks.append(Note(f"What to do: {ADVICE[verdict]}"))
    blocks.extend(Note(note) for note in notes)
    blocks.append(
        Note(
            f"{cost.gradient_equivalents:.0f} gradient-equivalents, {cost.num_hvps} Hessian–vector products "
            f"({evidence.curvature.backend}), {cost.seconds:.1f} s"
        )
    )
    return Document(title, tuple(blocks))


def _facts(e: Evidence, examples: int) -> list[tuple[str, str]]:
    rows = [("loss", _loss(e)), ("gradient", _gradient(e, examples)), ("curvature", _curvature(e))]
    if examples > 1:
        rows.append(("confirmed", _confirmation(e)))
    if len(e.gradient.layers) > 1:
        rows.append(("signal", _signal(e)))
    if e.continuation is not None:
        c = e.continuation
        rows.append(
            (
                f"next {c.steps} steps",
                f"as configured {_change(c.as_configured)}, "
                f"with a tenth of the learning rate {_change(c.tenth)}",
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
    text += f"; a hundred steps would buy {buys}, where {significant(e.practical, 1)} would count"
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
        f"along λmin's direction the {e.heldout_source} curve {significant(e.heldout_curvature.value)} "
        f"(95 %: {significant(low)} … {significant(high)})"
    )
    if line is not None:
        text += f"; the best step there changes the loss by {_change(line.heldout)}"
    return text


def _signal(e: Evidence) -> str:
    layers = e.gradient.layers
    strongest = max(layer.signal for layer in layers)
    weakest = min(layers, key=lambda layer: layer.signal)
    if strongest == 0:
        return "no layer receives any"
    if weakest.signal == 0:
        return f"none reaches layer {weakest.name}"
    return f"strongest {strongest / weakest.signal:,.0f} times the weakest (layer {weakest.name})"


def _moves_table(moves: tuple[Move, ...], steps: int, heldout: bool) -> Table:
    where = "held-out" if heldout else "training"
    return Table(
        f"What would move it   (training moves: {steps} steps on a copy; change of the {where} loss)",
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
