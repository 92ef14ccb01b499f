"""What is being trained: model, loss, training data, held-out data; or a plain function."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InputError, ModelError, NumericalError
from thalweg.problem.batches import Data, Sample, draw_sample
from thalweg.problem.builtin.registry import build
from thalweg.problem.cost import Ledger
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.loss import BatchLoss, Terms, batch_loss, predictions, residuals
from thalweg.problem.objective import Objective
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.probes import require_fixed_function, require_right_gradient
from thalweg.problem.stepping import Stepping, stepping_from_optimizer, stepping_from_state

__all__ = ["Measured", "Problem"]

# More examples give a sharper picture and cost in proportion; a larger data set is sampled.
LIMIT = 4096


@dataclass(frozen=True)
class Measured:
    """A problem made ready to be measured.

    Attributes:
        train: the training loss over a frozen sample.
        heldout: the loss over data that the search never sees; None where there is none.
        complete: whether the training sample is all the training data.
        ledger: what is spent on both.
        notes: what the reader must know about how the sample was made.
    """

    train: Objective
    heldout: EmpiricalRisk | None
    complete: bool
    ledger: Ledger
    notes: tuple[str, ...]


class Problem:
    """What is being trained.

    Args:
        model: any `nn.Module`; measured in evaluation mode, left bit for bit as it is.
        loss: a criterion on (outputs, targets), or ``loss(model, batch)`` that returns a mean, a
            (sum, count) pair, or one value per example.
        train: a DataLoader, Dataset, list of batches, or (inputs, targets) tensors.
        heldout: the same, of data that training does not see.
        name: what to call it.
        optimizer: the optimiser that trains it, where step sizes are to be judged.

    Raises:
        InputError: where model or loss are of the wrong kind.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        train: Data,
        heldout: Data | None = None,
        *,
        name: str | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                "the model is of the wrong type",
                expected="a torch.nn.Module",
                got=type(model).__name__,
                cause="a state_dict, or the class instead of an instance",
            )
        self.model: nn.Module | None = _unwrapped(model)
        self.name = name or type(self.model).__name__
        self.optimizer = optimizer
        self._optimizer_state: Mapping[str, Any] | None = None
        self.loss: BatchLoss | None = batch_loss(loss)
        self._train: Data | None = train
        self._heldout = heldout
        self._function: Callable[[Tensor], Tensor] | None = None
        self._start: nn.Parameter | None = None
        self._shape = torch.Size()
        self.domain: tuple[tuple[float, float], ...] | None = None
        self._risk: Callable[[Tensor], Tensor] | None = None
        self._samples: dict[tuple[str, int], Sample] = {}

    @classmethod
    def from_function(
        cls,
        function: Callable[[Tensor], Tensor],
        start: Tensor | list[float],
        *,
        name: str | None = None,
        lr: float | None = None,
        domain: Sequence[tuple[float, float]] | None = None,
        risk: Callable[[Tensor], Tensor] | None = None,
    ) -> Problem:
        """Make a problem of a plain function: ``function(theta)`` is a scalar tensor, ``start`` the point.

        Args:
            function: twice differentiable, of a tensor shaped like ``start``.
            start: the point in question; lists become float64.
            name: what to call it.
            lr: the step size that gradient descent uses on it, where it is to be judged.
            domain: where to look at it in pictures, low and high of each coordinate.
            risk: what the function is an estimate of, for pictures: as the expected loss to the loss over a
                sample.

        Raises:
            InputError: for what cannot be called, a start that is no real tensor, or a domain that is none.
        """
        if not isinstance(start, Tensor):
            start = torch.tensor(start, dtype=torch.float64)
        if not callable(function) or not start.is_floating_point() or start.numel() == 0:
            raise InputError(
                "the function or its start cannot be used",
                expected="a callable and a non-empty real tensor",
                got=f"{type(function).__name__} and {start.dtype} of shape {tuple(start.shape)}",
            )
        problem = cls.__new__(cls)
        problem.model, problem.loss, problem.optimizer, problem._optimizer_state = None, None, None, None
        problem.name = name or str(getattr(function, "__name__", "function"))
        problem._function, problem._samples, problem._train, problem._heldout = function, {}, None, None
        problem._start = nn.Parameter(start.detach().clone().reshape(-1))
        problem._shape, problem._risk = start.shape, risk
        problem.domain = _domain(domain, start.numel())
        if lr is not None:
            problem.optimizer = torch.optim.SGD([problem._start], lr=lr)
        return problem

    @classmethod
    def builtin(cls, name: str, seed: int = 0) -> Problem:
        """Build a built-in problem; `thalweg.problems` lists their names.

        Raises:
            InputError: for an unknown name.
        """
        problem: Problem = build(cls, name, seed)
        return problem

    @property
    def is_function(self) -> bool:
        """Whether this is a plain function rather than a model with data."""
        return self._function is not None

    def risk(self) -> FunctionObjective | None:
        """Return what a plain function is an estimate of, where that is known."""
        if self._risk is None or self._start is None:
            return None
        return FunctionObjective(self._risk, self._start.detach().view(self._shape))

    @property
    def training_data(self) -> Data | None:
        """The training data as they were handed in; None for a plain function."""
        return self._train

    @property
    def heldout_data(self) -> Data | None:
        """The held-out data as they were handed in; None without any."""
        return self._heldout

    @property
    def optimizer_state(self) -> Mapping[str, Any] | None:
        """The optimiser state that was adopted; None without."""
        return self._optimizer_state

    def terms(self, data: Any = None) -> Terms:
        """Return the loss of one training batch (of the function) at the present weights, with its graph.

        The model runs as it is, in the mode that it is in.
        """
        if self._function is not None and self._start is not None:
            return Terms(self._function(self._start.view(self._shape)).reshape(()), 1.0)
        assert self.model is not None
        assert self.loss is not None
        return self.loss(self.model, data)

    def residuals(self, data: Any = None) -> Tensor:
        """Return outputs − targets of one training batch, with their graph; their squares add up to the loss.

        Raises:
            InputError: where the loss is not a mean squared error.
        """
        if self.model is None or self.loss is None:
            raise InputError(
                "a plain function has no residuals",
                expected="a model with nn.MSELoss()",
                hint="a method that takes the loss, such as trust-region",
            )
        return residuals(self.loss, self.model, data)

    def predictions(self, data: Any = None) -> tuple[Tensor, Tensor]:
        """Return scores, with their graph, and class numbers of one training batch.

        Raises:
            InputError: where the loss is not a mean cross-entropy.
        """
        if self.model is None or self.loss is None:
            raise InputError(
                "a plain function has no classes",
                expected="a model with nn.CrossEntropyLoss()",
                hint="a method that takes the loss, such as trust-region",
            )
        return predictions(self.loss, self.model, data)

    def adopt_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Take over the optimiser state of a checkpoint (learning rate, moments)."""
        self._optimizer_state = state

    def parameters(self) -> list[Tensor]:
        """Return the trainable tensors, in the order of theta."""
        if self._start is not None:
            return [self._start]
        assert self.model is not None
        named = dict(self.model.named_parameters())
        return [named[name] for name in ParameterSpace.of(self.model).names]

    def measured(self, *, seed: int = 0, limit: int = LIMIT) -> Measured:
        """Freeze the data and return the objectives over it.

        Raises:
            InputError: for data, model or loss that cannot be used.
            NumericalError: for weights that are not finite.
        """
        self._require_finite_weights()
        if self._function is not None and self._start is not None:
            function = FunctionObjective(self._function, self._start.detach().view(self._shape))
            require_fixed_function(function)
            return Measured(function, None, True, function.ledger, require_right_gradient(function))
        assert self.model is not None
        assert self.loss is not None
        assert self._train is not None
        train = self._sample("training", self._train, limit, seed)
        ledger = Ledger(train.examples)
        risk = EmpiricalRisk(self.model, self.loss, train, ledger=ledger)
        notes: list[str] = []
        require_fixed_function(risk)
        if not _examples_add_up(risk):
            train = replace(train, joinable=False)
            risk = EmpiricalRisk(self.model, self.loss, train, ledger=ledger)
            notes.append(
                "The loss of two batches together is not their weighted mean, so batches are kept as they "
                "are; where the loss averages over tokens, return (sum, count) for exact weights."
            )
        notes += require_right_gradient(risk)
        if not train.complete:
            notes.append(f"Measured on {train.examples:,} training examples: {train.origin}.")
        if risk.unused:
            notes.append(f"The loss does not use {', '.join(sorted(risk.unused)[:6])}.")
        heldout = None
        if self._heldout is not None:
            sample = self._sample("held-out", self._heldout, limit, seed)
            sample = replace(sample, joinable=train.joinable)
            if not sample.complete:
                notes.append(f"Tested on {sample.examples:,} held-out examples: {sample.origin}.")
            heldout = EmpiricalRisk(self.model, self.loss, sample, ledger=ledger)
        return Measured(risk, heldout, train.complete, ledger, tuple(notes))

    def stepping(self, optimizer: torch.optim.Optimizer | None = None) -> Stepping | None:
        """Return how training steps, or None where no optimiser is known.

        Args:
            optimizer: takes the place of the problem's own.
        """
        parameters = self.parameters()
        sample = next((s for (role, _), s in self._samples.items() if role == "training"), None)
        batch_size = sample.batch_size if sample is not None else None
        optimizer = optimizer if optimizer is not None else self.optimizer
        state = self._optimizer_state
        if optimizer is not None:
            return stepping_from_optimizer(optimizer, parameters, batch_size, state=state)
        return stepping_from_state(state, parameters, batch_size) if state is not None else None

    def _sample(self, role: str, data: Data, limit: int, seed: int) -> Sample:
        key = (role, 0 if isinstance(data, Iterator) else seed)
        if key not in self._samples:  # an iterator can be read only once
            self._samples[key] = draw_sample(data, limit=limit, seed=seed, role=role)
        return self._samples[key]

    def _require_finite_weights(self) -> None:
        named = dict(self.model.named_parameters()) if self.model is not None else {"theta": self._start}
        broken = [
            name for name, p in named.items() if p is not None and not bool(torch.isfinite(p.detach()).all())
        ]
        if broken:
            raise NumericalError(
                f"{len(broken)} of the parameters hold NaN or infinity: {', '.join(broken[:5])}",
                cause="training has diverged, or the checkpoint is damaged",
                hint="go back to an earlier checkpoint and lower the learning rate or clip the gradient",
            )


def _examples_add_up(risk: EmpiricalRisk) -> bool:
    """Check that cutting the sample anew leaves the mean loss as it is, to rounding."""
    if len(risk.sample.batches) == 1 and len(risk.groups) == 1:
        return True
    as_given = risk.mean_value(risk.theta, risk.sample.batches)
    try:
        with warnings.catch_warnings():  # a loss over a batch may not be meant for so few examples
            warnings.simplefilter("ignore")
            values, counts = risk.batch_values(risk.theta)
    except InputError:
        return False
    cut = sum(v * c for v, c in zip(values, counts, strict=True)) / sum(counts)
    size = sum(abs(v) * c for v, c in zip(values, counts, strict=True)) / sum(counts)
    return abs(as_given - cut) <= min(1e3 * risk.roundoff, 1e-2) * size


def _domain(
    domain: Sequence[tuple[float, float]] | None, dimensions: int
) -> tuple[tuple[float, float], ...] | None:
    if domain is None:
        return None
    pairs = tuple((float(low), float(high)) for low, high in domain)
    if len(pairs) != dimensions or not all(math.isfinite(high - low) and low < high for low, high in pairs):
        raise InputError(
            "the domain of the function cannot be used",
            expected=f"low < high for each of {dimensions} coordinates",
            got=str(domain),
        )
    return pairs


def _unwrapped(model: nn.Module) -> nn.Module:
    """Take off the wrappers of torch.compile and of data parallelism, which cannot be measured through."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is a compiled TorchScript module",
            hint="pass the eager model it was made from",
        )
    return model
