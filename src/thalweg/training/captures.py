"""Watching layers during a training step: what each example contributes to the gradient."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import ModelError
from thalweg.training.example_norms import Rule, rule_for
from thalweg.training.unkept import Unkept

__all__ = ["Captures", "Contributions"]

_COUPLING = (nn.modules.batchnorm._BatchNorm,)


@dataclass
class Contributions:
    """What the examples of one forward and backward pass contributed to the gradient.

    Attributes:
        squares: squared norm of each example's contribution over the layers that were watched (B,), float64.
        totals: the sum of the contributions, by parameter.
        layers: those whose backward pass has been seen.
    """

    squares: Tensor
    totals: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)


class Captures:
    """Hooks that tell what each example contributes to the gradient, put on for a step and taken off again.

    The hooks only look: on the outputs of layers, in a training step's own forward and backward pass. Layers
    that are applied twice in a pass, share their weights with others or are not known (batch normalisation,
    attention projections, layers of one's own) are not covered.

    Args:
        model: whose layers are watched.
        clock: by which the time spent looking is taken.

    Attributes:
        layers: names of the layers that are watched.
        coverage: the share of the trainable parameters that they hold.
        coupled: whether batch normalisation makes the examples of a batch depend on each other.
        seconds: spent looking since the hooks were put on.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        owners: dict[nn.Parameter, int] = {}
        modules = dict(model.named_modules())
        for module in modules.values():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners[parameter] = owners.get(parameter, 0) + 1
        self._rules: dict[str, tuple[nn.Module, Rule]] = {}
        covered = 0
        for name, module in modules.items():
            rule = rule_for(module)
            own = [p for p in module._parameters.values() if p is not None]
            if rule is not None and all(owners[p] == 1 for p in own):
                self._rules[name] = (module, rule)
                covered += sum(p.numel() for p in own if p.requires_grad)
        self.layers = tuple(self._rules)
        self.coverage = covered / max(sum(p.numel() for p in owners if p.requires_grad), 1)
        self.coupled = any(isinstance(m, _COUPLING) for m in modules.values())
        self.seconds = 0.0
        self._passes: dict[int, Contributions] = {}
        self._failure: Exception | None = None
        self._handles: list[Any] = []

    def put_on(self, current: Callable[[], int]) -> None:
        """Watch until `take_off`; ``current`` numbers the forward passes of a step."""
        self._passes, self._failure, self.seconds = {}, None, 0.0
        for name, (module, rule) in self._rules.items():
            look = partial(self._forward, name, rule, current)
            self._handles.append(module.register_forward_hook(Unkept(look)))

    def take_off(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def num_passes(self) -> int:
        """How many backward passes have been seen."""
        return len(self._passes)

    def contributions(self, *, first_only: bool) -> list[Contributions]:
        """Return what was seen, pass by pass.

        Args:
            first_only: leave out all but the first pass, for a step that evaluates the loss several times.

        Raises:
            ModelError: where nothing was seen, or layers disagree about how many examples there are.
        """
        if self._failure is not None:
            raise self._failure
        seen = [self._passes[number] for number in sorted(self._passes)]
        if not seen:
            raise ModelError(
                "no layer's gradient was seen",
                cause="the model is compiled, or its layers are not those whose formulas are known",
            )
        if any(one.layers != seen[0].layers for one in seen):
            raise ModelError(
                "not every forward pass of the step went through the same layers",
                cause="gradient checkpointing, or layers that are left out at random",
            )
        return seen[:1] if first_only else seen

    def _forward(
        self, name: str, rule: Rule, current: Callable[[], int], module: nn.Module, inputs: Any, output: Any
    ) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad or not inputs:
            return
        # What is written in place over a view leaves the view's own history, but not that of its base.
        base = output._base if output._is_view() and output.is_contiguous() else None
        whole = output
        if (
            base is not None
            and base.requires_grad
            and base.is_contiguous()
            and base.numel() == output.numel()
        ):
            whole = base
        look = partial(self._backward, name, rule, current(), module, inputs[0].detach(), output.shape)
        whole.register_hook(look)

    def _backward(
        self,
        name: str,
        rule: Rule,
        number: int,
        module: nn.Module,
        a: Tensor,
        shape: torch.Size,
        delta: Tensor,
    ) -> None:
        if self._failure is not None or not self._handles:
            return
        begun = self._clock()
        try:
            self._enter(name, rule, number, module, a, delta.reshape(shape))
        except Exception as error:  # a measurement never stops the backward pass
            self._failure, self._passes = error, {}
        self.seconds += self._clock() - begun

    @torch.no_grad()
    def _enter(self, name: str, rule: Rule, number: int, module: nn.Module, a: Tensor, delta: Tensor) -> None:
        with torch.autocast(delta.device.type, enabled=False):
            wide = torch.float64 if delta.dtype == torch.float64 else torch.float32
            norms = rule(module, a.to(wide) if a.is_floating_point() else a, delta.detach().to(wide))
        squares = norms.squares.double()
        seen = self._passes.setdefault(number, Contributions(torch.zeros_like(squares)))
        if name in seen.layers:
            raise ModelError(
                f"layer {name!r} is applied twice in a pass", cause="weights used in several places"
            )
        if len(squares) != len(seen.squares):
            raise ModelError(
                f"layer {name!r} sees {len(squares)} examples, others {len(seen.squares)}",
                cause="a model that moves the examples away from the first dimension",
            )
        seen.layers.add(name)
        seen.squares += squares
        for part, total in norms.totals.items():
            parameter = module._parameters[part]
            assert parameter is not None
            seen.totals[parameter] = total
