"""What the best constant prediction achieves on the sample, and whether the model does more than that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from thalweg.errors import InputError
from thalweg.problem.batches import Batch
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.loss import split_batch, tensor_of

__all__ = ["Baseline", "measure_baseline"]

IGNORED = -100  # the class that torch's losses leave out
SAME = 1e-3  # relative: two losses that are one


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The best prediction that does not look at the input, and the model beside it.

    Attributes:
        kind: "classes" for class numbers and scores (cross-entropy), "binary" for targets 0 and 1 (binary
            cross-entropy), "values" for anything else of the outputs' shape (mean squared error).
        constant: the loss of that prediction over the sample: the entropy of the label frequencies in nats,
            or the variance of the targets.
        error: how far above it a model lies on average that has learnt the best constant from as many
            other examples: (classes − 1)/n nats, or 2/n of the variance.
        guess: the loss of an answer that knows nothing: ln(classes), or the variance again.
        model: the same loss of the model.
        told_apart: how much of the targets' spread is in the predictions: their mutual information with
            the input relative to that entropy, or their variance relative to that of the targets. 0 where
            every input gets the same answer.
        is_loss: whether ``model`` is the training loss, to 0.1 % or its rounding; else a part of it, or
            another one.
    """

    kind: Literal["classes", "binary", "values"]
    constant: float
    error: float
    guess: float
    model: float
    told_apart: float
    is_loss: bool


def measure_baseline(risk: EmpiricalRisk, theta: Tensor, loss: float) -> Baseline | None:
    """Compare the model with the best constant prediction; None where targets or outputs cannot be told.

    Args:
        risk: the training loss; its batches are (…, targets), or dicts with labels.
        theta: the weights (n,).
        loss: the mean training loss there.

    Cost: 1/3 gradient-equivalent.
    """
    tally: _Classes | _Values | None = None
    for batch in risk.chunks:
        pair = _outputs_and_targets(risk, theta, batch)
        tally = tally or (_tally(*pair) if pair is not None else None)
        if pair is None or tally is None or not tally.add(*pair):
            return None
    return tally.baseline(loss, risk.roundoff) if tally is not None else None


def _outputs_and_targets(risk: EmpiricalRisk, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Return what the model answers to a batch and what it should, as rows; None where they do not meet."""
    try:
        _, _, targets = split_batch(batch.data)
    except InputError:
        return None
    answers: list[Any] = []
    risk.observe(
        theta, (batch,), lambda name, _: None, lambda name, _, out: None if name else answers.append(out)
    )
    outputs = tensor_of(answers[0]) if len(answers) == 1 else None
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return None
    if targets.is_floating_point() or targets.dtype == torch.bool or outputs.shape == targets.shape:
        if outputs.numel() != targets.numel() or outputs.dim() == 0 or len(outputs) != len(targets):
            return None
        return outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    return _as_rows(outputs, targets, isinstance(batch.data, Mapping))


def _as_rows(outputs: Tensor, targets: Tensor, keyed: bool) -> tuple[Tensor, Tensor] | None:
    """Put class scores in rows: (batch, classes, …) as torch's losses take them, or classes last."""
    last = outputs.shape[:-1] == targets.shape
    second = outputs.dim() >= 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    if last and (keyed or not second):
        return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
    if second:
        return outputs.movedim(1, -1).reshape(-1, outputs.shape[1]), targets.reshape(-1)
    if outputs.numel() == targets.numel() and len(outputs) == len(targets):  # (batch, 1) and (batch,)
        return outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    return None


def _tally(outputs: Tensor, targets: Tensor) -> _Classes | _Values | None:
    if targets.dim() == 1:
        return _Classes(outputs.shape[1]) if outputs.shape[1] > 1 else None
    return _Values(targets[0])


class _Classes:
    """Sums over examples with a class each."""

    def __init__(self, num_classes: int) -> None:
        self._labels = torch.zeros(num_classes, dtype=torch.float64)
        self._predicted = torch.zeros(num_classes, dtype=torch.float64)
        self._surprise = 0.0  # Σ −log p(label)
        self._entropy = 0.0  # Σ H(p)

    def add(self, outputs: Tensor, targets: Tensor) -> bool:
        targets = targets.long()
        kept = targets != IGNORED
        outputs, targets = outputs[kept], targets[kept]
        classes = len(self._labels)
        if outputs.shape[1] != classes or bool(((targets < 0) | (targets >= classes)).any()):
            return False
        log_p = log_softmax(outputs.float() if outputs.dtype.itemsize < 4 else outputs, dim=1)
        p = log_p.exp()
        self._labels += torch.bincount(targets, minlength=classes).cpu()
        self._predicted += p.double().sum(0).cpu()
        self._surprise -= float(log_p.gather(1, targets[:, None]).double().sum())
        self._entropy -= float(torch.where(p > 0, p * log_p, 0.0).double().sum())
        return True

    def baseline(self, loss: float, roundoff: float) -> Baseline | None:
        n = float(self._labels.sum())
        if n == 0:
            return None
        constant, model = _entropy(self._labels / n), self._surprise / n
        information = max(_entropy(self._predicted / n) - self._entropy / n, 0.0)
        classes = len(self._labels)
        return Baseline(
            kind="classes",
            constant=constant,
            error=(classes - 1) / n,
            guess=math.log(classes),
            model=model,
            told_apart=information / constant if constant > 0 else 0.0,
            is_loss=_same(model, loss, roundoff),
        )


class _Values:
    """Sums over examples with as many targets as outputs; (k,) for each of them."""

    def __init__(self, origin: Tensor) -> None:
        self._origin = origin.double()  # (k,): moments about it, so that constant targets have none
        self._sums = torch.zeros(10, len(origin), dtype=torch.float64, device=origin.device)
        self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> bool:
        if outputs.shape[1] != len(self._origin):
            return False
        o, t = outputs.double(), targets.double()
        away, off, p = t - self._origin, o - self._origin, o.sigmoid()
        scored = binary_cross_entropy_with_logits(o, t, reduction="none")
        # −log of a probability as nn.BCELoss cuts it off; of no use where outputs are none.
        direct = -(t * o.log().clamp(min=-100) + (1 - t) * (1 - o).log().clamp(min=-100))
        binary = ((t == 0) | (t == 1)).double()
        parts = (away, away**2, off, off**2, (o - t) ** 2, p, p**2, scored, direct, binary)
        self._sums += torch.stack([part.sum(0) for part in parts])
        self._count += len(o)
        return True

    def baseline(self, loss: float, roundoff: float) -> Baseline:
        t, tt, o, oo, error, p, pp, scored, direct, binary = self._sums / self._count
        variance = float((tt - t**2).clamp(min=0).mean())

        def told_apart(mean: Tensor, squares: Tensor) -> float:
            return float((squares - mean**2).clamp(min=0).mean()) / variance if variance > 0 else 0.0

        found = Baseline(
            kind="values",
            constant=variance,
            error=2 * variance / self._count,
            guess=variance,
            model=float(error.mean()),
            told_apart=told_apart(o, oo),
            is_loss=_same(float(error.mean()), loss, roundoff),
        )
        if not bool((binary == 1).all()):
            return found
        shares = t + self._origin
        entropy = sum(_entropy(torch.stack([share, 1 - share])) for share in shares) / len(shares)
        for terms, mean, squares in ((scored, p, pp), (direct, o, oo)):
            own = float(terms.mean())
            if _same(own, loss, roundoff):
                return Baseline(
                    kind="binary",
                    constant=entropy,
                    error=1 / self._count,
                    guess=math.log(2),
                    model=own,
                    told_apart=told_apart(mean, squares),
                    is_loss=True,
                )
        return found


def _entropy(shares: Tensor) -> float:
    """Return −Σ p log p in nats."""
    return abs(float(torch.xlogy(shares, shares).sum()))


def _same(value: float, loss: float, roundoff: float) -> bool:
    return math.isclose(value, loss, rel_tol=max(SAME, 2 * roundoff), abs_tol=1e-12)
