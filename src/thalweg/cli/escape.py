"""``thalweg escape``: leave a saddle, if held-out data confirm the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from thalweg.cli.options import (
    give_out,
    open_problem,
    problem_options,
    require_weights,
    require_writable,
    working,
)

__all__ = ["command"]


@click.command("escape")
@problem_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the new weights: .safetensors, .pt, .pth, .ckpt; never over a file. The default is "
    "NAME.escaped.safetensors beside the checkpoint or, without one, in this folder.",
)
def command(
    problem: str, checkpoint: Path | None, seed: int, json_path: str | None, output: Path | None
) -> None:
    """Move the weights of PROBLEM out of a saddle, if held-out data confirm the way out.

    The weights move only where data that had no part in the search confirm, at 99 %, that the loss falls:
    the held-out data or, without any, half of the training batches. The new weights go to a file of their
    own; the checkpoint stays as it is. Otherwise nothing is written, and the answer says why.

    ESCAPED says that the way led out of something; MOVED, that as many ordinary gradient steps buy half of
    the gain or more, so that training gets there as well; STAYED, that nothing was changed.

    \b
    thalweg escape digits-saddle
    thalweg escape train.py:problem --checkpoint last.safetensors
    thalweg escape train.py:problem --checkpoint last.pt --output onward.pt --json -
    """
    from thalweg.diagnosis.escape import escape
    from thalweg.problem.saving import require_free, save_weights

    target = output or _beside(problem, checkpoint)
    require_writable(json_path)
    require_free(target)
    with working() as bar:
        bar.phase("building the problem")
        opened = open_problem(problem, checkpoint, seed)
        require_weights(opened, output)
        escaped = escape(opened, seed=seed, progress=bar)
        if escaped.applied and opened.model is not None:
            escaped = replace(escaped, saved_to=str(save_weights(opened.model, target)))
    give_out(escaped, json_path)


def _beside(problem: str, checkpoint: Path | None) -> Path:
    """Return the default output: last.pt → last.escaped.safetensors, train.py:problem → train.escaped…."""
    if checkpoint is not None:
        return checkpoint.with_name(f"{checkpoint.stem}.escaped.safetensors")
    place = problem.rpartition(":")[0] or problem
    name = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return Path(f"{name}.escaped.safetensors")
