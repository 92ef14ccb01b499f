"""``thalweg show``: what a recorded run says."""

from __future__ import annotations

from pathlib import Path

import click

from thalweg.cli.options import give_out, require_writable

__all__ = ["command"]


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "json_path", metavar="FILE", help="Write the record as JSON; - for standard output.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), metavar="FILE", help="Write a page.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the pictures as PNG and SVG.",
)
def command(run: Path, json_path: str | None, html_path: Path | None, figures: Path | None) -> None:
    """Show what happened along the recorded RUN, a folder: one that has ended, is under way, or was killed.

    \b
    thalweg train digits-cnn --epochs 40 --record runs/a
    thalweg show runs/a --html run.html
    """
    from thalweg.training.recorded import read_run
    from thalweg.training.run_summary import summarise

    require_writable(json_path, html_path)
    summary = summarise(read_run(run))
    if figures is not None:
        summary.save_figures(figures)
    give_out(summary, json_path, html_path)
