"""Scaled conjugate gradients: Møller's listing in numpy, published counts, trials taken back."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import rosen, rosen_der, rosen_hess

from tests.optim.descending import (
    descend,
    quadratic,
    quadratic_loss,
    rosenbrock,
    rosenbrock_start,
)
from thalweg.errors import InputError
from thalweg.optim.scaled_conjugate_gradient import ScaledConjugateGradient


def listing(w, f, df, product, iterations, sigma=5e-5, scale=5e-7):
    """The algorithm of [moller1993] as printed; return all positions and how many gradients it took."""
    n, bar, success = len(w), 0.0, True
    r = -df(w)
    p, positions, gradients = r.copy(), [w], 1
    for k in range(1, iterations + 1):
        squared = p @ p
        if success:
            distance = sigma / math.sqrt(squared)
            s = (df(w + distance * p) - df(w)) / distance if product is None else product(w, p)
            delta, gradients = p @ s, gradients + 1
        delta += (scale - bar) * squared
        if delta <= 0:
            bar = 2 * (scale - delta / squared)
            delta = -delta + scale * squared
            scale = bar
        mu = p @ r
        alpha = mu / delta
        comparison = 2 * delta * (f(w) - f(w + alpha * p)) / mu**2
        if comparison >= 0:
            w = w + alpha * p
            new = -df(w)
            gradients += 1
            bar, success = 0.0, True
            p = new if k % n == 0 else new + (new @ new - new @ r) / mu * p
            r = new
            if comparison >= 0.75:
                scale /= 4
        else:
            bar, success = scale, False
        if comparison < 0.25:
            scale += delta * (1 - comparison) / squared
        scale = min(max(scale, 1e-15), 1e100)
        positions.append(w)
        if np.linalg.norm(r) < 1e-6:
            break
    return positions, gradients


@pytest.mark.parametrize("n", [2, 10])
@pytest.mark.parametrize(("curvature", "exactness"), [("exact", 1e-12), ("differences", 1e-9)])
def test_a_run_is_the_listing_of_the_paper(n, curvature, exactness):
    """Differences of gradients over 5e-5 lose five digits, in the oracle as in ours."""
    product = (lambda w, p: rosen_hess(w) @ p) if curvature == "exact" else None
    wanted, _ = listing(rosenbrock_start(n), rosen, rosen_der, product, 15)
    run = descend(
        lambda p: ScaledConjugateGradient(p, curvature=curvature),
        rosenbrock,
        rosenbrock_start(n),
        15,
        backward=curvature != "exact",
    )
    assert len(run.taken) < 15, "trials are taken back on the way"
    assert np.abs(np.array(run.positions) - np.array(wanted)).max() <= exactness * 10


@pytest.mark.parametrize(("n", "iterations", "gradients"), [(2, 99, 163), (10, 161, 301)])
def test_rosenbrock_takes_the_published_number_of_iterations(n, iterations, gradients):
    run = descend(lambda p: ScaledConjugateGradient(p, full_batch=True), rosenbrock, rosenbrock_start(n), 500)
    _, its_gradients = listing(rosenbrock_start(n), rosen, rosen_der, None, 500)
    assert len(run.steps) - 1 == pytest.approx(iterations, rel=0.2)
    assert its_gradients == pytest.approx(gradients, rel=0.2)
    # An evaluation of a standard closure gives both loss and gradient, so a trial is one as well.
    back = len(run.steps) - 1 - len(run.taken)
    assert run.evaluations == sum(s.num_gradients for s in run.steps)
    assert run.evaluations == 1 + 2 * len(run.taken) + back
    assert run.steps[-1].loss < 1e-12


@pytest.mark.parametrize("curvature", ["exact", "differences"])
@pytest.mark.parametrize("n", range(1, 21))
def test_a_quadratic_is_finished_in_n_steps(n, curvature):
    """λ is not 0, so the last digits wait: 1e-5 of the first gradient."""
    matrix, b, start = quadratic(np.linspace(1, 10, n), seed=n)
    run = descend(
        lambda p: ScaledConjugateGradient(p, curvature=curvature, damping=1e-10),
        quadratic_loss(matrix, b),
        start,
        n,
        backward=curvature != "exact",
    )
    assert np.linalg.norm(run.gradients[-1]) <= 1e-5 * np.linalg.norm(run.gradients[0])


@pytest.mark.parametrize("different", [1, 2, 3])
def test_repeated_eigenvalues_need_as_many_steps_as_there_are_different_ones(different):
    matrix, b, start = quadratic(np.resize([1.0, 4.0, 9.0][:different], 12))
    run = descend(ScaledConjugateGradient, quadratic_loss(matrix, b), start, different)
    assert np.linalg.norm(run.gradients[-1]) <= 1e-5 * np.linalg.norm(run.gradients[0])


def test_a_trial_that_rises_is_taken_back_bit_for_bit_and_the_next_is_shorter():
    run = descend(ScaledConjugateGradient, rosenbrock, rosenbrock_start(2), 40)
    back = [k for k, step in enumerate(run.steps) if not step.accepted]
    assert back
    for k in back:
        step = run.steps[k]
        assert step.reason == "loss rose"
        assert step.new_loss == step.loss
        assert np.array_equal(run.positions[k + 1], run.positions[k])
        after = run.steps[k + 1]
        assert after.details["damping"] > step.details["damping"]
        assert after.details["step_length"] < step.details["step_length"]
        assert after.num_gradients == 2, "the curvature is known"


def test_negative_curvature_is_met_with_damping_and_the_loss_falls():
    run = descend(
        lambda p: ScaledConjugateGradient(p, curvature="exact"),
        lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2,
        [0.1, 0.01],
        60,
        backward=False,
    )
    assert run.steps[0].details["damping"] > 5e-7
    assert np.allclose(np.abs(run.positions[-1]), [1, 0], atol=1e-5)


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_trial_that_is_not_finite_is_taken_back(beyond):
    """A parabola that ends in a wall before its minimum."""

    def walled(x):
        return torch.where(x > 0.5, beyond, (x - 1) ** 2).sum()

    run = descend(ScaledConjugateGradient, walled, [0.0], 12)
    assert run.steps[0].reason == "loss is not finite at the trial"
    assert np.array_equal(run.positions[1], run.positions[0])
    assert any(step.accepted for step in run.steps)
    assert all(math.isfinite(step.new_loss) for step in run.steps)
    assert 0 < run.positions[-1][0] <= 0.5


def test_a_probe_that_is_not_finite_is_said():
    def wall(x):
        return torch.sqrt(x - 1).sum()

    run = descend(ScaledConjugateGradient, wall, [1 + 1e-9], 1)
    assert run.steps[0].reason == "curvature is not finite"
    assert run.positions[1] == run.positions[0]


def test_differences_agree_with_the_exact_curvature_in_float32():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, generator=generator) / 8 for s in [(300, 64), (10, 300)]]
    x, y = torch.randn(50, 64, generator=generator), torch.arange(50) % 10
    deltas = {}
    for curvature in ("differences", "exact"):
        parameters = [torch.nn.Parameter(w.clone()) for w in weights]
        optimizer = ScaledConjugateGradient(parameters, curvature=curvature)

        def closure(parameters=parameters, optimizer=optimizer, curvature=curvature):
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(torch.tanh(x @ parameters[0].T) @ parameters[1].T, y)
            if curvature == "differences":
                value.backward()
            return value

        optimizer.step(closure)
        last = optimizer.last
        deltas[curvature] = last.gradient_norm**2 / last.details["step_length"]
    assert deltas["differences"] == pytest.approx(deltas["exact"], rel=1e-3)


def test_exact_curvature_leaves_no_graph_behind():
    import gc

    x = torch.nn.Parameter(torch.tensor(rosenbrock_start(10)))
    optimizer = ScaledConjugateGradient([x], curvature="exact")
    counts = []
    for k in range(60):
        optimizer.step(lambda: rosenbrock(x))
        if k in {20, 59}:
            gc.collect()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert counts[1] <= counts[0]
    assert x.grad is None


@pytest.mark.parametrize(
    "setting",
    [{"sigma": 0.0}, {"sigma": 1e-3}, {"damping": 0.0}, {"damping": 1e-3}, {"sigma": math.nan}],
)
def test_constants_out_of_the_papers_range_are_refused(setting):
    with pytest.raises(InputError, match="out of the range that the method allows"):
        ScaledConjugateGradient([torch.nn.Parameter(torch.ones(2))], **setting)


def test_another_curvature_is_refused():
    with pytest.raises(InputError, match="no curvature 'hvp'"):
        ScaledConjugateGradient([torch.nn.Parameter(torch.ones(2))], curvature="hvp")
