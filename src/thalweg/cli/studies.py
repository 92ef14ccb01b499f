"""What the verbs of the studies share: their options, and where their results go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thalweg.cli.options import give_out
from thalweg.errors import InputError

if TYPE_CHECKING:
    from thalweg.records import Record

__all__ = ["give_out_study", "numbers", "source_of", "study_options"]


def study_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add PROBLEM, --seeds, --executor, --output, --html, --json and --seed."""
    for option in (
        click.option(
            "--json",
            "json_path",
            metavar="FILE",
            help="Write the record as JSON too; - for standard output, which then holds nothing else.",
        ),
        click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write the page here too."),
        click.option("--seed", type=int, default=0, show_default=True, help="Repeats the answer."),
        click.option(
            "--seeds", type=click.IntRange(min=2), default=5, show_default=True, help="Runs of each kind."
        ),
        click.option(
            "--executor",
            default="processes",
            show_default=True,
            metavar="WHO",
            help="serial, processes, processes:N, or dask://host:port. The numbers are the same with all.",
        ),
        click.option(
            "--output",
            type=click.Path(path_type=Path),
            metavar="FOLDER",
            help="Where every trial is written as it ends, and the page, the JSON and the pictures "
            "at the end. "
            "The same command goes on there after a kill.",
        ),
        click.argument("problem", required=False, default="digits-mlp"),
    ):
        function = option(function)
    return function


def source_of(problem: str, output: Path | None, verb: str) -> Path:
    """Return the folder of a study: the one given, or one named after problem and verb."""
    if output is not None:
        return output
    readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in problem).strip("-.")
    return Path(f"{readable}.{verb}")


def numbers(text: str) -> list[int]:
    """Read "1,4,16".

    Raises:
        InputError: for anything else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            "the numbers cannot be read", expected="numbers with commas between", got=repr(text)
        ) from None


def give_out_study(
    record: Record, folder: Path, verb: str, json_path: str | None, html_path: Path | None
) -> None:
    """Write page, JSON and pictures into the folder of the study, and show the record."""
    record.save(folder / f"{verb}.json")
    record.save(folder / f"{verb}.html")
    record.save_figures(folder)
    give_out(record, json_path, html_path)
    if json_path != "-":
        click.echo(f"\nPage, pictures and every trial: {folder}/", err=True)
