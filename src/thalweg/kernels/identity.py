"""What a kernel matrix is computed from, written down so that stored parts of it can be told from others."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError

__all__ = ["code_digest", "data_digest", "describe_kernel", "short"]


def describe_kernel(kernel: Callable[..., Any]) -> str:
    """Return a text that is the same for the same kernel in every process: its name and its settings.

    A function of a module, a `functools.partial` of one, or an object whose ``repr`` says all it depends on
    (a dataclass, a kernel of scikit-learn).

    Raises:
        InputError: for a lambda or a nested function, which have no name that another process would find.
    """
    if isinstance(kernel, functools.partial):
        settings = [_value(entry) for entry in kernel.args]
        settings += [f"{name}={_value(entry)}" for name, entry in sorted(kernel.keywords.items())]
        return f"{describe_kernel(kernel.func)}({', '.join(settings)})"
    name = getattr(kernel, "__qualname__", None)
    if name is None:
        return f"{type(kernel).__module__}.{_value(kernel)}"
    if "<" in name:
        raise InputError(
            "this kernel has no name by which its tiles could be found again",
            expected="a function of a module, or functools.partial of one",
            got=name,
            hint="write it with def at the top of a module and fix its settings with functools.partial",
        )
    return f"{kernel.__module__}.{name}"


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array {data_digest(value)[:16]}"
    if callable(value) and hasattr(value, "__qualname__"):
        return describe_kernel(value)
    text = repr(value)
    if " at 0x" in text:
        raise InputError(
            "a setting of this kernel says only where it lies in memory, not what it is",
            expected="settings whose repr tells them apart: numbers, strings, tuples, arrays, dataclasses",
            got=text,
        )
    return text


def code_digest(kernel: Callable[..., Any]) -> str:
    """Return the SHA-256 of the source that computes ``kernel``: its module; of ours, what that imports."""
    while isinstance(kernel, functools.partial):
        kernel = kernel.func
    owner = kernel if hasattr(kernel, "__qualname__") else type(kernel)
    module = sys.modules.get(owner.__module__)
    try:
        source = Path(inspect.getfile(module)) if module is not None else None
    except TypeError:  # built in
        source = None
    digest = hashlib.sha256()
    for path in _sources(source) if source is not None and source.exists() else ():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _sources(source: Path) -> list[Path]:
    """Return a module and the modules of this folder that it needs, sorted."""
    found, waiting = set(), [source]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        names = re.findall(r"^\s*(?:from|import)\s+thalweg\.kernels\.(\w+)", path.read_text(), re.MULTILINE)
        needed = (Path(__file__).with_name(f"{name}.py") for name in names)
        waiting += [other for other in needed if other.exists()]
    return sorted(found)


def data_digest(x: NDArray[Any]) -> str:
    """Return the SHA-256 of an array: shape, dtype and every byte."""
    digest = hashlib.sha256(f"{x.shape} {x.dtype.str}".encode())
    digest.update(np.ascontiguousarray(x).view(np.uint8).data if x.size else b"")
    return digest.hexdigest()


def short(description: str) -> str:
    """Return the description of a kernel of ours without the module that it is in, for people."""
    return re.sub(r"\bthalweg\.kernels\.\w+\.", "", description)
