"""``thalweg compare``: optimisers side by side, fairly."""

from __future__ import annotations

from pathlib import Path

import click

from thalweg.cli.options import require_writable, working
from thalweg.cli.studies import give_out_study, source_of, study_options
from thalweg.optim.registry import COMMON

__all__ = ["command"]


@click.command("compare")
@study_options
@click.option(
    "--optimizers",
    default=",".join(COMMON),
    show_default=True,
    metavar="A,B,…",
    help="Names of `thalweg train --help`, or package.module:Class.",
)
@click.option(
    "--rates",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Learning rates of each method, half a decade apart around its default.",
)
@click.option(
    "--epochs",
    type=float,
    default=30,
    show_default=True,
    help="What a run may spend, in gradient-equivalents: epochs of a first-order method.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Examples a step; the default is the loader's own."
)
def command(
    problem: str,
    output: Path | None,
    executor: str,
    seeds: int,
    seed: int,
    html_path: Path | None,
    json_path: str | None,
    optimizers: str,
    rates: int,
    epochs: float,
    batch_size: int | None,
) -> None:
    """Compare optimisers on PROBLEM: same starts, same batches, same tuning, and an honest verdict.

    Learning rates are chosen on validation data, with seeds of their own; what is reported are held-out data.

    \b
    thalweg compare digits-mlp
    thalweg compare sparse-clicks --optimizers sgd,adagrad,rmsprop,adam
    thalweg compare train.py:problem --optimizers adam,mine:MyOptimizer --output study
    """
    require_writable(json_path, html_path)
    folder = source_of(problem, output, "compare")
    with working() as bar:
        bar.phase("getting ready")
        from thalweg.studies.compare import compare

        found = compare(
            problem,
            [name.strip() for name in optimizers.split(",")],
            seeds=seeds,
            rates=rates,
            epochs=epochs,
            batch_size=batch_size,
            folder=folder,
            executor=executor,
            seed=seed,
            progress=bar,
        )
    give_out_study(found, folder, "compare", json_path, html_path)
