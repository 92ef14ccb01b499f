"""Tiles computed by an executor: a bounded number in flight, each result checked where it arises."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError, NumericalError, ThalwegError
from thalweg.kernels.tile_files import Tile

__all__ = ["evaluate", "results"]

Task = tuple[Callable[..., NDArray[Any]], tuple[Any, ...]]
_UNKNOWN_WORKERS = 32
_PATIENCE = 10.0  # seconds without a tile, after which it is asked whether there are workers at all


def evaluate(
    kernel: Callable[..., NDArray[Any]], tile: Tile, rows: NDArray[Any], columns: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return the values of a tile, checked: shape, numbers, a diagonal that is not negative.

    Raises:
        InputError: when the kernel returns another shape.
        NumericalError: when it returns NaN or infinity, or a negative diagonal.
    """
    values = np.asarray(kernel(rows) if columns is None else kernel(rows, columns))
    if values.shape != tile.shape:
        raise InputError(
            "the kernel returned an array of the wrong shape", expected=str(tile.shape), got=str(values.shape)
        )
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if not np.isfinite(values).all():
        row, column = (int(k[0]) for k in np.nonzero(~np.isfinite(values)))
        raise NumericalError(
            "the kernel is not finite",
            got=f"{values[row, column]} for the examples {tile.rows[0] + row} and {tile.columns[0] + column}",
            hint="look at these two examples; scale the data to unit variance",
        )
    if columns is None and (np.diagonal(values) < 0).any():
        row = int(np.argmin(np.diagonal(values)))
        raise NumericalError(
            "this is not a kernel: an example has a negative product with itself",
            got=f"{values[row, row]:.3g} for example {tile.rows[0] + row}",
        )
    return values


def results(
    executor: Executor | None, task: Callable[[Tile], Task], tiles: list[Tile]
) -> Iterator[tuple[Tile, NDArray[Any]]]:
    """Yield tiles with their values as they are finished; twice as many as workers are in flight at most.

    A cluster without workers is waited for, since they may join later; a warning says so.

    Raises:
        ThalwegError: when a worker dies; whatever a tile raised.
    """
    if executor is None:
        for tile in tiles:
            function, arguments = task(tile)
            yield tile, function(*arguments)
        return
    waiting = iter(tiles)
    flying: dict[Future[NDArray[Any]], Tile] = {}
    try:
        while True:
            window = 2 * max(1, _workers(executor))  # a cluster may grow, and shrink
            for tile in itertools.islice(waiting, max(0, window - len(flying))):
                function, arguments = task(tile)
                flying[executor.submit(function, *arguments)] = tile
            if not flying:
                return
            finished = _first_finished(flying, executor)
            while finished:
                # Nothing may hold on to a finished future: a scheduler computes again what somebody wants and
                # a dying worker took along.
                future = finished.pop()
                tile, values = flying.pop(future), future.result()
                del future
                yield tile, values
    except BrokenExecutor as error:
        raise _death(error) from error
    except Exception as error:
        if type(error).__name__ in {"KilledWorker", "CancelledError", "FutureCancelledError"}:
            raise _death(error) from error
        raise
    finally:
        for future in flying:
            future.cancel()


def _first_finished(flying: Iterable[Future[NDArray[Any]]], executor: Executor) -> set[Future[NDArray[Any]]]:
    """Wait until at least one is finished, and say so when there is nobody to finish it."""
    warned = False
    while True:
        finished = wait(flying, timeout=_PATIENCE, return_when=FIRST_COMPLETED).done
        if finished:
            return finished
        if not warned and _workers(executor) == 0:
            warned = True
            warnings.warn(
                "the cluster has no workers: waiting until one joins. Stopped here, the same call goes on",
                RuntimeWarning,
                stacklevel=2,
            )


def _workers(executor: Executor) -> int:
    """Return how many work at once. Pools know; Dask's executor knows through its client."""
    count = getattr(executor, "_max_workers", None)
    if isinstance(count, int):
        return count
    client = getattr(executor, "_client", None)
    return sum(client.ncores().values()) if client is not None else _UNKNOWN_WORKERS


def _death(error: BaseException) -> ThalwegError:
    return ThalwegError(
        "a worker died while it computed a tile",
        got=f"{type(error).__name__}: {error}",
        cause="it was killed, most often for want of memory",
        hint="run it again with fewer workers or smaller tiles: the tiles that are there stay",
    )
