"""The mean loss of a model over a frozen sample, as a function of theta."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thalweg.errors import InputError, ThalwegError
from thalweg.problem.batches import Batch, Sample
from thalweg.problem.cost import FORWARD, GRADIENT, HVP_REBUILT, Ledger
from thalweg.problem.intact import intact
from thalweg.problem.interrupt import safe_point
from thalweg.problem.loss import BatchLoss, Terms
from thalweg.problem.memory import SavedBytes, memory_share
from thalweg.problem.objective import GradientGraph, differentiate, require_graph
from thalweg.problem.parameters import ParameterSpace

__all__ = ["EmpiricalRisk"]

# Larger batches run faster, until their activations fall out of the processor's cache.
MOST_EXAMPLES = 2048
# Activations of one pass may take this share of the memory that may be used; the graph of a second
# derivative is about three times as large.
PASS_SHARE = 1 / 6
ENOUGH_TO_TELL = 64


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
        self.ledger = ledger if ledger is not None else Ledger(sample.examples)
        self._counts: dict[int, float] = {}  # by identity of the batch, which lives as long as this
        fits = self._examples_that_fit()
        self.chunks = self.sample.chunked(fits)
        self.groups = self.sample.grouped(max(num_groups, len(self.chunks)))

    @property
    def theta(self) -> Tensor:
        """The weights of the model, copied (n,)."""
        return self.space.read(self._model)

    @property
    def examples(self) -> int:
        """The number of examples in the sample."""
        return self.sample.examples

    @property
    def roundoff(self) -> float:
        """The coarsest unit in the last place among the parameters."""
        return max(float(torch.finfo(dtype).eps) for dtype in self.space.dtypes)

    def value(self, theta: Tensor) -> float:
        """Return the mean loss."""
        return self.mean_value(theta, self.chunks)

    def gradient(self, theta: Tensor) -> Tensor:
        """Return the gradient of the mean loss (n,)."""
        return self.gradient_over(theta, self.chunks)

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
        counts = [self._count(theta, chunk) for chunk in self.chunks] if len(self.chunks) > 1 else [1.0]
        total = sum(counts)
        for chunk, count in zip(self.chunks, counts, strict=True):
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

    def _examples_that_fit(self) -> int:
        """Return how many examples may be run at once, from what one small batch keeps for its gradient."""
        batch = self.sample.batches[0]
        if batch.examples > ENOUGH_TO_TELL:
            batch = self.sample.grouped(-(-self.examples // ENOUGH_TO_TELL))[0]
        meter = SavedBytes()
        with intact(self._model), meter.counting():
            self._run(self._leaves(self.theta), batch)
        self.ledger.spend(FORWARD, batch.examples)
        share = PASS_SHARE * memory_share(self.space.device)
        return max(1, min(MOST_EXAMPLES, int(share * batch.examples / max(meter.total, 1))))

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
            require_graph(terms.mean)
            parts = torch.autograd.grad(terms.mean, leaves, allow_unused=True)
        self.ledger.spend(GRADIENT, batch.examples)
        return self.space.flatten(parts), terms

    def _graph(self, theta: Tensor, batch: Batch, weight: float) -> GradientGraph:
        with intact(self._model):
            leaves = self._leaves(theta)
            terms = self._run(leaves, batch)
            require_graph(terms.mean)
            parts = torch.autograd.grad(terms.mean, leaves, create_graph=True, allow_unused=True)
        self.ledger.spend(GRADIENT, batch.examples)
        return GradientGraph(leaves, list(parts), weight, batch.examples)

    def _leaves(self, theta: Tensor) -> list[Tensor]:
        return [tensor.detach().clone().requires_grad_() for tensor in self.space.unflatten(theta)]

    def _differentiate(self, graph: GradientGraph, vector: Tensor) -> Tensor:
        return self.space.flatten(differentiate(graph, self.space.unflatten(vector)))


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
