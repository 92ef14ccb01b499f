"""One-step secant: memoryless BFGS at every step, conjugate gradients on quadratics, published counts."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import line_search, rosen, rosen_der

from tests.optim.descending import (
    descend,
    quadratic,
    quadratic_loss,
    rosenbrock,
    rosenbrock_start,
    spied,
)
from thalweg.optim.nonlinear_conjugate_gradient import NonlinearConjugateGradient
from thalweg.optim.one_step_secant import OneStepSecant, one_step_secant


def memoryless_bfgs(g, s, y):
    rho, eye = 1 / (s @ y), np.eye(len(g))
    left = eye - rho * np.outer(s, y)
    return -(left @ left.T + rho * np.outer(s, s)) @ g


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(0, 10**6))
def test_the_direction_is_memoryless_bfgs(n, seed):
    rng = np.random.default_rng(seed)
    g, s = rng.normal(size=(2, n))
    y = s * rng.uniform(0.1, 10, n)
    ours = one_step_secant(torch.tensor(g), torch.tensor(s), torch.tensor(y)).numpy()
    wanted = memoryless_bfgs(g, s, y)
    assert np.abs(ours - wanted).max() <= 1e-12 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("search", ["strong_wolfe", "backtracking"])
def test_every_step_of_a_run_goes_along_memoryless_bfgs(search):
    seen = []

    def make(parameters):
        optimizer = OneStepSecant(parameters, line_search=search)
        seen.extend([spied(optimizer)])
        return optimizer

    run = descend(make, rosenbrock, rosenbrock_start(10), 40)
    directions, secants = seen[0], 0
    for k, (gradient, direction) in enumerate(directions):
        assert np.array_equal(gradient, run.gradients[k])
        if k % 10 == 0:  # anew every n steps
            assert np.array_equal(direction, -gradient)
            continue
        s, y = run.positions[k] - run.positions[k - 1], run.gradients[k] - run.gradients[k - 1]
        wanted = memoryless_bfgs(gradient, s, y)
        assert np.abs(direction - wanted).max() <= 1e-12 * np.abs(wanted).max()
        moved = run.positions[k + 1] - run.positions[k]
        assert np.allclose(moved, run.steps[k].details["step_length"] * direction, atol=1e-14)
        secants += 1
    assert secants == 36


@pytest.mark.parametrize("n", range(1, 21))
def test_a_quadratic_is_finished_in_n_steps(n):
    matrix, b, start = quadratic(np.linspace(1, 10, n))
    run = descend(lambda p: OneStepSecant(p, c1=1e-9, c2=1e-8), quadratic_loss(matrix, b), start, n)
    assert np.linalg.norm(run.gradients[-1]) <= 1e-7 * np.linalg.norm(run.gradients[0])


def test_on_a_quadratic_it_is_the_conjugate_gradient_method():
    matrix, b, start = quadratic(np.linspace(1, 10, 8))
    exact = {"c1": 1e-9, "c2": 1e-8}
    secant = descend(lambda p: OneStepSecant(p, **exact), quadratic_loss(matrix, b), start, 6)
    conjugate = descend(lambda p: NonlinearConjugateGradient(p, **exact), quadratic_loss(matrix, b), start, 6)
    assert np.allclose(secant.positions, conjugate.positions, atol=1e-7)


class TestCounts:
    """The count on Rosenbrock belongs to the line search: 19 with scipy's from α = 1, 35 from (3.60)."""

    @staticmethod
    def with_scipy(n, repeat):
        """Return iterations and evaluations with our directions and scipy's line search."""
        x, evaluations = rosenbrock_start(n), [0]

        def value(z):
            evaluations[0] += 1
            return rosen(z)

        f, g, before, s, y = value(x), rosen_der(x), None, None, None
        for k in range(1000):
            if np.linalg.norm(g) < 1e-6:
                return k, evaluations[0]
            d = -g if k % n == 0 else one_step_secant(*map(torch.tensor, (g, s, y))).numpy()
            before = (f + np.linalg.norm(g) / 2 if before is None else before) if repeat else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                step = line_search(value, rosen_der, x, d, g, f, before, c1=1e-4, c2=0.1, maxiter=50)[0]
            s, y = step * d, rosen_der(x + step * d) - g
            before, x, f, g = f, x + s, rosen(x + s), g + y
        raise AssertionError

    @pytest.mark.parametrize(("n", "iterations", "evaluations"), [(2, 19, 129), (10, 120, 939)])
    def test_our_directions_with_scipys_search_from_one(self, n, iterations, evaluations):
        its, f = self.with_scipy(n, repeat=False)
        assert its == pytest.approx(iterations, rel=0.2)
        assert f == pytest.approx(evaluations, rel=0.2)

    @pytest.mark.parametrize(("n", "iterations"), [(2, 34), (10, 106)])
    def test_our_own_search_needs_as_many_steps_as_scipys_and_fewer_evaluations(self, n, iterations):
        run = descend(
            lambda p: OneStepSecant(p, tolerance_grad=1e-6, full_batch=True),
            rosenbrock,
            rosenbrock_start(n),
            500,
        )
        its, f = self.with_scipy(n, repeat=True)
        assert len(run.taken) == pytest.approx(iterations, rel=0.2)
        assert len(run.taken) == pytest.approx(its, rel=0.2)
        assert run.evaluations < f
        assert run.steps[-1].loss < 1e-12


def test_no_curvature_along_the_step_means_the_gradient_next():
    """On a concave stretch sᵀy < 0, and a secant direction would lead up."""
    run = descend(
        lambda p: OneStepSecant(p, line_search="backtracking"),
        lambda x: torch.cos(x[0]) + x[1] ** 2 / 100,
        [0.3, 1.0],
        2,
    )
    s, y = run.positions[1] - run.positions[0], run.gradients[1] - run.gradients[0]
    assert s @ y < 0
    assert run.steps[1].details["steepest"] == 1
