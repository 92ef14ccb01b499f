"""The mean loss of a model over a frozen sample, as a function of theta."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thalweg.errors import FOREIGN_FAILURES, InputError, ModelError, ThalwegError
from thalweg.problem.batches import Batch, Sample
from thalweg.problem.constants import Constants, require_unwritten
from thalweg.problem.cost import FORWARD, GRADIENT, HVP_REBUILT, Ledger
from thalweg.problem.intact import intact
from thalweg.problem.interrupt import safe_point
from thalweg.problem.loss import BatchLoss, Terms, loss_in
from thalweg.problem.memory import SavedBytes, memory_share
from thalweg.problem.objective import GradientGraph, differentiate, require_graph
from thalweg.problem.parameters import ParameterSpace

__all__ = ["EmpiricalRisk"]

# Larger batches run faster, until what they keep falls out of the processor's cache: a convolution's
# Hessian–vector product takes four times as long then.
MOST_EXAMPLES = 2048
CACHED = 64 << 20
# Activations of one pass may take this share of the memory that may be used; the graph of a second
# derivative is about three times as large.
PASS_SHARE = 1 / 6
ENOUGH_TO_TELL = 64
FEW = 8  # examples that checks of the model's code are made on
MIN_EXAMPLES = 16  # to which the cache, but not the memory, may cut a batch


class _Trial(nn.Module):
    """Model and loss as one module, so that whatever the loss touches sees the substituted weights."""

    def __init__(self, model: nn.Module, loss: BatchLoss) -> None:
        super().__init__()
        self.model = model
        self._terms = loss

    def terms(self, data: Any) -> Terms:
        """Return the loss of a batch."""
        return self._terms(self.model, data)

    def forward(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` while the substitutes are in place."""
        return work()


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
        self._model, self._loss = model, loss
        self.space = ParameterSpace.of(model)
        self.sample = sample.to(self.space.device)
        self._trial = _Trial(model, loss)
        self._constants = Constants(model)
        self.ledger = ledger if ledger is not None else Ledger(sample.examples)
        self._counts: dict[int, float] = {}  # by identity of the batch, which lives as long as this
        self.unused: frozenset[str] = frozenset()
        self.summed = False  # whether training minimises the sum over a batch instead of its mean
        self.bytes_per_example = 0.0  # what two derivatives keep: more than a forward pass ever holds
        self.chunks = self.sample.chunked(self._look())
        self.groups = self.sample.grouped(max(num_groups, len(self.chunks)))

    @property
    def model(self) -> nn.Module:
        """The model whose loss it is."""
        return self._model

    @property
    def stays_substituted(self) -> bool:
        """Whether substituted tensors may be written over and run again, as far as the last run tells."""
        return self._constants.untouched

    @property
    def loss(self) -> BatchLoss:
        """The adapted loss."""
        return self._loss

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
        return self._value_and_gradient(theta, self.chunks)[1]

    def training_step(self, theta: Tensor, batches: Sequence[Batch]) -> tuple[float, Tensor]:
        """Return value and gradient over ``batches`` as training sees them: a sum where the loss is one."""
        value, gradient, scale = self._value_and_gradient(theta, batches)
        return value * scale, gradient * scale

    def _value_and_gradient(self, theta: Tensor, batches: Sequence[Batch]) -> tuple[float, Tensor, float]:
        gradient, value, weight, summed = torch.zeros_like(theta), 0.0, 0.0, False
        for batch in batches:
            part, terms = self._gradient(theta, batch)
            weight += terms.count
            gradient += part * terms.count
            value += float(terms.mean.detach()) * terms.count
            summed = summed or terms.summed
        return value / weight, gradient / weight, weight if summed else 1.0

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

    def in_precision(self, dtype: torch.dtype) -> EmpiricalRisk:
        """Return the same loss with weights, constants and data in ``dtype``, and the same ledger."""
        other = copy.copy(self)
        other._counts, other._constants = {}, Constants(self._model, dtype)
        other.space = replace(self.space, dtypes=(dtype,) * len(self.space.dtypes))
        other._trial = _Trial(self._model, loss_in(self._loss, dtype))
        other.chunks = tuple(batch.cast(dtype) for batch in self.chunks)
        other.groups = tuple(batch.cast(dtype) for batch in self.groups)
        return other

    def at_present(self) -> EmpiricalRisk:
        """Return the same loss at the running statistics that the model has now, with the same ledger."""
        other = copy.copy(self)
        other._constants = Constants(self._model)
        return other

    def stand_in(self, dtype: torch.dtype | None) -> EmpiricalRisk:
        """Return the same loss over a few examples, for checks, with a ledger of its own.

        Args:
            dtype: to compute in; None is the precision of the weights.
        """
        few = copy.copy(self)
        few.ledger, few._counts = self.ledger.for_checks(), {}
        few.sample = self.sample.few(FEW)
        few.chunks = few.groups = few.sample.batches
        return few if dtype is None else few.in_precision(dtype)

    def batch_values(self, theta: Tensor) -> tuple[list[float], list[float]]:
        """Return the mean losses of the statistical batches and their counts."""
        with intact(self._model), torch.no_grad():
            terms = [self._run(self.space.unflatten(theta), batch)[0] for batch in self.groups]
            self.ledger.spend(FORWARD, self.examples)
            values = torch.stack([t.mean.double() for t in terms]).tolist()
        return values, [t.count for t in terms]

    def counts(self, batches: Sequence[Batch]) -> list[float]:
        """Return the true counts of ``batches``."""
        return [self._count(self.theta, batch) for batch in batches]

    def substituted(self, tensors: Sequence[Tensor], work: Callable[[], Any]) -> Any:
        """Do ``work`` while the model holds ``tensors``; the caller is inside `intact`."""
        named = {f"model.{name}": tensor for name, tensor in zip(self.space.names, tensors, strict=True)}
        return functional_call(self._trial, self._constants.beside(named), (work,))

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

    def observe(
        self,
        theta: Tensor,
        batches: Sequence[Batch],
        before: Callable[[str, nn.Module], None],
        after: Callable[[str, nn.Module, Any], None],
    ) -> None:
        """Run the loss over ``batches`` and tell of each call of a module: its name, then what it returns.

        The hooks are taken off again, also on an exception. Cost: 1/3 gradient-equivalent over the sample.
        """
        with intact(self._model), torch.no_grad(), ExitStack() as hooks:
            for name, module in self._model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                entering = module.register_forward_pre_hook(lambda m, _, name=name: before(name, m))
                hooks.callback(entering.remove)
                leaving = module.register_forward_hook(lambda m, _, out, name=name: after(name, m, out))
                hooks.callback(leaving.remove)
            tensors = self.space.unflatten(theta)
            for batch in batches:
                self._run(tensors, batch)
                self.ledger.spend(FORWARD, batch.examples)

    def _look(self) -> int:
        """Differentiate a small batch: what is unused, what escapes substitution, how many examples fit.

        Raises:
            ModelError: when the loss uses parameters in a way that substitution does not reach.
        """
        batch = self.sample.batches[0]
        if batch.examples > ENOUGH_TO_TELL:
            batch = self.sample.grouped(-(-self.examples // ENOUGH_TO_TELL))[0]
        originals = [p for p in self._model.parameters() if p.requires_grad]
        meter = SavedBytes()
        with intact(self._model), meter.counting():
            leaves = self._leaves(self.theta)
            terms, parts = self._run(leaves, batch, differentiated=True, create_graph=True)
            direct = torch.autograd.grad(terms.mean, originals, allow_unused=True)
        self.ledger.spend(2 * GRADIENT, batch.examples)
        self.summed = terms.summed
        if any(gradient is not None for gradient in direct):
            raise ModelError(
                "the loss uses parameters that it does not take from the model it is given",
                cause="a penalty over a list of parameters that was made beforehand",
                hint="compute it from model.parameters() inside loss(model, batch)",
            )
        self.unused = frozenset(
            name for name, part in zip(self.space.names, parts, strict=True) if part is None
        )
        share = 3 * PASS_SHARE * memory_share(self.space.device)
        if self.space.device.type == "cpu":
            share = min(share, CACHED)
        self.bytes_per_example = meter.total / batch.examples
        fits = int(share * batch.examples / max(meter.total, 1))
        return max(1, min(MOST_EXAMPLES, max(fits, MIN_EXAMPLES if share == CACHED else 1)))

    def _run(
        self,
        tensors: Sequence[Tensor],
        batch: Batch,
        *,
        differentiated: bool = False,
        create_graph: bool = False,
    ) -> tuple[Terms, list[Tensor | None]]:
        """Run model and loss on substituted weights; return the loss and, if asked for, its gradient."""
        safe_point()
        leaves = tensors if differentiated else ()
        versions = [tensor._version for tensor in tensors]

        def work() -> tuple[Terms, list[Tensor | None]]:
            terms = self._trial.terms(batch.data)
            if not leaves:
                return terms, []
            require_graph(terms.mean)
            parts = torch.autograd.grad(terms.mean, leaves, create_graph=create_graph, allow_unused=True)
            return terms, [g.to_dense() if g is not None and g.is_sparse else g for g in parts]

        try:
            result: tuple[Terms, list[Tensor | None]] = self._within(tensors, work)
        except (ThalwegError, torch.OutOfMemoryError):
            raise
        except FOREIGN_FAILURES as error:
            raise InputError(
                f"the model or its loss failed on a batch: {type(error).__name__}: {_first_line(error)}",
                got=_describe(batch.data),
                cause="the batch does not have the form or dtype that the model and the loss take",
                hint="run loss(model, batch) on one batch by hand, and torch.autograd.grad of it",
            ) from error
        require_unwritten(self.space.names, tensors, versions)
        return result

    def _within(self, tensors: Sequence[Tensor], work: Callable[[], Any]) -> Any:
        """Do ``work`` where the model is in evaluation mode and holds ``tensors``."""
        with intact(self._model):
            return self.substituted(tensors, work)

    def mean_value(self, theta: Tensor, batches: Sequence[Batch]) -> float:
        """Return the mean loss over ``batches`` only."""
        total, weight = 0.0, 0.0
        with intact(self._model), torch.no_grad():
            tensors = self.space.unflatten(theta)
            for batch in batches:
                terms, _ = self._run(tensors, batch)
                self.ledger.spend(FORWARD, batch.examples)
                total += float(terms.mean) * terms.count
                weight += terms.count
        return total / weight

    def _count(self, theta: Tensor, batch: Batch) -> float:
        """Return the true count of a batch; only a run of the loss can tell, so it is kept."""
        if id(batch) not in self._counts:
            with intact(self._model), torch.no_grad():
                self._counts[id(batch)] = self._run(self.space.unflatten(theta), batch)[0].count
            self.ledger.spend(FORWARD, batch.examples)
        return self._counts[id(batch)]

    def _gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Terms]:
        with intact(self._model):
            terms, parts = self._run(self._leaves(theta), batch, differentiated=True)
        self.ledger.spend(GRADIENT, batch.examples)
        return self.space.flatten(parts), terms

    def _graph(self, theta: Tensor, batch: Batch, weight: float) -> GradientGraph:
        with intact(self._model):
            leaves = self._leaves(theta)
            _, parts = self._run(leaves, batch, differentiated=True, create_graph=True)
        self.ledger.spend(GRADIENT, batch.examples)
        return GradientGraph(leaves, parts, weight, batch.examples, partial(self._within, leaves))

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
