"""The certificate is a probability, so it is tested as one."""

import numpy as np
import pytest
import torch

from thalweg.curvature.certificate import certify, steps_for
from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Dense
from thalweg.rng import gaussian, generator


def test_the_table_of_the_bound_is_reproduced():
    # steps k for P(miss) ≤ δ at resolution ε, from 1.648·√n·exp(−√ε(2k−1)) ≤ δ
    assert steps_for(1e-2, 10**4, 1 - 1e-3) == 61
    assert steps_for(1e-2, 10**6, 1 - 1e-3) == 73
    assert steps_for(1e-3, 10**8, 1 - 1e-6) == 373
    assert steps_for(1e-2, 5) == 5


def test_steps_and_gap_are_inverse():
    steps = steps_for(0.01, 10**6)
    at = certify(num_steps=steps, size=10**6, spread=1.0, exact=False)
    before = certify(num_steps=steps - 1, size=10**6, spread=1.0, exact=False)
    assert at.relative_gap <= 0.01 < before.relative_gap


def test_an_exact_run_leaves_nothing_open():
    assert certify(num_steps=3, size=3, spread=2.0, exact=True).gap == 0


@pytest.mark.parametrize("steps", [8, 16, 30])
def test_the_extreme_is_missed_by_more_than_the_gap_no_oftener_than_stated(steps):
    """A hard spectrum: uniform bulk with one eigenvalue just below, at the depth the bound speaks of."""
    n, runs, confidence = 400, 150, 0.9
    certificate = certify(num_steps=steps, size=n, spread=1.0, exact=False, confidence=confidence)
    gap = min(certificate.relative_gap, 0.99)
    values = np.r_[-gap, np.linspace(0.0, 1.0 - gap, n - 1)]
    operator = Dense(torch.diag(torch.tensor(values)))
    missed = 0
    for seed in range(runs):
        start = gaussian(n, generator(seed, "certificate"), like=torch.empty(0, dtype=torch.float64))
        lowest = tridiagonalise(operator, start, max_steps=steps).ritz().values[0]
        missed += lowest - values[0] > gap * (values.max() - values.min())
    assert missed <= runs * (1 - confidence) + 3 * np.sqrt(runs * confidence * (1 - confidence))


def test_the_bound_is_not_vacuous_few_steps_do_miss():
    n = 400
    values = np.r_[-1e-3, np.linspace(0.0, 1.0, n - 1)]
    operator = Dense(torch.diag(torch.tensor(values)))
    missed = 0
    for seed in range(20):
        start = gaussian(n, generator(seed, "certificate"), like=torch.empty(0, dtype=torch.float64))
        missed += tridiagonalise(operator, start, max_steps=4).ritz().values[0] > 0
    assert missed > 10
