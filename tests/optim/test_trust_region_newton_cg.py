import math

import numpy as np
import pytest
import torch
from scipy import optimize

from tests.models import mlp, symmetric
from tests.selection import some
from thalweg.errors import InputError
from thalweg.optim.negative_curvature import way_down
from thalweg.optim.products import LossHessian
from thalweg.optim.trust_region_newton_cg import TrustRegionNewtonCG

ROSENBROCK = (optimize.rosen, optimize.rosen_der, optimize.rosen_hess)


def rosenbrock(p):
    return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()


def parameter(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def path_to_the_end(optimizer, p, function, most=200):
    """Return the points after each step and the steps, until the gradient is below the tolerance."""
    points, steps = [], []
    for _ in range(most):
        optimizer.step(lambda: function(p))
        if optimizer.last.reason.startswith("gradient below"):
            break
        points.append(p.detach().numpy().copy())
        steps.append(optimizer.last)
    return points, steps


@pytest.mark.parametrize("start", [[-1.2, 1.0], [-1.2, 1.0, -1.2, 1.0], [3.0, -2.0, 0.5]])
def test_it_takes_scipys_steps_on_rosenbrock(start):
    p, seen = parameter(start), []
    points, _ = path_to_the_end(TrustRegionNewtonCG([p], gradient_tolerance=1e-4), p, rosenbrock)
    value, slope, hessian = ROSENBROCK
    peer = optimize.minimize(value, start, method="trust-ncg", jac=slope, hess=hessian, callback=seen.append)
    assert len(points) == peer.nit
    np.testing.assert_allclose(points[:10], seen[:10], rtol=0, atol=1e-12)
    np.testing.assert_allclose(points[-1], peer.x, rtol=0, atol=1e-8)


def test_it_needs_the_golden_number_of_iterations_on_rosenbrock():
    p = parameter([-1.2, 1.0])
    points, steps = path_to_the_end(TrustRegionNewtonCG([p], gradient_tolerance=1e-4), p, rosenbrock)
    assert len(points) == pytest.approx(29, rel=0.2)
    assert steps[-1].new_loss < 1e-10
    value, slope, hessian = ROSENBROCK
    exact = optimize.minimize(value, [-1.2, 1.0], method="trust-exact", jac=slope, hess=hessian)
    np.testing.assert_allclose(points[-1], exact.x, atol=1e-5)
    assert len(points) <= 1.3 * exact.nit


def test_steps_stay_within_the_radius_and_losses_fall():
    p = parameter([-1.2, 1.0])
    _, steps = path_to_the_end(TrustRegionNewtonCG([p]), p, rosenbrock)
    assert any(not step.accepted for step in steps)
    for step in steps:
        assert step.step_norm <= step.details["radius"] * (1 + 1e-12)
        assert step.new_loss <= step.loss


@pytest.mark.parametrize("seed", some(range(3), now=1))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_learns_xor(seed, dtype):
    inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=dtype)
    targets = torch.tensor([[0], [1], [1], [0]], dtype=dtype)
    model = mlp((2, 3, 1), seed=seed, dtype=dtype)
    optimizer = TrustRegionNewtonCG(model.parameters())
    for _ in range(40):
        optimizer.step(lambda: ((model(inputs) - targets) ** 2).mean())
    assert optimizer.last.new_loss <= 1e-5
    assert optimizer.last.reason == "gradient below tolerance, no way down found"


class TestAtZeroGradient:
    def test_it_leaves_a_saddle_for_the_minimum(self):
        def valley(p):
            return p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4

        p = parameter([1.0, 0.0])  # gradient descent converges to the saddle from here
        path_to_the_end(TrustRegionNewtonCG([p]), p, valley)
        assert valley(p).item() == pytest.approx(-1, abs=1e-9)
        assert abs(p[1].item()) == pytest.approx(math.sqrt(2), abs=1e-5)

    def test_it_leaves_the_origin_of_a_factorisation(self):
        matrix = symmetric([3.0, 2, 1, 0.5])
        p = parameter(np.zeros((4, 4)).tolist())
        path_to_the_end(TrustRegionNewtonCG([p]), p, lambda u: ((u @ u.T - matrix) ** 2).sum() / 4)
        np.testing.assert_allclose((p @ p.T).detach(), matrix, atol=1e-5)

    def test_it_stays_where_only_third_order_goes_down(self):
        p = parameter([0.0, 0.0])
        optimizer = TrustRegionNewtonCG([p])
        optimizer.step(lambda: p[0] ** 3 - 3 * p[0] * p[1] ** 2)
        assert optimizer.last.reason == "gradient below tolerance, no way down found"
        assert p.tolist() == [0, 0]

    def test_curvature_that_is_small_against_the_largest_counts_as_flat(self):
        p = parameter([0.0, 0.0])
        for low, found in ((-1e-4, True), (-1e-6, False)):
            hessian = LossHessian(lambda low=low: p[0] ** 2 + low * p[1] ** 2, [p])
            assert (way_down(hessian, seed=0) is not None) == found

    def test_the_way_down_does_not_go_up_the_gradient(self):
        for slope in (1e-8, -1e-8):
            p = parameter([0.0, 0.0])
            hessian = LossHessian(lambda p=p, slope=slope: p[0] ** 2 - p[1] ** 2 + slope * p[1], [p])
            curvature, direction = way_down(hessian, seed=0)
            assert curvature == pytest.approx(-2)
            assert float(direction[1]) == pytest.approx(-math.copysign(1, slope))


@pytest.mark.parametrize("most", [1, 3])
def test_products_are_limited_and_counted(most):
    # A small gradient asks for an accurate solution, so the limit is what stops.
    p, matrix = parameter([1e-7] * 20), symmetric(torch.linspace(1, 100, 20))
    optimizer = TrustRegionNewtonCG([p], max_products=most)
    optimizer.step(lambda: p @ matrix @ p / 2)
    assert optimizer.last.num_products == most
    assert optimizer.last.gradient_equivalents == pytest.approx(1 / 3 + 1 + 2 * most)
    assert optimizer.last.accepted
    unlimited = parameter([1e-7] * 20)
    optimizer = TrustRegionNewtonCG([unlimited])
    optimizer.step(lambda: unlimited @ matrix @ unlimited / 2)
    assert optimizer.last.num_products > most


@pytest.mark.parametrize(
    "bad", [{"radius": 0}, {"acceptance": 0.3}, {"max_products": 0}, {"gradient_tolerance": -1.0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match="not usable"):
        TrustRegionNewtonCG([parameter([1.0])], **bad)
