"""How much of a batch's gradient is noise, and what is left of its norm without it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from thalweg.errors import ModelError
from thalweg.training.captures import Contributions
from thalweg.training.quantities import Moment, Values, norm
from thalweg.training.schedule import Every, Schedule

__all__ = ["GradientNoise"]

AGREES = (
    0.02  # relative difference of the layers' contributions and the gradient: reduced precision makes 1e-2
)


@dataclass
class GradientNoise:
    """tr Σ/B, the noise in ‖g‖², and ‖G‖² = ‖g‖² − tr Σ/B, which is unbiased and may be negative.

    A step's gradient is a sum g = Σ_i h_i over examples. If these are drawn independently, the noise of g is

        tr Cov(g) = (N Σ‖h_i‖² − ‖Σh_i‖²) / (N − 1),

    whatever constant the loss is multiplied by; for a mean of N losses that is tr Σ/N ([mccandlish2018], app.
    A.1). Where gradients are accumulated over K batches, K batches take the place of N examples, and only the
    norms after the first and after all of them are needed; that costs nothing. Otherwise the squared norms
    come from what the layers see (`thalweg.training.example_norms`).

    Recorded are ``grad/noise`` (tr Cov(g)), ``grad/square`` (‖G‖² without it), ``grad/covered`` (‖g‖ over the
    layers that were watched) and ``grad/examples``. The noise scale is their ratio, averaged:
    `RecordedRun.noise_scale`.
    """

    schedule: Schedule = field(default_factory=lambda: Every(10))
    name = "noise"
    guess = 0.5
    at_gradient = True
    needs_before = False
    needs_captures = True

    def measure(self, moment: Moment) -> Values:
        """Cost: nothing with accumulated batches; else a tenth to one gradient-equivalent, by the layers."""
        if len(moment.squares) > 1:
            return self._from_batches(moment)
        if moment.captures is None:  # the first step of an accumulation
            return {}
        seen = moment.captures.contributions(first_only=moment.closure)
        watched = moment.captures
        if watched.coupled:
            moment.note(
                "Batch normalisation makes the examples of a batch depend on each other: the noise is that "
                "of their contributions given the batch's statistics, its own parameters left out."
            )
        elif watched.coverage < 1:
            moment.note(
                f"The noise is that of {100 * watched.coverage:.3g} % of the parameters: of the layers "
                "whose examples can be told apart (linear, convolution, embedding, layer norm)."
            )
        return self._from_examples(moment, seen)

    def _from_batches(self, moment: Moment) -> Values:
        number = len(moment.squares)
        alone, together = (moment.squares[i].double() for i in (0, -1))
        now = norm(moment.gradients).double().square()
        scale = now / together if together > 0 else torch.ones_like(now)  # clipped or unscaled since
        noise = scale * (number**2 * alone - together) / (number - 1)
        return _values(now, noise, moment.rows)

    def _from_examples(self, moment: Moment, seen: list[Contributions]) -> Values:
        number = sum(len(one.squares) for one in seen)
        if number < 2:
            raise ModelError("one example a step shows no noise", hint="a batch size of 2 or more")
        totals: dict[torch.nn.Parameter, Tensor] = {}
        for one in seen:
            for parameter, total in one.totals.items():
                totals[parameter] = totals[parameter] + total if parameter in totals else total
        own = torch.stack([t.double().square().sum() for t in totals.values()]).sum()
        noise = (number * torch.stack([one.squares.sum() for one in seen]).sum() - own) / (number - 1)
        if moment.closure and moment.captures is not None and moment.captures.num_passes > 1:
            return _values(own, noise, number)  # the gradient there is now is that of a later evaluation
        scale, rest = _compared(totals)
        return _values(scale**2 * own + rest, scale**2 * noise, number)


def _values(square: Tensor, noise: Tensor, examples: int) -> Values:
    found: dict[str, float | Tensor] = {
        "grad/noise": noise,
        "grad/square": square - noise,
        "grad/covered": square.clamp_min(0).sqrt(),
    }
    return {**found, "grad/examples": float(examples)} if examples else found


def _compared(totals: dict[torch.nn.Parameter, Tensor]) -> tuple[Tensor, Tensor]:
    """Return by what the gradient was scaled since the backward pass, and what ‖g‖² holds beside them.

    The gradient that the optimiser gets may have been clipped or unscaled (a factor) since the layers were
    watched, or hold the derivative of a penalty on the weights, which is the same for every example (a
    difference).
    """
    pairs = [
        (p.grad.double().flatten(), t.double().flatten()) for p, t in totals.items() if p.grad is not None
    ]
    if not pairs:
        return torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    whole = torch.stack([g @ g for g, _ in pairs]).sum()
    along = torch.stack([g @ t for g, t in pairs]).sum()
    own = torch.stack([t @ t for _, t in pairs]).sum()
    factor = along / own if own > 0 else torch.ones_like(own)
    off = whole - factor**2 * own
    if off <= AGREES**2 * whole:
        return factor, torch.zeros_like(own)
    return torch.ones_like(own), whole - own
