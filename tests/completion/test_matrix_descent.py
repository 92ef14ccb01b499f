"""The descent, held to finite differences, to dense products, and to what is known of the flow in closed
form."""

import itertools
import math

import numpy as np
import pytest
import torch

from tests.completion.lowrank import low_rank
from thalweg.completion import Observations, sweep
from thalweg.completion.descent import automatic_rate, descend, loss_and_gradient
from thalweg.completion.factors import Factors, effective_rank, initial
from thalweg.completion.flow import (
    end_to_end_velocity,
    escape_time,
    logistic_growth,
    singular_value_velocity,
)
from thalweg.errors import NumericalError


def dense_loss(factors, entries):
    predicted = factors.product()[entries.rows, entries.columns]
    return float(np.mean((predicted - entries.values) ** 2))


def start(shape, width, depth, scale=0.5, kind="gaussian", seed=1):
    return initial(shape, width, depth, scale=scale, start=kind, seed=seed, dtype="float64")


def dense_slope(W, entries):
    """The gradient of the mean squared error by the whole matrix."""
    slope = np.zeros(W.shape)
    at = (entries.rows, entries.columns)
    slope[at] = 2 / len(entries) * (W[at] - entries.values)
    return slope


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize(("shape", "width"), [((7, 5), 3), ((1, 6), 1), ((6, 1), 1)])
def test_the_gradient_by_hand_is_that_of_the_dense_loss(depth, shape, width):
    _, entries = low_rank(shape, 1, 0.8)
    factors = start(shape, width, depth)
    loss, slope = loss_and_gradient(factors, entries)
    assert loss == pytest.approx(dense_loss(factors, entries), rel=1e-12)
    theta, sizes = factors.flat(), factors.sizes
    for i in range(len(theta)):
        step = np.zeros(len(theta))
        step[i] = 1e-5
        up, down = (dense_loss(Factors.of(theta + s, sizes), entries) for s in (step, -step))
        assert slope.flat()[i] == pytest.approx((up - down) / 2e-5, abs=1e-8)


def test_a_balanced_start_is_balanced_and_of_the_stated_size():
    for depth in (2, 3, 4):
        factors = start((9, 6), 4, depth, scale=1e-3, kind="balanced")
        assert factors.imbalance() < 1e-12
        assert factors.decomposed()[1] == pytest.approx(np.full(4, 1e-3))
        assert factors.singular_values() == pytest.approx(np.full(4, 1e-3))
    assert start((9, 6), 4, 3).imbalance() > 0.1


def test_short_steps_keep_the_balance_and_long_ones_lose_it_in_proportion():
    _, entries = low_rank()
    begun = start((30, 24), 6, 3, scale=0.01, kind="balanced")
    drift = []
    for rate in (0.02, 0.01):
        run = descend(begun, entries, optimizer="gd", learning_rate=rate, max_steps=int(60 / rate), tol=0)
        drift.append(run.factors.imbalance())
    assert drift[0] / drift[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_product_of_balanced_factors_moves_as_the_end_to_end_flow_says(depth):
    _, entries = low_rank((8, 6), 2, 0.7)
    factors = start((8, 6), 6, depth, scale=0.3, kind="balanced")
    # Away from equal singular values, still balanced:
    factors = descend(factors, entries, optimizer="gd", learning_rate=1e-3, max_steps=3000, tol=0).factors
    _, slope = loss_and_gradient(factors, entries)
    W = factors.product()
    layers = [factors.right.T, *factors.middle, factors.left]
    slopes = [slope.right.T, *slope.middle, slope.left]
    moved = np.zeros(W.shape)
    for j in range(depth):
        chain = [slopes[k] if k == j else layers[k] for k in range(depth)]
        product = chain[0]
        for factor in chain[1:]:
            product = factor @ product
        moved -= product
    velocity = end_to_end_velocity(W, dense_slope(W, entries), depth)
    assert np.linalg.norm(moved - velocity) <= 2e-3 * np.linalg.norm(velocity)
    eps = 1e-6
    sigma = [np.linalg.svd(W + s * eps * velocity, compute_uv=False) for s in (1, -1)]
    assert (sigma[0] - sigma[1]) / (2 * eps) == pytest.approx(
        singular_value_velocity(W, dense_slope(W, entries), depth), rel=1e-4, abs=1e-7
    )


def test_the_rate_of_a_singular_value_grows_with_its_power_2_minus_2_over_n():
    slope = -np.eye(3)
    W = np.diag([1.0, 0.1, 0.01])
    for depth in (1, 2, 3, 4):
        rates = np.diag(end_to_end_velocity(W, slope, depth))
        exponent = np.log(rates[0] / rates[2]) / np.log(100)
        assert exponent == pytest.approx(2 - 2 / depth)
    fractional = end_to_end_velocity(W, slope, 2.0000001)
    assert fractional == pytest.approx(end_to_end_velocity(W, slope, 2), rel=1e-5, abs=1e-9)


def scalar(target):
    return Observations.from_triplets([0], [0], [target], (1, 1))


def test_one_dimension_and_depth_2_follow_the_logistic_curve():
    rate, target, small = 1e-3, 1.5, 1e-3
    run = descend(
        start((1, 1), 1, 2, scale=small, kind="balanced"),
        scalar(target),
        optimizer="gd",
        learning_rate=rate,
        max_steps=5000,
        tol=1e-10,
    )
    # The mean squared error is twice ½(σ − σ*)², so that time passes twice as fast.
    for shot in run.snapshots:
        expected = logistic_growth(2 * rate * shot.step, target, small)
        assert shot.singular_values[0] == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_escape_from_the_start_takes_the_time_of_the_integral(depth):
    rate, target, small = 1e-4, 1.0, 1e-2
    factors = start((1, 1), 1, depth, scale=small, kind="balanced")
    if factors.product()[0, 0] < 0:
        factors = Factors(-factors.left, factors.right, factors.middle)
    run = descend(factors, scalar(target), optimizer="gd", learning_rate=rate, max_steps=10**6, tol=0.25)
    assert 2 * rate * run.num_steps == pytest.approx(escape_time(target, small, depth), rel=0.01)


def test_a_smaller_start_delays_depth_2_by_a_logarithm_and_depth_3_by_a_power():
    two = escape_time(1, 1e-6, 2) - escape_time(1, 1e-4, 2)
    assert two == pytest.approx(math.log(100) / 2, rel=1e-3)
    ratio = escape_time(1, 1e-9, 3) / escape_time(1, 1e-6, 3)
    assert ratio == pytest.approx(1000 ** (1 / 3), rel=0.05)


def hidden_corner(depth):
    """Razin and Cohen: [[?, 1], [1, 0]], from a start with a positive determinant."""
    entries = Observations.from_triplets([0, 1, 1], [1, 0, 1], [1.0, 1.0, 0.0], (2, 2))
    unit = 1e-3 ** (1 / depth) * np.eye(2)
    begun = Factors(
        unit.copy(), unit.copy(), np.stack([unit] * (depth - 2)) if depth > 2 else np.empty((0, 2, 2))
    )
    corners = []
    for half_sum in (1e-1, 1e-2, 1e-3):
        run = descend(
            begun, entries, optimizer="ngd", learning_rate=1e-3, max_steps=10**6, tol=2 * half_sum / 3
        )
        W = run.factors.product()
        assert run.stopped == "tolerance"
        assert np.linalg.det(W) > -1e-9
        corners.append((W[0, 0], effective_rank(np.linalg.svd(W, compute_uv=False))))
    return corners


@pytest.mark.parametrize("depth", [2, 3])
def test_every_norm_grows_without_bound_while_the_rank_falls(depth):
    corners = hidden_corner(depth)
    for (value, _), half_sum in zip(corners, (1e-1, 1e-2, 1e-3), strict=True):
        assert value > 0.75 / math.sqrt(
            2 * half_sum
        )  # det > 0 forces it out like the inverse root of the loss
    ranks = [rank for _, rank in corners]
    assert ranks[2] < 1 + 1e-5  # for depth 2 it is 1 to rounding
    if depth == 3:
        assert ranks[0] > ranks[1] > ranks[2] > 1


def test_depth_3_arrives_at_low_rank_where_the_entries_do_not_decide():
    truth, entries = low_rank((40, 40), 2, 0.25)
    run = descend(start((40, 40), 10, 3, scale=1e-3, kind="balanced"), entries, max_steps=20_000)
    assert run.stopped == "tolerance"
    assert np.mean((run.factors.product() - truth) ** 2) < 1e-3
    assert run.snapshots[-1].effective_rank == pytest.approx(2, abs=0.1)
    assert run.snapshots[0].step == 0
    assert run.snapshots[-1].step == run.num_steps


def test_a_rate_that_is_too_large_is_told_with_what_to_do():
    _, entries = low_rank()
    with pytest.raises(NumericalError, match=r"learning rate of 1e\+05.*auto"):
        descend(start((30, 24), 4, 3), entries, optimizer="gd", learning_rate=1e5, max_steps=1000)


@pytest.mark.parametrize("depth", [2, 3])
def test_plain_gradient_descent_converges_at_its_own_rate(depth):
    _, entries = low_rank((20, 20), 1, 0.7)
    begun = start((20, 20), 3, depth, scale=0.1, kind="balanced")
    run = descend(begun, entries, optimizer="gd", max_steps=20_000, tol=1e-4)
    assert run.stopped == "tolerance"
    losses = [shot.loss for shot in run.snapshots]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(losses))
    assert automatic_rate("gd", entries, depth) > 0


def test_adam_takes_the_steps_of_torch():
    _, entries = low_rank((6, 5), 1, 0.8)
    begun = start((6, 5), 2, 3)
    ours = descend(begun, entries, optimizer="adam", learning_rate=0.01, max_steps=50, tol=0).factors
    parts = [torch.tensor(p.copy(), requires_grad=True) for p in (begun.left, begun.middle[0], begun.right)]
    optimizer = torch.optim.Adam(parts, lr=0.01)
    at = (torch.tensor(entries.rows.astype(np.int64)), torch.tensor(entries.columns.astype(np.int64)))
    for _ in range(50):
        optimizer.zero_grad()
        loss = ((parts[0] @ parts[1] @ parts[2].T)[at] - torch.tensor(entries.values)).square().mean()
        loss.backward()
        optimizer.step()
    assert ours.left == pytest.approx(parts[0].detach().numpy(), abs=1e-9)
    assert ours.middle[0] == pytest.approx(parts[1].detach().numpy(), abs=1e-9)


def test_a_sweep_runs_every_combination_and_repeats_itself():
    truth, entries = low_rank((20, 16), 1, 0.6)
    options = {"depths": [2, 3], "init_scales": [1e-2, 1e-3], "seeds": [0, 1], "truth": truth, "rank_cap": 4}
    first, again = (sweep(entries, **options) for _ in range(2))
    assert [(c.depth, c.init_scale, c.seed) for c in first.cells] == [
        (d, s, k) for d in (2, 3) for s in (1e-2, 1e-3) for k in (0, 1)
    ]
    assert [c.error for c in first.cells] == [c.error for c in again.cells]
    assert all(c.converged for c in first.cells)
    assert first.over_seeds("error", 3, 1e-3).value < 1e-2
    assert "depth, start" in str(first)
