"""What an optimiser is given to evaluate: four kinds of closure, and what is wrong when it is another.

standard    zeroes the gradients, computes the loss, calls ``loss.backward()`` and returns the loss: what
            `torch.optim.LBFGS` takes. For methods that need the gradient.
loss        computes the loss and returns it, without backward. For methods that differentiate twice, which a
            backward would leave cycles of memory behind.
residual    returns the residuals as a tensor; the loss is the sum of their squares. For least squares.
prediction  returns (outputs, targets); the method knows the loss. For generalised Gauss–Newton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InputError

__all__ = [
    "Closure",
    "loss_and_gradient",
    "loss_only",
    "loss_with_graph",
    "predictions",
    "require_real",
    "residuals",
]

Closure = Callable[[], Any]


def loss_and_gradient(closure: Closure | None, parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """Run a standard closure; return the loss, and the gradient from ``.grad`` (zeros where there is none).

    Raises:
        InputError: where the closure is missing, returns no scalar, or makes no gradient.
    """
    for parameter in parameters:
        parameter.grad = None  # so that a missing backward() or zero_grad() cannot pass unseen
    loss = _scalar(closure, "standard: zero_grad(), loss.backward(), return loss")
    if all(p.grad is None for p in parameters):
        raise InputError(
            "the closure made no gradient",
            expected="a standard closure: zero_grad(), loss.backward(), return loss",
            got="a loss, and .grad of None in every parameter",
            cause="backward() is missing, or the loss does not depend on these parameters",
        )
    return float(loss.detach()), [_dense(p) for p in parameters]


def loss_only(closure: Closure | None) -> float:
    """Run any closure that returns the loss, and return it as a number."""
    return float(_scalar(closure, "one that returns the loss").detach())


def loss_with_graph(closure: Closure | None) -> Tensor:
    """Run a loss closure and return the loss with its graph.

    Raises:
        InputError: where the closure is missing, returns no scalar, or a loss without graph.
    """
    loss = _scalar(closure, "loss: compute the loss and return it, without backward()")
    _require_graph(loss, "loss")
    return loss


def residuals(closure: Closure | None) -> Tensor:
    """Run a residual closure and return the residuals (m,) with their graph.

    Raises:
        InputError: where the closure is missing, returns no tensor or one without graph.
    """
    result = _run(closure, "residual: return outputs − targets as a tensor, without backward()")
    if not isinstance(result, Tensor) or result.numel() == 0:
        raise InputError(
            "the closure returned no residuals",
            expected="a tensor of outputs − targets",
            got=_described(result),
        )
    _require_graph(result, "residual")
    with torch.enable_grad():  # step() runs without, and a view made there would lose the graph
        return result.reshape(-1)


def predictions(closure: Closure | None) -> tuple[Tensor, Tensor]:
    """Run a prediction closure and return outputs, with their graph, and targets.

    Raises:
        InputError: where the closure is missing, returns no pair of tensors, or outputs without graph.
    """
    result = _run(closure, "prediction: return (outputs, targets), without a loss and without backward()")
    pair = isinstance(result, tuple | list) and len(result) == 2
    if not pair or not all(isinstance(part, Tensor) and part.numel() for part in result):
        raise InputError(
            "the closure returned no predictions",
            expected="(outputs, targets), two tensors",
            got=_described(result),
            cause="a closure that returns the loss; this method computes the loss itself",
        )
    outputs, targets = result
    _require_graph(outputs, "prediction")
    return outputs, targets


def require_real(parameter: Tensor) -> None:
    """Raise InputError for a complex parameter."""
    if parameter.is_complex():
        raise InputError(
            "a parameter is complex, which this method cannot take",
            hint="torch.view_as_real of it as the parameter",
        )


def _run(closure: Closure | None, wanted: str) -> Any:
    if not callable(closure):
        raise InputError(
            "step() needs a closure",
            expected=f"a {wanted}",
            got="nothing" if closure is None else type(closure).__name__,
            hint="step(closure), as for torch.optim.LBFGS",
        )
    with torch.enable_grad():
        return closure()


def _scalar(closure: Closure | None, wanted: str) -> Tensor:
    result = _run(closure, wanted)
    if isinstance(result, float | int):
        return torch.tensor(float(result))
    if not isinstance(result, Tensor) or result.numel() != 1:
        raise InputError(
            "the closure returned no loss",
            expected="a scalar tensor",
            got=_described(result),
            cause="a missing return" if result is None else "a loss that is not reduced to its mean",
        )
    with torch.enable_grad():
        return result.reshape(())


def _require_graph(result: Tensor, kind: str) -> None:
    if result.grad_fn is None and not result.requires_grad:
        raise InputError(
            f"what the closure returned cannot be differentiated, and this method needs a {kind} closure",
            cause="backward() was called and the result detached, or torch.no_grad() is in force inside",
            hint="return it as it is computed, without backward(), detach() or item()",
        )


def _dense(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.is_sparse:
        raise InputError(
            "a gradient is sparse, which this method cannot take",
            hint="sparse=False in the embedding, or torch.optim.SparseAdam",
        )
    return parameter.grad.detach().clone()


def _described(result: object) -> str:
    if isinstance(result, Tensor):
        return f"a tensor of shape {tuple(result.shape)}"
    return "None" if result is None else type(result).__name__
