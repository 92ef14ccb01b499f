"""The built-in problems by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.problem.builtin import classics, classifiers, functions, saddle, sparse
from thalweg.problem.builtin.recipe import FunctionRecipe, ModelRecipe
from thalweg.problem.intact import random_state_kept

__all__ = ["ProblemInfo", "build", "problems"]


@dataclass(frozen=True)
class ProblemInfo:
    """A built-in problem.

    Attributes:
        name: what to ask for.
        summary: what is to be seen there, in a line.
    """

    name: str
    summary: str


class _Makeable(Protocol):
    """What `build` needs of a problem class."""

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        train: Any,
        heldout: Any = None,
        *,
        name: str | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None: ...

    @classmethod
    def from_function(
        cls,
        function: Callable[[Tensor], Tensor],
        start: Tensor,
        *,
        name: str | None = None,
        lr: float | None = None,
        domain: Sequence[tuple[float, float]] | None = None,
        risk: Callable[[Tensor], Tensor] | None = None,
    ) -> Self: ...


P = TypeVar("P", bound=_Makeable)
Recipe = ModelRecipe | FunctionRecipe


def _fixed(make: Callable[[], FunctionRecipe]) -> Callable[[int], Recipe]:
    """Let a function that has no randomness take a seed."""
    return lambda seed: make()


_PROBLEMS: dict[str, tuple[str, Callable[[int], Recipe]]] = {
    "digits-mlp": ("a tanh net on digits in a true minimum of its penalised loss", classifiers.minimum),
    "digits-cnn": ("a convolutional net on digits after 300 steps of Adam", classifiers.cnn),
    "digits-started": ("a tanh net on digits after 50 steps: well under way downhill", classifiers.started),
    "digits-deep-sigmoid": (
        "six sigmoid layers on digits: a plateau at ln 10, for lack of gradient",
        classifiers.deep_sigmoid,
    ),
    "digits-hot": ("a tanh net on digits, bouncing at a learning rate far too high", classifiers.hot),
    "digits-saddle": ("half-digits from half-digits: a saddle, proved by a split hidden unit", saddle.saddle),
    "digits-transformer": ("a one-layer transformer that reads digits row by row", classifiers.transformer),
    "sparse-clicks": ("logistic regression on 300 features, most of them rare", sparse.clicks),
    "xor": ("a 2-2-1 net on exclusive or: nine parameters", classics.xor),
    "elman": ("a recurrent net that tells the amplitude of a wave", classics.elman),
    "rbf": ("Gaussian bumps with learnt centres and widths on a noisy curve", classics.rbf),
    "x-cos-pi-x": (
        "x·cos(πx) at a local maximum: the risk in Dive into Deep Learning, 12.1",
        _fixed(functions.risk),
    ),
    "empirical-risk": (
        "x·cos(πx) + 0.2·cos(5πx) at a minimum: the empirical risk in Dive into Deep Learning, 12.1",
        _fixed(functions.empirical_risk),
    ),
    "cube": (
        "x³ at 0: no gradient, no curvature, no minimum (Dive into Deep Learning, 12.1)",
        _fixed(functions.cube),
    ),
    "saddle": ("x² − y² at 0: the saddle of Dive into Deep Learning, 12.1", _fixed(functions.plain_saddle)),
    "tanh": (
        "tanh at 4: the vanishing gradient of Dive into Deep Learning, 12.1",
        _fixed(functions.tanh),
    ),
    "rosenbrock": ("Rosenbrock's curved valley, from (−1.2, 1)", _fixed(functions.rosenbrock)),
}


def problems() -> tuple[ProblemInfo, ...]:
    """Return the built-in problems in the order in which to show them."""
    return tuple(ProblemInfo(name, summary) for name, (summary, _) in _PROBLEMS.items())


def build(make: type[P], name: str, seed: int) -> P:
    """Make the built-in problem ``name``; the same bits for the same seed.

    Raises:
        InputError: for an unknown name.
    """
    if name not in _PROBLEMS:
        close = difflib.get_close_matches(name, _PROBLEMS, n=1, cutoff=0.4)
        raise InputError(
            f"there is no built-in problem {name!r}",
            expected="one of " + ", ".join(_PROBLEMS),
            hint=f"{close[0]!r}" if close else None,
        )
    with _plain_conditions():
        recipe = _PROBLEMS[name][1](seed)
    if isinstance(recipe, FunctionRecipe):
        return make.from_function(
            recipe.function, recipe.start, name=name, lr=recipe.lr, domain=recipe.domain, risk=recipe.risk
        )
    return make(
        recipe.model, recipe.loss, recipe.train, recipe.heldout, name=name, optimizer=recipe.optimizer
    )


@contextmanager
def _plain_conditions() -> Iterator[None]:
    """Train on the CPU with gradients, whatever the caller's settings, and leave no trace.

    One thread: the nets are too small to share, and the sums come out the same however many there are.
    The random states are kept because imports on first use (torch._dynamo) draw from python's.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with random_state_kept(), torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
