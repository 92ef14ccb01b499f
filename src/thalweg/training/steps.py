"""One step of any optimiser on one batch: the closure that it needs, what it costs, and a way back."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from thalweg.errors import FOREIGN_FAILURES, InputError, ThalwegError
from thalweg.optim.factory import ClosureKind
from thalweg.optim.whole import Step
from thalweg.problem.batches import Batch
from thalweg.problem.cost import GRADIENT
from thalweg.problem.problem import Problem
from thalweg.training.recorder import Recorder

__all__ = ["NotFiniteError", "Snapshot", "Steps"]


class NotFiniteError(Exception):
    """The loss of a batch is not finite where a step begins."""

    def __init__(self, loss: float) -> None:
        super().__init__(f"a loss of {loss}")
        self.loss = loss


class Snapshot:
    """A copy of a problem's weights and buffers, to go back to."""

    def __init__(self, problem: Problem) -> None:
        model = problem.model
        self._tensors = [*model.parameters(), *model.buffers()] if model is not None else problem.parameters()
        self._copies = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def take(self) -> None:
        """Copy what the weights and buffers are now."""
        for copy, tensor in zip(self._copies, self._tensors, strict=True):
            copy.copy_(tensor)

    @property
    def tensors(self) -> list[Tensor]:
        """The copies."""
        return self._copies

    @torch.no_grad()
    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Take other copies, of another process, for one's own."""
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copy back."""
        for copy, tensor in zip(self._copies, self._tensors, strict=True):
            tensor.copy_(copy)


class Steps:
    """Takes steps of an optimiser on batches of a problem.

    Within a step every evaluation sees the same batch and the same random numbers (dropout masks), as line
    searches need.

    Args:
        problem: its weights are moved.
        optimizer: over its parameters.
        closure: the kind that the optimiser takes.
        examples: to which the cost is relative.

    Attributes:
        recorder: is handed the loss of each step; None for nobody.
        gradient_norm: where the last step began; None where it is not known.
        gradient_equivalents: spent so far.
        num_products: Hessian–vector products so far, or columns of Jacobians.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        closure: ClosureKind,
        examples: int,
    ) -> None:
        self._problem, self._optimizer, self._kind, self._examples = problem, optimizer, closure, examples
        self.recorder: Recorder | None = None
        self._parameters = problem.parameters()
        self._takes_closure = "closure" in inspect.signature(optimizer.step).parameters
        # Before each step, and the last one at which the loss was finite.
        self._before, self._finite = Snapshot(problem), Snapshot(problem)
        self.gradient_norm: float | None = None
        self.gradient_equivalents = 0.0
        self.num_products = 0

    def step(self, batch: Batch) -> None:
        """Take one step.

        Raises:
            NotFiniteError: where the loss is not finite; the weights are then those at which it last was.
            InputError: where the model or its loss fail on the batch, or the loss has no residuals.
        """
        closure = _Closure(self._problem, self._parameters, self._kind, batch, self._finite_here)
        self._before.take()  # before the forward pass, which moves the running statistics
        step: Any = self._optimizer.step
        try:
            if self._takes_closure:
                step(closure)
            else:
                closure()
                step()
        except NotFiniteError:
            self.back()
            raise
        self._account(closure, batch)

    def back(self) -> None:
        """Go back to the last weights at which the loss of a batch was finite."""
        self._finite.restore()

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on beside weights and optimiser, and what has been spent."""
        return {
            "finite": self._finite.tensors,
            "gradient_norm": self.gradient_norm,
            "gradient_equivalents": self.gradient_equivalents,
            "num_products": self.num_products,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self._finite.adopt(state["finite"])
        self.gradient_norm = state["gradient_norm"]
        self.gradient_equivalents, self.num_products = state["gradient_equivalents"], state["num_products"]

    def _finite_here(self, loss: Tensor) -> None:
        """Note that the loss at which a step begins is finite."""
        self._before, self._finite = self._finite, self._before
        if self.recorder is not None:
            self.recorder.loss(loss)

    def _account(self, closure: _Closure, batch: Batch) -> None:
        last = getattr(self._optimizer, "last", None)
        share = batch.examples / self._examples
        self.gradient_norm = closure.gradient_norm
        if isinstance(last, Step):
            self.gradient_norm = last.gradient_norm
            self.num_products += last.num_products
        if isinstance(last, Step) and self._kind != "standard":
            self.gradient_equivalents += last.gradient_equivalents * share
        else:  # each evaluation of a standard closure runs the model forward and backward
            self.gradient_equivalents += closure.evaluations * GRADIENT * share


class _Closure:
    """What an optimiser evaluates within a step: always the same function."""

    def __init__(
        self,
        problem: Problem,
        parameters: list[Tensor],
        kind: ClosureKind,
        batch: Batch,
        on_finite: Callable[[Tensor], None],
    ) -> None:
        self._problem, self._parameters, self._kind, self._batch = problem, parameters, kind, batch
        self._on_finite = on_finite
        self._random: tuple[Tensor, list[Tensor]] | None = None
        self.evaluations = 0
        self.gradient_norm: float | None = None

    def __call__(self) -> Any:
        self._replay()
        first = self.evaluations == 0
        self.evaluations += 1
        with torch.enable_grad():
            result = self._run()
            if first:
                value = self._value(result)
                if not math.isfinite(value):
                    raise NotFiniteError(value)
                self._on_finite(result if self._kind in {"standard", "loss"} else torch.tensor(value))
            if self._kind != "standard":
                return result
            for parameter in self._parameters:
                parameter.grad = None
            result.backward()
            if first:
                self.gradient_norm = _norm(self._parameters)
            return result.detach()

    def _value(self, result: Any) -> float:
        if self._kind == "prediction":
            return float(cross_entropy(*result).detach())
        return float((result.square().sum() if self._kind == "residual" else result).detach())

    def _run(self) -> Any:
        """Return what the optimiser's kind of closure does, with its graph; of a standard one, the loss."""
        try:
            if self._kind == "prediction":
                return self._problem.predictions(self._batch.data)
            if self._kind == "residual":
                return self._problem.residuals(self._batch.data)
            terms = self._problem.terms(self._batch.data)
        except (ThalwegError, torch.OutOfMemoryError):
            raise
        except FOREIGN_FAILURES as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            single = self._batch.examples == 1 and "more than 1 value per channel" in first
            raise InputError(
                f"the model or its loss failed on a training batch: {type(error).__name__}: {first}",
                got=f"a batch of {self._batch.examples}",
                cause="batch normalisation has no statistics of a single example" if single else None,
                hint="another batch size, so that no batch holds one example" if single else None,
            ) from error
        return terms.mean * terms.count if terms.summed else terms.mean

    def _replay(self) -> None:
        """Let every evaluation draw the same random numbers as the first."""
        device = self._parameters[0].device
        if self._random is None:
            on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
            self._random = torch.get_rng_state(), on_gpu
            return
        cpu, on_gpu = self._random
        torch.set_rng_state(cpu)
        for state in on_gpu:
            torch.cuda.set_rng_state(state, device)


def _norm(parameters: list[Tensor]) -> float:
    gradients = [p.grad.norm() for p in parameters if p.grad is not None]
    return float(torch.stack(gradients).norm()) if gradients else 0.0
