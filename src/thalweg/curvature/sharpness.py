"""How sharp the loss is at a point, in the measures of the literature, and what they say."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.keskar import EPSILONS, SUBSPACE, KeskarSharpness, keskar_sharpness
from thalweg.curvature.operators import Operator
from thalweg.curvature.scaled import Scaled
from thalweg.curvature.spectrum import Extreme, find_extremes
from thalweg.curvature.stability import PRODUCTS, Stability, gradient_scale, measure_stability
from thalweg.curvature.trace import estimate_trace
from thalweg.errors import InputError
from thalweg.estimates import Estimate
from thalweg.problem.finite import finite_loss
from thalweg.problem.intact import intact
from thalweg.problem.objective import Objective
from thalweg.problem.problem import Problem
from thalweg.progress import Metered, Progress, Silent
from thalweg.records import Cost, Provenance, Record, current_provenance
from thalweg.report.document import Block, Document, Facts, Note, Table, significant

__all__ = ["Sharpness", "sharpness"]

TRACE_PROBES = 20
AGREE = 0.01  # searches of Keskar's box that differ by less have found the same
EXACT = 1e-9  # a trace with a smaller relative error is one that nothing but rounding touches
SLOPE_SHARE = 0.05  # of Keskar's measure; below it the point counts as at rest
# Gradient-equivalents in all, for the progress: three searches of the spectrum, a trace, four boxes.
_PLANNED = 3 * 2 * PRODUCTS + 4 * TRACE_PROBES + 4 * 70.0

_MEANING = (
    "What these numbers say. The ratio to the limit says whether steps of this length settle here; it is "
    "about the optimiser. The others say how fast the loss rises around this point. None of them tells the "
    "error on new data: a ReLU net can be rescaled to almost any λmax, trace and Keskar measure without "
    "changing one output (Dinh et al. 2017), and over many trainings sharpness, the adaptive kind too, went "
    "with the learning rate rather than with the held-out error (Andriushchenko et al. 2023). Compare "
    "held-out losses for that."
)


def sharpness(
    problem: Problem,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sharpness:
    """Measure how sharp the training loss is, in five ways.

    The largest curvature; the same as the optimiser meets it, against the limit of its step size
    ([cohen2021], [cohen2022]); the largest curvature per relative change of the weights, which no rescaling
    of a ReLU net changes (the second order of the measure in [kwon2021]); Keskar's measure ([keskar2017]);
    the trace. None of them predicts generalisation ([dinh2017], [andriushchenko2023]).

    Args:
        problem: what is trained; left bit for bit as it is.
        optimizer: takes the place of the problem's own.
        seed: of the sample and the random starts.
        progress: is told how far the work is.

    Raises:
        ThalwegError: for problems that cannot be measured; see `thalweg.errors`.

    Cost: at most 162 Hessian–vector products and 480 evaluations of value and gradient; as a rule about 500
    gradient-equivalents, nearly half of them for Keskar's measure.
    """
    begun = time.perf_counter()
    with intact(problem.model):
        measured = problem.measured(seed=seed)
        objective, stepping = measured.train, problem.stepping(optimizer)
        theta = objective.theta
        loss = finite_loss(objective, theta, "the training loss")
        told = Metered(progress or Silent(), lambda: measured.ledger.gradient_equivalents, _PLANNED)
        told.phase("curvature")
        choice = choose_hessian(objective, theta, seed=seed)
        largest = _largest(choice.operator, choice.noise, seed, told)
        told.phase("the optimiser's limit")
        stability: Stability | str = "no optimiser is known"
        if stepping is not None:
            scale = gradient_scale(objective, theta, stepping)
            stability = measure_stability(
                choice.operator,
                largest,
                stepping,
                seed=seed,
                noise=choice.noise,
                gradient_scale=scale,
                progress=told,
            )
        told.phase("curvature per relative change")
        adaptive = _largest(Scaled(choice.operator, theta.abs()), choice.noise, seed, told)
        told.phase("trace")
        trace = estimate_trace(choice.operator, seed=seed, num_probes=TRACE_PROBES, noise=choice.noise)
        told.phase("Keskar's box")
        keskar, omitted = _keskar(objective, theta, largest.vector, seed, told)
    return Sharpness(
        name=problem.name,
        num_parameters=theta.numel(),
        num_examples=objective.examples,
        loss=loss,
        lambda_max=largest,
        stability=None if isinstance(stability, str) else stability,
        no_stability=stability if isinstance(stability, str) else "",
        adaptive=adaptive,
        trace=trace,
        keskar=keskar,
        no_keskar=omitted,
        backend=choice.name,
        reason=choice.reason,
        notes=measured.notes,
        cost=measured.ledger.cost(begun),
        provenance=current_provenance(theta, seed),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(Record):
    """The sharpness of the training loss at a point.

    Attributes:
        lambda_max: the largest curvature.
        stability: the largest curvature that the optimiser meets, against its limit; None where that cannot
            be told, and ``no_stability`` says why.
        adaptive: the largest curvature of the loss in the relative changes of the weights: λmax of
            |θ|H|θ|.
        trace: the sum of all curvatures.
        keskar: one for each ε and space; empty where φ is not defined or does not fit into memory, and
            ``no_keskar`` says why.
    """

    schema: ClassVar[str] = "thalweg/sharpness@1"

    name: str
    num_parameters: int
    num_examples: int
    loss: float
    lambda_max: Extreme
    stability: Stability | None
    no_stability: str
    adaptive: Extreme
    trace: Estimate
    keskar: tuple[KeskarSharpness, ...]
    no_keskar: str
    backend: str
    reason: str
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    def __repr__(self) -> str:
        edge = "" if self.stability is None else f"stability_ratio={self.stability.ratio:.3g}, "
        return (
            f"Sharpness({self.name!r}, lambda_max={self.lambda_max.value:.4g}±{self.lambda_max.bound:.1g}, "
            f"{edge}adaptive={self.adaptive.value:.3g}, trace={self.trace.value:.3g}±{self.trace.stderr:.1g})"
        )

    def document(self) -> Document:
        """Describe the sharpness for people."""
        rows = (
            ("λmax", f"{_pair(self.lambda_max)}: the largest curvature"),
            *_stability_rows(self.stability, self.no_stability),
            ("adaptive", self._describe_adaptive()),
            ("trace", f"{self._describe_trace()}: the sum of all curvatures"),
        )
        cost = (
            f"{self.cost.num_hvps} Hessian–vector products ({self.backend}: {self.reason}), "
            f"{self.cost.gradient_equivalents:.0f} gradient-equivalents, {self.cost.seconds:.1f} s"
        )
        data = f" · {self.num_examples:,} examples" if self.num_examples > 1 else ""
        return Document(
            f"{self.name} · {self.num_parameters:,} parameter{'' if self.num_parameters == 1 else 's'}{data}",
            (
                Facts(rows),
                *_keskar_blocks(self.keskar, self.no_keskar),
                *(Note(text) for text in (_MEANING, *self.notes, cost)),
            ),
        )

    def _describe_adaptive(self) -> str:
        if self.adaptive.value == 0 == self.adaptive.bound:
            return "0: the weights are zero, and so are relative changes of them"
        return f"{_pair(self.adaptive)}: the largest curvature per relative change of the weights"

    def _describe_trace(self) -> str:
        size, stderr = abs(self.trace.value), self.trace.stderr
        if stderr > EXACT * max(size, abs(self.lambda_max.value)):
            return f"{significant(self.trace.value, 3)} ± {significant(stderr)}"
        rounding = self.num_parameters * self.lambda_max.bound
        return f"{significant(self.trace.value, 3)} (exact)" if size > rounding else "0"


def _largest(operator: Operator, noise: float, seed: int, progress: Progress) -> Extreme:
    """Find the upper end of a spectrum; what may have been missed below the lower one does not matter."""
    found = find_extremes(
        operator, seed=seed, max_products=PRODUCTS, open_gap=1.0, noise=noise, progress=progress
    )
    return found.lambda_max


def _keskar(
    objective: Objective, theta: Tensor, steepest: Tensor, seed: int, progress: Progress
) -> tuple[tuple[KeskarSharpness, ...], str]:
    """Measure both boxes of the paper in both of its spaces; say why where that cannot be."""
    found: list[KeskarSharpness] = []
    reasons: list[str] = []
    for dimension in (None, SUBSPACE) if theta.numel() > SUBSPACE else (None,):
        try:
            for epsilon in EPSILONS:
                measure = keskar_sharpness(
                    objective,
                    theta,
                    epsilon=epsilon,
                    seed=seed,
                    dimension=dimension,
                    steepest=steepest,
                    progress=progress,
                )
                found.append(measure)
        except InputError as error:
            reasons.append(str(error))
    return tuple(found), "; ".join(dict.fromkeys(reasons))


def _pair(end: Extreme) -> str:
    return f"{significant(end.value, 3)} ± {significant(end.bound)}"


def _stability_rows(stability: Stability | None, reason: str) -> tuple[tuple[str, str], ...]:
    if stability is None:
        return (("stability", f"not known: {reason}"),)
    limit = stability.limit
    kind = "preconditioned curvature" if stability.preconditioned else "curvature"
    settings = f"η = {limit.lr:g}" + (f", β = {limit.momentum:g}" if limit.momentum else "")
    edge = f"{limit.formula} = {significant(limit.curvature, 3)}"
    met = f"{significant(stability.curvature, 3)} ± {significant(stability.bound)}"
    held = ", its second moments held as they are" if stability.preconditioned else ""
    return (
        ("stability", f"{significant(stability.ratio)} of the limit: {stability.judgement}"),
        ("", f"{limit.rule} ({settings}) stands {kind} up to {edge} and meets {met}{held}"),
    )


def _keskar_blocks(measures: tuple[KeskarSharpness, ...], reason: str) -> tuple[Block, ...]:
    """Lay out φ by space and ε, and say how far it can be trusted."""
    if not measures:
        return (Note(f"Keskar's measure is left out: {reason}."),)
    spaces: dict[int, list[KeskarSharpness]] = {}
    for measure in measures:
        spaces.setdefault(measure.dimension, []).append(measure)
    rows = tuple(
        ("all weights" if i == 0 else f"{dimension} random directions", *(_rise(m) for m in those))
        for i, (dimension, those) in enumerate(spaces.items())
    )
    columns = ("", *(f"ε = {epsilon:.0e}".replace("e-0", "e−") for epsilon in EPSILONS))
    title = "Keskar's measure: how far the loss can rise in a box around the weights, in % of 1 + loss"
    sentences = [_search_quality(measures)]
    first = measures[0]
    if first.resolved and first.slope > SLOPE_SHARE * first.value:
        share = min(first.slope / first.value, 1.0)
        sentences.append(
            f"The point is not at rest: {share:.0%} of the first number is its slope, not curvature."
        )
    if reason:
        sentences.append(f"Left out: {reason}.")
    return Table(title, columns, rows), Note(" ".join(sentences))


def _search_quality(measures: tuple[KeskarSharpness, ...]) -> str:
    """Say from how many starts the largest rise was found, and how far they differ."""
    told = f"The largest rise found from {len(measures[0].starts)} starts each"
    # A start that found nothing had no slope: the centre, at a critical point.
    short = [
        1 - s / m.value for m in measures if m.resolved and math.isfinite(m.value) for s in m.starts if s
    ]
    if short and max(short) > AGREE:
        return f"{told}, some of which stopped {max(short):.0%} lower; the true one may be larger still."
    return f"{told}; the true one may be larger."


def _rise(measure: KeskarSharpness) -> str:
    if not math.isfinite(measure.value):
        return "not finite"
    return significant(measure.value) if measure.resolved else f"rounding (< {significant(measure.rounding)})"
