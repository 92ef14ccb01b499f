"""``thalweg sharpness``: how sharp the loss is, and how near the steps are to their limit."""

from __future__ import annotations

from pathlib import Path

import click

from thalweg.cli.options import give_out, open_problem, problem_options, require_writable, working

__all__ = ["command"]


@click.command("sharpness")
@problem_options
def command(problem: str, checkpoint: Path | None, seed: int, json_path: str | None) -> None:
    """Measure how sharp the training loss is at PROBLEM, in the measures of the literature.

    The largest curvature against the limit of the optimiser's step size; the largest curvature per relative
    change of the weights; Keskar's measure; the trace. None of them predicts the error on new data.

    \b
    thalweg sharpness digits-mlp
    thalweg sharpness train.py:problem --checkpoint last.pt --json -
    """
    require_writable(json_path)
    with working() as bar:
        bar.phase("building the problem")
        from thalweg.curvature.sharpness import sharpness

        opened = open_problem(problem, checkpoint, seed)
        found = sharpness(opened, seed=seed, progress=bar)
    give_out(found, json_path)
