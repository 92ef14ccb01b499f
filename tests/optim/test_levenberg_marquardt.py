"""Levenberg–Marquardt against a re-implementation, closed forms, scipy and certified fits."""

import copy
import gc
import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import nn

from tests.models import mlp, seeded
from tests.optim.nist import BOXBOD, MGH10, REGRESSIONS, THURBER
from thalweg.errors import InputError
from thalweg.optim.damped import marquardt, nielsen
from thalweg.optim.levenberg_marquardt import LevenbergMarquardt


def point(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def rosenbrock(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def descend(x, residuals, most=2000, **settings):
    """Step until a step is not taken; return the steps that were."""
    optimizer, steps = LevenbergMarquardt([x], **settings), []
    for _ in range(most):
        optimizer.step(lambda: residuals(x))
        if not optimizer.last.accepted:
            break
        steps.append(optimizer.last)
    return steps, optimizer.last


def curve(num=7):
    """Residuals of b₀·exp(b₁·x) + b₂ with their Jacobian by hand, for torch and for numpy."""
    x = np.linspace(0, 2, num)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * np.cos(9 * x)
    tx, ty = torch.tensor(x), torch.tensor(y)

    def r(b):
        return b[0] * np.exp(b[1] * x) + b[2] - y

    def jac(b):
        e = np.exp(b[1] * x)
        return np.stack([e, b[0] * x * e, np.ones_like(x)], axis=1)

    return (lambda b: b[0] * torch.exp(b[1] * tx) + b[2] - ty), r, jac


def reimplemented(r, jac, b, num_steps, rule, scaled, mu0=1e-3):
    """The path by normal equations, in numpy."""
    path, mu, nu, d = [], None, 2.0, np.zeros(len(b))
    for _ in range(num_steps):
        f, J = r(b), jac(b)
        d = np.maximum(d, (J**2).sum(axis=0))
        D = np.diag(d) if scaled else np.eye(len(b))
        if mu is None:
            largest = 1.0 if scaled else (J**2).sum(axis=0).max()
            mu = mu0 * (largest if rule == "nielsen" else 1)
        while True:
            h = np.linalg.solve(J.T @ J + mu * D, -J.T @ f)
            new = r(b + h)
            gain = (f @ f - new @ new) / (h @ (mu * D @ h - J.T @ f))
            if rule == "marquardt":
                mu *= 0.1 if gain > 0 else 10
            elif gain > 0:
                mu, nu = mu * max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0
            else:
                mu, nu = mu * nu, nu * 2
            if gain > 0:
                break
        b = b + h
        path.append(b)
    return path


class TestTheFormula:
    @pytest.mark.parametrize("rule", ["nielsen", "marquardt"])
    @pytest.mark.parametrize("scaled", [False, True])
    @pytest.mark.parametrize("num", [3, 7, 2])  # m = n, m > n, m < n
    def test_six_steps_are_those_of_a_reimplementation_in_numpy(self, rule, scaled, num):
        residuals, r, jac = curve(num)
        start = [1.0, -0.2, 0.0]
        b = point(*start)
        optimizer = LevenbergMarquardt([b], damping=rule, scaled=scaled, mu=1e-1, min_grad=0)
        expected = reimplemented(r, jac, np.array(start), 5 if num < 7 else 6, rule, scaled, mu0=1e-1)
        for there in expected:
            optimizer.step(lambda: residuals(b))
            np.testing.assert_allclose(b.detach().numpy(), there, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("scaled", [False, True])
    @pytest.mark.parametrize("num", [2, 3, 4, 9])
    def test_the_step_solves_the_damped_normal_equations(self, scaled, num):
        rng = np.random.default_rng(num)
        J, c = rng.standard_normal((num, 3)), rng.standard_normal(num)
        x = point(0.0, 0.0, 0.0)
        optimizer = LevenbergMarquardt([x], scaled=scaled, mu=0.3)
        optimizer.step(lambda: torch.tensor(J) @ x + torch.tensor(c))
        D = np.diag((J**2).sum(axis=0)) if scaled else np.eye(3)
        mu = 0.3 * (1.0 if scaled else (J**2).sum(axis=0).max())
        np.testing.assert_allclose(
            x.detach().numpy(), np.linalg.solve(J.T @ J + mu * D, -J.T @ c), rtol=1e-12
        )
        assert optimizer.last.details["gain"] == pytest.approx(1, rel=1e-12)  # the model is exact
        assert optimizer.last.gradient_norm == pytest.approx(np.linalg.norm(2 * J.T @ c), rel=1e-13)

    def test_with_little_damping_it_is_gauss_newton_and_with_much_the_gradient(self):
        rng = np.random.default_rng(1)
        J, c = rng.standard_normal((6, 3)), rng.standard_normal(6)
        ends = []
        for mu in (1e-12, 1e9):
            x = point(0.0, 0.0, 0.0)
            LevenbergMarquardt([x], mu=mu, damping="marquardt").step(
                lambda x=x: torch.tensor(J) @ x + torch.tensor(c)
            )
            ends.append(x.detach().numpy())
        np.testing.assert_allclose(ends[0], -np.linalg.lstsq(J, c)[0], rtol=1e-9)
        np.testing.assert_allclose(ends[1], -J.T @ c / 1e9, rtol=1e-7)

    def test_scaled_steps_do_not_depend_on_the_units(self):
        ends = []
        for unit in (1.0, 1e6):
            residuals = curve()[0]
            b = point(1.0, -0.2 * unit, 0.0)
            optimizer = LevenbergMarquardt([b], scaled=True)
            for _ in range(6):
                optimizer.step(lambda: residuals(b * point(1, 1 / unit, 1).detach()))  # noqa: B023
            ends.append(b.detach() * point(1, 1 / unit, 1).detach())
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)

    def test_an_ill_conditioned_jacobian_is_not_squared(self):
        """Columns that differ by 1e-9: JᵀJ is singular in float64, the QR factor is not."""
        J = np.array([[1, 1], [0, 1e-9], [0, 0]])
        x = point(0.0, 0.0)
        optimizer = LevenbergMarquardt([x], mu=1e-24)
        optimizer.step(lambda: torch.tensor(J) @ (x - point(1.0, 1.0).detach()))
        torch.testing.assert_close(x.detach(), torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)

    @pytest.mark.parametrize(
        ("rule", "gain", "expected"),
        [
            (nielsen, 1.0, (1 / 3, 2.0)),
            (nielsen, 0.5, (1.0, 2.0)),
            (nielsen, 1e-9, (2.0, 2.0)),
            (nielsen, 1e200, (1 / 3, 2.0)),
            (nielsen, -0.1, (4.0, 8.0)),
            (marquardt, 0.1, (0.1, 4.0)),
            (marquardt, -0.1, (10.0, 4.0)),
        ],
    )
    def test_the_damping_follows_the_gain(self, rule, gain, expected):
        assert rule(1.0, 4.0, gain) == pytest.approx(expected)


class TestFits:
    """Golden counts are of iterations; Nielsen counts those that failed, MATLAB's rule does not."""

    def test_rosenbrock_takes_sixteen_iterations_by_nielsens_rule(self):
        steps, last = descend(x := point(-1.2, 1.0), rosenbrock)
        assert sum(s.num_losses - 1 for s in steps) == pytest.approx(16, rel=0.2)
        assert last.reason == "gradient below min_grad"
        assert last.loss < 1e-15
        torch.testing.assert_close(x.detach(), torch.ones(2, dtype=torch.float64), rtol=1e-7, atol=0)

    def test_rosenbrock_takes_28_iterations_and_52_evaluations_by_matlabs_rule(self):
        steps, last = descend(point(-1.2, 1.0), rosenbrock, damping="marquardt")
        assert len(steps) == pytest.approx(28, rel=0.2)
        assert sum(s.num_losses - 1 for s in steps) == pytest.approx(52, rel=0.2)
        assert last.loss < 1e-20

    @pytest.mark.parametrize("rule", ["nielsen", "marquardt"])
    @pytest.mark.parametrize(
        ("regression", "start"),
        [(r, i) for r in REGRESSIONS for i in (0, 1) if (r, i) != (MGH10, 0)],
        ids=lambda v: getattr(v, "name", v),
    )
    def test_nist_regressions_end_at_the_certified_values(self, regression, start, rule):
        """All but MGH10 from its far start, which the next test is about; BoxBOD from far without D only."""
        b = point(*regression.starts[start])
        scaled = regression is not BOXBOD
        _, last = descend(b, regression.residuals, damping=rule, scaled=scaled, min_grad=0)
        np.testing.assert_allclose(b.detach().numpy(), regression.certified, rtol=1e-6)
        assert last.loss == pytest.approx(regression.sum_of_squares, rel=1e-9)

    def test_a_start_that_is_too_far_still_goes_down_at_every_step(self):
        b = point(*MGH10.starts[0])
        steps, _ = descend(b, MGH10.residuals, most=200, scaled=True)
        assert len(steps) == 200
        assert all(s.new_loss < s.loss for s in steps)

    @pytest.mark.parametrize("method", ["lm", "trf"])
    @pytest.mark.parametrize("regression", [r for r in REGRESSIONS if r is not MGH10], ids=lambda r: r.name)
    def test_it_ends_where_scipy_ends(self, regression, method):
        b = point(*regression.starts[1])
        descend(b, regression.residuals, scaled=True, min_grad=0)

        def r(values):
            return regression.residuals(torch.tensor(values)).numpy()

        def jac(values):
            return torch.func.jacrev(regression.residuals)(torch.tensor(values)).numpy()

        scipys = least_squares(
            r, regression.starts[1], jac, method=method, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        np.testing.assert_allclose(b.detach().numpy(), scipys.x, rtol=3e-7)  # F is flat to 1e-16 there
        ours = float(regression.residuals(b.detach()).square().sum())
        assert ours == pytest.approx(2 * scipys.cost, rel=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_regressions_of_our_own_end_where_scipy_ends(self, seed):
        """Two damped waves: noise of 1 %, so the minimum is sharp and both reach it to 1e-8."""
        rng = np.random.default_rng(seed)
        x = torch.linspace(0, 4, 60, dtype=torch.float64)

        def wave(b):
            return b[0] * torch.exp(-b[1] * x) * torch.cos(b[2] * x + b[3]) + b[4]

        truth = np.array([2.0, 0.5, 3.0, 0.3, 1.0]) + 0.1 * rng.standard_normal(5)
        y = wave(torch.tensor(truth)) + 0.01 * torch.tensor(rng.standard_normal(60))
        start = truth + 0.1 * rng.standard_normal(5)
        b = point(*start)
        descend(b, lambda b: wave(b) - y, min_grad=0)
        scipys = least_squares(
            lambda v: (wave(torch.tensor(v)) - y).numpy(),
            start,
            lambda v: torch.func.jacrev(wave)(torch.tensor(v)).numpy(),
            method="lm",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        np.testing.assert_allclose(b.detach().numpy(), scipys.x, rtol=1e-8, atol=1e-8)

    def test_scaling_earns_its_place_where_parameters_have_units(self):
        plain, scaled = (
            descend(point(*THURBER.starts[1]), THURBER.residuals, scaled=scaled)[0]
            for scaled in (False, True)
        )
        assert len(scaled) < 0.8 * len(plain)


class TestASteps:
    def test_the_loss_never_rises_and_a_step_refused_leaves_every_bit(self):
        x = point(1.0)

        def residuals():
            return torch.sqrt(1 + (x * 30).cos() + 1e-3 * x.abs())

        optimizer = LevenbergMarquardt([x], mu=1e-9, min_grad=0)
        for _ in range(60):
            before, loss = x.detach().clone(), float(residuals().detach().square().sum())
            optimizer.step(residuals)
            after = float(residuals().detach().square().sum())
            assert after < loss if optimizer.last.accepted else torch.equal(before, x.detach())
        assert not optimizer.last.accepted

    def test_a_minimum_at_a_kink_is_kept_and_said(self):
        x = point(0.0)
        optimizer = LevenbergMarquardt([x])
        optimizer.step(lambda: 1 + x.abs() + x * 0.5)  # subgradient 0.5 at 0, and uphill on both sides
        assert torch.equal(x.detach(), torch.zeros(1, dtype=torch.float64))
        assert optimizer.last.reason in {"no damping up to mu_max lowered the loss", "step below rounding"}

    def test_a_loss_that_is_not_finite_stops_before_the_jacobian(self):
        x = point(-1.0)
        optimizer = LevenbergMarquardt([x])
        returned = optimizer.step(lambda: torch.log(x))
        assert math.isnan(float(returned))
        assert optimizer.last.reason == "the loss is not finite"
        assert (optimizer.last.accepted, optimizer.last.num_gradients, x.item()) == (False, 0, -1.0)

    def test_a_jacobian_that_is_not_finite_is_said(self):
        x = point(0.0, 1.0)
        optimizer = LevenbergMarquardt([x])
        optimizer.step(lambda: x.sqrt())
        assert optimizer.last.reason == "the Jacobian is not finite"
        assert torch.equal(x.detach(), torch.tensor([0.0, 1.0], dtype=torch.float64))

    def test_points_of_nan_are_never_stepped_to(self):
        x = point(4.0)
        optimizer = LevenbergMarquardt([x], mu=1e-12, min_grad=0)
        for _ in range(80):
            optimizer.step(lambda: x.sqrt() + x)
            assert math.isfinite(optimizer.last.new_loss)
            assert float(x.detach()) > 0
        assert optimizer.last.loss < 1e-12

    def test_a_point_without_a_gradient_is_not_stepped_to_though_the_loss_is_0_there(self):
        """The branch of `where` that is not taken gives NaN to the gradient: no step could leave again."""
        x = point(4.0)
        optimizer = LevenbergMarquardt([x], damping="marquardt", mu=1 / 16)
        optimizer.step(lambda: torch.where(x > 1, (x - 1).sqrt(), 0.0))
        assert optimizer.last.accepted
        assert optimizer.last.details["damping"] == 10 / 16
        assert 1 < x.item() < 4

    def test_its_cost_is_counted(self):
        x = point(1.0, -0.2, 0.0)
        optimizer = LevenbergMarquardt([x])
        calls = []
        residuals = curve(9)[0]
        optimizer.step(lambda: calls.append(1) or residuals(x))
        last = optimizer.last
        assert last.num_losses == len(calls)
        assert (last.num_gradients, last.num_products) == (1, 3)  # 2n < m: columns
        assert last.gradient_equivalents == pytest.approx(len(calls) / 3 + 1 + 6)

    def test_it_returns_the_loss_where_it_began(self):
        x = point(-1.2, 1.0)
        assert LevenbergMarquardt([x]).step(lambda: rosenbrock(x)).item() == pytest.approx(24.2)

    def test_an_error_of_the_users_leaves_every_bit(self):
        x = point(-1.2, 1.0)
        calls = []

        def residuals():
            calls.append(1)
            if len(calls) == 2:
                raise KeyError("data")
            return rosenbrock(x)

        with pytest.raises(KeyError):
            LevenbergMarquardt([x]).step(residuals)
        assert torch.equal(x.detach(), torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def test_one_parameter_and_one_residual_are_enough(self):
        x = point(3.0)
        _, last = descend(x, lambda x: x**2 - 2)
        assert x.item() == pytest.approx(math.sqrt(2), rel=1e-8)
        assert last.accepted is False

    def test_a_dead_parameter_does_no_harm_even_when_scaled(self):
        for scaled in (False, True):
            x = point(3.0, 5.0)
            descend(x, lambda x: (x[0] ** 2 - 2).reshape(1), scaled=scaled)
            assert x.tolist() == pytest.approx([math.sqrt(2), 5.0], rel=1e-8)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_lower_precision_stops_at_its_rounding(self, dtype):
        x = torch.tensor([-1.2, 1.0], dtype=dtype, requires_grad=True)
        steps, last = descend(x, rosenbrock, min_grad=0)
        assert last.loss < (1e-6 if dtype == torch.float32 else 5)
        assert all(s.new_loss < s.loss for s in steps)
        assert not last.accepted


class TestAsATorchOptimizer:
    def net(self):
        model = mlp((1, 4, 1))
        x = torch.linspace(-1, 1, 15, dtype=torch.float64)[:, None]
        return model, lambda: model(x) - torch.sin(3 * x)

    @pytest.mark.parametrize("settings", [{}, {"scaled": True}, {"damping": "marquardt"}])
    def test_a_run_resumed_is_the_run_not_interrupted(self, settings):
        model, residuals = self.net()
        optimizer = LevenbergMarquardt(model.parameters(), **settings)
        for _ in range(5):
            optimizer.step(residuals)
        other, others = self.net()
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        resumed = LevenbergMarquardt(other.parameters(), **settings)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in range(5):
            assert torch.equal(optimizer.step(residuals), resumed.step(others))
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_its_state_is_loaded_with_weights_only(self, tmp_path):
        model, residuals = self.net()
        optimizer = LevenbergMarquardt(model.parameters(), scaled=True)
        optimizer.step(residuals)
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert state["param_groups"] == optimizer.state_dict()["param_groups"]

    def test_groups_and_frozen_parameters_are_respected(self):
        model, residuals = self.net()
        model[0].bias.requires_grad_(False)
        frozen = model[0].bias.detach().clone()
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}, {"params": []}]
        optimizer = LevenbergMarquardt(groups)
        for _ in range(5):
            optimizer.step(residuals)
            assert optimizer.last.accepted
        assert torch.equal(model[0].bias, frozen)

    def test_each_step_may_see_another_batch(self):
        model, _ = self.net()
        x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
        optimizer = LevenbergMarquardt(model.parameters())
        for i in range(40):
            batch = x[i % 4 :: 4]
            optimizer.step(lambda b=batch: model(b) - torch.sin(3 * b))
        assert float((model(x) - torch.sin(3 * x)).detach().square().mean()) < 1e-4

    def test_nothing_is_left_in_memory_or_in_grad(self):
        model, residuals = self.net()
        optimizer = LevenbergMarquardt(model.parameters(), scaled=True, min_grad=0)
        counts = []
        for i in range(30):
            optimizer.step(residuals)
            if i in {4, 29}:
                gc.collect()
                counts.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        assert counts[0] == counts[1]
        assert all(p.grad is None for p in model.parameters())


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"damping": "none"}, "nielsen, marquardt"),
            ({"mu": 0.0}, "Invalid mu"),
            ({"mu": math.nan}, "Invalid mu"),
            ({"mu_max": -1.0}, "Invalid mu_max"),
            ({"min_grad": -1.0}, "Invalid min_grad"),
            ({"min_grad": math.nan}, "Invalid min_grad"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, words):
        with pytest.raises(InputError, match=words):
            LevenbergMarquardt([point(1.0)], **settings)

    @pytest.mark.parametrize(
        ("closure", "words"),
        [
            (None, "step\\(\\) needs a closure"),
            (lambda: None, "no residuals"),
            (lambda: torch.zeros(0), "no residuals"),
            (lambda: torch.ones(3), "cannot be differentiated"),
        ],
    )
    def test_other_closures_are_refused(self, closure, words):
        with pytest.raises(InputError, match=words):
            LevenbergMarquardt([point(1.0)]).step(closure)

    def test_complex_parameters_are_refused(self):
        with pytest.raises(InputError, match="complex"):
            LevenbergMarquardt([torch.ones(2, dtype=torch.complex64, requires_grad=True)])

    def test_a_jacobian_too_large_is_refused_before_it_is_made(self):
        layer = seeded(lambda: nn.Linear(4001, 2))
        before = layer.weight.detach().clone()
        with pytest.raises(InputError, match=r"4,500 outputs for 8,004 parameters.*ScaledConjugateGradient"):
            LevenbergMarquardt(layer.parameters()).step(lambda: layer(torch.ones(2250, 4001)))
        assert torch.equal(layer.weight, before)
