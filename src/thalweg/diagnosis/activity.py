"""What each layer passes on: dead and saturated units, what it still tells apart, how the signal falls."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thalweg.diagnosis.gradient import LayerSignal
from thalweg.errors import FOREIGN_FAILURES
from thalweg.estimates import Estimate
from thalweg.problem.empirical_risk import EmpiricalRisk

__all__ = ["LayerActivity", "SignalFall", "measure_activity", "signal_fall"]

CLOSED = 0.01  # of the steepest slope: what a unit passes on less than, it passes nothing on
ALWAYS = 0.99  # of the examples, for a unit that is called saturated
DORMANT = 0.025  # of the layer's mean activity

# By the name of the function, which modules call too: flat at one end, at both, at none.
_ONE_SIDED = {
    "relu",
    "relu6",
    "threshold",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "softplus",
}
_TWO_SIDED = {"sigmoid", "special_expit", "tanh", "hardtanh", "hardsigmoid", "softsign"}
_LEAKY = {"leaky_relu", "prelu", "rrelu", "log_sigmoid"}
_STEEPEST = {"sigmoid": 1 / 4, "special_expit": 1 / 4, "hardsigmoid": 1 / 6}  # the others: about 1
_CHANNELS_FIRST = (nn.modules.conv._ConvNd,)


@dataclass(frozen=True)
class LayerActivity:
    """What the activation after a layer does over the sample, in evaluation mode.

    A unit is a feature or, after a convolution, a channel; each example (and position) is an observation of
    it. A unit is closed in an observation where its activation passes on less than 1 % of the gradient that
    it passes on where it is steepest: a sigmoid within 0.25 % of 0 or 1, a tanh beyond ±0.995, a ReLU at 0.

    Attributes:
        name: of the layer whose weights feed the activation, as in `LayerSignal`.
        activation: the function.
        num_units: how many.
        examples: how many were seen. A unit that was closed in all of n may still open in up to 3/n of
            them (95 %), so that shares over fewer than about 30 say little.
        dead: share of units that are closed in every observation, of functions that are flat at one end
            (the ReLU family); 0 for the others.
        dormant: share of units whose mean |output| is at most 0.025 of the layer's ([sokar2023],
            definition 3.1), of the same functions. Many may be dormant in a net that works well.
        saturated: share of units that are closed in 99 % of the observations or more, of functions that
            are flat at both ends ([glorot2010], §3); 0 for the others. An output that has learnt to be sure
            is saturated too: see ``variation``.
        variation: the root mean square difference of outputs from their mean over the examples, relative to
            their root mean square: 1 where all is told apart, 0 where every input looks the same. None with
            fewer than two examples at a time.
    """

    name: str
    activation: str
    num_units: int
    examples: int
    dead: float
    dormant: float
    saturated: float
    variation: float | None


@dataclass(frozen=True)
class SignalFall:
    """How the learning signal falls from layer to layer on its way from the output to the input.

    Attributes:
        log_factor: the slope of log signal against depth, with the standard error of the fit (infinite for
            two layers).
        first: the layer nearest the input that has a signal.
        last: the layer nearest the output.
        num_layers: how many were fitted.
    """

    log_factor: Estimate
    first: str
    last: str
    num_layers: int

    @property
    def factor(self) -> float:
        """How many times weaker the signal is one layer further from the output; below 1 where it grows."""
        return math.exp(min(self.log_factor.value, 700.0))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval for ``factor`` with probability ``level``, if the fall is geometric."""
        low, high = self.log_factor.interval(level)
        return math.exp(min(low, 700.0)), (math.exp(high) if high < 700 else math.inf)


def measure_activity(risk: EmpiricalRisk, theta: Tensor) -> tuple[LayerActivity, ...]:
    """Measure what the activations of the model pass on at ``theta``, in the order in which they are called.

    Activations are seen as modules and as functions (`F.relu`, `torch.tanh`, …), but not inside fused
    kernels (recurrent layers), nor where a model makes its own of other operations (`clamp`, `where`); a
    layer without one is not listed. Calls that the same weights feed are taken together. Gates count as what
    they are: a sigmoid that is closed may be meant so.

    Cost: 1/3 gradient-equivalent.
    """
    watch = _Watch()
    with watch:
        risk.observe(theta, risk.chunks, watch.enter, watch.leave)
    return tuple(
        tally.activity(name, kind, risk.examples) for (name, kind, _), tally in watch.tallies.items()
    )


def signal_fall(layers: Sequence[LayerSignal]) -> SignalFall | None:
    """Fit a geometric fall to the signal of ``layers``, from input to output; None for fewer than two.

    Layers that receive none at all are left out: a logarithm cannot show them.
    """
    signals = [(depth, layer) for depth, layer in enumerate(layers) if 0 < layer.signal < math.inf]
    n = len(signals)
    if n < 2:
        return None
    depths = [float(depth) for depth, _ in signals]
    logs = [math.log(layer.signal) for _, layer in signals]
    middle, mean = sum(depths) / n, sum(logs) / n
    spread = sum((d - middle) ** 2 for d in depths)
    slope = sum((d - middle) * (y - mean) for d, y in zip(depths, logs, strict=True)) / spread
    rest = sum((y - mean - slope * (d - middle)) ** 2 for d, y in zip(depths, logs, strict=True))
    stderr = math.sqrt(rest / (n - 2) / spread) if n > 2 else math.inf
    # A line has two parameters: n − 2 degrees of freedom are those of a mean of n − 1.
    return SignalFall(Estimate(slope, stderr, n - 1), signals[0][1].name, signals[-1][1].name, n)


@dataclass
class _Tally:
    """What is kept of the calls of one activation."""

    closed: Tensor  # (units,) in how many observations
    size: Tensor  # (units,) sum of |output|
    observations: int = 0
    # By shape of an example's output: count, sum and sum of squares, each position for itself.
    moments: dict[torch.Size, tuple[int, Tensor, Tensor]] = field(default_factory=dict)

    def add(self, output: Tensor, slope: Tensor, axis: int, steepest: float) -> None:
        units = len(self.closed)
        shut = (slope.abs() < CLOSED * steepest).movedim(axis, -1).reshape(-1, units)
        values = output.detach().double()
        self.closed += shut.sum(0)
        self.size += values.abs().movedim(axis, -1).reshape(-1, units).sum(0)
        self.observations += len(shut)
        count, total, squares = self.moments.get(output.shape[1:], (0, 0.0, 0.0))
        self.moments[output.shape[1:]] = (
            count + len(values),
            total + values.sum(0),
            squares + values.square().sum(0),
        )

    def activity(self, name: str, kind: str, examples: int) -> LayerActivity:
        one_sided, two_sided = kind in _ONE_SIDED, kind in _TWO_SIDED
        dead = self.closed == self.observations
        dormant = self.size <= DORMANT * self.size.mean()
        saturated = self.closed >= ALWAYS * self.observations
        return LayerActivity(
            name=name,
            activation=kind,
            num_units=len(self.closed),
            examples=examples,
            dead=float(dead.double().mean()) if one_sided else 0.0,
            dormant=float(dormant.double().mean()) if one_sided else 0.0,
            saturated=float(saturated.double().mean()) if two_sided else 0.0,
            variation=self._variation(),
        )

    def _variation(self) -> float | None:
        spread = power = freedom = values = 0.0
        for count, total, squares in self.moments.values():
            spread += float((squares - total.square() / count).clamp(min=0).sum())
            power += float(squares.sum())
            freedom += (count - 1) * total.numel()
            values += count * total.numel()
        if freedom == 0:
            return None
        return min(math.sqrt((spread / freedom) / (power / values)), 1.0) if power > 0 else 0.0


class _Watch(TorchFunctionMode):
    """Sees every activation that is called after a layer with weights has been entered."""

    def __init__(self) -> None:
        super().__init__()
        self.tallies: dict[tuple[str, str, int], _Tally] = {}
        self._layer: tuple[str, bool] | None = None  # its name, and whether its units come first

    def enter(self, name: str, module: nn.Module) -> None:
        if any(p.dim() >= 2 for p in module.parameters(recurse=False)):
            self._layer = name, isinstance(module, _CHANNELS_FIRST)

    def leave(self, name: str, module: nn.Module, outputs: Any) -> None:
        if name == "":  # what follows belongs to the loss
            self._layer = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func, args, kwargs)
        if kind is None or self._layer is None:
            return func(*args, **kwargs)
        given = args[0].detach().clone()  # the function may work in place
        output = func(*args, **kwargs)
        # Tensors of some kinds (under vmap, sparse, nested) cannot be looked into: such calls stay unseen.
        with contextlib.suppress(*FOREIGN_FAILURES):
            self._count(kind, output, _slope(func, (given, *args[1:]), kwargs))
        return output

    def _count(self, kind: str, output: Tensor, slope: Tensor) -> None:
        assert self._layer is not None
        name, channels_first = self._layer
        axis = 1 if channels_first and output.dim() > 2 else -1
        units = output.shape[axis] if output.dim() > 1 else 1
        none = torch.zeros(units, dtype=torch.float64, device=output.device)
        tally = self.tallies.get((name, kind, units)) or _Tally(none, none.clone())
        tally.add(output, slope, axis, _STEEPEST.get(kind, 1.0))
        self.tallies[name, kind, units] = tally


def _kind(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return which activation a call is; None for any other function."""
    kind = str(getattr(func, "__name__", "")).strip("_")  # relu_ works in place
    if kind not in _ONE_SIDED | _TWO_SIDED | _LEAKY or not args or not isinstance(args[0], Tensor):
        return None
    if not args[0].is_floating_point() or args[0].dim() == 0:
        return None
    if kind == "hardtanh" and (args[1] if len(args) > 1 else kwargs.get("min_val")) == 0:
        return "relu6"  # which is what nn.ReLU6 calls
    return kind


def _slope(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the derivative of an elementwise function at its argument."""
    with torch.enable_grad():
        inputs = args[0].detach().requires_grad_()
        outputs = func(inputs.clone(), *args[1:], **kwargs)
        slope: Tensor = torch.autograd.grad(outputs.sum(), inputs)[0]
    return slope
