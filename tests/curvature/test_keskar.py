"""Keskar's measure against closed forms and against every corner of a small box."""

import itertools
import math

import numpy as np
import pytest
import torch

from tests.models import symmetric
from thalweg.curvature.keskar import SUBSPACE, keskar_sharpness
from thalweg.errors import InputError, NumericalError
from thalweg.problem.function_objective import FunctionObjective

EPS = 1e-3


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def measure(function, start, **settings):
    objective = FunctionObjective(function, start)
    return keskar_sharpness(objective, start, **{"epsilon": EPS, "seed": 0, **settings})


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4])
@pytest.mark.parametrize("diagonal", [[2.0], [3.0, 0.5], [4.0, 1e-3, 0.0], [5.0, -2.0, 1.0, -7.0, 0.3]])
def test_a_diagonal_quadratic_at_its_critical_point_rises_in_the_corners(diagonal, epsilon):
    d = vector(*diagonal)
    found = measure(lambda x: 0.5 * (d * x**2).sum(), torch.zeros_like(d), epsilon=epsilon)
    expected = 50 * epsilon**2 * float(d.clamp_min(0).sum())
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.slope == 0
    assert found.resolved


def test_away_from_its_minimum_each_coordinate_takes_its_better_end():
    d, c, x = vector(2.0, 30.0, 0.1), vector(1.0, -2.0, 0.5), vector(1.01, -2.0, 3.0)
    found = measure(lambda t: 1.5 + 0.5 * (d * (t - c) ** 2).sum(), x)
    half = EPS * (x.abs() + 1)
    here = 1.5 + 0.5 * float((d * (x - c) ** 2).sum())
    rises = 0.5 * d * torch.maximum((x + half - c) ** 2, (x - half - c) ** 2) - 0.5 * d * (x - c) ** 2
    slope = float(((d * (x - c)).abs() * half).sum())
    assert found.value == pytest.approx(100 * float(rises.sum()) / (1 + here), rel=1e-6)
    assert found.slope == pytest.approx(100 * slope / (1 + here), rel=1e-9)
    assert found.at_bounds == 1


def test_a_linear_function_is_all_slope():
    a, x = vector(1.0, -2.0, 0.25), vector(0.5, 3.0, -4.0)
    found = measure(lambda t: 10 + a @ t, x)
    here = 10 + float(a @ x)
    expected = 100 * EPS * float((a.abs() * (x.abs() + 1)).sum()) / (1 + here)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.slope == pytest.approx(expected, rel=1e-9)


def test_a_maximum_inside_the_box_is_found():
    peak = vector(3e-4, -2e-4)
    found = measure(lambda t: 1 - 1e4 * ((t - peak) ** 2).sum(), torch.zeros(2, dtype=torch.float64))
    here = 1 - 1e4 * float((peak**2).sum())
    assert found.value == pytest.approx(100 * (1 - here) / (1 + here), rel=1e-6)
    assert found.at_bounds == 0


@pytest.mark.parametrize("seed", range(4))
def test_among_all_corners_it_finds_nearly_the_highest(seed):
    hessian = symmetric([8.0, 3.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.0, 0.0], seed=seed)
    n = len(hessian)
    corners = EPS * np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    highest = 50 * np.einsum("ki,ij,kj->k", corners, hessian.numpy(), corners).max()
    steepest = torch.linalg.eigh(hessian).eigenvectors[:, -1]
    found = measure(lambda t: 0.5 * t @ hessian @ t, torch.zeros(n, dtype=torch.float64), steepest=steepest)
    assert 0.95 * highest <= found.value <= highest * (1 + 1e-9)
    assert len(found.starts) == 4
    assert max(found.starts) == found.value


def test_the_search_is_of_ten_iterations_and_not_more_evaluations_than_it_says():
    hessian = symmetric(np.geomspace(1e-3, 10, 40))
    objective = FunctionObjective(lambda t: 0.5 * t @ hessian @ t, torch.zeros(40, dtype=torch.float64))
    found = keskar_sharpness(objective, objective.theta, epsilon=EPS, seed=0)
    spent = objective.ledger.gradient_equivalents
    assert spent == pytest.approx(found.num_evaluations * 4 / 3 + 4 / 3)  # here, and three nudges
    assert found.num_evaluations < 60


def test_a_maximum_does_not_rise():
    found = measure(lambda t: 1 - (t**2).sum(), torch.zeros(3, dtype=torch.float64))
    assert found.value == 0
    assert not found.resolved


def test_a_rise_below_the_rounding_of_the_loss_is_not_called_flat():
    def slight(t):
        return 1 + 1e-3 * (t**2).sum()

    coarse = measure(slight, torch.zeros(3))
    assert not coarse.resolved
    assert coarse.rounding > 100 * 0.5 * 1e-7
    fine = measure(slight, torch.zeros(3, dtype=torch.float64))
    assert fine.resolved
    assert fine.value == pytest.approx(100 * 3e-9 / 2, rel=1e-5)
    assert coarse.rounding > fine.value


class TestInARandomSubspace:
    @pytest.mark.parametrize("dimension", [1, 3, 7])
    def test_a_linear_function_has_a_closed_form(self, dimension):
        from thalweg.curvature.keskar import _basis

        a, x = vector(1, -2, 0.25, 3, 0, 1, 1), vector(0.5, 3, -4, 1, 1, 0, 2)
        basis = _basis(x, dimension, 0).numpy()
        half = EPS * (np.abs(np.linalg.pinv(basis) @ x.numpy()) + 1)
        expected = 100 * float(np.abs(basis.T @ a.numpy()) @ half) / (1 + 20 + float(a @ x))
        found = measure(lambda t: 20 + a @ t, x, dimension=dimension)
        assert found.value == pytest.approx(expected, rel=1e-6)
        assert found.dimension == dimension

    def test_a_sphere_rises_by_what_its_directions_are_long(self):
        n, p = 2000, 20
        found = measure(lambda t: 0.5 * (t**2).sum(), torch.zeros(n, dtype=torch.float64), dimension=p)
        # Nearly orthogonal columns of length √n: ½‖Ay‖² ≈ ½·n·p·ε² in each corner.
        assert found.value == pytest.approx(50 * n * p * EPS**2, rel=0.2)

    @pytest.mark.parametrize("dimension", [0, 8, SUBSPACE])
    def test_it_must_fit_into_the_space(self, dimension):
        with pytest.raises(InputError, match="subspace does not fit"):
            measure(lambda t: (t**2).sum(), torch.ones(7), dimension=dimension)


def test_a_loss_that_ends_within_the_box_has_no_finite_measure():
    def wall(t):
        return -torch.log(5e-4 - t).sum()

    found = measure(wall, torch.zeros(2, dtype=torch.float64))
    assert math.isinf(found.value)


def test_it_needs_a_loss_above_minus_one_that_is_finite():
    with pytest.raises(InputError, match="relative to 1 \\+ loss"):
        measure(lambda t: (t**2).sum() - 1, torch.zeros(2))
    with pytest.raises(NumericalError):
        measure(lambda t: torch.log(t).sum(), torch.zeros(2) - 1)


def test_a_search_that_would_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("thalweg.curvature.keskar.MEMORY", 1000)
    with pytest.raises(InputError, match="memory"):
        measure(lambda t: (t**2).sum(), torch.zeros(6))
    assert measure(lambda t: (t**2).sum(), torch.zeros(5)).value > 0


def test_a_seed_gives_the_same_again():
    hessian = symmetric(np.geomspace(1e-3, 10, 30))

    def once(seed):
        return measure(
            lambda t: 0.5 * t @ hessian @ t, torch.ones(30, dtype=torch.float64), seed=seed, dimension=5
        )

    # Sums depend on how memory happens to be aligned, so not to the last bit.
    assert once(3).value == pytest.approx(once(3).value, rel=1e-9)
    assert once(3).value != once(4).value
