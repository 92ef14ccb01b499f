"""``thalweg landscape``: the loss around a point, or between two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from thalweg.cli.options import give_out, open_problem, problem_options, require_writable, working
from thalweg.errors import InputError

if TYPE_CHECKING:
    from thalweg.problem.problem import Problem
    from thalweg.progress import Progress
    from thalweg.records import Record

__all__ = ["command"]


@click.command("landscape")
@problem_options
@click.option(
    "--line", "shape", flag_value="line", help="Along single directions: loss, held-out loss, errors."
)
@click.option("--plane", "shape", flag_value="plane", help="On the plane of two directions: the default.")
@click.option(
    "--path",
    "ends",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="A B",
    help="Between the weights of two checkpoints, straight and curved.",
)
@click.option(
    "--along",
    type=click.Choice(["curvature", "random", "gradient"]),
    help="Eigenvectors of the largest and the smallest curvature (the default), two filter-normalised "
    "random directions, or downhill.",
)
@click.option("--points", type=click.IntRange(min=3), metavar="N", help="Along each side.")
@click.option("--reach", type=float, metavar="R", help="How far to go each way, in lengths of the direction.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a page with the pictures.")
@click.option("--png", "png_path", type=click.Path(path_type=Path), help="Write the picture as PNG.")
@click.option("--svg", "svg_path", type=click.Path(path_type=Path), help="Write the picture as SVG.")
def command(
    problem: str,
    checkpoint: Path | None,
    seed: int,
    json_path: str | None,
    shape: str | None,
    ends: tuple[Path, Path] | None,
    along: str | None,
    points: int | None,
    reach: float | None,
    html_path: Path | None,
    png_path: Path | None,
    svg_path: Path | None,
) -> None:
    """Draw the loss around PROBLEM's weights, or between two sets of weights.

    A plain function of one or two variables is drawn as it is, with its minima, maxima and saddles; a net
    on the plane of its largest and smallest curvature, with training and held-out loss along both.

    \b
    thalweg landscape saddle --png saddle.png
    thalweg landscape digits-saddle --html landscape.html
    thalweg landscape train.py:problem --checkpoint last.pt --line --along random --svg line.svg
    thalweg landscape train.py:problem --path small.pt large.pt --png path.png
    """
    require_writable(json_path, html_path, png_path, svg_path)
    for wanted, suffix, option in (
        (html_path, ".html", "--html"),
        (png_path, ".png", "--png"),
        (svg_path, ".svg", "--svg"),
    ):
        if wanted is not None and wanted.suffix.lower() != suffix:
            raise click.BadParameter(f"the name must end in {suffix}", param_hint=option)
    if ends is not None and shape is not None:
        raise click.UsageError(f"give --path or --{shape}, not both")
    if ends is not None and (along is not None or reach is not None):
        raise click.UsageError("--along and --reach are for lines and planes; a path goes from A to B")
    along = along or "curvature"
    with working() as bar:
        bar.phase("building the problem")
        from thalweg.landscape.plane import plane
        from thalweg.landscape.slice import slice as slice_

        opened = open_problem(problem, checkpoint, seed)
        record: Record
        if ends is not None:
            record = _between(opened, ends, points, seed, bar)
        elif shape == "line" or (shape is None and _is_curve(opened)):
            record = slice_(opened, along, points=points, reach=reach, seed=seed, progress=bar)  # type: ignore[arg-type]
        else:
            if _is_curve(opened):
                raise InputError("a function of one variable has no plane", hint="leave --plane out")
            record = plane(opened, along, points=points, reach=reach, seed=seed, progress=bar)  # type: ignore[arg-type]
    for picture in (png_path, svg_path):
        if picture is not None:
            record.save(picture)
    give_out(record, json_path, html_path)


def _between(
    problem: Problem, ends: tuple[Path, Path], points: int | None, seed: int, progress: Progress
) -> Record:
    from thalweg.landscape.path import POINTS, path
    from thalweg.problem.checkpoint import apply_checkpoint, read_checkpoint

    if problem.model is None:
        raise InputError("a plain function has no checkpoints to go between", hint="leave --path out")
    weights = []
    for end in ends:
        apply_checkpoint(problem, read_checkpoint(end))
        weights.append({name: tensor.clone() for name, tensor in problem.model.state_dict().items()})
    return path(problem, *weights, points=points or POINTS, seed=seed, progress=progress)


def _is_curve(problem: Problem) -> bool:
    return problem.is_function and sum(p.numel() for p in problem.parameters()) == 1
