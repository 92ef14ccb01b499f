"""Gradient statistics against what is known: unbiased, honest about significance, exact forecasts."""

import numpy as np
import pytest
import torch

from tests.models import symmetric
from thalweg.curvature.operators import Dense
from thalweg.diagnosis.agreement import agreement, sign_flip, u_statistic
from thalweg.diagnosis.gradient import Forecast, forecast


def batch_gradients(mean, deviation, batches, dimension, seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(batches, dimension)) * deviation
    return np.full(dimension, mean / np.sqrt(dimension)) + noise


def test_the_squared_norm_is_unbiased_where_the_plain_one_is_inflated():
    truth, plain, unbiased = 0.3, [], []
    for seed in range(400):
        g = batch_gradients(truth, 0.5, 16, 40, seed)
        plain.append(np.sum(g.mean(0) ** 2))
        unbiased.append(u_statistic(g @ g.T, np.ones(16)))
    assert np.mean(plain) > truth**2 + 0.3
    assert np.mean(unbiased) == pytest.approx(truth**2, abs=4 * np.std(unbiased) / 20)


def test_agreement_by_chance_is_called_significant_no_oftener_than_stated():
    p = [
        sign_flip(g @ g.T, np.ones(16), seed)
        for seed in range(300)
        for g in [batch_gradients(0.0, 1.0, 16, 30, seed)]
    ]
    assert np.mean(np.asarray(p) < 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(np.asarray(p) < 0.05) >= 0.02  # and the test is not dead
    strong = batch_gradients(3.0, 0.5, 16, 30, 0)
    assert sign_flip(strong @ strong.T, np.ones(16), 0) < 0.01


def test_batches_that_cancel_exactly_are_not_significant():
    g = np.random.default_rng(0).normal(size=(16, 30))
    g -= g.mean(0)
    assert sign_flip(g @ g.T, np.ones(16), 0) > 0.5
    assert u_statistic(g @ g.T, np.ones(16)) < 0


@pytest.mark.parametrize("k", [2, 3, 4])
def test_few_batches_give_wide_intervals_and_no_exception(k):
    g = batch_gradients(1.0, 0.5, k, 30, 0)
    low, high = agreement(g @ g.T, np.ones(k), seed=0).norm_interval
    assert low <= 1.0 <= high


def test_batches_that_are_all_alike_or_zero_have_no_width():
    same = np.ones((8, 5))
    low, high = agreement(same @ same.T, np.ones(8), seed=0).norm_interval
    assert low == pytest.approx(np.sqrt(5))
    assert high == pytest.approx(np.sqrt(5))
    nothing = agreement(np.zeros((8, 8)), np.ones(8), seed=0)
    assert nothing.norm_interval == (0.0, 0.0)
    assert nothing.noise_ratio is None


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_forecast_is_what_gradient_descent_does_to_a_quadratic(steps):
    values = np.array([0.0, 0.1, 0.5, 1.0, 3.0, 8.0, 8.0])
    matrix = symmetric(values)
    g = torch.linspace(1, 2, 7, dtype=torch.float64)
    ahead = forecast(Dense(matrix), g, lr=None, steps=7)
    assert ahead.lr == pytest.approx(1 / 8)
    x = torch.zeros(7, dtype=torch.float64)
    for _ in range(steps):
        x = x - ahead.lr * (g + matrix @ x)
    lowered = -float(g @ x + 0.5 * x @ matrix @ x)
    assert ahead.decrease(steps) == pytest.approx(lowered, rel=1e-9, abs=1e-15)


def test_the_number_of_steps_inverts_the_decrease():
    ahead = Forecast(0.1, 0.5, (0.0, 1.0, 5.0), (0.2, 0.5, 0.3))
    for steps in (1, 30, 1e4):
        assert ahead.steps_until(ahead.decrease(steps)) == pytest.approx(steps, rel=1e-6)
    assert Forecast(0.1, 0.5, (1.0,), (1.0,)).steps_until(1.0) is None
    assert ahead.steps_until(0.0) == 0


def test_a_zero_gradient_forecasts_nothing():
    ahead = forecast(Dense(symmetric([1.0, 2.0])), torch.zeros(2).double(), lr=None, steps=3)
    assert ahead.decrease(1000) == 0
