"""Trace and density: exact where they must be, covered by their error elsewhere."""

import numpy as np
import pytest
import torch

from tests.models import symmetric
from thalweg.curvature.density import estimate_density, gauss_rule
from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Dense
from thalweg.curvature.spectrum import find_extremes
from thalweg.curvature.trace import estimate_trace
from thalweg.errors import InputError


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_the_trace_is_exact_when_the_probes_span_the_space(n):
    matrix = symmetric(np.linspace(-1, 2, n))
    estimate = estimate_trace(Dense(matrix), seed=0, num_probes=20)
    assert estimate.value == pytest.approx(float(matrix.trace()), abs=1e-12)
    assert estimate.stderr == 0


def test_the_interval_of_the_trace_covers_the_truth_as_often_as_it_says():
    truth = np.r_[np.geomspace(50, 1, 10), 0.1 * np.sin(np.arange(190.0))]
    matrix = symmetric(truth)
    covered = 0
    for seed in range(300):
        low, high = estimate_trace(Dense(matrix), seed=seed, num_probes=10).interval(0.95)
        covered += low <= truth.sum() <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_the_free_trace_of_a_lanczos_run_is_covered_too():
    truth = np.linspace(-1, 2, 300)
    matrix = symmetric(truth)
    covered = 0
    for seed in range(200):
        low, high = find_extremes(Dense(matrix), seed=seed, max_products=12).trace.interval(0.95)
        covered += low <= truth.sum() <= high
    assert 0.90 <= covered / 200 <= 0.99


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
