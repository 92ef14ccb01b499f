"""``thalweg train``: train a problem, show the loss curve, write the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from thalweg.cli.options import (
    give_out,
    open_problem,
    problem_options,
    require_weights,
    require_writable,
    working,
)
from thalweg.optim.registry import get, names

__all__ = ["command"]


class _BatchSize(click.ParamType[int | Literal["all"]]):
    name = "batch size"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["all"]:
        if value == "all":
            return "all"
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of examples nor all", param, ctx)
        return int(value)


def _listed() -> str:
    return "\b\nOptimisers:\n" + "\n".join(f"  {name:<28}{summary}" for name, summary in names().items())


@click.command("train", epilog=_listed())
@problem_options
@click.option(
    "--optimizer",
    default="adam",
    show_default=True,
    metavar="NAME",
    help="One of those below, or package.module:Class of any other library.",
)
@click.option(
    "--lr", type=float, metavar="X", help="Learning rate; the default is the optimiser's, where it has one."
)
@click.option(
    "--batch-size",
    type=_BatchSize(),
    metavar="N",
    help="Examples a step: 1 is online, all is batch learning. The default is the loader's own, or all where "
    "the optimiser is meant for that.",
)
@click.option(
    "--epochs", type=click.IntRange(min=0), metavar="E", help="Passes over the data; 20 by default."
)
@click.option("--steps", type=click.IntRange(min=0), metavar="N", help="Steps, in place of epochs.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the weights: .safetensors, or .pt (.pth, .ckpt) with the optimiser's state, from "
    "which --checkpoint goes on; never over a file. Without it nothing is written.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Record what happens along the way, for thalweg show, and keep the state to go on from.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    metavar="X",
    help="What recording may take, relative to the time of training.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the training in --record, as if it had not been interrupted."
)
def command(
    problem: str,
    checkpoint: Path | None,
    seed: int,
    json_path: str | None,
    optimizer: str,
    lr: float | None,
    batch_size: int | Literal["all"] | None,
    epochs: int | None,
    steps: int | None,
    output: Path | None,
    record: Path | None,
    budget: float,
    resume: bool,
) -> None:
    """Train PROBLEM and show how the loss went, on the training and the held-out data.

    The weights at the end go to a file of their own; a checkpoint stays as it is.

    \b
    thalweg train digits-started --optimizer lamb --lr 0.01 --batch-size 256 --epochs 10
    thalweg train train.py:problem --output trained.safetensors
    thalweg train train.py:problem --checkpoint last.pt --steps 500 --output onward.pt --json -
    thalweg train digits-cnn --epochs 100 --record runs/a         and after a kill the same with --resume
    """
    from thalweg.problem.saving import require_free, save_training

    require_writable(json_path)
    get(optimizer)
    if epochs is not None and steps is not None:
        raise click.BadParameter("give --epochs or --steps, not both", param_hint="--steps")
    if resume and record is None:
        raise click.BadParameter("name the training to go on with: --record FOLDER", param_hint="--resume")
    if output is not None:
        require_free(output)
    with working() as bar:
        bar.phase("building the problem")
        from thalweg.training.loop import train

        opened = open_problem(problem, checkpoint, seed)
        require_weights(opened, output)
        trajectory = train(
            opened,
            optimizer,
            lr=lr,
            batch_size=batch_size,
            epochs=epochs,
            steps=steps,
            seed=seed,
            record=record,
            resume=resume,
            budget=budget,
            progress=bar,
        )
        if output is not None and opened.model is not None:
            saved = save_training(opened.model, trajectory.optimizer_state, output)
            trajectory = replace(trajectory, saved_to=str(saved))
    give_out(trajectory, json_path)
