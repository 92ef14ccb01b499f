"""Ctrl-C between two steps of the work, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["at_safe_points", "safe_point"]


class _Deferred:
    """Whether SIGINT is being held back, and whether one came."""

    def __init__(self) -> None:
        self.held = False
        self.pending = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first Ctrl-C; let a second one through at once."""
        if self.pending:
            signal.default_int_handler(number, frame)
        self.pending = True


_DEFERRED = _Deferred()


@contextmanager
def at_safe_points() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt at the next `safe_point` only, and at the end of the block.

    Python raises it between any two instructions, also while a model's weights are being substituted or put
    back; no ``finally`` can make up for that. A second Ctrl-C is not held back. Does nothing outside the main
    thread, where Ctrl-C never arrives, or where somebody else handles the signal.
    """
    if (
        _DEFERRED.held
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    _DEFERRED.held, _DEFERRED.pending = True, False
    signal.signal(signal.SIGINT, _DEFERRED.note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _DEFERRED.held = False
        if _DEFERRED.pending:
            _DEFERRED.pending = False
            raise KeyboardInterrupt


def safe_point() -> None:
    """Raise KeyboardInterrupt here if Ctrl-C came since the last safe point."""
    if _DEFERRED.held and _DEFERRED.pending:
        raise KeyboardInterrupt
