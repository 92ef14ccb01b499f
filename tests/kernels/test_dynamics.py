"""Gradient descent in closed form, against gradient descent."""

import math

import numpy as np
import pytest

from thalweg.errors import InputError
from thalweg.kernels import KernelDescent, largest_stable_lr, ntk
from thalweg.kernels.ridge import decompose


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    features, new = rng.normal(size=(12, 40)), rng.normal(size=(5, 40))
    features[11] = features[10]  # a direction along which nothing can be learned
    return features, new, rng.normal(size=(12, 2)), rng.normal(size=(40, 2))


def descend(features, y, weights, lr, momentum, steps):
    """Plain heavy-ball descent on a linear model; its kernel is features·featuresᵀ, exactly."""
    velocity = np.zeros_like(weights)
    for _ in range(steps):
        velocity = momentum * velocity + features.T @ (features @ weights - y) / len(y)
        weights = weights - lr * velocity
    return weights


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [0, 1, 2, 37, 500])
@pytest.mark.parametrize("share", [0.05, 0.9, 1.02])
def test_every_step_is_that_of_gradient_descent(problem, momentum, steps, share):
    features, new, y, weights = problem
    kernel = features @ features.T
    lr = share * largest_stable_lr(kernel, momentum=momentum)
    model = KernelDescent(decompose(kernel), y, lr, momentum, start=features @ weights)
    there = descend(features, y, weights, lr, momentum, steps)
    scale = max(1.0, float(np.abs(features @ there).max()))
    assert np.allclose(model.train(steps), features @ there, atol=1e-9 * scale)
    seen = model.predict(new @ features.T, steps, start=new @ weights)
    assert np.allclose(seen, new @ there, atol=1e-9 * scale)
    loss = 0.5 * np.sum((features @ there - y) ** 2) / 12
    assert model.loss([steps])[0] == pytest.approx(loss, rel=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_largest_stable_rate_is_where_it_turns(problem, momentum):
    features, _, y, _ = problem
    eigen = decompose(features @ features.T)
    limit = largest_stable_lr(features @ features.T, momentum=momentum)
    below, above = (KernelDescent(eigen, y, share * limit, momentum) for share in (0.99, 1.01))
    assert (below.stable, above.stable) == (True, False)
    steps = [0, 2000]
    assert below.loss(steps)[1] < below.loss(steps)[0]
    assert above.loss(steps)[1] > 100 * above.loss(steps)[0]


def test_it_converges_to_kernel_regression(problem):
    features, new, y, _ = problem
    kernel = features[:11] @ features[:11].T
    model = KernelDescent(decompose(kernel), y[:11], 0.5 * largest_stable_lr(kernel))
    expected = new @ features[:11].T @ np.linalg.solve(kernel, y[:11])
    assert np.allclose(model.predict(new @ features[:11].T, math.inf), expected, rtol=1e-8)
    assert np.allclose(model.predict(new @ features[:11].T, 10**6), expected, rtol=1e-8)
    assert np.allclose(model.train(math.inf), y[:11])


def test_what_cannot_be_learned_stays(problem):
    features, _, y, _ = problem
    kernel = features @ features.T
    model = KernelDescent(decompose(kernel), y, 0.5 * largest_stable_lr(kernel))
    average = (y[10] + y[11]) / 2
    for steps in (10**7, math.inf):
        assert np.allclose(model.train(steps)[10:], average, atol=1e-8)
    assert model.steps_to_learn()[0] == math.inf


def test_the_steps_to_learn_are_where_a_mode_has_fallen_by_e(problem):
    features, _, y, _ = problem
    kernel = features @ features.T
    model = KernelDescent(decompose(kernel), y, 0.01 * largest_stable_lr(kernel))
    for steps, k in zip(model.steps_to_learn()[1:4], range(1, 4), strict=True):
        assert model.remaining(round(steps))[k] == pytest.approx(math.exp(-1), rel=0.01)


def test_the_variance_over_initialisations_is_that_of_random_features():
    """A net whose last layer alone trains: Θ = NNGP, so that the spread can be drawn."""
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(8, 3)), rng.normal(size=(4, 3))
    kernel, cross = ntk(x, depth=2, kind="nngp"), ntk(new, x, depth=2, kind="nngp")
    own = np.diagonal(ntk(new, depth=2, kind="nngp"))
    lr = 0.5 * largest_stable_lr(kernel)
    y = rng.normal(size=(8, 1))
    joint = np.block([[kernel, cross.T], [cross, ntk(new, depth=2, kind="nngp")]])
    draws = np.linalg.cholesky(joint + 1e-10 * np.eye(12)) @ rng.normal(size=(12, 4000))
    for steps in (0, 20, math.inf):
        model = KernelDescent(decompose(kernel), y, lr)
        told = model.variance(cross, steps, nngp=kernel, nngp_cross=cross, own=own)
        spread = []
        for draw in draws.T[:, :, None]:
            run = KernelDescent(model.eigen, y, lr, start=draw[:8])
            spread.append(run.predict(cross, steps, start=draw[8:])[:, 0])
        seen = np.var(spread, axis=0, ddof=1)
        assert np.allclose(told, seen, rtol=5 * math.sqrt(2 / 4000), atol=1e-8)


@pytest.mark.parametrize(
    ("lr", "momentum", "steps"),
    [(0.0, 0.0, 1), (0.1, 1.0, 1), (0.1, -0.1, 1), (0.1, 0.0, -1), (0.1, 0.0, 1.5)],
)
def test_what_is_no_descent_is_refused(problem, lr, momentum, steps):
    features, _, y, _ = problem
    with pytest.raises(InputError):
        KernelDescent(decompose(features @ features.T), y, lr, momentum).train(steps)


def test_targets_of_other_examples_are_refused(problem):
    features, _, y, _ = problem
    eigen = decompose(features @ features.T)
    for bad in (y[:5], y[:, 0]):
        with pytest.raises(InputError, match="targets"):
            KernelDescent(eigen, bad, 0.1)
    with pytest.raises(InputError, match="start"):
        KernelDescent(eigen, y, 0.1, start=y[:, :1])
