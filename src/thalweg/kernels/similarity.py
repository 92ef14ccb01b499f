"""How alike two kernels are, and how far a training net has left the kernel it began with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from thalweg.errors import InputError, NumericalError
from thalweg.kernels.empirical import empirical_ntk
from thalweg.records import Record
from thalweg.report.document import Block, Curves, Document, Facts, Headline, Note, significant

__all__ = [
    "Drift",
    "DriftWatch",
    "KernelState",
    "alignment",
    "distance",
    "effective_rank",
    "target_alignment",
]

Floats = NDArray[np.float64]


def alignment(a: Floats, b: Floats) -> float:
    """Return ⟨a, b⟩/(‖a‖‖b‖) of two kernel matrices (n, m): 1 where one is a multiple of the other.

    Source: [cristianini2001], definition 1.
    """
    if a.shape != b.shape:
        raise InputError("the kernels are of different examples", expected=str(a.shape), got=str(b.shape))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norms > 0 or not np.isfinite(norms):
        raise NumericalError("a kernel that is zero or not finite is aligned with nothing")
    return float(np.clip(np.sum(a * b) / norms, -1.0, 1.0))


def distance(a: Floats, b: Floats) -> float:
    """Return min over c of ‖a − c·b‖/‖a‖: what of ``a`` no multiple of ``b`` explains, between 0 and 1.

    It is √(1 − A²) with A the `alignment`, computed from the difference, which keeps small distances exact.
    """
    alignment(a, b)
    factor = np.sum(a * b) / np.sum(b * b)
    return float(np.linalg.norm(a - factor * b) / np.linalg.norm(a))


def target_alignment(kernel: Floats, targets: Floats) -> float:
    """Return how much of the centred kernel (n, n) points along the targets (n, c), between −1 and 1.

    ⟨HKH, YYᵀ⟩/(‖HKH‖‖YYᵀ‖) with Y the centred targets ([cortes2012], definition 4).
    """
    y = targets - targets.mean(axis=0)
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True) + kernel.mean()
    return alignment(centred, y @ y.T)


def effective_rank(kernel: Floats) -> float:
    """Return (tr K)²/‖K‖²: how many directions share the trace of a kernel matrix (n, n)."""
    norm = float(np.linalg.norm(kernel))
    if norm == 0:
        raise NumericalError("a kernel that is zero has no rank to speak of")
    return float(np.trace(kernel) ** 2 / norm**2)


@dataclass(frozen=True, kw_only=True)
class KernelState:
    """The kernel of a net at one moment of its training.

    Attributes:
        step: when.
        drift: 1 − alignment with the kernel at the first moment ([fort2020], section 3).
        velocity: 1 − alignment with the moment before, per step; NaN at the first.
        norm: relative to the first moment's.
        rank: `effective_rank`.
        targets: `target_alignment`; NaN without targets.
        infinite: `distance` from the infinite net's kernel; NaN without one.
    """

    step: int
    drift: float
    velocity: float
    norm: float
    rank: float
    targets: float
    infinite: float


@dataclass(frozen=True, kw_only=True)
class Drift(Record):
    """How the kernel of a net went along its training.

    Attributes:
        states: at the moments that were measured, in order.
        num_examples: on which it was measured.
    """

    schema: ClassVar[str] = "thalweg/kernel-drift@1"

    states: tuple[KernelState, ...]
    num_examples: int

    def document(self) -> Document:
        """Describe the drift for people."""
        first, last = self.states[0], self.states[-1]
        lazy = last.drift < 0.01  # below a tenth in distance, √(2·0.01) ≈ 0.14 of the norm
        said = (
            "the net still has the kernel it began with: it trains like kernel regression"
            if lazy
            else "the net has left the kernel it began with: no fixed kernel describes what it learns"
        )
        rows = [
            (
                "drift",
                f"{significant(last.drift)} after {last.step:,} steps (0: the same kernel, 1: unrelated)",
            ),
            ("norm", f"× {significant(last.norm, 3)}"),
            ("effective rank", f"{significant(first.rank, 3)} → {significant(last.rank, 3)}"),
        ]
        if np.isfinite(last.targets):
            rows.append(
                ("along targets", f"{significant(first.targets, 3)} → {significant(last.targets, 3)}")
            )
        if np.isfinite(last.infinite):
            far = f"{significant(first.infinite, 3)} → {significant(last.infinite, 3)}"
            rows.append(("from infinite", far + " (0: its kernel, 1: unrelated)"))
        blocks: list[Block] = [Headline("lazy" if lazy else "rich", said), Facts(tuple(rows))]
        if len(self.states) > 1:
            curve = ("drift", tuple(state.drift for state in self.states))
            blocks.insert(1, Curves("Drift", f"{last.step - first.step:,} steps", (curve,)))
        note = (
            "Weight decay and large learning rates break the correspondence with a kernel also in wide nets."
        )
        return Document(f"kernel of the net on {self.num_examples:,} examples", (*blocks, Note(note)))


class DriftWatch:
    """Watches the empirical kernel of a net along a training of the user's own.

    Args:
        model: the net in training; each call of `measure` looks at it as it is and changes nothing.
        x: (n, …) probe inputs; 100 to 1,000 are enough.
        targets: (n, c) of them, to see the kernel turn towards what is learned.
        infinite: (n, n) the infinite net's kernel on ``x``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        x: torch.Tensor,
        *,
        targets: NDArray[Any] | None = None,
        infinite: NDArray[Any] | None = None,
    ) -> None:
        self._model, self._x = model, x
        self._targets, self._infinite = targets, infinite
        self._first: Floats | None = None
        self._last: tuple[int, Floats] | None = None
        self._states: list[KernelState] = []

    def measure(self, step: int) -> KernelState:
        """Measure the kernel now, after ``step`` steps; steps must grow from call to call.

        Cost: as `empirical_ntk`.
        """
        if self._last is not None and step <= self._last[0]:
            raise InputError("steps go forward", expected=f"above {self._last[0]}", got=str(step))
        now: Floats = empirical_ntk(self._model, self._x).numpy()
        first = now if self._first is None else self._first
        state = KernelState(
            step=step,
            drift=_departure(now, first),
            velocity=np.nan,
            norm=float(np.linalg.norm(now) / np.linalg.norm(first)),
            rank=effective_rank(now),
            targets=np.nan if self._targets is None else target_alignment(now, self._targets),
            infinite=np.nan if self._infinite is None else distance(now, self._infinite),
        )
        if self._last is not None:
            state = replace(state, velocity=_departure(now, self._last[1]) / (step - self._last[0]))
        self._first, self._last = first, (step, now)
        self._states.append(state)
        return state

    def drift(self) -> Drift:
        """Return what has been seen so far.

        Raises:
            InputError: before the first measurement.
        """
        if not self._states:
            raise InputError("nothing has been measured", hint="call measure(0) before the first step")
        return Drift(states=tuple(self._states), num_examples=len(self._x))


def _departure(a: Floats, b: Floats) -> float:
    """Return 1 − alignment without cancellation: ‖a/‖a‖ − b/‖b‖‖²/2."""
    alignment(a, b)
    return float(np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2 / 2)
