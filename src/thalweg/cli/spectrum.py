"""``thalweg spectrum``: both ends of the Hessian's spectrum."""

from __future__ import annotations

from pathlib import Path

import click

from thalweg.cli.options import give_out, open_problem, problem_options, require_writable, working

__all__ = ["command"]


@click.command("spectrum")
@problem_options
def command(problem: str, checkpoint: Path | None, seed: int, json_path: str | None) -> None:
    """Measure both ends of the Hessian's spectrum at PROBLEM, with their errors, in one run.

    \b
    thalweg spectrum digits-mlp
    thalweg spectrum train.py:problem --checkpoint last.pt --json -
    """
    require_writable(json_path)
    with working() as bar:
        bar.phase("building the problem")
        from thalweg.curvature.spectrum_record import spectrum

        opened = open_problem(problem, checkpoint, seed)
        found = spectrum(opened, seed=seed, progress=bar)
    give_out(found, json_path)
