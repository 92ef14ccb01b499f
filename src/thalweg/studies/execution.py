"""Who runs the trials of a study: this process, processes here, a Dask cluster, any executor."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from thalweg.errors import InputError, ThalwegError
from thalweg.problem.loading import load_problem
from thalweg.problem.problem import Problem
from thalweg.progress import Progress
from thalweg.studies.trial_folder import TrialFolder

__all__ = ["ExecutorChoice", "Trial", "opened", "require_executor", "run_trials"]

ExecutorChoice = str | Executor
Source = str | Problem
_KINDS = "serial, processes, processes:N, dask://host:port, or a concurrent.futures.Executor"
_SECONDS = 0.5  # between two looks at what has ended


class Trial(Protocol):
    """A piece of work that ends on disk: picklable; its result depends on it and the problem alone."""

    @property
    def key(self) -> str:
        """Its name in the study."""

    @property
    def size(self) -> float:
        """About how long it takes, in any unit."""


Work = Callable[[Problem, Any], dict[str, Any]]


class _Serial(Executor):
    """Runs what is submitted at once, here."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


def require_executor(choice: ExecutorChoice) -> None:
    """Refuse what is no executor before the work begins.

    Raises:
        InputError: for an unknown name.
    """
    if isinstance(choice, str):
        kind, _, number = choice.partition(":")
        if choice in {"serial", "processes"} or kind == "dask":
            return
        if kind == "processes" and number.isdecimal() and int(number) > 0:
            return
    elif hasattr(choice, "submit"):
        return
    raise InputError("there is no such executor", expected=_KINDS, got=repr(choice))


def run_trials(
    work: Work,
    source: Source,
    trials: Sequence[Trial],
    folder: TrialFolder,
    executor: ExecutorChoice,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Run the trials that have not ended yet; return the results of all by their key.

    Every trial runs on one thread, so that its numbers are the same wherever it runs; a result is written to
    the folder the moment it arrives.

    Raises:
        ThalwegError: where a trial fails, a result cannot be written, or a worker dies; what has ended by
            then stays in the folder.
    """
    results = {trial.key: found for trial in trials if (found := folder.finished(trial.key)) is not None}
    todo = sorted((t for t in trials if t.key not in results), key=lambda trial: -trial.size)
    total = sum(trial.size for trial in trials)
    done = total - sum(trial.size for trial in todo)
    progress.advance(done, total)
    if not todo:
        return results
    begun, before = time.monotonic(), done
    with _opened_executor(executor, len(todo)) as pool:
        waiting: dict[Future[dict[str, Any]], Trial] = {}
        queue = list(todo)
        width = 1 if isinstance(pool, _Serial) else len(queue)
        try:
            while queue or waiting:
                while queue and len(waiting) < width:
                    trial = queue.pop(0)
                    waiting[pool.submit(_on_one_thread, work, source, trial)] = trial
                ended, _ = concurrent.futures.wait(
                    waiting, timeout=_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    trial = waiting.pop(future)
                    result = _result(future, trial)
                    folder.keep(trial.key, result)
                    results[trial.key] = folder.finished(trial.key) or result
                    done += trial.size
                # between two results, by the pace so far
                pace = (done - before) / max(time.monotonic() - begun, 1e-9)
                progress.advance(min(done + (pace * _SECONDS if not ended else 0.0), total), total)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return results


def opened(source: Source, seed: int) -> Problem:
    """Return the problem that a source names, built once in a process."""
    if not isinstance(source, str):
        return source
    if (source, seed) not in _OPENED:
        _OPENED[source, seed] = load_problem(source, seed=seed)
    return _OPENED[source, seed]


_OPENED: dict[tuple[str, int], Problem] = {}


def _on_one_thread(work: Work, source: Source, trial: Any) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(opened(source, trial.problem_seed), trial)
    finally:
        torch.set_num_threads(threads)


def _result(future: Future[dict[str, Any]], trial: Trial) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ThalwegError(
            "a worker process died",
            cause="it ran out of memory, or was killed",
            hint="start again with the same folder, where finished trials are kept; with fewer processes "
            "(processes:1) if memory is short",
        ) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error).lower():
            raise
        raise InputError(
            "the problem cannot be sent to another process",
            got=str(error).splitlines()[0],
            hint="name it as file.py:function, or executor 'serial'",
        ) from error
    except CancelledError as error:
        raise ThalwegError(f"the trial {trial.key!r} was cancelled by its executor") from error


@contextmanager
def _opened_executor(choice: ExecutorChoice, trials: int) -> Iterator[Executor]:
    require_executor(choice)
    if not isinstance(choice, str):
        yield choice
        return
    kind, _, rest = choice.partition(":")
    if kind == "dask":
        with _dask(choice) as pool:
            yield pool
        return
    workers = int(rest) if rest else len(os.sched_getaffinity(0))
    if kind == "serial" or (workers == 1 and not rest) or trials == 1:
        yield _Serial()
        return
    pool = ProcessPoolExecutor(
        min(workers, trials), mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(
            "a Dask cluster needs the package 'distributed'", hint="pip install 'thalweg[dask]'"
        ) from error
    place = address.removeprefix("dask://")
    try:
        client: Any = _made(Client, f"tcp://{place}" if "://" not in place else place)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"there is no Dask scheduler at {place!r}",
            got=f"{type(error).__name__}: {error}",
            hint="start one with `dask scheduler`, and workers with `dask worker HOST:PORT --nthreads 1`",
        ) from error
    with client:
        yield client.get_executor()


def _made(kind: Any, address: str) -> Any:
    return kind(address, timeout=10)


def _end_with_parent() -> None:
    """Let a worker end when the study is killed; by itself it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
