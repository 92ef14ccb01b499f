"""One step down: where it begins, when none is taken, and a step by line search along a direction.

What the conjugate and secant methods share. Each writes its direction and what it learns from a step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.closures import Closure
from thalweg.optim.line_search import Found, backtracking, strong_wolfe
from thalweg.optim.whole import Parameters, Step, WholeVector

__all__ = ["Descent", "LineSearch", "LineSearchDescent", "Start"]

LineSearch = Literal["strong_wolfe", "backtracking"]
_SEARCHES: dict[str, Callable[..., Found]] = {"strong_wolfe": strong_wolfe, "backtracking": backtracking}
_HUGE = 1e75  # the fourth power of a gradient's norm and of its inverse stay finite


@dataclass(frozen=True)
class Start:
    """Where a step begins.

    Attributes:
        position: the parameters (n,).
        loss: there.
        gradient: there (n,).
        norm: of the gradient.
        num_gradients: what it cost, 1, or 0 where the end of the last step told.
    """

    position: Tensor
    loss: float
    gradient: Tensor
    norm: float
    num_gradients: int

    @property
    def noise(self) -> float:
        """What rounding may do to the loss."""
        return 10 * torch.finfo(self.gradient.dtype).eps * abs(self.loss)


class Descent(WholeVector):
    """Base class of methods that go down by a standard closure, one outer iteration a step.

    Within a step the closure must compute the same function each time: the same batch, the same dropout
    masks. From one step to the next it may be another batch, unless ``full_batch`` promises that it is not:
    what is learnt of the curvature is the difference of two gradients of one step, thus of one batch.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        tolerance_grad: float,
        full_batch: bool,
        settings: dict[str, Any],
        **counters: float,
    ) -> None:
        if not tolerance_grad >= 0:
            raise InputError("tolerance_grad is negative or NaN", got=f"{tolerance_grad}")
        defaults = {"tolerance_grad": tolerance_grad, "full_batch": full_batch, **settings}
        super().__init__(params, defaults, end_loss=0.0, **counters)

    def begin(self, closure: Closure | None) -> Start:
        """Evaluate where the step begins, or recall it where the last step ended there with the same loss."""
        position = self.position()
        gradient, end = self.kept("end_gradient"), self.kept("end_position")
        known = self.numbers["full_batch"] and end is not None and torch.equal(end, position)
        if known and gradient is not None:
            return Start(position, self.numbers["end_loss"], gradient, float(gradient.norm()), 0)
        loss, gradient = self.evaluate(closure)
        return Start(position, loss, gradient, float(gradient.norm()), 1)

    def objection(self, start: Start) -> str | None:
        """Say why no step is to be taken from here, None where one is."""
        if not (math.isfinite(start.loss) and start.norm < _HUGE):
            return "loss or gradient is not finite"
        if start.norm <= max(self.numbers["tolerance_grad"], 1 / _HUGE):
            return "gradient below tolerance"
        return None

    def go(
        self,
        start: Start,
        position: Tensor,
        loss: float,
        gradient: Tensor,
        reason: str,
        num_gradients: int,
        num_products: int = 0,
        details: Mapping[str, float] = MappingProxyType({}),
    ) -> Step:
        """Say that the step ended at ``position``, where the parameters are, with this loss and gradient."""
        self._end(position, loss, gradient)
        moved = float((position - start.position).norm())
        return Step(
            start.loss,
            loss,
            start.norm,
            moved,
            moved > 0,
            reason if moved > 0 else "step below rounding",
            num_gradients=start.num_gradients + num_gradients,
            num_products=num_products,
            details=details,
        )

    def stay(
        self,
        start: Start,
        reason: str,
        num_gradients: int = 0,
        num_products: int = 0,
        details: Mapping[str, float] = MappingProxyType({}),
    ) -> Step:
        """Go back to where the step began, and say why."""
        self.move_to(start.position)
        if math.isfinite(start.loss) and start.norm < _HUGE:
            self._end(start.position, start.loss, start.gradient)
        return Step(
            start.loss,
            start.loss,
            start.norm,
            0.0,
            False,
            reason,
            num_gradients=start.num_gradients + num_gradients,
            num_products=num_products,
            details=details,
        )

    def _end(self, position: Tensor, loss: float, gradient: Tensor) -> None:
        """Keep what the next step needs to begin without an evaluation, where that is allowed."""
        if self.numbers["full_batch"]:
            self.numbers["end_loss"] = loss
            self.keep(end_position=position, end_gradient=gradient)


class LineSearchDescent(Descent):
    """Base class of methods that search along a direction which they build from what past steps taught.

    Subclasses write ``direction``, ``learn`` and ``forget``.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        line_search: LineSearch,
        c1: float,
        c2: float,
        tolerance_grad: float,
        full_batch: bool,
        settings: dict[str, Any] | None = None,
        **counters: float,
    ) -> None:
        if line_search not in _SEARCHES:
            raise InputError(
                f"there is no line search {line_search!r}", expected=" or ".join(map(repr, _SEARCHES))
            )
        if not 0 < c1 < c2 < 1:
            raise InputError(
                "c1 or c2 is out of its range", expected="0 < c1 < c2 < 1", got=f"c1 {c1}, c2 {c2}"
            )
        super().__init__(
            params,
            tolerance_grad=tolerance_grad,
            full_batch=full_batch,
            settings={"line_search": line_search, "c1": c1, "c2": c2, **(settings or {})},
            decrease=0.0,
            **counters,
        )

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """Return the direction (n,) to search along; −gradient where nothing is known."""

    @abstractmethod
    def learn(self, moved: Tensor, direction: Tensor, before: Tensor, after: Tensor) -> None:
        """Take in a step: s = ``moved`` along ``direction``, with the gradients before and after it."""

    @abstractmethod
    def forget(self) -> None:
        """Forget past steps: the next direction is −gradient."""

    def first_trial(self, slope: float, norm: float) -> float:
        """Return the first step length to try: that which repeats the last decrease ([nocedal2006] 3.60)."""
        repeated = 2.02 * self.numbers["decrease"] / -slope
        return repeated if 0 < repeated < _HUGE else 1 / norm

    def take(self, closure: Closure | None) -> Step:
        """Search along the direction; where it leads nowhere, stay, and begin anew from the gradient."""
        start = self.begin(closure)
        if objection := self.objection(start):
            return self.stay(start, objection)
        direction, slope, steepest = self._downward(start)
        ray = _Ray(self, closure, start.position, direction)
        found = _SEARCHES[self.numbers["line_search"]](
            ray,
            start.loss,
            slope,
            first=self.first_trial(slope, start.norm),
            c1=self.numbers["c1"],
            c2=self.numbers["c2"],
            noise=start.noise,
        )
        details = {"step_length": found.step, "steepest": float(steepest)}
        if found.step == 0:
            self.forget()
            self.numbers["decrease"] = 0.0
            return self.stay(start, "no lower loss along the direction", found.num_evaluations, 0, details)
        if ray.step != found.step:
            ray(found.step)
        moved = ray.position - start.position
        self.learn(moved, direction, start.gradient, ray.gradient)
        self.numbers["decrease"] = max(0.0, start.loss - ray.loss)
        reason = "accepted" if found.satisfied else "accepted, short of the curvature condition"
        return self.go(start, ray.position, ray.loss, ray.gradient, reason, ray.num_evaluations, 0, details)

    def _downward(self, start: Start) -> tuple[Tensor, float, bool]:
        """Return a direction of descent, its slope, and whether it had to be the steepest."""
        direction = self.direction(start.gradient)
        slope = float(direction @ start.gradient)
        rounding = torch.finfo(direction.dtype).eps * float(direction.norm()) * start.norm
        if slope < -rounding:
            return direction, slope, torch.equal(direction, -start.gradient)
        self.forget()
        return -start.gradient, -(start.norm**2), True


class _Ray:
    """The loss along a direction as a function of one number; remembers where it was evaluated last."""

    def __init__(
        self, method: WholeVector, closure: Closure | None, origin: Tensor, direction: Tensor
    ) -> None:
        self._method, self._closure, self._origin, self._direction = method, closure, origin, direction
        self.step, self.loss, self.num_evaluations = 0.0, math.nan, 0
        self.position = self.gradient = origin

    def __call__(self, step: float) -> tuple[float, float]:
        self.step, self.num_evaluations = step, self.num_evaluations + 1
        self.position = self._origin + step * self._direction
        self.loss, self.gradient = self._method.at(self.position, self._closure)
        return self.loss, float(self.gradient @ self._direction)
