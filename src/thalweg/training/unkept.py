"""Hooks that belong to one model: its copies, and files that it is saved in whole, get none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Unkept"]


class Unkept:
    """A function that does nothing any more once it has been copied or pickled.

    A model may be copied or saved while it is watched (moving averages, ``torch.save(model)``); its
    hooks hold the recorder, with its open files, which must go neither way.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Call the function."""
        return self._function(*inputs, **keywords)

    def __deepcopy__(self, memo: Any) -> Callable[..., Any]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _no_hook, ()


def _nothing(*inputs: Any, **keywords: Any) -> None:
    """Do nothing."""


def _no_hook() -> Callable[..., Any]:
    return _nothing
