"""``thalweg problems``: the built-in problems."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

__all__ = ["command"]


@click.command("problems")
@click.option("--json", "as_json", is_flag=True, help="Print names and summaries as JSON.")
def command(as_json: bool) -> None:
    """List the built-in problems: real small trainings and the textbook's functions."""
    from thalweg.problem.builtin.registry import problems

    if as_json:
        click.echo(json.dumps({info.name: info.summary for info in problems()}, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    for info in problems():
        table.add_row(info.name, info.summary)
    Console(highlight=False).print(table)
