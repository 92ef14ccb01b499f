"""Users' losses as a sum over a true count, so that uneven batches weigh what they should."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.errors import InputError, ModelError
from thalweg.problem.batches import num_examples

__all__ = [
    "BatchLoss",
    "Terms",
    "batch_loss",
    "loss_in",
    "minimised",
    "predictions",
    "residuals",
    "split_batch",
    "tensor_of",
]

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_ELEMENTWISE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
)
_FORMS = (
    "a criterion such as nn.CrossEntropyLoss(), or loss(model, batch) that returns a mean, "
    "a (sum, count) pair, or one value per example"
)


@dataclass(frozen=True)
class Terms:
    """The loss of one batch.

    Attributes:
        mean: the mean over ``count`` terms, differentiable.
        count: the true denominator: examples, unmasked tokens, or the sum of class weights.
        summed: whether training minimises the sum of the terms instead of their mean.
    """

    mean: Tensor
    count: float
    summed: bool = False


BatchLoss = Callable[[nn.Module, Any], Terms]


def batch_loss(loss: Any) -> BatchLoss:
    """Adapt what the user calls a loss to ``(model, data) -> Terms``.

    Raises:
        InputError: when it is neither a criterion nor a function of (model, batch).
    """
    if isinstance(loss, nn.Module):
        return _Criterion(loss)
    if getattr(loss, "__module__", None) == "torch.nn.functional":
        return _Criterion(loss)
    if isinstance(loss, type):
        raise InputError(
            "the loss is a class", expected=_FORMS, got=loss.__name__, hint=f"{loss.__name__}() with brackets"
        )
    if not callable(loss):
        raise InputError("the loss cannot be called", expected=_FORMS, got=type(loss).__name__)
    try:
        inspect.signature(loss).bind(None, None)
    except TypeError as error:
        raise InputError(
            "the loss does not take two arguments", expected=_FORMS, got=f"{loss!r}", cause=str(error)
        ) from None
    except ValueError:
        pass  # a builtin without a signature: calling it will tell
    return _Function(loss)


def loss_in(loss: BatchLoss, dtype: torch.dtype) -> BatchLoss:
    """Return the loss with the constants of its criterion, such as class weights, in ``dtype``."""
    if isinstance(loss, _Criterion) and isinstance(loss.criterion, nn.Module):
        return replace(loss, criterion=copy.deepcopy(loss.criterion).to(dtype))
    return loss


def minimised(loss: BatchLoss, model: nn.Module, data: Any) -> Tensor:
    """Return what a training step on a batch minimises, as one tensor and nothing but tensors.

    It is the mean of `Terms`, or their sum where training minimises that. No count is read out as a number,
    so that many models can be evaluated at once (`torch.func.vmap`).
    """
    assert isinstance(loss, _Criterion | _Function)
    return loss.minimised(model, data)


@dataclass(frozen=True)
class _Function:
    """loss(model, batch) -> mean | (sum, count) | per-example vector."""

    function: Callable[[nn.Module, Any], Any]

    def minimised(self, model: nn.Module, data: Any) -> Tensor:
        """Return the mean as a tensor."""
        result = self.function(model, data)
        if isinstance(result, tuple) and len(result) == 2:
            result = result[0] / result[1]
        mean: Tensor = result.mean()
        return mean

    def __call__(self, model: nn.Module, data: Any) -> Terms:
        result = self.function(model, data)
        if isinstance(result, tuple) and len(result) == 2:
            total, count = result
            number = float(count)
            _require_scalar(total)
            _require_terms(number)
            return Terms(total / number, number)
        if isinstance(result, Tensor) and result.dim() == 1 and result.numel() == num_examples(data):
            _require_terms(result.numel())
            return Terms(result.mean(), float(result.numel()))
        _require_scalar(result)
        return Terms(result.reshape(()), float(num_examples(data)))


@dataclass(frozen=True)
class _Criterion:
    """criterion(outputs, targets), its mean weighted by its own denominator."""

    criterion: Callable[[Any, Any], Tensor]

    def __call__(self, model: nn.Module, data: Any) -> Terms:
        inputs, keywords, targets = split_batch(data)
        outputs = tensor_of(model(*inputs, **keywords))
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            outputs, targets = self._tokens_as_rows(outputs, targets, isinstance(data, Mapping))
        value = self.criterion(outputs, targets)
        reduction = getattr(self.criterion, "reduction", "mean")
        if reduction == "none" or (isinstance(value, Tensor) and value.dim() > 0):
            _require_terms(value.numel())
            return Terms(value.mean(), float(value.numel()))
        _require_scalar(value)
        count = self._denominator(outputs, targets, num_examples(data))
        _require_terms(count)
        if reduction == "sum":
            return Terms(value / count, count, summed=True)
        return Terms(value, count)

    def minimised(self, model: nn.Module, data: Any) -> Tensor:
        """Return the criterion's own value, or the mean where it gives one for each example."""
        inputs, keywords, targets = split_batch(data)
        outputs = tensor_of(model(*inputs, **keywords))
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            outputs, targets = self._tokens_as_rows(outputs, targets, isinstance(data, Mapping))
        return self.criterion(outputs, targets).mean()

    def _tokens_as_rows(self, outputs: Tensor, targets: Tensor, keyed: bool) -> tuple[Tensor, Tensor]:
        """Let (batch, length, classes) meet (batch, length) as language models return them."""
        per_class = isinstance(self.criterion, nn.CrossEntropyLoss | nn.NLLLoss)
        tokens = targets.dim() >= 2 and not targets.is_floating_point()
        classes_last = outputs.dim() == targets.dim() + 1 and outputs.shape[:-1] == targets.shape
        classes_second = outputs.dim() >= 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
        if per_class and tokens and classes_last and (keyed or not classes_second):
            return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
        return outputs, targets

    def _denominator(self, outputs: Tensor, targets: Tensor, examples: int) -> float:
        """Return what a ``reduction="mean"`` of this criterion divides by."""
        criterion = self.criterion
        if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) and not targets.is_floating_point():
            kept = targets[targets != criterion.ignore_index]
            weight = criterion.weight
            return float(kept.numel() if weight is None else weight[kept].sum())
        if isinstance(criterion, nn.CrossEntropyLoss):
            return float(targets.numel() // max(outputs.shape[1] if outputs.dim() > 1 else 1, 1))
        if isinstance(criterion, _ELEMENTWISE):
            return float(torch.broadcast_shapes(outputs.shape, targets.shape).numel())
        return float(examples)


def residuals(loss: BatchLoss, model: nn.Module, data: Any) -> Tensor:
    """Return outputs − targets of one batch, scaled so that the sum of their squares is the loss.

    Raises:
        InputError: where the loss is no mean (or sum) of squared errors.
    """
    criterion = loss.criterion if isinstance(loss, _Criterion) else None
    if not isinstance(criterion, nn.MSELoss) and criterion is not mse_loss:
        raise InputError(
            "this method needs a loss that is a mean squared error",
            expected="nn.MSELoss() or torch.nn.functional.mse_loss",
            got=type(criterion).__name__ if criterion is not None else "a function of (model, batch)",
            hint="another method, such as trust-region or scaled-conjugate-gradient",
        )
    inputs, keywords, targets = split_batch(data)
    errors: Tensor = tensor_of(model(*inputs, **keywords)) - targets
    _require_terms(errors.numel())
    mean = getattr(criterion, "reduction", "mean") != "sum"
    return errors / errors.numel() ** 0.5 if mean else errors


def predictions(loss: BatchLoss, model: nn.Module, data: Any) -> tuple[Tensor, Tensor]:
    """Return scores (N, C) and class numbers (N,) of one batch, whose mean cross-entropy is the loss.

    Raises:
        InputError: where the loss is not a plain mean cross-entropy of class numbers.
    """
    criterion = loss.criterion if isinstance(loss, _Criterion) else None
    plain = criterion is cross_entropy or (
        isinstance(criterion, nn.CrossEntropyLoss)
        and criterion.weight is None
        and criterion.reduction == "mean"
        and criterion.label_smoothing == 0
    )
    if not plain:
        raise InputError(
            "this method needs a loss that is a plain mean cross-entropy",
            expected="nn.CrossEntropyLoss() without weights or label smoothing",
            got=type(criterion).__name__ if criterion is not None else "a function of (model, batch)",
            hint="another method, such as trust-region or scaled-conjugate-gradient",
        )
    inputs, keywords, targets = split_batch(data)
    return tensor_of(model(*inputs, **keywords)), targets


def split_batch(data: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Split a batch into the model's positional and keyword inputs and the targets.

    Raises:
        InputError: when it has no such form.
    """
    if isinstance(data, Mapping):
        for key in _TARGET_KEYS:
            if key in data:
                rest = {str(name): part for name, part in data.items() if name != key}
                return (), rest, data[key]
        raise InputError(
            "a dict batch holds no targets",
            expected="one of the keys " + ", ".join(_TARGET_KEYS),
            got="the keys " + ", ".join(map(str, data)),
            hint="pass loss(model, batch) instead of a criterion",
        )
    if isinstance(data, tuple | list) and len(data) >= 2:
        *inputs, targets = data
        return tuple(inputs), {}, targets
    raise InputError(
        "a batch has the wrong form for a criterion",
        expected="(inputs, targets), or a dict with labels",
        got=f"{type(data).__name__}" + (f" of length {len(data)}" if isinstance(data, tuple | list) else ""),
        hint="pass loss(model, batch) instead of a criterion",
    )


def tensor_of(outputs: Any) -> Any:
    """Unwrap the outputs that model libraries return: an object or dict with logits, or a tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    return outputs


def _require_scalar(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            "the loss of a batch has the wrong form",
            expected="a scalar tensor, a (sum, count) pair, or one value per example",
            got=got,
        )
    if value.is_complex():
        raise ModelError("the loss is complex", expected="a real number")


def _require_terms(count: float) -> None:
    if not count > 0:
        raise InputError(
            "a batch contributes nothing to the loss",
            expected="at least one target that is not ignored in each batch",
            got=f"a count of {count:g}",
            cause="all targets of the batch are padding, or all class weights are zero",
        )
