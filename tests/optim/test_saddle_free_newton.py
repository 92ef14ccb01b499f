import math

import numpy as np
import pytest
import torch
from scipy import optimize

from tests.models import mlp, symmetric
from thalweg.errors import InputError
from thalweg.optim.krylov_model import krylov_model
from thalweg.optim.products import LossHessian
from thalweg.optim.saddle_free_newton import DAMPINGS, SaddleFreeNewton, saddle_free_step


def parameter(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def rosenbrock(p):
    return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()


def quadratic(eigenvalues, seed=0):
    """Return the Hessian H, a point and the loss ½pᵀHp."""
    matrix = symmetric(eigenvalues, seed=seed)
    rng = torch.Generator().manual_seed(seed + 1)
    p = torch.randn(len(eigenvalues), generator=rng, dtype=torch.float64).requires_grad_()
    return matrix, p, lambda: p @ matrix @ p / 2


class TestTheStep:
    @pytest.mark.parametrize("spectrum", [[1.0, 2, 5, 9], [-3.0, -0.1, 0.5, 7], [-4.0, -3, -2, -1], [2.0]])
    def test_with_all_vectors_it_is_the_gradient_over_the_absolute_hessian(self, spectrum):
        matrix, p, loss = quadratic(spectrum)
        gradient = (matrix @ p).detach().numpy()
        values, Q = np.linalg.eigh(matrix.numpy())
        model = krylov_model(LossHessian(loss, [p]), max_products=len(spectrum))
        expected = -Q @ (Q.T @ gradient / abs(values))
        np.testing.assert_allclose(saddle_free_step(model, 0.0), expected, rtol=1e-10, atol=1e-12)
        damped = -Q @ (Q.T @ gradient / (abs(values) + 0.3))
        np.testing.assert_allclose(saddle_free_step(model, 0.3), damped, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("k", [1, 3, 5, 6, 7])
    def test_with_few_vectors_it_is_that_of_the_projected_hessian(self, k):
        matrix, p, loss = quadratic([-3.0, -1, 0.5, 2, 4, 9])
        H, g = matrix.numpy(), (matrix @ p).detach().numpy()
        powers = np.stack([np.linalg.matrix_power(H, i) @ g for i in range(min(k, 6))], axis=1)
        V, _ = np.linalg.qr(powers / np.linalg.norm(powers, axis=0))
        values, Q = np.linalg.eigh(V.T @ H @ V)
        expected = -V @ Q @ ((V @ Q).T @ g / (abs(values) + 0.1))
        model = krylov_model(LossHessian(loss, [p]), max_products=k)
        np.testing.assert_allclose(saddle_free_step(model, 0.1), expected, rtol=1e-8)

    def test_a_linear_loss_is_followed_down(self):
        p = parameter([1.0, 2.0])
        optimizer = SaddleFreeNewton([p])
        optimizer.step(lambda: p.sum())
        assert optimizer.last.accepted
        assert float(p[0].detach()) < 1


def test_it_follows_the_formula():
    start = [0.1, 1.0, 0.7, -0.4]
    p, x, negative = parameter(start), np.array(start), 0
    optimizer = SaddleFreeNewton([p], num_vectors=4)
    for _ in range(6):
        optimizer.step(lambda: rosenbrock(p))
        g, (values, Q) = optimize.rosen_der(x), np.linalg.eigh(optimize.rosen_hess(x))
        negative += values[0] < 0
        scale = abs(values).max()
        tried = [x - Q @ (Q.T @ g / (abs(values) + scale * damping)) for damping in DAMPINGS]
        best = int(np.argmin([optimize.rosen(point) for point in tried]))
        x = tried[best]
        np.testing.assert_allclose(p.detach(), x, rtol=1e-8, atol=1e-9)
        assert optimizer.last.details["damping"] == pytest.approx(scale * DAMPINGS[best])
        assert optimizer.last.details["lowest_curvature"] == pytest.approx(values[0])
    assert negative >= 1


def test_it_goes_away_from_a_saddle_where_newton_walks_into_it():
    p = parameter([1.0, 0.5])
    optimizer = SaddleFreeNewton([p])
    optimizer.step(lambda: p[0] ** 2 - p[1] ** 2)
    np.testing.assert_allclose(p.detach(), [0, 1], atol=1e-14)
    assert optimizer.last.new_loss == pytest.approx(-1)
    assert optimizer.last.details["lowest_curvature"] == pytest.approx(-2)


def test_where_the_hessian_is_positive_definite_it_is_newton():
    _, p, loss = quadratic([1.0, 2, 5, 9])
    SaddleFreeNewton([p]).step(loss)
    np.testing.assert_allclose(p.detach(), np.zeros(4), atol=1e-13)


class TestAtZeroGradient:
    def valley(self, p):
        return p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4

    def run(self, optimizer, loss, most=60):
        for _ in range(most):
            optimizer.step(loss)
            if optimizer.last.reason.startswith("gradient below"):
                return
        raise AssertionError("it did not come to an end")

    @pytest.mark.parametrize("start", [[0.0, 0.0], [1.0, 0.0]])
    def test_it_leaves_a_saddle_for_the_minimum(self, start):
        p = parameter(start)
        self.run(SaddleFreeNewton([p]), lambda: self.valley(p))
        assert self.valley(p).item() == pytest.approx(-1, abs=1e-9)
        assert abs(p[1].item()) == pytest.approx(math.sqrt(2), abs=1e-5)

    def test_it_leaves_the_origin_of_a_factorisation(self):
        matrix = symmetric([3.0, 2, 1, 0.5])
        p = parameter(np.zeros((4, 4)).tolist())
        self.run(SaddleFreeNewton([p]), lambda: ((p @ p.T - matrix) ** 2).sum() / 4)
        np.testing.assert_allclose((p @ p.T).detach(), matrix, atol=1e-5)

    def test_at_a_minimum_it_stays_and_says_what_it_looked_for(self):
        p = parameter([0.0, math.sqrt(2)])
        optimizer = SaddleFreeNewton([p])
        optimizer.step(lambda: self.valley(p))
        assert optimizer.last.reason == "gradient below tolerance, no way down found"
        assert p.tolist() == [0.0, math.sqrt(2)]

    def test_a_symmetric_net_is_left_by_a_random_start(self):
        # Two units with the same weights: the gradient and all its Krylov vectors keep them the same.
        model = mlp((2, 2, 1), seed=4)  # runs into the saddle where the loss is a quarter
        with torch.no_grad():
            for weight in (model[0].weight, model[0].bias.view(2, 1), model[2].weight.view(2, 1)):
                weight[1] = weight[0]
        inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
        targets = torch.tensor([[0], [1], [1], [0]], dtype=torch.float64)
        optimizer, along = SaddleFreeNewton(model.parameters()), []
        for _ in range(80):
            optimizer.step(lambda: ((model(inputs) - targets) ** 2).mean())
            along.append("negative curvature" in optimizer.last.reason)
        assert any(along)
        assert not torch.allclose(model[0].weight[0], model[0].weight[1], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_learns_xor(dtype):
    inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=dtype)
    targets = torch.tensor([[0], [1], [1], [0]], dtype=dtype)
    for seed in range(2):
        model = mlp((2, 3, 1), seed=seed, dtype=dtype)
        optimizer = SaddleFreeNewton(model.parameters())
        for _ in range(15):
            optimizer.step(lambda model=model: ((model(inputs) - targets) ** 2).mean())
        assert optimizer.last.new_loss <= 1e-5


def test_what_a_step_costs_is_counted():
    _, p, loss = quadratic([-3.0, -1, 0.5, 2, 4, 9])
    optimizer = SaddleFreeNewton([p], num_vectors=4)
    optimizer.step(loss)
    cost = optimizer.last
    assert (cost.num_losses, cost.num_gradients, cost.num_products) == (len(DAMPINGS), 1, 4)


@pytest.mark.parametrize("bad", [{"num_vectors": 0}, {"gradient_tolerance": -1.0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match="not usable"):
        SaddleFreeNewton([parameter([1.0])], **bad)
