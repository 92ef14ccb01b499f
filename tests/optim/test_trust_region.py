import math

import numpy as np
import pytest
import torch
from scipy import optimize

from tests.models import symmetric
from thalweg.errors import InputError, NumericalError
from thalweg.optim.dogleg import dogleg_step
from thalweg.optim.trust_region import (
    Proposal,
    Region,
    assess,
    boundary_root,
    gain_ratio,
    next_radius,
    outcome,
    steihaug,
)

EPS = 2.2e-16


def vector(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def proposal(length=1.0, predicted=1.0, on_boundary=True):
    return Proposal(torch.tensor([length, 0.0], dtype=torch.float64), predicted, on_boundary, 1.0)


class TestBoundaryRoot:
    @pytest.mark.parametrize("seed", range(20))
    def test_it_reaches_the_boundary_forwards(self, seed):
        point, direction = vector(5, seed), vector(5, seed + 100)
        radius = 1.5 * float(point.norm())
        tau = boundary_root(point, direction, radius)
        assert tau >= 0
        assert float((point + tau * direction).norm()) == pytest.approx(radius, rel=1e-14)

    def test_a_point_almost_on_the_boundary_keeps_its_digits(self):
        point = torch.tensor([1 - 1e-12, 0.0], dtype=torch.float64)
        tau = boundary_root(point, torch.tensor([1.0, 0.0], dtype=torch.float64), 1.0)
        assert tau == pytest.approx(1e-12, rel=1e-3)

    def test_a_point_just_outside_by_rounding_stays(self):
        point = torch.tensor([1 + 1e-15, 0.0], dtype=torch.float64)
        assert boundary_root(point, torch.tensor([1.0, 0.0], dtype=torch.float64), 1.0) == 0


class TestRadius:
    region = Region(radius=2.0, max_radius=3.0, acceptance=0.15)

    @pytest.mark.parametrize(
        ("ratio", "proposed", "accepted", "expected"),
        [
            (0.9, proposal(2.0), True, 3.0),  # doubled, and cut at the largest
            (0.9, proposal(1.0, on_boundary=False), True, 2.0),
            (0.5, proposal(2.0), True, 2.0),
            (0.2, proposal(2.0), True, 0.5),
            (0.1, proposal(2.0), False, 0.5),
            (0.1, proposal(0.6, on_boundary=False), False, 0.5),
            (0.1, proposal(0.5, on_boundary=False), False, 0.125),  # or it would be proposed again
            (0.2, proposal(0.4, on_boundary=False), True, 0.5),
            (math.nan, proposal(2.0), False, 0.5),
        ],
    )
    def test_it_follows_the_ratio(self, ratio, proposed, accepted, expected):
        assert next_radius(self.region, ratio, proposed, accepted=accepted) == pytest.approx(expected)

    @pytest.mark.parametrize(
        "bad", [(0.0, 1.0, 0.1), (2.0, 1.0, 0.1), (1.0, math.inf, 0.1), (math.nan, 1, 0.1)]
    )
    def test_a_radius_out_of_range_is_refused(self, bad):
        with pytest.raises(InputError, match=r"0 < radius ≤ max_radius"):
            Region(*bad)

    @pytest.mark.parametrize("bad", [-0.1, 0.25, math.nan])
    def test_an_acceptance_out_of_range_is_refused(self, bad):
        with pytest.raises(InputError, match=r"acceptance from 0 to below 0\.25"):
            Region(1.0, 2.0, bad)


class TestAcceptance:
    def test_the_ratio_is_measured_over_predicted(self):
        assert gain_ratio(3.0, 2.0, 2.0, eps=EPS) == pytest.approx(0.5)

    def test_where_both_are_rounding_the_model_is_believed(self):
        assert gain_ratio(1.0, 1.0 + EPS, 1e-20, eps=EPS) == pytest.approx(0.9, abs=0.01)

    def test_a_rise_above_rounding_is_not_believed(self):
        assert gain_ratio(1.0, 1.0 + 100 * EPS, 1e-20, eps=EPS) < 0

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_loss_that_is_not_finite_is_refused(self, bad):
        ratio = gain_ratio(1.0, bad, 1.0, eps=EPS)
        assert outcome(1.0, bad, ratio, 0.15) == (False, "loss not finite at the new point")

    def test_reasons_say_what_happened(self):
        assert outcome(1.0, 0.5, 0.5, 0.15) == (True, "accepted")
        assert outcome(1.0, 1.5, -0.5, 0.15) == (False, "loss rose")
        assert outcome(1.0, 0.99, 0.01, 0.15) == (False, "loss fell by too little")


class TestSteihaug:
    spectra = ([1.0, 2, 3, 4, 5, 6], [-3.0, -1, 0, 1, 2, 9], [-3.0, -2, -1, -1, -1, -0.5], [0.0] * 6)

    @pytest.mark.parametrize("spectrum", spectra)
    @pytest.mark.parametrize("radius", [1e-3, 0.3, 1.0, 30.0])
    @pytest.mark.parametrize("most", [1, 3, 6])
    def test_it_stays_inside_and_gains_at_least_what_cauchy_does(self, spectrum, radius, most):
        matrix, gradient = symmetric(spectrum), vector(6, seed=1)
        found = steihaug(lambda v: matrix @ v, gradient, radius, tolerance=0.0, max_products=most)
        step = found.step
        assert float(step.norm()) <= radius * (1 + 1e-14)
        gain = -float(gradient @ step + step @ matrix @ step / 2)
        assert found.predicted == pytest.approx(gain, rel=1e-10)
        # The Cauchy point, [nocedal2006] eqs. 4.11 and 4.12.
        norm, curvature = float(gradient.norm()), float(gradient @ matrix @ gradient)
        tau = 1.0 if curvature <= 0 else min(1.0, norm**3 / (radius * curvature))
        cauchy = -tau * radius / norm * gradient
        assert gain >= -float(gradient @ cauchy + cauchy @ matrix @ cauchy / 2) * (1 - 1e-12)
        assert found.on_boundary == (float(step.norm()) > radius * (1 - 1e-12))

    def test_without_a_boundary_it_is_conjugate_gradients(self):
        matrix, gradient = symmetric([1.0, 2, 3, 5, 8, 13]), vector(6, seed=2)
        A, r = matrix.numpy(), -gradient.numpy()
        x, d = np.zeros(6), -gradient.numpy()
        for iterations in range(1, 7):
            alpha = r @ r / (d @ A @ d)
            x, new = x + alpha * d, r - alpha * A @ d
            d, r = new + new @ new / (r @ r) * d, new
            found = steihaug(lambda v: matrix @ v, gradient, math.inf, tolerance=0.0, max_products=iterations)
            np.testing.assert_allclose(found.step.numpy(), x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.step.numpy(), np.linalg.solve(A, -gradient.numpy()), atol=1e-12)

    def test_negative_curvature_leads_to_the_boundary_and_is_reported(self):
        matrix = torch.diag(torch.tensor([-2.0, 1.0], dtype=torch.float64))
        gradient = torch.tensor([1.0, 0.0], dtype=torch.float64)
        found = steihaug(lambda v: matrix @ v, gradient, 3.0, tolerance=0.0, max_products=2)
        assert found.step.tolist() == [-3.0, 0.0]
        assert found.predicted == pytest.approx(3 + 9)
        assert found.lowest_curvature == -2

    def test_one_dimension(self):
        gradient = torch.tensor([4.0], dtype=torch.float64)
        found = steihaug(lambda v: 2 * v, gradient, 10.0, tolerance=0.0, max_products=5)
        assert found.step.tolist() == [-2.0]
        assert not found.on_boundary

    def test_a_product_with_nan_is_an_error(self):
        with pytest.raises(NumericalError, match="product holds NaN"):
            steihaug(lambda v: v * math.nan, vector(3), 1.0, tolerance=0.0, max_products=3)


def test_with_the_exact_hessian_the_dogleg_takes_scipys_steps_on_rosenbrock():
    def step_from(x, radius):
        g, H = (torch.from_numpy(f(x)) for f in (optimize.rosen_der, optimize.rosen_hess))
        cauchy = -(g @ g) / (g @ H @ g) * g
        step, on_boundary = dogleg_step(cauchy, torch.linalg.solve(H, -g), radius)
        return Proposal(step, -float(g @ step + step @ H @ step / 2), on_boundary, 0.0)

    x, radius, iterations = np.array([-1.2, 1.0]), 1.0, 0
    while np.linalg.norm(optimize.rosen_der(x)) >= 1e-4 and iterations < 100:
        proposed = step_from(x, radius)
        assert float(proposed.step.norm()) <= radius * (1 + 1e-12)
        new = x + proposed.step.numpy()
        assessed = assess(Region(radius, 1000.0, 0.15), proposed, optimize.rosen(x), optimize.rosen(new))
        x, radius, iterations = new if assessed.accepted else x, assessed.radius, iterations + 1
    peer = optimize.minimize(
        optimize.rosen, [-1.2, 1.0], method="dogleg", jac=optimize.rosen_der, hess=optimize.rosen_hess
    )
    assert iterations == peer.nit == 23
    np.testing.assert_allclose(x, peer.x, atol=1e-9)
