"""The trial that both studies are made of: nets trained by one optimiser with one batch size, followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thalweg.errors import InputError
from thalweg.studies.setting import Setting, trained

__all__ = ["RunsTrial", "runs_or_refusal"]


@dataclass(frozen=True)
class RunsTrial:
    """Runs that end on disk together; see `thalweg.studies.execution.Trial`, and `trained` for the rest."""

    key: str
    size: float
    problem_seed: int
    optimizer: str
    nets: tuple[tuple[int, float | None], ...]
    batch_size: int
    at: tuple[float, ...]
    choosing: bool


def runs_or_refusal(setting: Setting, trial: RunsTrial) -> dict[str, Any]:
    """Run the nets; return what JSON can say of them, or why the optimiser cannot train them."""
    try:
        runs, _, why = trained(
            setting,
            trial.optimizer,
            trial.nets,
            batch_size=trial.batch_size,
            at=trial.at,
            choosing=trial.choosing,
        )
    except InputError as error:
        return {"refused": str(error)}
    return {"runs": [run.to_plain() for run in runs], "why": why}
