"""Which remedies fit a verdict, the most promising first."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.diagnosis.evidence import Evidence
from thalweg.diagnosis.verdict import Verdict
from thalweg.problem.stepping import Stepping

__all__ = ["FreshStart", "Remedy", "calls_for_clipping", "fresh_starts", "remedies"]

MOMENTUM = 0.9
TOGETHER = 4
PERTURBATION = 0.1


@dataclass(frozen=True)
class Remedy:
    """A change of how training goes on from where it stands.

    Attributes:
        name: for people.
        lr_factor: on the learning rate.
        momentum: in place of the optimiser's, None keeps it.
        clip: the norm to which longer gradients are shortened, None for none.
        together: how many batches make one.
        perturbation: the length of a random step to take first, relative to the weights.
        averaged: whether the mean of the iterates is judged beside the last.
    """

    name: str
    lr_factor: float = 1.0
    momentum: float | None = None
    clip: float | None = None
    together: int = 1
    perturbation: float = 0.0
    averaged: bool = False

    @property
    def keeps_the_method(self) -> bool:
        """Whether no more than the learning rate is changed."""
        return (self.momentum, self.clip, self.together, self.perturbation) == (None, None, 1, 0.0)


@dataclass(frozen=True)
class FreshStart:
    """A variant of the model to begin anew with."""

    relu: bool
    batch_norm: bool

    def name(self, convention: str) -> str:
        """Name it, given whose initialisation it takes."""
        if not (self.relu or self.batch_norm):
            return f"re-initialisation ({convention})"
        change = "ReLU" if self.relu else "batch normalisation"
        return f"{change} + {convention} initialisation"


_WITHOUT_SIGNAL = frozenset({Verdict.PLATEAU, Verdict.DEGENERATE, Verdict.UNDETERMINED})
_STATIONARY = frozenset({Verdict.SADDLE, Verdict.DEGENERATE, Verdict.MAXIMUM})
_STEEP = frozenset({Verdict.BOUNCING, Verdict.UNDETERMINED})


def fresh_starts(verdict: Verdict) -> tuple[FreshStart, ...]:
    """Return the variants worth a fresh start: only where the way on from here leads nowhere."""
    if verdict not in _WITHOUT_SIGNAL:
        return ()
    return FreshStart(True, False), FreshStart(False, True), FreshStart(False, False)


def calls_for_clipping(verdict: Verdict) -> bool:
    """Return whether single long gradients may be the trouble."""
    return verdict in _STEEP


def remedies(
    verdict: Verdict, evidence: Evidence, stepping: Stepping, *, examples: int, clip: float | None
) -> tuple[Remedy, ...]:
    """Return the changes of training to try, the one that all are compared with first.

    Momentum keeps the effective learning rate where the steps are too long already, and its name says so;
    elsewhere it keeps the learning rate, as users add it, and goes up to ten times as far. A larger batch
    takes as many steps, so more examples; it is tried where the gradient of one batch is mostly noise.

    Args:
        verdict: what is wrong.
        evidence: how noisy the gradient is.
        stepping: how training steps now.
        examples: in the sample.
        clip: the norm to clip at; None where that does not apply.
    """
    chosen = [Remedy("carry on", averaged=verdict is Verdict.BOUNCING), Remedy("learning rate × 0.1", 0.1)]
    if verdict in _STATIONARY:
        name = f"weights perturbed by {PERTURBATION:.0%}, then on".replace("%", " %")
        chosen.append(Remedy(name, perturbation=PERTURBATION))
    if stepping.is_gradient_descent and stepping.momentum == 0 and verdict is not Verdict.MINIMUM:
        if verdict is Verdict.BOUNCING:
            kept = 1 - MOMENTUM
            chosen.append(Remedy(f"momentum {MOMENTUM:g}, learning rate × {kept:.1g}", kept, MOMENTUM))
        else:
            chosen.append(Remedy(f"momentum {MOMENTUM:g}", momentum=MOMENTUM))
    if clip is not None:
        chosen.append(Remedy(f"gradient clipped at norm {clip:.2g}", clip=clip))
    chosen.append(Remedy("learning rate × 10", 10.0))
    size = stepping.batch_size or examples
    together = min(TOGETHER, examples // size)
    if together > 1 and verdict is not Verdict.MINIMUM and _is_noisy(verdict, evidence, size):
        chosen.append(Remedy(f"batch size {together * size} instead of {size}", together=together))
    return tuple(chosen)


def _is_noisy(verdict: Verdict, evidence: Evidence, batch_size: int) -> bool:
    noise_scale = evidence.gradient.noise_scale
    return verdict is Verdict.BOUNCING or noise_scale is None or noise_scale > batch_size
