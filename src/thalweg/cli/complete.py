"""``thalweg complete``: fill the blanks of a table, and say how well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from thalweg.cli.options import give_out, require_writable, working
from thalweg.errors import InputError

if TYPE_CHECKING:
    from thalweg.completion.centring import Centring
    from thalweg.completion.observations import Duplicates
    from thalweg.completion.table import Layout, Table

__all__ = ["command"]

_FILE = click.Path(path_type=Path)


@click.command("complete")
@click.argument("table", type=_FILE)
@click.option(
    "--layout",
    type=click.Choice(["auto", "long", "wide"]),
    default="auto",
    show_default=True,
    help="long: a line is row, column, value; wide: a line is a row, with blanks.",
)
@click.option(
    "--duplicates",
    type=click.Choice(["refuse", "mean"]),
    default="refuse",
    show_default=True,
    help="What to do when a position comes twice in a long table.",
)
@click.option("--compare", is_flag=True, help="Hold the nuclear norm against it too.")
@click.option(
    "--depth", "depths", type=click.IntRange(2), multiple=True, help="To choose from; 2 and 3 without."
)
@click.option(
    "--folds", type=click.IntRange(2, 32), default=5, show_default=True, help="Of the cross-validation."
)
@click.option(
    "--center",
    type=click.Choice(["bias", "mean", "none"]),
    default="bias",
    show_default=True,
    help="Taken off first: effects of rows and columns, the mean, nothing.",
)
@click.option(
    "--rank-cap", type=click.IntRange(1), default=32, show_default=True, help="Upper bound of the rank."
)
@click.option("--clip", type=float, nargs=2, metavar="LOW HIGH", help="Bounds of what is predicted: ratings.")
@click.option("--output", type=_FILE, metavar="FILE", help="Default: TABLE.completed.csv; never over a file.")
@click.option("--html", "html_path", type=_FILE, metavar="FILE", help="Write the report as a page.")
@click.option("--png", "png_path", type=_FILE, metavar="FILE", help="Write the picture of the descent.")
@click.option(
    "--json",
    "json_path",
    metavar="FILE",
    help="Write the record as JSON; - for standard output, which then holds nothing else.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Repeats the answer.")
def command(
    table: Path,
    layout: str,
    duplicates: str,
    compare: bool,
    depths: tuple[int, ...],
    folds: int,
    center: str,
    rank_cap: int,
    clip: tuple[float, float] | None,
    output: Path | None,
    html_path: Path | None,
    png_path: Path | None,
    json_path: str | None,
    seed: int,
) -> None:
    """Fill the blanks of TABLE, and say how closely entries that are known would have been predicted.

    TABLE is a CSV file: either row, column, value on each line, or a line a row with blanks. MovieLens files
    (u.data, ratings.csv, ratings.dat, or their folder) are read as they are. The matrix is completed by
    gradient descent on a product of matrices from a small start, after row and column effects are taken
    off; how many factors is chosen by cross-validation over entries. The completed table goes to a new file.

    \b
    thalweg complete table.csv --compare
    thalweg complete table.csv --html report.html --png descent.png
    thalweg complete ratings.csv --clip 0.5 5 --depth 2 --json -
    """
    from thalweg.completion.table import require_new, write_completed

    folder = table.parent if not table.is_dir() else Path()
    target = output or folder / f"{table.stem or 'table'}.completed.csv"
    require_writable(json_path, html_path, png_path)
    require_new(target)
    if png_path is not None and png_path.suffix.lower() != ".png":
        raise InputError(
            "a picture cannot be written there", expected="a name that ends in .png", got=png_path.name
        )
    with working() as bar:
        bar.phase("reading the table")
        from thalweg.completion.table_completion import complete

        read = _read(table, cast("Layout", layout), cast("Duplicates", duplicates))
        found = complete(
            read.observations,
            name=table.name,
            depths=depths or (2, 3),
            folds=folds,
            compare=compare,
            center=cast("Centring | None", None if center == "none" else center),
            rank_cap=rank_cap,
            clip=clip,
            seed=seed,
            progress=bar,
        )
        bar.phase("writing the completed table")
        if write_completed(read, found.model, target):
            found = replace(found, saved_to=str(target))
        else:
            note = "The completed table would have more than five million entries and was not written: ask "
            note += "the model for the pairs you need, in Python, by predict()."
            found = replace(found, notes=(*found.notes, note))
        if png_path is not None:
            from thalweg.report.drawing import to_png

            to_png(found.descent.figure(), png_path)
    give_out(found, json_path, html_path)


def _read(path: Path, layout: Layout, duplicates: Duplicates) -> Table:
    from thalweg.completion.movielens import is_movielens, load_movielens
    from thalweg.completion.table import Table, read_table

    if not is_movielens(path):
        return read_table(path, layout=layout, duplicates=duplicates)
    ratings = load_movielens(path, duplicates=duplicates)
    users, films = (tuple(map(str, ids.tolist())) for ids in (ratings.users, ratings.films))
    return Table(ratings.observations, users, films, True, ("user", "film", "rating"), True)
