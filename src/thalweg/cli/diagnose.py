"""``thalweg diagnose``: a verdict with its evidence."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thalweg.cli.options import give_out, open_problem, problem_options, require_writable, working
from thalweg.diagnosis.verdict import Verdict

if TYPE_CHECKING:
    from thalweg.landscape.plane_record import Plane
    from thalweg.landscape.slice_record import Slice
    from thalweg.problem.problem import Problem
    from thalweg.progress import Progress

__all__ = ["command"]

_POINTS = 21  # along each side of the plane on the page


@click.command("diagnose")
@problem_options
@click.option(
    "--budget",
    type=float,
    metavar="N",
    help="Spend at most N gradient-equivalents (forward and backward passes over the sample); 30 or more. "
    "A full answer takes 100 to 220.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the diagnosis as a page, with the loss around the weights (about 250 gradient-equivalents "
    "more; not with --budget).",
)
@click.option(
    "--figures",
    "figures_path",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write each picture as SVG and PNG.",
)
@click.option(
    "--fail-on",
    "fail_on",
    multiple=True,
    type=click.Choice([verdict.value for verdict in Verdict]),
    metavar="VERDICT",
    help="Exit with 1 on this verdict; may be given several times.",
)
def command(
    problem: str,
    checkpoint: Path | None,
    seed: int,
    json_path: str | None,
    budget: float | None,
    html_path: Path | None,
    figures_path: Path | None,
    fail_on: tuple[str, ...],
) -> None:
    """Say where the training of PROBLEM stands on its loss landscape.

    PROBLEM is a built-in name (see `thalweg problems`; the default is a plateau), or file.py:function or
    package.module:function that returns a thalweg.Problem.

    \b
    thalweg diagnose digits-mlp
    thalweg diagnose train.py:problem --checkpoint last.safetensors --html report.html --figures pictures
    thalweg diagnose train.py:problem --fail-on plateau --fail-on bouncing
    """
    from thalweg.diagnosis.diagnosis import diagnose
    from thalweg.diagnosis.purse import LEAST

    require_writable(json_path, html_path, figures_path)
    if html_path is not None and html_path.suffix.lower() != ".html":
        raise click.BadParameter("the page needs a name that ends in .html", param_hint="--html")
    if budget is not None and not budget >= LEAST:
        raise click.BadParameter(f"the least is {LEAST:.0f} gradient-equivalents", param_hint="--budget")
    with working() as bar:
        bar.phase("building the problem")
        opened = open_problem(problem, checkpoint, seed)
        diagnosis = diagnose(opened, seed=seed, budget=budget, progress=bar)
        if budget is None and (html_path is not None or figures_path is not None):
            diagnosis = replace(diagnosis, view=_around(opened, seed, bar))
    give_out(diagnosis, json_path, html_path)
    if figures_path is not None:
        diagnosis.save_figures(figures_path)
    if diagnosis.verdict.value in fail_on:
        sys.exit(1)


def _around(problem: Problem, seed: int, progress: Progress) -> Plane | Slice:
    """Measure what the page shows of the loss around the weights."""
    from thalweg.landscape.plane import plane
    from thalweg.landscape.slice import slice as line

    progress.phase("looking around")
    if sum(p.numel() for p in problem.parameters()) == 1:
        return line(problem, seed=seed, progress=progress)
    return plane(problem, points=_POINTS, seed=seed, progress=progress)
