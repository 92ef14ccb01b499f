"""Trace and density: exact where they must be, covered by their error elsewhere."""

import numpy as np
import pytest
import torch

from tests.curvature.families import Rotated
from tests.models import symmetric
from thalweg.curvature.density import estimate_density, gauss_rule
from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Dense
from thalweg.curvature.spectrum import find_extremes
from thalweg.curvature.trace import estimate_trace, trace_of_run
from thalweg.errors import InputError


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_the_trace_is_exact_when_the_probes_span_the_space(n):
    matrix = symmetric(np.linspace(-1, 2, n))
    estimate = estimate_trace(Dense(matrix), seed=0, num_probes=20)
    assert estimate.value == pytest.approx(float(matrix.trace()), abs=1e-12)
    assert estimate.stderr == 0


@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize("kind", ["in proportion", "at random"])
def test_the_error_of_the_products_is_part_of_the_error(n, kind):
    noise, misses = 1e-2, []
    matrix = symmetric(np.linspace(1, 2, n))
    for seed in range(10):
        random = np.random.default_rng(seed).normal(size=(n, n))
        error = matrix if kind == "in proportion" else torch.as_tensor(random + random.T).to(matrix)
        error = error * (noise * matrix.norm() / error.norm())
        estimate = estimate_trace(Dense(matrix + error), seed=seed, num_probes=20, noise=noise)
        misses.append(abs(estimate.value - float(matrix.trace())) / estimate.stderr)
    assert max(misses) < 4
    assert max(misses) > 0.01  # and the error is not made of thin air


RNG = np.random.default_rng(0)
SPECTRA = {
    "decaying": 1 / np.arange(1, 401.0),
    "decaying fast": 1 / np.arange(1, 401.0) ** 2,
    "indefinite": np.linspace(-1, 2, 300),
    "outliers over a bulk": np.r_[np.geomspace(50, 1, 10), 0.1 * np.sin(np.arange(190.0))],
    "trace near zero": (lambda v: v - v.mean())(RNG.normal(size=300)),
    "repeated": np.r_[np.full(30, 5.0), np.zeros(270)],
    "like a net": np.r_[np.arange(1.0, 11.0), -0.05, 0.005 * RNG.standard_t(3, 989)],
}


def covered(estimate, spectrum, dtype, runs):
    """The share of runs whose 95 % interval holds the trace."""
    operator = Rotated(spectrum, dtype, np.random.default_rng(1))
    truth = float(operator.values.double().sum())
    hits = 0
    for seed in range(runs):
        low, high = estimate(operator, seed).interval(0.95)
        hits += low <= truth <= high
    return hits / runs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_probes", [10, 20])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_of_the_trace_covers_the_truth_as_often_as_it_says(name, num_probes, dtype):
    share = covered(
        lambda operator, seed: estimate_trace(operator, seed=seed, num_probes=num_probes),
        SPECTRA[name],
        dtype,
        runs=500,
    )
    assert 0.93 <= share <= 0.97


def test_the_interval_of_the_trace_covers_the_truth():
    spectrum = SPECTRA["outliers over a bulk"]
    share = covered(
        lambda operator, seed: estimate_trace(operator, seed=seed, num_probes=10),
        spectrum,
        torch.float32,
        200,
    )
    assert 0.91 <= share <= 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trace_of_low_rank_is_known_up_to_rounding(dtype):
    share = covered(
        lambda operator, seed: estimate_trace(operator, seed=seed, num_probes=10),
        np.r_[3.0, -2.0, 1.0, np.zeros(197)],
        dtype,
        runs=50,
    )
    assert share == 1


@pytest.mark.parametrize("name", SPECTRA)
def test_the_free_trace_of_a_lanczos_run_covers_at_least_as_often_as_it_says(name):
    share = covered(
        lambda operator, seed: find_extremes(operator, seed=seed, max_products=12).trace,
        SPECTRA[name],
        torch.float64,
        runs=200,
    )
    assert share >= 0.91


def test_the_free_trace_is_not_wider_than_it_must_be_where_no_eigenvalue_stands_out():
    share = covered(
        lambda operator, seed: find_extremes(operator, seed=seed, max_products=12).trace,
        SPECTRA["indefinite"],
        torch.float64,
        runs=200,
    )
    assert share <= 0.98


@pytest.mark.parametrize("steps", [1, 2])
def test_the_free_trace_exists_after_one_product(steps):
    krylov = tridiagonalise(
        Dense(symmetric(np.linspace(-1, 2, 30))), torch.ones(30, dtype=torch.float64), max_steps=steps
    )
    assert 0 < trace_of_run(krylov).stderr < 30


def test_one_probe_leaves_no_error_to_state():
    with pytest.raises(InputError, match="at least 2"):
        estimate_trace(Dense(symmetric([1.0, 2.0])), seed=0, num_probes=1)


def test_gauss_quadrature_integrates_polynomials_exactly():
    matrix = symmetric(np.linspace(-1, 1, 30))
    start = torch.ones(30, dtype=torch.float64)
    k = 5
    nodes, weights = gauss_rule(tridiagonalise(Dense(matrix), start, max_steps=k))
    q = start / start.norm()
    power = q.clone()
    for degree in range(2 * k):
        assert np.sum(weights * nodes**degree) == pytest.approx(float(q @ power), abs=1e-13)
        power = matrix @ power


def test_a_density_has_mass_one_and_the_mean_of_the_spectrum():
    truth = np.r_[np.linspace(1, 5, 5), np.linspace(-0.1, 0.1, 495)]
    nodes, weights = estimate_density(Dense(symmetric(truth)), seed=0, num_steps=40, num_probes=30)
    assert all(w.sum() == pytest.approx(1) for w in weights)
    means = [float((x * w).sum()) for x, w in zip(nodes, weights, strict=True)]
    assert np.mean(means) == pytest.approx(truth.mean(), abs=4 * np.std(means) / np.sqrt(30))
    share = np.mean([w[x > 0.5].sum() for x, w in zip(nodes, weights, strict=True)])
    assert share == pytest.approx(5 / 500, rel=0.5)
