"""BFGS: the laws of its matrix, the textbook's product form, n steps on a quadratic, scipy's counts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, rosen, rosen_der

from tests.optim.descending import descend, quadratic, quadratic_loss, rosenbrock, rosenbrock_start
from thalweg.errors import InputError
from thalweg.optim.bfgs import BFGS, bfgs_update


def product_form(h, s, y):
    """[nocedal2006] 6.17 as it is printed."""
    rho, eye = 1 / (s @ y), np.eye(len(s))
    return (eye - rho * np.outer(s, y)) @ h @ (eye - rho * np.outer(y, s)) + rho * np.outer(s, s)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(0, 10**6))
def test_the_update_maps_y_to_s_and_stays_symmetric_and_positive(n, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    h = torch.tensor(root @ root.T / n + np.eye(n))
    h = (h + h.T) / 2
    s = torch.tensor(rng.normal(size=n))
    y = s * torch.tensor(rng.uniform(0.1, 10, n))
    new = bfgs_update(h, s, y)
    assert torch.equal(new, new.T)
    assert torch.allclose(new @ y, s, atol=1e-12 * float(new.norm() * y.norm()))
    assert float(torch.linalg.eigvalsh(new)[0]) > 0
    wanted = product_form(h.numpy(), s.numpy(), y.numpy())
    assert np.abs(new.numpy() - wanted).max() <= 1e-12 * np.abs(wanted).max()


def test_the_matrix_of_a_run_is_the_textbooks_and_its_steps_go_along_it():
    """The oracle is told the positions of the run, never its matrix."""
    h = np.eye(6)
    x = torch.nn.Parameter(torch.tensor(rosenbrock_start(6)))
    optimizer = BFGS([x])

    def closure():
        optimizer.zero_grad()
        value = rosenbrock(x)
        value.backward()
        return value

    def look():
        with torch.enable_grad():
            return x.detach().numpy().copy(), torch.autograd.grad(rosenbrock(x), x)[0].numpy()

    before, g = look()
    for k in range(30):
        direction = -h @ g
        optimizer.step(closure)
        after, new = look()
        s, y = after - before, new - g
        along = optimizer.last.details["step_length"] * direction
        assert np.abs(s - along).max() <= 1e-12 * max(1, np.abs(along).max())
        h = product_form(h, s, y)
        ours = optimizer.inverse().numpy()
        assert np.abs(ours - h).max() <= 1e-10 * np.abs(h).max(), k
        assert np.array_equal(ours, ours.T)
        assert np.abs(ours @ y - s).max() <= 1e-12 * np.abs(ours).max() * np.abs(y).max()
        assert np.linalg.eigvalsh(ours)[0] > 0
        h, before, g = ours, after, new


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 19, 20])
def test_a_quadratic_is_finished_in_n_steps_with_its_inverse_hessian_known(n):
    matrix, b, start = quadratic(np.linspace(1, 10, n), seed=n)
    run = descend(lambda p: BFGS(p, c1=1e-9, c2=1e-8, tolerance_grad=0), quadratic_loss(matrix, b), start, n)
    assert np.linalg.norm(run.gradients[-1]) <= 1e-7 * np.linalg.norm(run.gradients[0])
    if not run.steps[-1].accepted:  # rounding hid any decrease: there one step early, and H is forgotten
        assert np.linalg.norm(run.gradients[-2]) <= 1e-7 * np.linalg.norm(run.gradients[0])
        assert run.optimizer.inverse() is None
        return
    assert np.allclose(run.optimizer.inverse().numpy(), np.linalg.inv(matrix), atol=1e-5)


def test_rosenbrock_takes_as_many_steps_as_scipy():
    scipys = minimize(rosen, rosenbrock_start(2), jac=rosen_der, method="BFGS")
    run = descend(
        lambda p: BFGS(p, tolerance_grad=1e-5, full_batch=True), rosenbrock, rosenbrock_start(2), 200
    )
    assert len(run.taken) == pytest.approx(32, rel=0.2)
    assert len(run.taken) == pytest.approx(scipys.nit, rel=0.2)
    assert run.evaluations == pytest.approx(39, rel=0.2)
    assert run.steps[-1].loss < 1e-12


def test_rosenbrock_of_ten_ends_in_the_local_minimum_where_scipy_ends():
    """The other methods of this family reach 0 from the same start."""
    run = descend(lambda p: BFGS(p, tolerance_grad=1e-6), rosenbrock, rosenbrock_start(10), 300)
    scipys = minimize(rosen, rosenbrock_start(10), jac=rosen_der, method="BFGS")
    assert run.steps[-1].loss == pytest.approx(3.98658, abs=1e-5)
    assert run.steps[-1].loss == pytest.approx(scipys.fun, abs=1e-8)


def test_from_a_steep_wall_it_needs_little_more_than_scipy():
    """A first step that meets a curvature of 10⁶ must not make H small in all directions."""
    matrix, b, start = quadratic(np.linspace(1, 10, 12))
    A, c = torch.tensor(matrix), torch.tensor(b)

    def loss(x):
        return (torch.cosh(A @ (x - c)) - 1).sum() / 10

    def both(z):
        point = torch.tensor(z, requires_grad=True)
        value = loss(point)
        return value.item(), torch.autograd.grad(value, point)[0].numpy()

    scipys = minimize(both, start, jac=True, method="BFGS")
    run = descend(lambda p: BFGS(p, tolerance_grad=1e-5), loss, start, 300)
    assert run.steps[-1].reason == "gradient below tolerance"
    assert len(run.taken) <= 1.4 * scipys.nit


def test_negative_curvature_teaches_nothing():
    run = descend(
        lambda p: BFGS(p, line_search="backtracking"),
        lambda x: torch.cos(x[0]) + x[1] ** 2 / 100,
        [0.3, 1.0],
        1,
    )
    s, y = run.positions[1] - run.positions[0], run.gradients[1] - run.gradients[0]
    assert s @ y < 0
    assert run.optimizer.inverse() is None


def test_a_group_added_later_begins_the_matrix_anew():
    one, two = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = BFGS([one])

    def closure():
        optimizer.zero_grad()
        value = ((one - 2) ** 4).sum() + ((two - 3) ** 4).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert optimizer.inverse().shape == (2, 2)
    optimizer.add_param_group({"params": [two]})
    optimizer.step(closure)
    assert optimizer.last.details["steepest"] == 1
    assert optimizer.inverse().shape == (5, 5)


@pytest.mark.parametrize(("n", "allowed"), [(2999, True), (3000, True), (3001, False)])
def test_a_matrix_too_large_is_refused(n, allowed):
    parameters = [torch.nn.Parameter(torch.ones(n - 1)), torch.nn.Parameter(torch.ones(1))]
    if allowed:
        BFGS(parameters)
    else:
        with pytest.raises(InputError, match=r"3,001 × 3,001.*at most 3,000.*OneStepSecant"):
            BFGS(parameters)
