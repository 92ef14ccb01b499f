"""A recorded run, read back: series as numpy arrays or one pandas table, however the run ended."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError, printable
from thalweg.training.storage import EVENTS, META, SCALARS, SCHEMA, SKETCHES

__all__ = ["Event", "RecordedRun", "read_run"]

Floats = NDArray[np.float64]
SMOOTHING = 0.9  # of the moving averages of noise and signal, per measurement


@dataclass(frozen=True)
class Event:
    """Something that happened along a run.

    Attributes:
        step: after which.
        kind: "off" (a quantity that failed), "note", "storage", "session" (the run was gone on with), "cost".
        text: what happened.
        more: numbers that belong to it.
    """

    step: int
    kind: str
    text: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedRun:
    """What was recorded along a run.

    Attributes:
        path: its folder.
        meta: what was recorded and how.
        sessions: how many processes wrote it.
        events: what happened.
        notes: what could not be read, where that is so.
    """

    path: Path
    meta: Mapping[str, Any]
    sessions: int
    events: tuple[Event, ...]
    notes: tuple[str, ...]
    _columns: Mapping[str, tuple[Floats, Floats]] = field(repr=False)
    _sketches: tuple[Floats, Floats] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self._columns)

    @property
    def last_step(self) -> int:
        """The last step that something is known about; 0 for an empty run."""
        return int(max((steps[-1] for steps, _ in self._columns.values() if len(steps)), default=0))

    def series(self, name: str) -> tuple[Floats, Floats]:
        """Return at which steps ``name`` was measured (m,) and what it was (m,); empty where it never was."""
        return self._columns.get(name, (np.empty(0), np.empty(0)))

    def sketches(self) -> tuple[Floats, Floats]:
        """Return steps (m,) and sketches of the weights after them (m, k).

        Distances between rows are those of the weights, with a relative standard error of 1/√(2k).
        """
        return self._sketches

    def noise_scale(self) -> tuple[Floats, Floats]:
        """Return steps and the noise scale tr Σ/‖G‖² in examples: the ratio of two moving averages.

        Never the average of ratios, whose denominator passes through zero ([mccandlish2018], app. A.1).
        """
        steps, noise = self.series("grad/noise")
        _, square = self.series("grad/square")
        _, batch = self.series("grad/examples")
        if not len(steps) == len(square) == len(batch):
            return np.empty(0), np.empty(0)
        above, below = _averaged(noise * batch), _averaged(square)
        return steps, np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)

    def to_pandas(self) -> Any:
        """Return everything as one `pandas.DataFrame`: a row for each step, NaN where nothing was measured.

        Raises:
            InputError: where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError(
                "pandas is not installed", hint="pip install pandas, or .series(name)"
            ) from error
        columns = {
            name: pd.Series(values, index=steps.astype(int))
            for name, (steps, values) in self._columns.items()
        }
        steps, scale = self.noise_scale()
        if len(steps):
            columns["noise/b_simple"] = pd.Series(scale, index=steps.astype(int))
        frame = pd.DataFrame(columns)
        frame.index.name = "step"
        return frame.sort_index()


def read_run(path: str | os.PathLike[str]) -> RecordedRun:
    """Read a recorded run: one that has ended, is under way, was killed, or is damaged in places.

    Raises:
        InputError: where there is no run, or one of a version that this Thalweg does not know.
    """
    folder, notes = Path(path), list[str]()
    if not folder.is_dir() or not any((folder / name).exists() for name in (META, SCALARS)):
        raise InputError(
            f"there is no recorded run in {printable(str(folder))!r}",
            expected=f"a folder with {META} and {SCALARS}, as Recorder and thalweg train --record write it",
        )
    meta = _meta(folder, notes)
    lines = _lines(folder / SCALARS, notes)
    starts: dict[int, int] = {}
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        if "session" in line and "from" in line:
            starts[int(line["session"])] = int(line["from"])
            rows = {step: row for step, row in rows.items() if step <= int(line["from"])}
        else:
            rows.setdefault(int(line["step"]), {}).update(
                {name: math.nan if value is None else value for name, value in line.items() if name != "step"}
            )
    events = tuple(
        Event(int(e["step"]), str(e.get("kind")), printable(str(e.get("text", ""))), e)
        for e in _lines(folder / EVENTS, notes)
    )
    return RecordedRun(
        path=folder,
        meta=meta,
        sessions=max(starts, default=1),
        events=events,
        notes=tuple(notes),
        _columns=_columns(rows),
        _sketches=_sketches(folder / SKETCHES, meta, starts, notes),
    )


def _meta(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return what ``meta.json`` says; what is damaged is noted, what is of another version refused."""
    try:
        content = json.loads((folder / META).read_bytes())
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        notes.append(f"{META} is missing or damaged: what was recorded is shown without it.")
        return {}
    if schema != SCHEMA:
        newer = str(schema).partition("@")[0] == SCHEMA.partition("@")[0]
        raise InputError(
            f"the run in {printable(str(folder))!r} was recorded in another version of the format",
            expected=SCHEMA,
            got=printable(str(schema))[:80],
            hint=f"the Thalweg that wrote it ({printable(str(content.get('thalweg', 'not said')))[:40]}); "
            "the files were left as they are"
            if newer
            else "the folder holds something else",
        )
    return dict(content)


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return the entries of a file of lines; a line cut short at the end is what a kill leaves."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return []
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or error}.")
        return []
    found, bad = [], 0
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        entry = _entry(line)
        if entry is not None:
            found.append(entry)
        elif number < len(lines) - 1:
            bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} of {len(lines) - 1:,} lines are damaged and were left out.")
    return found


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not all(_is_count(entry[k]) for k in ("session", "from") if k in entry):
        return None
    if "text" in entry or "from" in entry:
        return entry if _is_count(entry.get("step", 0)) else None
    numbers = all(
        v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in entry.values()
    )
    return entry if numbers and _is_count(entry.get("step")) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _columns(rows: Mapping[int, Mapping[str, float]]) -> dict[str, tuple[Floats, Floats]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            steps, values = found.setdefault(printable(name), ([], []))
            steps.append(step)
            values.append(value)
    return {
        name: (np.array(s, dtype=np.float64), np.array(v, dtype=np.float64)) for name, (s, v) in found.items()
    }


def _sketches(
    path: Path, meta: Mapping[str, Any], starts: Mapping[int, int], notes: list[str]
) -> tuple[Floats, Floats]:
    width = meta.get("sketch", {}).get("size") if isinstance(meta.get("sketch"), dict) else None
    nothing = np.empty(0), np.empty((0, 0))
    if not isinstance(width, int) or not _is_count(width) or not path.exists():
        return nothing
    try:
        raw = np.fromfile(path, dtype="<f8")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or error}.")
        return nothing
    rows = raw[: len(raw) - len(raw) % (width + 2)].reshape(-1, width + 2)
    whole = np.isfinite(rows).all(axis=1)
    if not whole.all():
        notes.append(
            f"{path.name}: {int((~whole).sum())} of {len(rows)} rows are not numbers and were left out."
        )
    kept: dict[int, Floats] = {}
    for row in rows[whole]:
        later = [start for session, start in starts.items() if session > row[1]]
        if row[0] <= min(later, default=math.inf):
            kept[int(row[0])] = row[2:]
    steps = sorted(kept)
    return np.array(steps, dtype=np.float64), np.array([kept[s] for s in steps]).reshape(len(steps), width)


def _averaged(values: Floats) -> Floats:
    """Return the exponential moving average, each weight divided by what they add up to."""
    total, weight, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = SMOOTHING * total + value, SMOOTHING * weight + 1.0
        out.append(total / weight if weight else math.nan)
    return np.array(out)
