"""Real tables: deep factorisation beside the bias baseline, the nuclear norm and scikit-learn's imputers.

    python benchmarks/bench_completion_tables.py                       # every table
    python benchmarks/bench_completion_tables.py seattle gdp
    python benchmarks/bench_completion_tables.py --movielens ml-100k   # a folder or file of your own

Five-fold cross-validation over the observed entries, the same folds for every method; root mean squared
errors with 95 % intervals that allow for rows and columns having effects of their own. The imputers run
where they can.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from thalweg.completion import EntryKFold, Observations, complete, load_movielens, observed
from thalweg.completion.folds import mean_over_entries

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
FOLDS = 5


def thinned(dense: np.ndarray, share: float) -> Observations:
    """Keep a random share of what is known."""
    seen = ~np.isnan(dense) & (np.random.default_rng(0).random(dense.shape) < share)
    return observed(np.where(seen, dense, np.nan))


def held(name: str) -> Any:
    return np.load(DATA / name, allow_pickle=False)


def seattle() -> Observations:
    """Hourly temperature normals, days by hours, 30 % of them kept."""
    return thinned(held("seattle_hourly_normals.npz")["temperature_c"].astype(float), 0.3)


def parking() -> Observations:
    """Occupancy of Birmingham's car parks, car park and day by time of day; 0 is missing; half of it kept."""
    cube = held("transdim_tensors.npz")["birmingham_parking"].astype(float)
    dense = cube.reshape(-1, cube.shape[-1])
    dense[dense == 0] = np.nan
    return thinned(dense[~np.isnan(dense).all(axis=1)], 0.5)


def gdp() -> Observations:
    """The logarithm of gross domestic products, countries by years, all that is known."""
    return observed(np.log(held("worldbank_gdp.npz")["gdp_usd"].astype(float)))


def tweetings() -> Observations:
    """Film ratings from 0 to 10, users by films."""
    file = held("movietweetings100k.npz")
    return Observations.from_triplets(file["user"], file["item"], file["rating"], duplicates="mean")


# name -> entries, bounds of the predictions, rank cap, whether imputers can hold the dense matrix
TABLES: dict[str, tuple[Callable[[], Observations], tuple[float, float] | None, int, bool]] = {
    "seattle": (seattle, None, 32, True),
    "parking": (parking, None, 32, True),
    "gdp": (gdp, None, 32, True),
    "tweetings": (tweetings, (0, 10), 16, False),
}


def imputed(entries: Observations, make: Callable[[], Any]) -> np.ndarray:
    """Return the squared errors of an imputer on our folds."""
    fold, errors = EntryKFold(FOLDS).assigned(entries.rows), np.empty(len(entries))
    for k in range(FOLDS):
        kept, out = entries.part(fold != k), entries.part(fold == k)
        dense = np.full(entries.shape, np.nan)
        dense[kept.rows, kept.columns] = kept.values
        filled = make().fit_transform(dense)
        errors[fold == k] = (filled[out.rows, out.columns] - out.values) ** 2
    return errors


def run(name: str, entries: Observations, clip: Any, cap: int, dense: bool) -> None:
    begun = time.perf_counter()
    found = complete(entries, name=name, folds=FOLDS, compare=True, rank_cap=cap, clip=clip)
    graph = found.graph
    print(f"\n{name}: {entries.shape[0]:,} × {entries.shape[1]:,}, {len(entries):,} entries, ", end="")
    print(
        f"spread {found.unit:.3g}; rank {found.rank}, {graph.entries_per_freedom(max(found.rank, 1)):.1f} ",
        end="",
    )
    print(f"entries per degree of freedom; {time.perf_counter() - begun:.0f} s")
    rows = [(c.name + (" ←" if c.depth == found.depth else ""), c.mse) for c in found.candidates]
    imputers = {
        "IterativeImputer": lambda: IterativeImputer(keep_empty_features=True, random_state=0),
        "KNNImputer": lambda: KNNImputer(keep_empty_features=True),
    }
    for label, make in imputers.items() if dense else ():
        begun = time.perf_counter()
        mse = mean_over_entries(imputed(entries, make), entries.rows, entries.columns)
        rows.append((f"{label}, {time.perf_counter() - begun:.0f} s", mse))
    for label, mse in rows:
        low, high = (max(x, 0) ** 0.5 for x in mse.interval())
        print(f"  {label:34}{mse.value**0.5:9.4f}   ({low:.4f} … {high:.4f})", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="all of them without")
    parser.add_argument("--movielens", type=Path, help="u.data, ratings.csv or ratings.dat, or their folder")
    options = parser.parse_args()
    if options.movielens:
        entries = load_movielens(options.movielens).observations
        bounds = (float(entries.values.min()), float(entries.values.max()))
        run(options.movielens.name, entries, bounds, 16, False)
        return 0
    if not DATA.is_dir():
        print(f"the tables are not here: {DATA}")
        return 1
    for name in options.tables or TABLES:
        make, clip, cap, dense = TABLES[name]
        run(name, make(), clip, cap, dense)
    return 0


if __name__ == "__main__":
    sys.exit(main())
