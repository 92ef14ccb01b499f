"""Sharpness-aware minimisation: any optimiser, stepping with the gradient where the loss is worst nearby."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from thalweg.errors import InputError
from thalweg.optim.closures import Closure, loss_and_gradient, loss_only
from thalweg.optim.whole import Step, WholeVector

__all__ = ["SharpnessAware"]

_SETTINGS = "sharpness_aware"  # the key under which a state_dict holds rho, adaptive and eta


@final
class SharpnessAware(torch.optim.Optimizer):
    """SAM, and ASAM with ``adaptive``, around a first-order optimiser of the user's.

    Each step climbs from the weights w to the worst point nearby, to first order, takes the gradient there,
    goes back to w bit for bit, and lets the base optimiser step with that gradient:

        SAM    e = ρ g / (‖g‖ + 1e-12)               [foret2021] eq. 2 with p = 2, ρ 0.05
        ASAM   e = ρ T²g / (‖T g‖ + 1e-12),          [kwon2021] Algorithm 1 with p = 2, ρ 0.5 … 2
               T = diag(|w| + η)
        both   base step with ∇L(w + e)              [foret2021] eq. 3, without the second-order term

    Norms are over all parameters of all groups. ASAM scales every parameter here, the biases too. Weight
    decay of the base acts on w and has no part in e. With ``maximize`` in the base's groups e goes downhill,
    which is the worst way then. With ρ = 0 there is no second pass, and every step is the base's bit for bit.

    ``param_groups``, ``state`` and ``defaults`` are the base's own, also after loading, so that learning-rate
    schedulers work on either. ``state_dict`` is the base's, with ρ, ``adaptive`` and η beside it: one saved
    by the plain base loads here, and the other way round. A gradient clipped inside the closure changes
    nothing of SAM's e, which takes only its direction.

    Closure: standard; evaluated twice, and it has to compute the same batch. A loss or gradient that is not
    finite, in either pass, leaves weights and base as they were, and ``last.reason`` says so.

    Batch normalisation in training mode updates its running statistics in both passes, the second time for
    weights that the net never has. Hand in ``buffers=model.buffers()``, and the second pass leaves no trace
    in them.

    Cost: 2 gradient-equivalents a step (1 where ρ = 0), and memory for a copy of weights and gradient.

    Args:
        base: any optimiser that steps with ``step()`` from ``.grad``.
        rho: ρ, how far to climb.
        adaptive: measure the distance relative to each weight (ASAM).
        eta: η of ASAM, keeps zero weights movable.
        buffers: tensors to put back, bit for bit, after the second pass.

    Raises:
        InputError: for settings out of range, or a base that needs a closure of its own (L-BFGS).
    """

    base: torch.optim.Optimizer
    rho: float
    adaptive: bool
    eta: float
    buffers: list[Tensor]
    last: Step | None

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        buffers: Iterable[Tensor] = (),
    ) -> None:
        _require_usable(base)
        for name, value in (("rho", rho), ("eta", eta)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is out of range", expected="a number from 0 on", got=str(value))
        # __init__ of the parent would make parameter groups of its own; this makes the rest: hooks, profiling
        super().__setstate__(
            {
                "base": base,
                "rho": rho,
                "adaptive": adaptive,
                "eta": eta,
                "buffers": list(buffers),
                "last": None,
            }
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's parameter groups themselves."""
        groups: list[dict[str, Any]] = self.base.param_groups
        return groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state itself."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's defaults themselves."""
        defaults: dict[str, Any] = self.base.defaults
        return defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Hand a further group to the base."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state_dict with the settings of this class beside it."""
        settings = {"rho": self.rho, "adaptive": self.adaptive, "eta": self.eta}
        return {**self.base.state_dict(), _SETTINGS: settings}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state_dict of this class, or one of the plain base: then the settings stay."""
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != _SETTINGS})
        settings = state_dict.get(_SETTINGS, {})
        self.__dict__.update(
            {name: settings[name] for name in ("rho", "adaptive", "eta") if name in settings}
        )

    def __getstate__(self) -> dict[str, Any]:
        names = ("base", "rho", "adaptive", "eta", "buffers", "last")
        return {name: self.__dict__[name] for name in names}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step; return the loss where it began.

        Args:
            closure: standard: zero_grad(), loss.backward(), return loss.

        Raises:
            InputError: for a closure that is missing or of another kind, a sparse gradient, or a complex
                parameter.
        """
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if any(p.is_complex() for p in parameters):
            raise InputError("a parameter is complex", hint="torch.view_as_real of it as the parameter")
        loss, gradient = loss_and_gradient(closure, parameters)
        norm = float(get_total_norm(gradient))
        start = list(torch._foreach_clone(parameters))
        finite = math.isfinite(loss) and math.isfinite(norm)
        reason = "accepted" if finite else "loss or gradient not finite"
        worst, second = loss, finite and self.rho > 0
        if second:
            worst = self._climb(closure, parameters, start, gradient)
            finite = math.isfinite(worst) and math.isfinite(float(get_total_norm(_gradients(parameters))))
            reason = "accepted" if finite else "perturbed loss or gradient not finite"
        if finite:
            self.base.step()
        self.last = Step(
            loss=loss,
            new_loss=math.nan if finite else loss,
            gradient_norm=norm,
            step_norm=float(get_total_norm(torch._foreach_sub(parameters, start))),
            accepted=finite,
            reason=reason,
            num_gradients=2 if second else 1,
            details={"perturbed_loss": worst},
        )
        return torch.tensor(loss, dtype=torch.float64)

    def _climb(
        self, closure: Closure | None, parameters: list[Tensor], start: list[Tensor], gradient: list[Tensor]
    ) -> float:
        """Leave in ``.grad`` the gradient at w + e, and w as it was; return the loss there."""
        kept = [buffer.clone() for buffer in self.buffers]
        try:
            torch._foreach_add_(parameters, self._perturbation(parameters, gradient))
            return loss_only(closure)
        finally:
            torch._foreach_copy_(parameters, start)
            for buffer, value in zip(self.buffers, kept, strict=True):
                buffer.copy_(value)

    def _perturbation(self, parameters: list[Tensor], gradient: list[Tensor]) -> list[Tensor]:
        """Return e, shaped like the parameters."""
        groups = [group for group in self.param_groups for p in group["params"] if p.requires_grad]
        signs = [-1.0 if group.get("maximize") else 1.0 for group in groups]
        scale = torch._foreach_add(torch._foreach_abs(parameters), self.eta) if self.adaptive else None
        direction = gradient if scale is None else torch._foreach_mul(gradient, scale)  # T g
        length = self.rho / (float(get_total_norm(direction)) + 1e-12)
        if scale is not None:
            direction = list(torch._foreach_mul(direction, scale))  # T² g
        return list(torch._foreach_mul(direction, [length * sign for sign in signs]))


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _require_usable(base: object) -> None:
    if not isinstance(base, torch.optim.Optimizer):
        raise InputError(
            "there is no optimiser to wrap",
            expected="an optimiser with its parameters, as in torch.optim.SGD(model.parameters(), lr=0.1)",
            got=base.__name__ if isinstance(base, type) else type(base).__name__,
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if isinstance(base, WholeVector) or (closure is not None and closure.default is inspect.Parameter.empty):
        raise InputError(
            f"{type(base).__name__} cannot be wrapped: it evaluates a closure in its own step",
            expected="an optimiser that steps from .grad, such as SGD or Adam",
        )
