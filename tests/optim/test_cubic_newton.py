import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from tests.models import mlp, symmetric
from thalweg.errors import InputError
from thalweg.optim.cubic_newton import CubicNewton, cubic_decrease, cubic_minimiser, next_sigma
from thalweg.optim.krylov_model import krylov_model
from thalweg.optim.products import LossHessian


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def parameter(values):
    return tensor(values).requires_grad_()


def rosenbrock(p):
    return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()


def model(values, gradient, u, sigma):
    return gradient @ u + (values * u) @ u / 2 + sigma / 3 * np.linalg.norm(u) ** 3


def optimal(values, gradient, u, sigma):
    """Whether (Θ + λI)u = −c and Θ + λI ⪰ 0 with λ = σ‖u‖, which only the global minimiser satisfies.

    Up to what rounding of its terms leaves.
    """
    shift = sigma * np.linalg.norm(u)
    scale = np.abs(values).max() + shift
    residual = np.linalg.norm((values + shift) * u + gradient)
    return residual <= 1e-14 * (scale * np.linalg.norm(u) + np.linalg.norm(gradient)) and (
        values.min() + shift >= -1e-14 * scale
    )


numbers = st.floats(-100, 100).map(lambda x: round(x, 6))


class TestTheSubproblem:
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6),
        st.sampled_from([1e-6, 1e-2, 1.0, 1e3, 1e8]),
    )
    def test_its_solution_is_the_global_minimiser(self, pairs, sigma):
        pairs.sort()
        values, gradient = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
        u = cubic_minimiser(tensor(values), tensor(gradient), sigma).numpy()
        if not gradient.any() and values[0] >= 0:
            assert not u.any()
        else:
            assert optimal(values, gradient, u, sigma)

    @pytest.mark.parametrize("tiny", [1e-3, 1e-9, 1e-15, 1e-30, 1e-200, 0.0, -1e-15])
    def test_the_hard_case_and_its_neighbours(self, tiny):
        values, gradient = np.array([-2.0, 1, 3]), np.array([tiny, 0.5, -0.5])
        u = cubic_minimiser(tensor(values), tensor(gradient), 0.5).numpy()
        assert optimal(values, gradient, u, 0.5)
        assert np.linalg.norm(u) == pytest.approx(4, rel=1e-2)  # −θ₁/σ
        assert u[0] * tiny <= 0
        assert abs(u[0]) > 3.9

    def test_a_repeated_lowest_value_in_the_hard_case(self):
        values, gradient = np.array([-2.0, -2.0, 3]), np.array([0.0, 0.0, 1.0])
        u = cubic_minimiser(tensor(values), tensor(gradient), 1.0).numpy()
        assert optimal(values, gradient, u, 1.0)

    def test_no_gradient_part_below_but_a_long_rest_is_not_the_hard_case(self):
        values, gradient = np.array([-0.1, 1.0]), np.array([0.0, 50.0])
        u = cubic_minimiser(tensor(values), tensor(gradient), 1.0).numpy()
        assert u[0] == 0
        assert optimal(values, gradient, u, 1.0)

    @pytest.mark.parametrize("values", [[1.0, 2, 3], [-1.0, 0, 2], [0.0, 0, 0], [-3.0, -3, -3]])
    def test_the_promise_is_what_the_model_gains_and_more_than_cauchys(self, values):
        values, gradient = np.array(values), np.array([1.0, -2, 0.3])
        for sigma in (1e-3, 1.0, 1e3):
            u = cubic_minimiser(tensor(values), tensor(gradient), sigma)
            promise = cubic_decrease(tensor(values), u, sigma)
            assert promise == pytest.approx(-model(values, gradient, u.numpy(), sigma), rel=1e-9)
            cauchy = optimize.minimize_scalar(
                lambda t, sigma=sigma: model(values, gradient, -t * gradient, sigma),
                bounds=(0, 100),
                method="bounded",
            )
            assert promise >= -cauchy.fun * (1 - 1e-9)

    def test_a_step_in_the_whole_space_solves_the_shifted_system(self):
        matrix = symmetric([-3.0, -1, 0.5, 2, 4])
        p = parameter([1.0, -2, 3, 0.5, 0.1])
        hessian = LossHessian(lambda: p @ matrix @ p / 2, [p])
        for sigma in (0.01, 1.0, 100.0):
            krylov = krylov_model(hessian, max_products=5)
            s = krylov.lift(cubic_minimiser(krylov.values, krylov.gradient, sigma)).numpy()
            shifted = matrix.numpy() + sigma * np.linalg.norm(s) * np.eye(5)
            np.testing.assert_allclose(shifted @ s, -hessian.gradient.numpy(), atol=1e-11)
            assert np.linalg.eigvalsh(shifted)[0] >= -1e-12


def dense_step(H, g, sigma):
    """Return the minimiser of the cubic model by another root finder, where it is not the hard case."""
    values, Q = np.linalg.eigh(H)
    c = Q.T @ g

    def length(shift):
        return np.linalg.norm(c / (values + shift)) - shift / sigma

    low = 0.0 if values[0] > 0 else -values[0] * (1 + 1e-15)
    shift = optimize.brentq(length, low, low + 1e6, xtol=1e-15, rtol=8.9e-16, maxiter=1000)
    s = -Q @ (c / (values + shift))
    return s, -(g @ s + s @ H @ s / 2 + sigma / 3 * np.linalg.norm(s) ** 3)


def test_it_follows_the_formula():
    start = [0.1, 1.0]
    p, x, sigma, negative, refused = parameter(start), np.array(start), 0.1, 0, 0
    optimizer = CubicNewton([p], sigma=sigma)
    for _ in range(8):
        optimizer.step(lambda: rosenbrock(p))
        g, H, f = optimize.rosen_der(x), optimize.rosen_hess(x), optimize.rosen(x)
        negative += np.linalg.eigvalsh(H)[0] < 0
        V = np.eye(2) if optimizer.last.num_products == 2 else (g / np.linalg.norm(g))[:, None]
        tries, ratio = 0, -math.inf
        while ratio < 0.1 and tries < 80:
            sigma, refused, tries = sigma * (2 if tries else 1), refused + (tries > 0), tries + 1
            s, promise = dense_step(V.T @ H @ V, V.T @ g, sigma)
            ratio = (f - optimize.rosen(x + V @ s)) / promise
        assert optimizer.last.num_losses == tries
        assert optimizer.last.details["sigma"] == pytest.approx(sigma, rel=1e-8)
        assert optimizer.last.details["predicted"] == pytest.approx(promise, rel=1e-8)
        x = x + V @ s
        np.testing.assert_allclose(p.detach(), x, rtol=1e-8, atol=1e-8)
        if ratio >= 0.9:
            sigma = max(min(sigma, np.linalg.norm(g)), 1e-16)
    assert negative
    assert refused


def test_sigma_follows_the_ratio():
    assert next_sigma(1.0, 0.95, 0.5) == 0.5
    assert next_sigma(1.0, 0.95, 2.0) == 1.0
    assert next_sigma(1e-20, 0.95, 1e-30) == 1e-16
    assert next_sigma(1.0, 0.5, 0.5) == 1.0
    assert next_sigma(1.0, 0.05, 0.5) == 2.0
    assert next_sigma(1.0, math.nan, 0.5) == 2.0


def iterations(optimizer, loss, most=100):
    for number in range(most):
        optimizer.step(loss)
        if optimizer.last.reason.startswith("gradient below"):
            return number
    raise AssertionError("it did not come to an end")


def test_it_needs_as_many_iterations_as_an_exact_trust_region_on_rosenbrock():
    p = parameter([-1.2, 1.0])
    number = iterations(CubicNewton([p], gradient_tolerance=1e-4), lambda: rosenbrock(p))
    peer = optimize.minimize(
        optimize.rosen, [-1.2, 1.0], method="trust-exact", jac=optimize.rosen_der, hess=optimize.rosen_hess
    )
    assert number <= peer.nit
    np.testing.assert_allclose(p.detach(), peer.x, atol=1e-5)


class TestAtZeroGradient:
    @pytest.mark.parametrize("start", [[0.0, 0.0], [1.0, 0.0]])
    def test_it_leaves_a_saddle_for_the_minimum(self, start):
        p = parameter(start)

        def loss():
            return p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4

        iterations(CubicNewton([p]), loss)
        assert loss().item() == pytest.approx(-1, abs=1e-9)

    def test_the_first_step_is_the_models_minimiser_along_the_lowest_curvature(self):
        p = parameter([0.0, 0.0])
        optimizer = CubicNewton([p], sigma=4.0)
        optimizer.step(lambda: p[0] ** 2 - p[1] ** 2)
        np.testing.assert_allclose(p.detach().abs(), [0, 0.5], atol=1e-12)
        predicted = 0.5**2 - 4 / 3 * 0.5**3
        assert optimizer.last.details["predicted"] == pytest.approx(predicted)

    def test_it_leaves_the_origin_of_a_factorisation(self):
        matrix = symmetric([3.0, 2, 1, 0.5])
        p = parameter(np.zeros((4, 4)).tolist())
        iterations(CubicNewton([p]), lambda: ((p @ p.T - matrix) ** 2).sum() / 4)
        np.testing.assert_allclose((p @ p.T).detach(), matrix, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_learns_xor(dtype):
    inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=dtype)
    targets = torch.tensor([[0], [1], [1], [0]], dtype=dtype)
    for seed in range(2):
        net = mlp((2, 3, 1), seed=seed, dtype=dtype)
        optimizer = CubicNewton(net.parameters())
        for _ in range(25):
            optimizer.step(lambda net=net: ((net(inputs) - targets) ** 2).mean())
        assert optimizer.last.new_loss <= 1e-5


def test_the_space_grows_until_the_models_gradient_is_small():
    matrix = symmetric(torch.linspace(1, 100, 40))
    p = parameter([1.0] * 40)
    optimizer = CubicNewton([p], sigma=1e-3)
    optimizer.step(lambda: p @ matrix @ p / 2)
    assert 2 < optimizer.last.num_products < 40
    hessian_step = -p.detach()  # what is left of the gradient after the step is that of the model
    remaining = float((matrix @ hessian_step).norm())
    assert remaining <= 0.2 * optimizer.last.gradient_norm
    limited = parameter([1.0] * 40)
    optimizer = CubicNewton([limited], max_products=2)
    optimizer.step(lambda: limited @ matrix @ limited / 2)
    assert optimizer.last.num_products == 2


@pytest.mark.parametrize(
    "bad", [{"sigma": 0.0}, {"sigma": math.inf}, {"max_products": 0}, {"gradient_tolerance": -1.0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match="not usable"):
        CubicNewton([parameter([1.0])], **bad)
