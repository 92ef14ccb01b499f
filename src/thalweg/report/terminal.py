"""Documents and progress in a terminal, by rich."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table as RichTable
from rich.text import Text

from thalweg.errors import printable
from thalweg.report.curves import heights, is_logarithmic, sparkline
from thalweg.report.document import (
    Curves,
    Document,
    Facts,
    Heading,
    Headline,
    Note,
    Quoted,
    Table,
    significant,
)
from thalweg.report.figures import Figure

__all__ = ["Bar", "render", "to_text"]

_COLUMNS = 60  # of a curve, at most
_GAP = 2  # between the columns beside it
_NAME = 24  # characters of a name's longest word that a table keeps whole
_COLOURS = {"good": "green", "bad": "red", "neutral": "yellow"}


def render(document: Document, console: Console) -> None:
    """Print ``document`` on ``console``."""
    console.print(_text(document.title, style="bold"))
    for block in document.blocks:
        if isinstance(block, Figure | Heading | Quoted):  # a page's; the numbers stand in the facts
            continue
        console.print(Padding(_block(block, console.width), (1, 0, 0, 0)))


def to_text(document: Document, width: int = 110) -> str:
    """Return ``document`` as plain text."""
    out = io.StringIO()
    render(document, Console(file=out, width=width, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _block(block: Headline | Facts | Table | Note | Curves, width: int) -> RenderableType:
    match block:
        case Headline(word, sentence, tone, _, _):
            grid = RichTable.grid(padding=(0, 3, 0, 0))
            grid.add_row(_text(word.upper(), style=f"bold {_COLOURS[tone]}"), _text(sentence))
            return grid
        case Facts(rows):
            grid = RichTable.grid(padding=(0, 2, 0, 0))
            grid.add_column(style="cyan", no_wrap=True)
            for label, text in rows:
                grid.add_row(_text("  " + label), _text(text))
            return grid
        case Table(title, columns, rows):
            return Group(_text(title, style="bold"), _table(columns, rows, width))
        case Note(text, label):
            return _text(f"{label}: {text}" if label else text)
        case Curves():
            return _curves(block, width)


def _table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...], width: int) -> RichTable:
    """Return a table. Where it is narrow, names and headers are broken at their spaces; numbers are not."""
    shown = ["  " + columns[0], *columns[1:]]
    cells = [[("  " if i == 0 else "") + row[i] for row in rows] for i in range(len(columns))]
    natural = [_longest([head, *column]) for head, column in zip(shown, cells, strict=True)]
    least = [_longest([*head.split(), *column]) for head, column in zip(shown, cells, strict=True)]
    least[0] = 2 + min(_longest(word for text in [columns[0], *cells[0]] for word in text.split()), _NAME)
    gap = 3 if sum(least) + 3 * len(least) <= width else 1
    room = max(width - gap * len(least) - sum(least), 0)
    table = RichTable(box=None, padding=(0, gap, 0, 0), show_header=True, header_style="dim")
    for i, (head, few, all_of_it) in enumerate(zip(shown, least, natural, strict=True)):
        more = min(room, max(all_of_it - few, 0))
        room -= more
        table.add_column(_text(head), justify="right" if i else "left", width=few + more)
    for row in zip(*cells, strict=True):
        table.add_row(*map(_text, row))
    return table


def _longest(texts: Iterable[str]) -> int:
    return max((_text(text).cell_len for text in texts), default=0)


def _curves(block: Curves, width: int) -> RenderableType:
    """Return the curves with their names and ends; the curves get what room these leave."""
    grid = RichTable.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    names = [_text("  " + label) for label, _ in block.series]
    ends = [tuple(significant(value, 3) for value in (v[0], v[-1])) for _, v in block.series]
    beside = max(name.cell_len for name in names) + sum(
        max(map(len, side)) for side in zip(*ends, strict=True)
    )
    columns = max(min(_COLUMNS, width - beside - 4 * _GAP), 1)
    for name, (first, last), series in zip(names, ends, heights(block), strict=True):
        grid.add_row(name, first, sparkline(series, columns), last)
    scale = f"over {block.axis}" + (", logarithmic" if is_logarithmic(block) else "")
    return Group(_text(f"{block.title}   ({scale})", style="bold"), grid)


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


class Bar:
    """A progress bar with the time left on a console, shown once the work has taken ``after`` seconds.

    Where the console is no terminal but a log, it is a line every ``pause`` seconds.
    """

    def __init__(self, console: Console, after: float = 2.0, pause: float = 30.0) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=1.0)
        self._visible_from = time.monotonic() + after
        self._console, self._pause, self._next_line = console, pause, time.monotonic() + pause
        self._started = False

    def phase(self, label: str) -> None:
        """Show what begins now."""
        self._bar.update(self._task, description=label)
        self._show_when_due()

    def advance(self, done: float, total: float) -> None:
        """Move the bar."""
        if self._bar.tasks[0].finished and done < total:  # the time of another phase says nothing of this one
            self._bar.reset(self._task)
        self._bar.update(self._task, completed=min(done, total), total=total)
        self._show_when_due()

    def _show_when_due(self) -> None:
        now = time.monotonic()
        if not self._console.is_terminal:
            if now >= self._next_line:
                self._next_line = now + self._pause
                self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)
        elif not self._started and now >= self._visible_from:
            self._bar.start()
            self._started = True

    def _line(self) -> str:
        task = self._bar.tasks[0]
        left = task.time_remaining
        minutes = "" if left is None else ", about {}:{:02} left".format(*divmod(round(left), 60))
        return f"{task.description}: {task.percentage:.0f} %{minutes}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self._bar.stop()
