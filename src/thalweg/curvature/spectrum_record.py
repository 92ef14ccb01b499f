"""The spectrum of a problem's training loss: both ends, trace, and what they say."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.picture import spectrum_figure
from thalweg.curvature.spectrum import Extreme, Extremes, describe_certificate, find_extremes
from thalweg.problem.finite import finite_loss
from thalweg.problem.intact import intact
from thalweg.problem.problem import Problem
from thalweg.progress import Progress, Silent
from thalweg.records import Cost, Provenance, Record, current_provenance
from thalweg.report.document import Document, Facts, Note, significant

__all__ = ["Spectrum", "spectrum"]


def spectrum(problem: Problem, *, seed: int = 0, progress: Progress | None = None) -> Spectrum:
    """Measure both ends of the Hessian spectrum of the training loss, its trace and density.

    Args:
        problem: what is trained; left bit for bit as it is.
        seed: of the sample and the random start.
        progress: is told how far the work is.

    Raises:
        ThalwegError: for problems that cannot be measured; see `thalweg.errors`.

    Cost: at most 80 Hessian–vector products, about 160 gradient-equivalents.
    Source: [parlett1998] ch. 13; [ubaru2017] for the density.
    """
    begun = time.perf_counter()
    with intact(problem.model):
        measured = problem.measured(seed=seed)
        objective = measured.train
        (progress or Silent()).phase("curvature")
        theta = objective.theta
        finite_loss(objective, theta, "the training loss")
        choice = choose_hessian(objective, theta, seed=seed)
        found = find_extremes(choice.operator, seed=seed, noise=choice.noise, progress=progress)
    return Spectrum(
        name=problem.name,
        num_parameters=theta.numel(),
        num_examples=objective.examples,
        extremes=found,
        backend=choice.name,
        reason=choice.reason,
        notes=measured.notes,
        cost=measured.ledger.cost(begun),
        provenance=current_provenance(theta, seed),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Spectrum(Record):
    """The spectrum of the training loss at a point."""

    schema: ClassVar[str] = "thalweg/spectrum@1"

    name: str
    num_parameters: int
    num_examples: int
    extremes: Extremes
    backend: str
    reason: str
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    def __repr__(self) -> str:
        high, low = self.extremes.lambda_max, self.extremes.lambda_min
        return (
            f"Spectrum({self.name!r}, lambda_max={high.value:.4g}±{high.bound:.1g}, "
            f"lambda_min={low.value:.4g}±{low.bound:.1g}, num_hvps={self.extremes.num_hvps})"
        )

    def document(self) -> Document:
        """Describe the spectrum for people."""
        found = self.extremes
        picture = spectrum_figure(found)
        pictures = () if picture is None else (picture,)
        rows = (
            ("λmax", _pair(found.lambda_max)),
            ("λmin", _pair(found.lambda_min)),
            ("certain", describe_certificate(found)),
            ("floor", f"{significant(found.floor)}: below this a sign is rounding"),
            ("trace", _describe_trace(found, self.num_parameters)),
            ("below zero", _describe_negative(found)),
        )
        cost = (
            f"{self.cost.num_hvps} Hessian–vector products ({self.backend}: {self.reason}), "
            f"{self.cost.gradient_equivalents:.0f} gradient-equivalents, {self.cost.seconds:.1f} s"
        )
        data = f" · {self.num_examples:,} examples" if self.num_examples > 1 else ""
        return Document(
            f"{self.name} · {self.num_parameters:,} parameter{'' if self.num_parameters == 1 else 's'}{data}",
            (*pictures, Facts(rows), *(Note(text) for text in (*self.notes, cost))),
        )


def _pair(end: Extreme) -> str:
    return f"{significant(end.value, 4)} ± {significant(end.bound)}"


def _describe_trace(found: Extremes, num_parameters: int) -> str:
    value = significant(found.trace.value, 3)
    if not found.complete:
        return f"{value} ± {significant(found.trace.stderr)} (one probe)"
    # Each of the eigenvalues that are summed is known up to the floor.
    return f"{value} (exact)" if abs(found.trace.value) > num_parameters * found.floor else "0"


def _describe_negative(found: Extremes) -> str:
    """Count what is below zero beyond the resolution of the nodes; nearer to zero nothing is resolved."""
    spread = found.lambda_max.value - found.lambda_min.value
    resolution = found.floor if found.complete else spread / max(len(found.nodes), 1)
    below = float(found.weights[found.nodes < -resolution].sum())
    near = float(found.weights[np.abs(found.nodes) <= resolution].sum())
    return f"{below:.1%} of the directions, and {near:.1%} within ± {significant(resolution)} of zero"
