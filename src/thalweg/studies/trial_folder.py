"""The folder of a study: every trial on disk as it ends, checked when it is read again."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from thalweg.errors import InputError, ThalwegError
from thalweg.records import write_atomically
from thalweg.version import __version__

__all__ = ["TrialFolder"]

_FORMAT = 1
_PLAN, _TRIALS = "plan.json", "trials"


class TrialFolder:
    """The trials of one study, in a folder that a second start goes on from.

    Each trial is a file ``trials/<key>.json`` that holds its result and a checksum; it is written beside and
    renamed, so that a kill leaves it whole or absent. ``plan.json`` says what the study is; a study with
    another plan does not go on in the same folder.

    Args:
        path: the folder; made where it is missing.
        plan: what decides the results, as JSON can say it.

    Attributes:
        notes: what was found amiss, for people.

    Raises:
        InputError: where the folder holds another study or something else, cannot be written to, or is in
            use.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self.path, self.notes = path, list[str]()
        self._plan = {"format": _FORMAT, "thalweg": __version__, **plan}
        self._require_own()
        try:
            (path / _TRIALS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the folder {str(path)!r} cannot be made", got=f"{type(error).__name__}: {error.strerror}"
            ) from error
        self._lock = self._locked()
        try:
            self._agree()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.close()

    def finished(self, key: str) -> dict[str, Any] | None:
        """Return the result of a trial that has ended; None where it has not, or its file is damaged.

        A damaged file is moved aside, and ``notes`` says so.
        """
        path = self._file(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            text = ""
        result = _verified(text, key)
        if result is None:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            self.notes.append(
                f"The trial file {path.name} was damaged: it is kept as {aside.name}, and the trial "
                "was run again."
            )
        return result

    def keep(self, key: str, result: Mapping[str, Any]) -> None:
        """Write the result of a trial.

        Raises:
            ThalwegError: where it cannot be written; those written before stay.
        """
        body = _canonical({"key": key, "result": result})
        text = json.dumps({"checksum": _checksum(body), "trial": json.loads(body)}, allow_nan=False)
        try:
            write_atomically(self._file(key), text + "\n")
        except InputError as error:
            raise ThalwegError(
                f"the trial {key!r} could not be written: {error}",
                cause="the disk is full, or the folder has become read-only",
                hint=f"make room and start again: the finished trials in {self.path} are kept and not "
                "repeated",
            ) from error

    def _file(self, key: str) -> Path:
        readable = "".join(c if c.isalnum() or c in "-." else "-" for c in key)[:80]
        digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        return self.path / _TRIALS / f"{readable}-{digest}.json"

    def _locked(self) -> TextIO:
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(
                f"a study is running in the folder {str(self.path)!r} already",
                hint="wait for it, or another folder",
            ) from None
        return lock

    def _require_own(self) -> None:
        """Refuse a folder that holds files and no plan."""
        if (self.path / _PLAN).exists() or not self.path.is_dir():
            return
        others = [p.name for p in self.path.iterdir() if p.name != ".lock"]
        if others == [_TRIALS] and not any((self.path / _TRIALS).iterdir()):
            return  # a study that was killed as it began
        if others:
            raise InputError(
                f"the folder {str(self.path)!r} holds something else",
                expected="a new or empty folder, or that of the same study",
                got=", ".join(sorted(others)[:5]),
            )

    def _agree(self) -> None:
        """Write the plan, or see that it is the one that is there."""
        path = self.path / _PLAN
        if not path.exists():
            write_atomically(path, json.dumps(self._plan, indent=2, ensure_ascii=False) + "\n")
            return
        try:
            there = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            raise InputError(
                f"{path.name} in {str(self.path)!r} is damaged",
                hint="another folder; the trials there are left as they are",
            ) from error
        mine = json.loads(json.dumps(self._plan))
        changed = [name for name in {**there, **mine} if there.get(name) != mine.get(name)]
        if changed:
            raise self._other(changed, there, mine)

    def _other(self, changed: list[str], there: dict[str, Any], mine: dict[str, Any]) -> InputError:
        if set(changed) <= {"source", "problem"}:
            return InputError(
                f"the problem has changed since the study in {str(self.path)!r} began",
                cause="its file, data or model was edited" if "source" in changed else "its data or model",
                hint="another folder for the changed problem, or put the problem back as it was; "
                "the finished trials are left as they are",
            )
        first = changed[0]
        return InputError(
            f"the folder {str(self.path)!r} holds a study with other settings",
            expected=f"{first} = {there.get(first)!r}, as it was begun",
            got=f"{mine.get(first)!r}"
            + (f", and {', '.join(changed[1:])} differ too" if changed[1:] else ""),
            hint="the same settings to go on, or another folder",
        )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


def _verified(text: str, key: str) -> dict[str, Any] | None:
    """Return the result in a trial file; None where it is damaged."""
    try:
        stored = json.loads(text)
        trial = stored["trial"]
        sound = trial["key"] == key and stored["checksum"] == _checksum(_canonical(trial))
        return dict(trial["result"]) if sound else None
    except (ValueError, TypeError, KeyError):
        return None
