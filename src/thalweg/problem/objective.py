"""The function that training minimises, over one flat vector theta."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thalweg.errors import InputError, ModelError, NumericalError, ThalwegError
from thalweg.problem.batches import Batch, Sample
from thalweg.problem.cost import FORWARD, GRADIENT, HVP_REBUILT, Ledger
from thalweg.problem.intact import intact
from thalweg.problem.interrupt import safe_point
from thalweg.problem.loss import BatchLoss, Terms
from thalweg.problem.parameters import ParameterSpace

__all__ = [
    "EmpiricalRisk",
    "FunctionObjective",
    "GradientGraph",
    "Objective",
    "differentiate",
    "require_finite",
]


@dataclass(frozen=True)
class GradientGraph:
    """The gradient of a part of the objective with the graph that made it, to be differentiated again."""

    leaves: list[Tensor]
    gradient: list[Tensor | None]
    weight: float  # this part's share of the whole
    examples: int


class Objective(Protocol):
    """A twice differentiable function of ``theta`` (n,), with its parts where it is a mean over data."""

    ledger: Ledger

    @property
    def theta(self) -> Tensor:
        """A copy of the point in question (n,)."""

    @property
    def examples(self) -> int:
        """How many examples the objective is a mean over; 1 for a plain function."""

    def value(self, theta: Tensor) -> float:
        """Return f(theta). Cost: 1/3 gradient-equivalent."""

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇f(theta) (n,). Cost: 1 gradient-equivalent."""

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²f(theta)·vector (n,) by double backward. Cost: 3 gradient-equivalents."""

    def gradient_graphs(self, theta: Tensor) -> Iterator[GradientGraph]:
        """Yield the gradient part by part, each with its graph."""

    def batch_values(self, theta: Tensor) -> tuple[list[float], list[float]]:
        """Return the means of the statistical batches (k,) and their true counts (k,)."""

    def batch_gradients(self, theta: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield gradient (n,) and true count of each statistical batch."""

    def batch_curvatures(self, theta: Tensor, vector: Tensor) -> tuple[list[float], list[float]]:
        """Return vᵀH_b v of the statistical batches (k,) and their true counts (k,)."""


class _Trial(nn.Module):
    """Model and loss as one module, so that whatever the loss touches sees the substituted weights."""

    def __init__(self, model: nn.Module, loss: BatchLoss) -> None:
        super().__init__()
        self.model = model
        self._terms = loss

    def forward(self, data: Any) -> Terms:
        return self._terms(self.model, data)


class EmpiricalRisk:
    """The mean loss of a model over a frozen sample, in evaluation mode, as a function of theta.

    The sum over batches is weighted by true counts: L(θ) = Σ_b c_b L_b(θ) / Σ_b c_b.

    Args:
        model: the user's model; it is run on substituted weights and buffers and never written to.
        loss: the adapted loss.
        sample: the frozen batches.
        num_groups: how many batches the statistics are taken over, where batches can be cut anew.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss,
        sample: Sample,
        *,
        num_groups: int = 32,
        ledger: Ledger | None = None,
    ) -> None:
        self._model = model
        self.space = ParameterSpace.of(model)
        self.sample = sample.to(self.space.device)
        self._trial = _Trial(model, loss)
        self._buffers = {f"model.{name}": b.clone() for name, b in model.named_buffers()}
        self._chunks = self.sample.chunked()
        self.groups = self.sample.grouped(num_groups)
        self._counts: dict[int, float] = {}  # by identity of the batch, which lives as long as this
        self.ledger = ledger if ledger is not None else Ledger(sample.examples)

    @property
    def theta(self) -> Tensor:
        """The weights of the model, copied (n,)."""
        return self.space.read(self._model)

    @property
    def examples(self) -> int:
        """The number of examples in the sample."""
        return self.sample.examples

    def value(self, theta: Tensor) -> float:
        """Return the mean loss."""
        return self.mean_value(theta, self._chunks)

    def gradient(self, theta: Tensor) -> Tensor:
        """Return the gradient of the mean loss (n,)."""
        return self.gradient_over(theta, self._chunks)

    def gradient_over(self, theta: Tensor, batches: Sequence[Batch], *, as_trained: bool = False) -> Tensor:
        """Return the gradient over ``batches`` only; ``as_trained`` scales it as the user's loss does."""
        total, weight = torch.zeros_like(theta), 0.0
        for batch in batches:
            part, terms = self._gradient(theta, batch)
            weight += terms.count
            total += part * (terms.count * (terms.scale if as_trained else 1.0))
        return total / weight

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return the Hessian–vector product of the mean loss (n,)."""
        total = torch.zeros_like(theta)
        self.ledger.num_hvps += 1
        for graph in self.gradient_graphs(theta):
            total += graph.weight * self._differentiate(graph, vector)
            self.ledger.spend(HVP_REBUILT - GRADIENT, graph.examples)
        return total

    def gradient_graphs(self, theta: Tensor) -> Iterator[GradientGraph]:
        """Yield the gradient of each chunk with its graph and its share of the whole."""
        counts = [self._count(theta, chunk) for chunk in self._chunks] if len(self._chunks) > 1 else [1.0]
        total = sum(counts)
        for chunk, count in zip(self._chunks, counts, strict=True):
            yield self._graph(theta, chunk, count / total)

    def batch_values(self, theta: Tensor) -> tuple[list[float], list[float]]:
        """Return the mean losses of the statistical batches and their counts."""
        with intact(self._model), torch.no_grad():
            terms = [self._run(self.space.unflatten(theta), batch) for batch in self.groups]
            self.ledger.spend(FORWARD, self.examples)
            values = torch.stack([t.mean.double() for t in terms]).tolist()
        return values, [t.count for t in terms]

    def batch_gradients(self, theta: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield the gradient of each statistical batch (n,) and its count."""
        for batch in self.groups:
            gradient, terms = self._gradient(theta, batch)
            yield gradient, terms.count

    def batch_curvatures(self, theta: Tensor, vector: Tensor) -> tuple[list[float], list[float]]:
        """Return vᵀH_b v of the statistical batches and their counts."""
        values, weights = [], []
        self.ledger.num_hvps += 1
        for batch in self.groups:
            graph = self._graph(theta, batch, self._count(theta, batch))
            product = self._differentiate(graph, vector)
            self.ledger.spend(HVP_REBUILT - GRADIENT, batch.examples)
            values.append(float(product.double() @ vector.double()))
            weights.append(graph.weight)
        return values, weights

    def _run(self, tensors: Sequence[Tensor], batch: Batch) -> Terms:
        safe_point()
        named = dict(zip((f"model.{name}" for name in self.space.names), tensors, strict=True))
        try:
            terms: Terms = functional_call(self._trial, {**self._buffers, **named}, (batch.data,))
        except ThalwegError:
            raise
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise InputError(
                f"the model or its loss failed on a batch: {type(error).__name__}: {_first_line(error)}",
                got=_describe(batch.data),
                cause="the batch does not have the form or dtype that the model and the loss take",
                hint="run loss(model, batch) on one batch by hand",
            ) from error
        return terms

    def mean_value(self, theta: Tensor, batches: Sequence[Batch]) -> float:
        """Return the mean loss over ``batches`` only."""
        total, weight = 0.0, 0.0
        with intact(self._model), torch.no_grad():
            tensors = self.space.unflatten(theta)
            for batch in batches:
                terms = self._run(tensors, batch)
                self.ledger.spend(FORWARD, batch.examples)
                total += float(terms.mean) * terms.count
                weight += terms.count
        return total / weight

    def _count(self, theta: Tensor, batch: Batch) -> float:
        """Return the true count of a batch; only a run of the loss can tell, so it is kept."""
        if id(batch) not in self._counts:
            with intact(self._model), torch.no_grad():
                self._counts[id(batch)] = self._run(self.space.unflatten(theta), batch).count
            self.ledger.spend(FORWARD, batch.examples)
        return self._counts[id(batch)]

    def _gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Terms]:
        with intact(self._model):
            leaves = self._leaves(theta)
            terms = self._run(leaves, batch)
            _require_graph(terms.mean)
            parts = torch.autograd.grad(terms.mean, leaves, allow_unused=True)
        self.ledger.spend(GRADIENT, batch.examples)
        return self.space.flatten(parts), terms

    def _graph(self, theta: Tensor, batch: Batch, weight: float) -> GradientGraph:
        with intact(self._model):
            leaves = self._leaves(theta)
            terms = self._run(leaves, batch)
            _require_graph(terms.mean)
            parts = torch.autograd.grad(terms.mean, leaves, create_graph=True, allow_unused=True)
        self.ledger.spend(GRADIENT, batch.examples)
        return GradientGraph(leaves, list(parts), weight, batch.examples)

    def _leaves(self, theta: Tensor) -> list[Tensor]:
        return [tensor.detach().clone().requires_grad_() for tensor in self.space.unflatten(theta)]

    def _differentiate(self, graph: GradientGraph, vector: Tensor) -> Tensor:
        return self.space.flatten(differentiate(graph, self.space.unflatten(vector)))


def differentiate(
    graph: GradientGraph, vector: Sequence[Tensor], *, keep: bool = False
) -> list[Tensor | None]:
    """Return the derivative of gradientᵀvector: this part's Hessian–vector product, tensor by tensor."""
    safe_point()
    live = [(g, v) for g, v in zip(graph.gradient, vector, strict=True) if g is not None and g.requires_grad]
    if not live:  # the gradient does not depend on the parameters: a linear function
        return [None] * len(graph.leaves)
    # As the derivative of a scalar rather than with grad_outputs, whose first use makes torch import its
    # symbolic shapes: half a second before the first answer.
    directional = torch.stack([(g * v).sum() for g, v in live]).sum()
    return list(torch.autograd.grad(directional, graph.leaves, retain_graph=keep, allow_unused=True))


class FunctionObjective:
    """A plain function of a vector as an objective; a single 'example', nothing sampled.

    Args:
        function: maps a tensor shaped like ``start`` to a scalar tensor.
        start: the point in question.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], start: Tensor, *, ledger: Ledger | None = None
    ) -> None:
        self._function = function
        self._shape = start.shape
        self._start = start.detach().clone().reshape(-1)
        self.ledger = ledger if ledger is not None else Ledger(1)

    @property
    def theta(self) -> Tensor:
        """The point in question, copied (n,)."""
        return self._start.clone()

    @property
    def examples(self) -> int:
        """One: the function itself."""
        return 1

    def value(self, theta: Tensor) -> float:
        """Return f(theta)."""
        self.ledger.spend(FORWARD, 1)
        with intact(None), torch.no_grad():
            return float(self._evaluate(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇f(theta) (n,)."""
        part = next(self.gradient_graphs(theta)).gradient[0]
        return torch.zeros_like(theta) if part is None else part.detach()

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²f(theta)·vector (n,)."""
        self.ledger.num_hvps += 1
        self.ledger.spend(HVP_REBUILT - GRADIENT, 1)
        (product,) = differentiate(next(self.gradient_graphs(theta)), [vector])
        return torch.zeros_like(theta) if product is None else product

    def gradient_graphs(self, theta: Tensor) -> Iterator[GradientGraph]:
        """Yield the gradient with its graph."""
        self.ledger.spend(GRADIENT, 1)
        with intact(None):
            leaf = theta.detach().clone().requires_grad_()
            value = self._evaluate(leaf)
            _require_graph(value)
            (part,) = torch.autograd.grad(value, [leaf], create_graph=True, allow_unused=True)
        yield GradientGraph([leaf], [part], 1.0, 1)

    def batch_values(self, theta: Tensor) -> tuple[list[float], list[float]]:
        """Return the value as the only batch."""
        return [self.value(theta)], [1.0]

    def batch_gradients(self, theta: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield the gradient as the only batch."""
        yield self.gradient(theta), 1.0

    def batch_curvatures(self, theta: Tensor, vector: Tensor) -> tuple[list[float], list[float]]:
        """Return vᵀHv as the only batch."""
        return [float(self.hvp(theta, vector) @ vector)], [1.0]

    def _evaluate(self, theta: Tensor) -> Tensor:
        safe_point()
        value = self._function(theta.view(self._shape))
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError("the function has the wrong result", expected="a scalar tensor", got=f"{shape}")
        return value.reshape(())


def _require_graph(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ModelError(
            "the loss does not depend on the trainable parameters in a way that can be differentiated",
            cause="a detach(), .item(), numpy or torch.no_grad() between the parameters and the loss",
        )


def require_finite(value: float, what: str) -> None:
    """Raise NumericalError when ``value`` is NaN or infinite."""
    if not (value == value and abs(value) != float("inf")):
        raise NumericalError(
            f"{what} is {value}",
            cause="weights that have diverged, a learning rate that is too high, or a logarithm of zero",
            hint="go back to an earlier checkpoint",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _describe(data: Any) -> str:
    if isinstance(data, Tensor):
        return f"a {str(data.dtype).removeprefix('torch.')} tensor {tuple(data.shape)}"
    if isinstance(data, dict):
        return "a dict with " + ", ".join(f"{key}: {_describe(part)}" for key, part in data.items())
    if isinstance(data, tuple | list):
        return "(" + ", ".join(_describe(part) for part in data) + ")"
    return type(data).__name__
