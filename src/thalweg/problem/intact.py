"""Leave no trace: run a model for measuring and put everything back, also on Ctrl-C."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.problem.interrupt import at_safe_points
from thalweg.rng import generator

__all__ = ["intact", "random_state_kept"]


@contextmanager
def random_state_kept(seed: int | None = None) -> Iterator[None]:
    """Put the global random states of python, numpy and torch back as they were.

    Args:
        seed: what the states are inside, for code of the user's that draws from them; None leaves them.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        if seed is not None:
            number = generator(seed, "global").initial_seed() % 2**32
            random.setstate(random.Random(number).getstate())
            np.random.set_state(np.random.RandomState(number).get_state())  # noqa: NPY002
            torch.set_rng_state(generator(seed, "global").get_state())
            if gpu:
                seeded = [torch.Generator(f"cuda:{i}").manual_seed(number) for i in range(len(gpu))]
                torch.cuda.set_rng_state_all([g.get_state() for g in seeded])
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if gpu:
            torch.cuda.set_rng_state_all(gpu)


@contextmanager
def intact(model: nn.Module | None) -> Iterator[None]:
    """Run ``model`` in evaluation mode, with kernels that can be differentiated twice; then restore.

    Inside, gradients are enabled, autocast is off, attention takes the maths kernel and recurrent nets
    leave cuDNN (their fast kernels have no second derivative), compiled parts run as they are written (nor
    have they), matrix products keep float32, and Ctrl-C waits for the next safe point. Afterwards the mode
    of every submodule, the random states and the kernel settings are what they were. Parameters, buffers
    and ``.grad`` are never written to in the first place:
    the objectives run on substitutes (`torch.func.functional_call`) and differentiate with
    `torch.autograd.grad`.
    """
    if model is not None and id(model) in _INSIDE:
        with random_state_kept():
            yield
        return
    with at_safe_points():
        found = [(module, _contents(module)) for module in model.modules()] if model is not None else []
        fastpath = torch.backends.mha.get_fastpath_enabled()
        precision = torch.get_float32_matmul_precision()
        try:
            with ExitStack() as stack:
                stack.enter_context(random_state_kept())
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
                stack.enter_context(torch.autocast("cpu", enabled=False))
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                if "torch._dynamo" in sys.modules:  # compiled parts have no second derivative
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                if torch.cuda.is_available():
                    stack.enter_context(torch.autocast("cuda", enabled=False))
                    stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                torch.backends.mha.set_fastpath_enabled(False)
                if precision != "highest":
                    torch.set_float32_matmul_precision("highest")
                for module, _ in found:
                    module.training = False
                _INSIDE.add(id(model))
                yield
        finally:
            _INSIDE.discard(id(model))
            for module, contents in found:
                _put_back(module, contents)
            torch.backends.mha.set_fastpath_enabled(fastpath)
            if precision != "highest":
                torch.set_float32_matmul_precision(precision)


# Models that are being measured: a nested use has only the random states to keep.
_INSIDE: set[int] = set()

Contents = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _contents(module: nn.Module) -> Contents:
    return dict(vars(module)), dict(module._parameters), dict(module._buffers)


def _put_back(module: nn.Module, contents: Contents) -> None:
    """Put back what a module holds: its mode, and what its forward pass may have set on it."""
    held: Contents = (vars(module), module._parameters, module._buffers)
    for now, before in zip(held, contents, strict=True):
        for name in now.keys() - before.keys():
            del now[name]
        now.update(before)
