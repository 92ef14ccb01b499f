"""``thalweg batch-size``: what the batch size costs, buys and changes."""

from __future__ import annotations

from pathlib import Path

import click

from thalweg.cli.options import require_writable, working
from thalweg.cli.studies import give_out_study, numbers, source_of, study_options

__all__ = ["command"]


@click.command("batch-size")
@study_options
@click.option(
    "--sizes", metavar="1,4,…", help="Batch sizes; the default is 1, 4, 16, … and all the examples."
)
@click.option("--optimizer", default="sgd", show_default=True, help="Whose steps are taken.")
@click.option(
    "--rates",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Learning rates tried at each size, half a decade apart.",
)
@click.option(
    "--epochs", type=float, default=10, show_default=True, help="At which equal epochs are compared."
)
@click.option(
    "--updates",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="At which equal updates are.",
)
def command(
    problem: str,
    output: Path | None,
    executor: str,
    seeds: int,
    seed: int,
    html_path: Path | None,
    json_path: str | None,
    sizes: str | None,
    optimizer: str,
    rates: int,
    epochs: float,
    updates: int,
) -> None:
    """Study batch sizes on PROBLEM, from one example a step to all of them.

    Time and its parallel limit, accuracy at equal epochs and at equal updates, the critical batch and the
    noise scale, sharpness of small- and large-batch solutions, LAMB and LARS; and what size to take.

    \b
    thalweg batch-size digits-cnn
    thalweg batch-size train.py:problem --sizes 8,64,512 --optimizer momentum --output study
    """
    require_writable(json_path, html_path)
    folder = source_of(problem, output, "batch-size")
    with working() as bar:
        bar.phase("getting ready")
        from thalweg.studies.batch_size import batch_size

        found = batch_size(
            problem,
            numbers(sizes) if sizes is not None else None,
            optimizer=optimizer,
            seeds=seeds,
            rates=rates,
            epochs=epochs,
            updates=updates,
            folder=folder,
            executor=executor,
            seed=seed,
            progress=bar,
        )
    give_out_study(found, folder, "batch-size", json_path, html_path)
