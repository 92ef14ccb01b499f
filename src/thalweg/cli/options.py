"""What several verbs share: how a problem is named and how a record is given out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from thalweg.errors import InputError
from thalweg.report.terminal import Bar, render

if TYPE_CHECKING:
    from thalweg.problem.problem import Problem
    from thalweg.records import Record

__all__ = ["give_out", "open_problem", "problem_options", "require_weights", "require_writable", "working"]

_Function = Callable[..., Any]


def problem_options(function: _Function) -> _Function:
    """Add PROBLEM, --checkpoint, --seed and --json."""
    for option in (
        click.option(
            "--json",
            "json_path",
            metavar="FILE",
            help="Write the record as JSON; - for standard output, which then holds nothing else.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Repeats the answer."),
        click.option(
            "--checkpoint",
            type=click.Path(path_type=Path),
            help="Weights to load first: .safetensors, .pt, .pth, .ckpt (never run as code).",
        ),
        click.argument("problem", required=False, default="digits-deep-sigmoid"),
    ):
        function = option(function)
    return function


def open_problem(specification: str, checkpoint: Path | None, seed: int) -> Problem:
    """Load the problem and, where one is given, its checkpoint."""
    from thalweg.problem.checkpoint import apply_checkpoint, read_checkpoint
    from thalweg.problem.loading import load_problem

    stored = read_checkpoint(checkpoint) if checkpoint is not None else None
    problem = load_problem(specification, seed=seed)
    if stored is not None:
        apply_checkpoint(problem, stored)
    return problem


def require_weights(problem: Problem, output: Path | None) -> None:
    """Refuse to write the weights of what has none.

    Raises:
        InputError: for a plain function and a file to write to.
    """
    if problem.model is None and output is not None:
        raise InputError(
            "a plain function has no weights to write",
            hint="leave --output out; the new point is in the answer, and in the JSON",
        )


def require_writable(*paths: str | Path | None) -> None:
    """Refuse an output path before the work is done rather than after it.

    Raises:
        InputError: when its folder does not exist.
    """
    for path in paths:
        if path is not None and str(path) != "-" and not Path(path).absolute().parent.is_dir():
            raise InputError(
                f"cannot write {str(path)!r}", got="a folder that does not exist", hint="create it first"
            )


@contextmanager
def working() -> Iterator[Bar]:
    """Show progress on standard error and keep what the user's code prints off standard output."""
    with Bar(Console(stderr=True)) as bar, redirect_stdout(sys.stderr):
        yield bar


def give_out(record: Record, json_path: str | None, html_path: Path | None = None) -> None:
    """Print the record for people, and write it where it was asked for."""
    if html_path is not None:
        record.save(html_path)
    if json_path is not None and json_path != "-":
        from thalweg.records import write_atomically

        write_atomically(Path(json_path), record.to_json())
    if json_path == "-":
        click.echo(record.to_json(), nl=False)
        return
    render(record.document(), Console(highlight=False))
