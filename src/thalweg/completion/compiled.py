"""Inner loops compiled on the user's machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled"]

_F = TypeVar("_F", bound=Callable[..., Any])

# Sums may be reordered, so that they run in vector registers; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function: _F) -> _F:
    """Compile ``function`` when it is first called; it then runs outside the interpreter's lock.

    The machine code is kept beside the source or in the user's cache. Where neither can be written to, it is
    compiled anew in every process.
    """
    for cache in (True, False):
        try:
            wrap: Any = numba.njit(nogil=True, fastmath=_FAST, error_model="numpy", cache=cache)
            made: _F = wrap(function)
        except RuntimeError:  # numba: no locator available
            if not cache:
                raise
        else:
            return made
    raise AssertionError("unreachable")
