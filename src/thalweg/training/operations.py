"""What a function does to its tensors, written down once as plain operations and run again without it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["written_down"]

_VIEWS = {torch.ops.aten.view, torch.ops.aten._unsafe_view, torch.ops.aten.expand}


def written_down(
    function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the operations that ``function`` runs on ``inputs``, as a function of tensors shaped like them.

    What lies above the operations (modules, `torch.func` transformations, decompositions) runs here for the
    last time, and so do its decisions: the caller has to compare the two elsewhere. Tensors that are not
    inputs are held by reference, as the function holds them.

    Args:
        function: without arguments; it does to the inputs what is to be written down.
        inputs: the tensors that will differ.

    Raises:
        TypeError: where python is given the numbers in a tensor, on which what it does may depend, or a shape
            is changed in place.

    Cost: one call, about 0.3 ms an operation, and the memory of all that it computes.
    """
    with _Writer(inputs) as writer:
        results = function()
    run: Callable[..., tuple[Tensor, ...]] = writer.graph_module(results)
    return run


class _Writer(TorchDispatchMode):
    """Writes down each operation that runs within it."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._held: dict[str, Tensor] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # an id is a tensor's own only as long as the tensor lives
        for i, tensor in enumerate(inputs):
            self._name(tensor, self._graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.inplace_view in func.tags:  # in a graph the input itself would get the new shape
            raise TypeError(f"{func} changes the shape of a tensor in place")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor | tuple | list):
            raise TypeError(f"{func} returns no tensor, and what python does with it stays unseen")
        if isinstance(out, Tensor) and _is_its_input(func, out, args):
            self._name(out, self._node(args[0]))
            return out
        node = self._graph.call_function(func, *fx.node.map_aggregate((args, kwargs), self._node))
        if isinstance(out, Tensor):
            self._name(out, node)
            return out
        for i, part in enumerate(out):
            if isinstance(part, Tensor):
                self._name(part, self._graph.call_function(operator.getitem, (node, i)))
        return out

    def graph_module(self, results: Sequence[Tensor]) -> fx.GraphModule:
        self._graph.output(tuple(self._node(result) for result in results))
        return fx.GraphModule(self._held, self._graph)

    def _name(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:
            held = f"held_{len(self._held)}"
            self._held[held] = value
            self._name(value, self._graph.get_attr(held))
        return self._nodes[id(value)]


def _is_its_input(func: Any, out: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether an operation returns its first argument's memory as it lies, as most of `vmap`'s views do."""
    if func.overloadpacket not in _VIEWS:
        return False
    first: Tensor = args[0]
    return out.dtype == first.dtype and out.shape == first.shape and out.stride() == first.stride()
