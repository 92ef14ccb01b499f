"""Complete matrices of which some entries are known: deep factorisation and the nuclear norm.

The names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.first_use import on_first_use

if TYPE_CHECKING:
    from thalweg.completion.deep import DeepMatrixFactorization
    from thalweg.completion.descent_record import Descent
    from thalweg.completion.folds import EntryKFold
    from thalweg.completion.graph import ObservationGraph, observation_graph
    from thalweg.completion.movielens import load_movielens
    from thalweg.completion.nuclear import NuclearNormCompletion
    from thalweg.completion.observations import Observations, observed, observed_pairs
    from thalweg.completion.sweeps import Sweep, sweep
    from thalweg.completion.table_completion import TableCompletion, complete

_HOMES = {
    "DeepMatrixFactorization": "deep",
    "Descent": "descent_record",
    "EntryKFold": "folds",
    "NuclearNormCompletion": "nuclear",
    "ObservationGraph": "graph",
    "Observations": "observations",
    "Sweep": "sweeps",
    "TableCompletion": "table_completion",
    "complete": "table_completion",
    "load_movielens": "movielens",
    "observation_graph": "graph",
    "observed": "observations",
    "observed_pairs": "observations",
    "sweep": "sweeps",
}

__all__ = [
    "DeepMatrixFactorization",
    "Descent",
    "EntryKFold",
    "NuclearNormCompletion",
    "ObservationGraph",
    "Observations",
    "Sweep",
    "TableCompletion",
    "complete",
    "load_movielens",
    "observation_graph",
    "observed",
    "observed_pairs",
    "sweep",
]


__getattr__ = on_first_use("thalweg.completion", _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
