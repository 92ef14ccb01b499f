"""What every result is: a frozen record that can be printed, saved and read by machines."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from thalweg.errors import InputError
from thalweg.report.document import Document
from thalweg.report.drawing import to_png, to_svg
from thalweg.report.html import to_fragment, to_page
from thalweg.report.terminal import to_text
from thalweg.version import __version__

__all__ = ["Cost", "Provenance", "Record", "current_provenance", "to_plain", "write_atomically"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a measurement took."""

    gradient_equivalents: float  # forward and backward passes over the examples used
    num_hvps: int  # Hessian–vector products
    seconds: float  # wall clock


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to repeat a measurement."""

    thalweg: str
    torch: str
    python: str
    device: str
    dtype: str
    num_threads: int
    seed: int


def current_provenance(theta: torch.Tensor, seed: int) -> Provenance:
    """Return the provenance of a measurement made now, here, at ``theta``."""
    return Provenance(
        thalweg=__version__,
        torch=str(torch.__version__),
        python=platform.python_version(),
        device=str(theta.device),
        dtype=str(theta.dtype).removeprefix("torch."),
        num_threads=torch.get_num_threads(),
        seed=seed,
    )


class Record(ABC):
    """A result. Subclasses are frozen dataclasses with a ``schema`` and a ``document()``.

    Fields with ``metadata={"json": False}`` (long vectors) stay out of the JSON.
    """

    schema: ClassVar[str]

    @abstractmethod
    def document(self) -> Document:
        """Describe the record for people."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain numbers, strings, lists and dicts; NaN and infinity become None."""
        plain: dict[str, Any] = to_plain(self)
        return {"schema": self.schema, **plain}

    def to_json(self) -> str:
        """Return the record as JSON, with its schema."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record: ``.json`` for machines, ``.html`` and ``.txt`` for people, ``.png`` and ``.svg``.

        Raises:
            InputError: for another suffix.
        """
        path = Path(path)
        if path.suffix.lower() == ".png" and self.document().figures:
            to_png(self.document().figures[0], path)
            return
        writers: dict[str, Callable[[], str]] = {
            ".json": self.to_json,
            ".html": lambda: to_page(self.document()),
            ".txt": lambda: str(self) + "\n",
            ".svg": lambda: to_svg(self.document().figures[0]),
        }
        writer = writers.get(path.suffix.lower())
        if writer is None:
            raise InputError(
                f"a record cannot be saved as {path.name!r}",
                expected="a name that ends in " + ", ".join(writers),
                got=f"the suffix {path.suffix!r}",
            )
        write_atomically(path, writer())

    def __str__(self) -> str:
        return to_text(self.document())

    def _repr_html_(self) -> str:
        return to_fragment(self.document())


def to_plain(value: Any) -> Any:
    """Turn a value of a record into what JSON can say."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("json", True)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.ndarray | torch.Tensor):
        return to_plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(entry) for entry in value]
    if isinstance(value, np.integer):
        return int(value)
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it there, so that ``path`` is never half written.

    Raises:
        InputError: when the folder is missing or cannot be written to.
    """
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            Path(draft).chmod(0o666 & ~mask)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r}",
            got=f"{type(error).__name__}: {error.strerror or error}",
            hint="another folder, or create it first",
        ) from error
