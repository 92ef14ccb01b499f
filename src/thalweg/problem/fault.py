"""Which module is at fault: where in a model a derivative goes wrong, or chance comes in."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_flatten, tree_unflatten

from thalweg.errors import FOREIGN_FAILURES, ThalwegError
from thalweg.problem.derivatives import Bench
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.intact import intact
from thalweg.problem.objective import Objective
from thalweg.rng import gaussian, generator

__all__ = ["unsteady_module", "wrong_module"]


@dataclass(frozen=True)
class _Call:
    """One call of a module during an evaluation, with what it was given, held and returned."""

    module: nn.Module
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    inputs: tuple[Any, Any]  # positional and by keyword
    output: Any


def wrong_module(bench: Bench, wrong: Callable[[Bench], bool]) -> str | None:
    """Return the innermost module whose derivative is wrong, else one that cannot be asked, else None.

    Each module is taken alone, as a function of its parameters and inputs to a random projection of its
    outputs, the innermost first. Cost: a few evaluations of the model for each level of nesting.

    Args:
        bench: whose evaluation calls the modules.
        wrong: whether something is wrong with the derivatives of a module alone.
    """
    calls = _calls(bench.objective, bench.theta)
    if not calls:
        return None
    names = _names(calls[-1].module)
    once = {id(call.module): call for call in reversed(calls) if call.module in names}
    fails: nn.Module | None = None
    with intact(calls[-1].module):
        for call in sorted(once.values(), key=lambda call: -names[call.module].count(".")):
            if not names[call.module]:
                continue  # the model together with the loss
            try:
                alone = _alone(call)
                if alone is not None and wrong(Bench(alone, alone.theta)):
                    return _described(names, call.module)
            except (ThalwegError, *FOREIGN_FAILURES):
                fails = fails or call.module
    return _described(names, fails) if fails is not None else None


def unsteady_module(
    objective: Objective, theta: Tensor, stir: Callable[[], None], repeats: int
) -> str | None:
    """Return the first module that gives two answers to one question, or None where no module does.

    Args:
        objective: whose evaluation calls the modules.
        theta: where (n,).
        stir: moves the random states on between two evaluations.
        repeats: how often to ask again.
    """
    first = _numbered(_calls(objective, theta))
    root = next(reversed(first.values()), None)
    for _ in range(repeats):
        stir()
        again = _numbered(_calls(objective, theta))
        for key, one in first.items():
            other = again.get(key)
            if other and _same(one.inputs, other.inputs) and not _same(one.output, other.output):
                return _described(_names(root.module if root else one.module), one.module)
    return None


def _numbered(calls: list[_Call]) -> dict[tuple[int, int], _Call]:
    """Return the calls by module and by how many calls of it came before."""
    counts: Counter[int] = Counter()
    found = {}
    for call in calls:
        found[id(call.module), counts[id(call.module)]] = call
        counts[id(call.module)] += 1
    return found


def _calls(objective: Objective, theta: Tensor) -> list[_Call]:
    """Evaluate ``objective`` and return the calls of modules in the order in which they end."""
    calls: list[_Call] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        calls.append(_Call(module, parameters, buffers, (args, kwargs), output))

    with ExitStack() as hooks:
        for module in _called(objective, theta):
            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        objective.value(theta)
    return calls


def _called(objective: Objective, theta: Tensor) -> list[nn.Module]:
    """Return the modules that an evaluation calls, each once."""
    found: dict[nn.Module, None] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found[module] = None

    handle = register_module_forward_hook(note)  # with keywords it would leave a trace
    try:
        with warnings.catch_warnings():  # torch.compile dislikes hooks on all modules
            warnings.simplefilter("ignore")
            objective.value(theta)
    finally:
        handle.remove()
    return list(found)


def _alone(call: _Call) -> FunctionObjective | None:
    """Return a call of a module as a function of all its real inputs and parameters at once."""
    leaves, form = tree_flatten((call.parameters, call.inputs))
    moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not moving or not any(True for _ in _real(call.output)):
        return None
    start = torch.cat([leaves[i].detach().reshape(-1) for i in moving])

    def projection(theta: Tensor) -> Tensor:
        filled = list(leaves)
        pieces = theta.split([leaves[i].numel() for i in moving])
        for i, piece in zip(moving, pieces, strict=True):
            filled[i] = piece.view(leaves[i].shape).to(leaves[i].dtype)
        parameters, (args, kwargs) = tree_unflatten(filled, form)
        held = {**parameters, **{name: b.clone() for name, b in call.buffers.items()}}
        output = functional_call(call.module, held, args, kwargs)
        total = theta.new_zeros(())
        for i, part in enumerate(_real(output)):
            weights = gaussian(part.numel(), generator(i, "projection"), like=part)
            total = total + (part.reshape(-1) @ weights) / max(part.numel(), 1) ** 0.5
        return total

    return FunctionObjective(projection, start)


def _real(output: Any) -> Iterator[Tensor]:
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            yield leaf


def _same(one: Any, other: Any) -> bool:
    ours, theirs = tree_flatten(one)[0], tree_flatten(other)[0]
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or bool(a == b)
        for a, b in zip(ours, theirs, strict=True)
    )


def _names(root: nn.Module) -> dict[nn.Module, str]:
    """Return the names of the modules inside ``root``, which itself has none."""
    return {module: name for name, module in root.named_modules()}


def _described(names: dict[nn.Module, str], module: nn.Module) -> str:
    """Say which module, by its name in the user's model (which the root holds as ``model``) and its kind."""
    kind, name = type(module).__name__, names.get(module, "").removeprefix("model").removeprefix(".")
    return f"{name!r} ({kind})" if name else f"the forward pass of {kind} itself"
