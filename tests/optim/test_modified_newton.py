import numpy as np
import pytest
import torch
from scipy import optimize

from tests.models import symmetric
from thalweg.errors import InputError
from thalweg.optim.modified_newton import ModifiedNewton, modified_direction


def parameter(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def rosenbrock(p):
    return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()


@pytest.mark.parametrize("floor", [1e-8, 0.1])
def test_it_follows_the_formula(floor):
    start = [0.1, 1.0, 0.7, -0.4]  # H is indefinite here
    p, x = parameter(start), np.array(start)
    optimizer = ModifiedNewton([p], floor=floor)
    negative = 0
    for _ in range(8):
        optimizer.step(lambda: rosenbrock(p))
        values, Q = np.linalg.eigh(optimize.rosen_hess(x))
        negative += values[0] < 0
        g, size = optimize.rosen_der(x), np.maximum(abs(values), floor * abs(values).max())
        d, t = -Q @ (Q.T @ g / size), 1.0
        while optimize.rosen(x + t * d) > optimize.rosen(x) + 1e-4 * t * d @ g:
            t /= 2
        x = x + t * d
        np.testing.assert_allclose(p.detach(), x, rtol=1e-9, atol=1e-11)
        assert optimizer.last.details["length"] == t
        assert optimizer.last.details["lowest_curvature"] == pytest.approx(values[0], abs=1e-8)
    assert negative >= 1


def test_where_the_hessian_is_positive_definite_it_is_newton():
    matrix = symmetric([1.0, 2, 5, 9])
    p = parameter([1.0, 2, 3, 4])
    ModifiedNewton([p]).step(lambda: p @ matrix @ p / 2)
    np.testing.assert_allclose(p.detach(), np.zeros(4), atol=1e-14)


def test_it_goes_away_from_a_saddle():
    p = parameter([1.0, 0.5])
    ModifiedNewton([p]).step(lambda: p[0] ** 2 - p[1] ** 2)
    np.testing.assert_allclose(p.detach(), [0, 1], atol=1e-14)


def test_a_linear_loss_is_followed_down():
    gradient = torch.tensor([1.0, -2.0], dtype=torch.float64)
    direction, lowest = modified_direction(torch.zeros(2, 2, dtype=torch.float64), gradient, 1e-8)
    assert direction.tolist() == [-1, 2]
    assert lowest == 0


def test_flat_directions_are_floored_at_the_share_of_the_largest():
    matrix = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
    direction, _ = modified_direction(matrix, torch.ones(2, dtype=torch.float64), 0.5)
    assert direction.tolist() == [-0.25, -0.5]


def test_it_reaches_the_minimum_of_rosenbrock():
    p = parameter([-1.2, 1.0])
    optimizer = ModifiedNewton([p])
    steps = 0
    while steps < 50:
        optimizer.step(lambda: rosenbrock(p))
        if optimizer.last.reason == "gradient below tolerance":
            break
        steps += 1
    np.testing.assert_allclose(p.detach(), [1, 1], atol=1e-6)
    assert steps == pytest.approx(21, rel=0.2)  # as reported for Newton's method in [nocedal2006], §6.1


def test_where_no_length_lowers_the_loss_nothing_moves():
    p = parameter([1.0])
    optimizer = ModifiedNewton([p])
    losses = iter([0.0] + [1.0] * 41)
    optimizer.step(lambda: (p * 0.1).sum() - (p * 0.1).sum().detach() + next(losses))
    assert optimizer.last.reason == "no length of the step lowers the loss"
    assert (optimizer.last.num_losses, optimizer.last.step_norm, p.tolist()) == (41, 0.0, [1.0])


def test_limits():
    with pytest.raises(InputError, match=r"at most 2,000 parameters.*2,001"):
        ModifiedNewton([torch.zeros(2001, requires_grad=True)])
    for bad in ({"floor": 0.0}, {"floor": 2.0}, {"gradient_tolerance": -1.0}):
        with pytest.raises(InputError, match="not usable"):
            ModifiedNewton([parameter([1.0])], **bad)
