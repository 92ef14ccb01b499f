"""``thalweg show``: what a recorded run says."""

from __future__ import annotations

from pathlib import Path

import click

from thalweg.cli.options import give_out, require_writable
from thalweg.records import write_atomically
from thalweg.report.drawing import to_png, to_svg
from thalweg.training.recorded import read_run
from thalweg.training.run_summary import summarise

__all__ = ["command"]


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "json_path", metavar="FILE", help="Write the record as JSON; - for standard output.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), metavar="FILE", help="Write a page.")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the pictures as PNG and SVG into a folder that exists.",
)
def command(run: Path, json_path: str | None, html_path: Path | None, pictures: Path | None) -> None:
    """Show what happened along the recorded RUN, a folder: one that has ended, is under way, or was killed.

    \b
    thalweg train digits-cnn --epochs 40 --record runs/a
    thalweg show runs/a --html run.html
    """
    require_writable(json_path, html_path, pictures / "loss.png" if pictures is not None else None)
    summary = summarise(read_run(run))
    for figure in summary.figures if pictures is not None else ():
        assert pictures is not None
        to_png(figure, pictures / f"{figure.name}.png")
        write_atomically(pictures / f"{figure.name}.svg", to_svg(figure))
    give_out(summary, json_path, html_path)
