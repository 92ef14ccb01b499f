"""Levenberg–Marquardt on nets: MATLAB's SIN and PARITY, and the built-in radial-basis and Elman nets."""

import math

import pytest
import torch
from torch import nn

from tests.models import mlp
from thalweg.optim.levenberg_marquardt import LevenbergMarquardt
from thalweg.problem.builtin import classics
from thalweg.problem.builtin.initialise import refill
from thalweg.rng import generator


def sine(seed):
    """A 1-5-1 net and one period of a sine; MATLAB's goal is a mean squared error of 0.002."""
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
    return mlp((1, 5, 1), seed=seed), x, torch.sin(math.pi * x)


def parity(seed):
    """A 3-10-10-1 net, tanh in every layer, and the parity of three bits; the goal is 0.001."""
    bits = torch.tensor([[2 * (i >> k & 1) - 1 for k in range(3)] for i in range(8)]).double()
    return nn.Sequential(mlp((3, 10, 10, 1), seed=seed), nn.Tanh()), bits, bits.prod(dim=1, keepdim=True)


def builtin(name, fresh):
    """A built-in net with its training data, as Adam left it or drawn afresh."""
    recipe = getattr(classics, name)(0)
    if fresh:
        refill(recipe.model, generator(0, "fresh"))
    return recipe.model, *recipe.train.dataset.tensors


def fit(model, x, y, num_steps, goal=0.0, **settings):
    """Step to the goal; return the loss at the end and what it took in gradient-equivalents."""
    optimizer, cost = LevenbergMarquardt(model.parameters(), **settings), 0.0
    for _ in range(num_steps):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(lambda: (model(x) - y) / math.sqrt(y.numel()))
        last, cost = optimizer.last, cost + optimizer.last.gradient_equivalents
        if last.accepted:
            assert last.new_loss < last.loss
        else:
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            break
        if last.new_loss <= goal:
            break
    error = float((model(x) - y).detach().square().mean())
    assert error == pytest.approx(last.new_loss, rel=1e-4, abs=1e-12)  # what it says is what is there
    return error, cost


def adam(model, x, y, num_steps, lr):
    """Return the lowest loss of a run of Adam on all examples."""
    optimizer, lowest = torch.optim.Adam(model.parameters(), lr=lr), math.inf
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        lowest = min(lowest, loss.item())
    return lowest


@pytest.mark.parametrize("rule", ["nielsen", "marquardt"])
@pytest.mark.parametrize(("problem", "goal"), [(sine, 0.002), (parity, 0.001)])
def test_matlabs_goals_are_reached_from_ten_starts_within_20_steps(problem, goal, rule):
    for seed in range(10):
        error, _ = fit(*problem(seed), 20, goal, damping=rule)
        assert error <= goal


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_on_sin_it_is_below_adams_loss_at_equal_gradient_equivalents(seed):
    """Adam has its lowest loss of the run and the best of three learning rates."""
    error, cost = fit(*sine(seed), 30)
    best = min(adam(*sine(seed), round(cost), lr) for lr in (1e-2, 3e-2, 1e-1))
    assert error < best / 3


@pytest.mark.parametrize(("fresh", "start"), [(False, 0.0113), (True, 0.66)])
def test_the_radial_basis_net_is_fitted_to_below_its_noise(fresh, start):
    """In float32. The noise has variance 0.01, and the 300 steps of Adam left 0.0113."""
    model, x, y = builtin("rbf", fresh)
    assert float((model(x) - y).detach().square().mean()) > start / 2
    error, _ = fit(model, x, y, 40)
    assert error < 0.0097


@pytest.mark.slow
@pytest.mark.parametrize(("fresh", "start", "end"), [(False, 0.0496, 0.03), (True, 2, 0.03)])
def test_the_elman_net_is_fitted_through_its_recurrence(fresh, start, end):
    """In float32, 2560 residuals and 141 parameters: J by columns, in batches through the recurrence."""
    model, x, y = builtin("elman", fresh)
    assert float((model(x) - y).detach().square().mean()) > start / 2
    error, _ = fit(model, x, y, 10)
    assert error < end
