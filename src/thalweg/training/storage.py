"""The folder that a run is recorded in, as it is written: append-only, and never the reason to stop training.

``meta.json`` says what was recorded; ``scalars.jsonl`` holds a line for each step with something to say about
it, ``events.jsonl`` what happened, ``sketches.f64`` rows of step, session and the sketch of the weights. A
session is one process; when a run is gone on with, what an earlier session wrote about later steps is
superseded, not erased.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError
from thalweg.records import write_atomically

__all__ = ["EVENTS", "META", "SCALARS", "SCHEMA", "SKETCHES", "RunFolder", "as_line"]

SCHEMA = "thalweg/run@1"
META, SCALARS, EVENTS, SKETCHES = "meta.json", "scalars.jsonl", "events.jsonl", "sketches.f64"
MOST_WAITING = 64 << 20  # bytes that wait for a disk with room
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_line(entry: Mapping[str, Any]) -> bytes:
    """Write an entry as a line of JSON; numbers that are not finite become null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
    return _JSON.encode(plain).encode() + b"\n"


class _Appended:
    """A file that is only ever added to. What the disk does not take waits for the next time."""

    def __init__(self, path: Path, row: int | None) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._waiting = bytearray()
        self._row = row or 1
        size = os.fstat(self._descriptor).st_size
        if row is not None and size % row:  # half a row says nothing, and would shift the others
            os.ftruncate(self._descriptor, size - size % row)
        elif row is None and size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            self._waiting += b"\n"

    def add(self, data: bytes) -> None:
        if len(self._waiting) + len(data) <= MOST_WAITING:
            self._waiting += data

    def flush(self, *, sync: bool = False) -> None:
        """Hand over to the operating system; a line half written is completed the next time."""
        while self._waiting:
            written = os.write(self._descriptor, self._waiting)
            del self._waiting[:written]
        if sync:
            os.fsync(self._descriptor)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        os.close(self._descriptor)


class RunFolder:
    """The folder of a run, open for writing.

    Args:
        path: of the folder.
        meta: what is to be known about the run; None to go on with the one that is there.
        session: number of this process in the run, from 1 on.
        width: numbers in a sketch.

    Raises:
        InputError: when the folder cannot be made or written to.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any] | None, *, session: int, width: int) -> None:
        self.path, self.session = path, session
        try:
            path.mkdir(parents=True, exist_ok=True)
            if meta is not None:
                text = json.dumps({"schema": SCHEMA, **meta}, indent=2, ensure_ascii=False, allow_nan=False)
                write_atomically(path / META, text + "\n")
            self._scalars = _Appended(path / SCALARS, None)
            self._events = _Appended(path / EVENTS, None)
            self._sketches = _Appended(path / SKETCHES, 8 * (width + 2))
        except OSError as error:
            raise InputError(
                f"a run cannot be recorded in {str(path)!r}",
                got=f"{type(error).__name__}: {error.strerror or error}",
                hint="another folder",
            ) from error
        self.failure: str | None = None

    def scalars(self, entry: Mapping[str, Any]) -> None:
        """Add what is known about a step."""
        self._scalars.add(as_line(entry))

    def event(self, step: int, kind: str, text: str, **more: Any) -> None:
        """Add something that happened."""
        self._events.add(as_line({"step": step, "session": self.session, "kind": kind, "text": text, **more}))

    def sketch(self, step: int, values: NDArray[np.float64]) -> None:
        """Add the sketch (width,) of the weights after a step."""
        self._sketches.add(np.concatenate([[step, self.session], values]).astype("<f8").tobytes())

    def flush(self, *, sync: bool = False) -> str | None:
        """Write what waits; return why that failed, where it did, the first time that it does.

        What could not be written stays and is tried again.
        """
        try:
            for file in (self._scalars, self._sketches, self._events):
                file.flush(sync=sync)
        except OSError as error:
            known, self.failure = self.failure, f"{type(error).__name__}: {error.strerror or error}"
            return self.failure if known is None else None
        self.failure = None
        return None

    def close(self) -> int:
        """Write what waits, bring it to the disk and close; return how many bytes were lost."""
        self.flush(sync=True)
        lost = self._scalars.waiting + self._events.waiting + self._sketches.waiting
        for file in (self._scalars, self._events, self._sketches):
            file.close()
        return lost
