"""Where a training stands, in a file: enough to go on with it bit for bit."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.errors import InputError, printable
from thalweg.problem.interrupt import at_safe_points

__all__ = [
    "SCHEMA",
    "load_state",
    "random_states",
    "require_same_training",
    "save_state",
    "set_random_states",
]

SCHEMA = "thalweg/training@1"


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` beside ``path`` and rename it there: the file is the last whole one at any moment.

    Args:
        state: tensors, numbers, strings, lists and dicts.
        path: of the file.

    Raises:
        OSError: where it cannot be written; the one before stays.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with at_safe_points():
        try:
            with draft.open("wb") as file:
                try:
                    torch.save({"schema": SCHEMA, **state}, file)
                except RuntimeError as error:  # torch's archive writer on a full disk
                    raise OSError(str(error).splitlines()[0]) from error
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote, without running code from the file; None where there is no file.

    Raises:
        InputError: for a file that is damaged, of another version, or of another kind.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        schema = state["schema"]
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(
            f"the state of the training in {str(path)!r} cannot be read",
            got=f"{type(error).__name__}: {printable(first)[:120]}",
            cause="a damaged file, or one that is something else",
            hint="train anew into another folder; what was recorded stays readable with thalweg show",
        ) from error
    if schema != SCHEMA:
        raise InputError(
            f"the state of the training in {str(path)!r} is of another version",
            expected=SCHEMA,
            got=printable(str(schema))[:80],
            hint="the Thalweg that wrote it",
        )
    return dict(state)


def require_same_training(stored: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a training under other settings than it began with.

    Raises:
        InputError: that names what differs.
    """
    differing = _differing(stored, now)
    if differing:
        raise InputError(
            f"the training in {str(path.parent)!r} was another one",
            expected="; ".join(f"{name} {before!r}" for name, before, _ in differing[:4]),
            got="; ".join(f"{name} {after!r}" for name, _, after in differing[:4]),
            cause="other options, or a problem that has changed since",
            hint="the same options as before, or another folder",
        )


def _differing(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what differs, with both values; of settings within settings only those that do."""
    found = []
    for name, after in now.items():
        before = stored.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping) and before.keys() == after.keys():
            found += _differing(before, after)
        elif before != after:
            found.append((name, before, after))
    return found


def random_states() -> dict[str, Any]:
    """Return the global random states of python, numpy and torch, as what a file can hold."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    numpy_state = (kind, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
