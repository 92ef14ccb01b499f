"""Complete matrices of which some entries are known: deep factorisation and the nuclear norm.

The names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.completion.complete import TableCompletion, complete
    from thalweg.completion.deep import DeepMatrixFactorization
    from thalweg.completion.descent_record import Descent
    from thalweg.completion.folds import EntryKFold
    from thalweg.completion.graph import ObservationGraph, observation_graph
    from thalweg.completion.movielens import load_movielens
    from thalweg.completion.nuclear import NuclearNormCompletion
    from thalweg.completion.observations import Observations, observed, observed_pairs
    from thalweg.completion.sweep import Sweep, sweep

_HOMES = {
    "DeepMatrixFactorization": "deep",
    "Descent": "descent_record",
    "EntryKFold": "folds",
    "NuclearNormCompletion": "nuclear",
    "ObservationGraph": "graph",
    "Observations": "observations",
    "Sweep": "sweep",
    "TableCompletion": "complete",
    "complete": "complete",
    "load_movielens": "movielens",
    "observation_graph": "graph",
    "observed": "observations",
    "observed_pairs": "observations",
    "sweep": "sweep",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'thalweg.completion' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"thalweg.completion.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
