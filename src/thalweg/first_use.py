"""Names of a package that are loaded when they are first used, so that importing it stays quick."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["on_first_use"]


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of ``package``.

    Python's random numbers stay as they were: packages that are loaded with a name draw from them, rich for
    one. No module of the package may be called like a name from elsewhere: importing it would hide the name.

    Args:
        package: its full name.
        homes: name -> the module below ``package`` that holds it; a name that is its own home is that module.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        state = random.getstate()
        try:
            module = importlib.import_module(f"{package}.{homes[name]}")
        finally:
            random.setstate(state)
        value = module if homes[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return load
