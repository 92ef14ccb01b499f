"""Fits side by side leave BLAS with the threads it had."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from thalweg.completion.parallel import run_all


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS does not take two threads")
        yield


@pytest.mark.usefixtures("two_threads")
def test_blas_has_one_thread_within_and_what_it_had_afterwards():
    assert run_all([lambda share, stop: blas_threads()] * 3) == [{1}] * 3
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_a_task_that_raises_gives_the_threads_back():
    def fails(share, stop):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_all([fails, fails])
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_runs_on_two_threads_leave_blas_with_what_it_had():
    begun = threading.Barrier(2)

    def waits(share, stop):
        begun.wait(10)

    threads = [threading.Thread(target=run_all, args=([waits],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_a_run_within_a_run_leaves_the_outer_one_its_single_thread():
    def outer(share, stop):
        run_all([lambda share, stop: None])
        return blas_threads()

    assert run_all([outer]) == [{1}]
    assert blas_threads() == {2}
