"""What every result is: a frozen record that can be printed, saved and read by machines."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from thalweg.errors import InputError
from thalweg.report.citation import BIBTEX
from thalweg.report.curves import to_figure
from thalweg.report.document import Block, Curves, Document, Facts, Heading, Note, Quoted
from thalweg.report.drawing import to_png, to_svg
from thalweg.report.figures import Figure, together
from thalweg.report.glossary import words_in
from thalweg.report.html import to_fragment, to_page
from thalweg.report.terminal import to_text
from thalweg.report.writing import write_atomically
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


_PROVENANCE = {
    "thalweg": "Thalweg",
    "torch": "PyTorch",
    "python": "Python",
    "device": "device",
    "dtype": "numbers",
    "num_threads": "threads",
    "seed": "seed",
}


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

    def figures(self) -> tuple[Figure, ...]:
        """Return the pictures of the record; `thalweg.report.drawing` draws them."""
        blocks = self.document().blocks
        drawn = (to_figure(block) if isinstance(block, Curves) else block for block in blocks)
        return tuple(block for block in drawn if isinstance(block, Figure))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to ``path``.

        ``.json`` for machines, ``.html`` a page for people that needs nothing else, ``.txt`` plain, ``.png``
        and ``.svg`` all its pictures in one.

        Raises:
            InputError: for another suffix, for a picture of a record that has none, and where it cannot be
                written.
        """
        path = Path(path)
        writers: dict[str, Callable[[Path], None]] = {
            ".json": lambda path: write_atomically(path, self.to_json()),
            ".html": lambda path: write_atomically(path, to_page(self._page())),
            ".txt": lambda path: write_atomically(path, str(self) + "\n"),
            ".png": lambda path: to_png(self._picture(), path),
            ".svg": lambda path: write_atomically(path, to_svg(self._picture())),
        }
        writer = writers.get(path.suffix.lower())
        if writer is None:
            raise InputError(
                f"a record cannot be saved as {path.name!r}",
                expected="a name that ends in " + ", ".join(writers),
                got=f"the suffix {path.suffix!r}",
            )
        writer(path)

    def save_figures(self, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write each picture as SVG and as PNG to ``folder``, which is made where it is not there.

        Returns:
            The files, named after the pictures: ``spectrum.svg``, ``spectrum.png``, …

        Raises:
            InputError: where they cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {str(folder)!r}", got=str(error)) from error
        written = []
        for figure in self.figures():
            drawing, picture = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
            write_atomically(drawing, to_svg(figure))
            to_png(figure, picture)
            written += [drawing, picture]
        return tuple(written)

    def _picture(self) -> Figure:
        figures = self.figures()
        if not figures:
            raise InputError(
                f"there is no picture of this {type(self).__name__}", hint="save it as .html or .txt"
            )
        return figures[0] if len(figures) == 1 else together("figures", self.document().title, figures)

    def _page(self) -> Document:
        """The document with what a page that is kept must say besides: where it comes from."""
        document = self.document()
        words = words_in(document)
        glossary: tuple[Block, ...] = (Heading("Words"), Facts(words)) if words else ()
        return Document(document.title, (*document.blocks, *glossary, *self._origin()))

    def _origin(self) -> list[Block]:
        provenance = getattr(self, "provenance", None)
        blocks: list[Block] = []
        if isinstance(provenance, Provenance):
            rows = [(label, str(getattr(provenance, name))) for name, label in _PROVENANCE.items()]
            blocks += [Heading("How to repeat it"), Facts(tuple(rows))]
        return [
            *blocks,
            Heading("How to cite"),
            Note("If this helped your work, cite Thalweg:"),
            Quoted(BIBTEX),
        ]

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
