import math

import numpy as np
import pytest
import torch
from scipy import optimize

from tests.models import mlp
from thalweg.errors import InputError
from thalweg.optim.dogleg import Dogleg, _propose, dogleg_step


def parameter(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def rosenbrock(p):
    return torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])


def gauss_newton(x):
    J = np.array([[-20 * x[0], 10], [-1, 0]])
    return 2 * J.T @ J


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("start", [[-1.2, 1.0], [3.0, -2.0], [-4.0, 7.0]])
def test_it_takes_scipys_steps_with_the_gauss_newton_matrix(start):
    p, points, seen = parameter(start), [], []
    optimizer = Dogleg([p], gradient_tolerance=1e-4)
    for _ in range(100):
        optimizer.step(lambda: rosenbrock(p))
        if optimizer.last.reason == "gradient below tolerance":
            break
        points.append(p.detach().numpy().copy())
    peer = optimize.minimize(
        *(optimize.rosen, start),
        jac=optimize.rosen_der,
        hess=gauss_newton,
        method="dogleg",
        callback=seen.append,
    )
    assert len(points) == peer.nit
    np.testing.assert_allclose(points, seen, rtol=0, atol=1e-9)


class TestTheModel:
    shapes = ((6, 4), (4, 6), (5, 5), (1, 3), (3, 1))

    @pytest.mark.parametrize("shape", shapes)
    @pytest.mark.parametrize("radius", [1e-3, 0.3, 1.0, 100.0])
    def test_the_step_stays_inside_and_gains_at_least_what_cauchy_does(self, shape, radius):
        jacobian, offset = random(*shape), random(shape[0], seed=1)
        gradient, matrix = 2 * jacobian.T @ offset, 2 * jacobian.T @ jacobian
        found = _propose(jacobian, offset, gradient, radius)
        step, norm = found.step, float(gradient.norm())
        assert float(step.norm()) <= radius * (1 + 1e-14)
        gain = -float(gradient @ step + step @ matrix @ step / 2)
        assert found.predicted == pytest.approx(gain, rel=1e-9)
        tau = min(1.0, norm**3 / (radius * float(gradient @ matrix @ gradient)))
        cauchy = -tau * radius / norm * gradient
        assert gain >= -float(gradient @ cauchy + cauchy @ matrix @ cauchy / 2) * (1 - 1e-12)

    @pytest.mark.parametrize("shape", shapes)
    def test_far_from_the_boundary_it_is_the_shortest_least_squares_solution(self, shape):
        jacobian, offset = random(*shape), random(shape[0], seed=1)
        found = _propose(jacobian, offset, 2 * jacobian.T @ offset, 1e6)
        expected = -np.linalg.lstsq(jacobian.numpy(), offset.numpy(), rcond=None)[0]
        np.testing.assert_allclose(found.step, expected, atol=1e-10)

    def test_the_three_parts_of_the_path(self):
        cauchy = torch.tensor([1.0, 0.0], dtype=torch.float64)
        newton = torch.tensor([1.0, 2.0], dtype=torch.float64)
        assert dogleg_step(cauchy, newton, 3.0)[0].tolist() == [1, 2]
        assert dogleg_step(cauchy, newton, 0.5)[0].tolist() == [0.5, 0]
        step, on_boundary = dogleg_step(cauchy, newton, math.sqrt(2))
        np.testing.assert_allclose(step, [1, 1], atol=1e-14)
        assert on_boundary


class TestSingularModels:
    def test_more_parameters_than_residuals(self):
        p = parameter([3.0, 1.0, -2.0])
        optimizer = Dogleg([p])
        for _ in range(20):
            optimizer.step(lambda: (p**2).sum().reshape(1) - 1)
        assert optimizer.last.reason == "gradient below tolerance"
        assert float((p.detach() ** 2).sum()) == pytest.approx(1, abs=1e-6)

    def test_a_parameter_without_effect_stays(self):
        p, unused = parameter([3.0]), parameter([5.0])
        optimizer = Dogleg([p, unused])
        optimizer.step(lambda: p - 1)
        assert optimizer.last.accepted
        assert unused.tolist() == [5.0]

    def test_equal_columns(self):
        p = parameter([1.0, 1.0])
        optimizer = Dogleg([p], radius=10.0)
        optimizer.step(lambda: (p.sum() - 6).reshape(1))
        np.testing.assert_allclose(p.detach(), [3, 3], atol=1e-12)

    def test_a_minimum_and_a_saddle_are_places_where_it_stays(self):
        p = parameter([0.0])
        optimizer = Dogleg([p])
        optimizer.step(lambda: p**2 - 1)  # F has a maximum here, which JᵀJ cannot see
        assert optimizer.last.reason == "gradient below tolerance"
        assert p.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_learns_xor(dtype):
    inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=dtype)
    targets = torch.tensor([[0], [1], [1], [0]], dtype=dtype)
    for seed in range(3):
        model = mlp((2, 3, 1), seed=seed, dtype=dtype)
        optimizer = Dogleg(model.parameters())
        for _ in range(15):
            optimizer.step(lambda model=model: model(inputs) - targets)
        assert optimizer.last.new_loss / 4 <= 1e-5


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 300])
def test_the_jacobian_is_whole_whatever_the_number_of_residuals(rows):
    matrix, offset = random(rows, 3), random(rows, seed=1)
    p = parameter([0.0, 0.0, 0.0])
    optimizer = Dogleg([p], radius=100.0)
    optimizer.step(lambda: matrix @ p - offset)
    expected = np.linalg.lstsq(matrix.numpy(), offset.numpy(), rcond=None)[0]
    np.testing.assert_allclose(p.detach(), expected, atol=1e-9)
    assert optimizer.last.num_gradients + 2 * optimizer.last.num_products <= max(rows, 6)


class TestLimits:
    def test_too_many_parameters(self):
        with pytest.raises(InputError, match=r"at most 3,000 parameters.*3,001.*without a matrix"):
            Dogleg([torch.zeros(3001, requires_grad=True)])

    def test_too_many_residuals(self, monkeypatch):
        monkeypatch.setattr(Dogleg, "most_entries", 5)
        p = parameter([1.0, 2.0])
        Dogleg([p]).step(lambda: p)
        with pytest.raises(InputError, match=r"Jacobian of 4 residuals by 2 parameters.*fewer examples"):
            Dogleg([p]).step(lambda: torch.cat([p, p]))

    @pytest.mark.parametrize("bad", [{"radius": -1.0}, {"acceptance": 1.0}, {"gradient_tolerance": -1.0}])
    def test_settings_out_of_range(self, bad):
        with pytest.raises(InputError):
            Dogleg([parameter([1.0])], **bad)
