"""Leave-one-out, GCV and the solution, against doing it the long way."""

import numpy as np
import pytest

import thalweg.kernels.ridge as ridge_module
import thalweg.kernels.room as room
from thalweg.errors import InputError, NumericalError
from thalweg.kernels import ntk
from thalweg.kernels.ridge import RIDGES, choose_ridge, decompose, solve


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    y = np.stack([np.sin(2 * x[:, 0]), x[:, 1] * x[:, 2]], axis=1) + 0.1 * rng.normal(size=(30, 2))
    return ntk(x, depth=3), y


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
def test_the_solution_solves_the_system(problem, ridge):
    kernel, y = problem
    found = solve(decompose(kernel), y, ridge)
    system = kernel + ridge * np.trace(kernel) / 30 * np.eye(30)
    assert np.allclose(system @ found.coefficients, y, rtol=1e-10)
    assert np.allclose(found.inverse_diagonal, np.diag(np.linalg.inv(system)), rtol=1e-8)


def test_leave_one_out_is_what_solving_without_each_example_predicts(problem):
    kernel, y = problem
    ridge = 1e-3
    found = solve(decompose(kernel), y, ridge).leave_one_out
    for i in range(30):
        rest = np.delete(np.arange(30), i)
        system = kernel[np.ix_(rest, rest)] + ridge * np.trace(kernel) / 30 * np.eye(29)
        assert np.allclose(
            found[i], kernel[i, rest] @ np.linalg.solve(system, y[rest]), rtol=1e-8, atol=1e-10
        )


def test_the_criteria_are_their_formulas(problem):
    kernel, y = problem
    eigen = decompose(kernel)
    loo, gcv = choose_ridge(eigen, y, "loo"), choose_ridge(eigen, y, "gcv")
    for k, ridge in enumerate(loo.ridges):
        system = kernel + ridge * np.trace(kernel) / 30 * np.eye(30)
        inverse = np.linalg.inv(system)
        errors = (inverse @ y) / np.diag(inverse)[:, None]
        assert loo.errors[k] == pytest.approx(np.mean(np.sum(errors**2, axis=1)), rel=1e-5)
        score = np.sum((inverse @ y) ** 2) / 30 / (np.trace(inverse) / 30) ** 2
        assert gcv.errors[k] == pytest.approx(score, rel=1e-5)
    for choice in (loo, gcv):
        assert choice.ridge == choice.ridges[np.argmin(choice.errors)]


def test_targets_along_the_weakest_direction_want_all_the_ridge_there_is(problem):
    kernel, y = problem
    eigen = decompose(kernel)
    assert choose_ridge(eigen, eigen.vectors[:, :1]).at_edge
    assert not choose_ridge(eigen, y).at_edge


@pytest.mark.parametrize("criterion", ["loo", "gcv"])
def test_no_scale_of_the_kernel_changes_the_choice(problem, criterion):
    kernel, y = problem
    small, large = (choose_ridge(decompose(c * kernel), y, criterion) for c in (1e-6, 1e6))
    assert small.ridge == large.ridge


def test_a_kernel_in_float32_gets_no_ridge_below_its_rounding(problem):
    kernel, y = problem
    fine, coarse = (choose_ridge(decompose(kernel.astype(dtype)), y) for dtype in ("f8", "f4"))
    assert fine.ridges[0] == RIDGES[0]
    assert coarse.ridges[0] > 30 * np.finfo(np.float32).eps


def test_without_a_ridge_equal_examples_are_no_trouble(problem):
    kernel, y = problem
    twice = np.r_[np.arange(30), 3]
    found = solve(decompose(kernel[np.ix_(twice, twice)]), y[twice], 0.0)
    assert np.allclose(kernel[np.ix_(twice, twice)] @ found.coefficients, y[twice], atol=1e-8)


def test_one_example():
    eigen = decompose(np.array([[4.0]]))
    assert solve(eigen, np.array([[2.0]]), 0.0).coefficients == pytest.approx(np.array([[0.5]]))
    assert solve(eigen, np.array([[2.0]]), 1.0).leave_one_out == pytest.approx(np.array([[0.0]]))


class TestRefusals:
    @pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones((0, 0)), np.array([[1.0, 0.5], [0.1, 1.0]])])
    def test_what_is_no_kernel_matrix(self, bad):
        with pytest.raises(InputError):
            decompose(bad)

    def test_nan_zero_and_indefinite(self):
        for bad in (np.full((2, 2), np.nan), np.zeros((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0]])):
            with pytest.raises(NumericalError):
                decompose(bad)

    def test_more_examples_than_lapack_can(self, monkeypatch):
        monkeypatch.setattr(ridge_module, "_LAPACK_LIMIT", 3)
        with pytest.raises(InputError, match="at most 3 examples; got: 4"):
            decompose(np.eye(4))

    def test_more_than_fits_into_memory(self, monkeypatch):
        monkeypatch.setattr(room, "available_memory", lambda: 100)
        with pytest.raises(InputError, match="expected: 384 B free; got: 100 B"):
            decompose(np.eye(4))

    @pytest.mark.parametrize("ridge", [-1e-3, np.nan, np.inf])
    def test_a_ridge_that_is_none(self, problem, ridge):
        kernel, y = problem
        with pytest.raises(InputError, match="the ridge"):
            solve(decompose(kernel), y, ridge)
