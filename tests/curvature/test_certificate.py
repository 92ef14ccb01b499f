"""The certificate is a probability, so it is tested as one."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from thalweg.curvature.certificate import certify
from thalweg.curvature.lanczos import Krylov, tridiagonalise
from thalweg.curvature.operators import Dense
from thalweg.rng import gaussian, generator


class Diagonal:
    """A diagonal matrix: Lanczos from a random start behaves in all bases alike."""

    def __init__(self, values):
        self.values = torch.as_tensor(np.asarray(values, dtype=float))
        self.size, self.dtype, self.device = len(self.values), torch.float64, torch.device("cpu")

    def matvec(self, vector):
        return self.values * vector


def run(operator, steps, seed):
    start = gaussian(operator.size, generator(seed, "certificate"), like=torch.empty(0, dtype=operator.dtype))
    return tridiagonalise(operator, start, max_steps=steps)


def misses(values, steps, confidence, runs):
    """Count the runs in which an eigenvalue lies outside the Ritz values by more than the gap."""
    operator, missed, gaps = Diagonal(values), 0, []
    for seed in range(runs):
        krylov = run(operator, steps, seed)
        ritz = krylov.ritz().values
        gap = certify(krylov, confidence=confidence).gap + 1e-13 * krylov.scale
        missed += np.max(values) > ritz[-1] + gap or np.min(values) < ritz[0] - gap
        gaps.append(gap)
    return missed, np.median(gaps)


def chebyshev(n, gap):
    """A bulk dense at its edges, as the extremal polynomials like it, and one eigenvalue below it."""
    return np.r_[-gap, (1 - np.cos(np.pi * (np.arange(n - 1) + 0.5) / (n - 1))) / 2 * (1 - gap)]


def test_a_complete_run_leaves_nothing_open():
    certificate = certify(run(Diagonal(np.arange(5.0)), 5, 0))
    assert (certificate.confidence, certificate.gap, certificate.relative_gap) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "spectrum", [chebyshev(300, 0.01), np.linspace(-1, 2, 300), np.geomspace(1, 1e-9, 300)]
)
def test_the_gap_is_never_wider_than_chebyshev_polynomials_promise_beforehand(spectrum):
    for steps in (2, 3, 5, 10, 20, 40):
        krylov = run(Diagonal(spectrum), steps, steps)
        least = 0.005 * np.sqrt(np.pi / (2 * 299))
        promised = (np.cosh(np.arccosh(1 / least) / (steps - 1)) - 1) / 2 * np.ptp(krylov.ritz().values)
        assert 0 < certify(krylov).gap <= promised * 1.01


@pytest.mark.parametrize(
    ("size", "steps", "gap"),
    [
        (400, 8, 0.1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(400, 16, 0.03), (400, 30, 0.01)]),
        pytest.param(2000, 30, 0.01, marks=pytest.mark.slow),
        (2, 1, 0.3),
        (3, 2, 0.3),
        (6, 5, 0.2),
    ],
)
def test_no_eigenvalue_lies_beyond_the_gap_oftener_than_stated(size, steps, gap):
    """Bulks as hard as they come, with one eigenvalue below at the depth where misses are likeliest."""
    for confidence in (0.9, 0.5):
        missed, _ = misses(chebyshev(size, gap), steps, confidence, runs=100)
        assert missed <= binom.ppf(0.9999, 100, 1 - confidence)


@pytest.mark.parametrize("risk", [0.1, 0.5])
def test_the_chance_of_a_miss_is_about_the_stated_one_where_the_bound_is_sharp(risk):
    """After n−1 steps the basis and the remainder span the whole space: the inequality is an equality.

    What keeps it below the stated chance is that both ends share the larger gap of the two.
    """
    missed, _ = misses(np.array([-1.0, 0.3, 2.0]), 2, 1 - risk, runs=400)
    assert binom.ppf(1e-4, 400, 0.65 * risk) <= missed <= binom.ppf(0.9999, 400, risk)


def test_the_run_may_be_stopped_when_it_looks_best():
    values, confidence, runs = chebyshev(200, 0.02), 0.8, 60
    missed = 0
    for seed in range(runs):
        whole = run(Diagonal(values), 40, seed)
        lowest = min(_lower(whole, k, confidence) for k in range(2, 41, 4))
        highest = max(_lower(whole, k, confidence) for k in range(2, 41, 4))
        missed += highest > values.min()
        assert lowest < highest
    assert missed <= binom.ppf(0.9999, runs, 1 - confidence)


def _lower(whole, k, confidence):
    """What the first k steps say: nothing lies below this."""
    left = float(whole.beta[k - 1]) if k < whole.num_steps else whole.remainder
    part = Krylov(
        whole.alpha[:k], whole.beta[: k - 1], left, whole.basis[:k], k, left, whole.rounding[:k], whole.noise
    )
    return part.ritz().values[0] - certify(part, confidence=confidence).gap - 1e-13


def test_few_steps_do_miss_and_the_certificate_says_how_much_they_may():
    values = np.r_[-1e-3, np.linspace(0.0, 1.0, 399)]
    missed = 0
    for seed in range(20):
        krylov = run(Diagonal(values), 4, seed)
        missed += krylov.ritz().values[0] > 0
        assert krylov.ritz().values[0] - certify(krylov).gap < values[0]
    assert missed > 10


def test_more_confidence_costs_a_wider_gap():
    krylov = run(Diagonal(chebyshev(300, 0.01)), 30, 0)
    gaps = [certify(krylov, confidence=c).gap for c in (0.5, 0.9, 0.99, 0.999)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]


def test_after_a_breakdown_what_is_open_is_rounding():
    krylov = run(Diagonal(np.r_[3.0, -2.0, np.zeros(98)]), 50, 0)
    assert krylov.num_steps == 3
    certificate = certify(krylov)
    assert certificate.confidence == 0.99
    assert certificate.gap < 1e-10


def test_noise_of_the_products_opens_the_gap():
    values = np.r_[np.linspace(-1, 1, 99), 5.0]
    clean = Diagonal(values)
    rng = np.random.default_rng(0)
    skew = torch.as_tensor(1e-4 * rng.normal(size=(100, 100)))
    noisy = Dense(torch.diag(torch.as_tensor(values)) + skew)
    assert certify(run(clean, 40, 0)).gap < 0.01 * certify(run(noisy, 40, 0)).gap


def test_the_zero_operator_is_certain_to_be_zero():
    assert certify(run(Diagonal(np.zeros(10)), 5, 0)).gap == 0


@pytest.mark.parametrize("size", [1e-5, 1e-3])
def test_it_holds_where_the_products_are_noisy_and_not_symmetric(size):
    missed, runs, confidence = 0, 60, 0.9
    for seed in range(runs):
        values = chebyshev(300, 0.01)
        rng = np.random.default_rng(seed)
        error = torch.as_tensor(rng.normal(size=(300, 300)) * size / np.sqrt(300))
        krylov = run(Dense(torch.diag(torch.as_tensor(values)) + error), 28, seed)
        floor = krylov.scale * krylov.noise * np.sqrt(krylov.num_steps)
        missed += krylov.ritz().values[0] - certify(krylov, confidence=confidence).gap - floor > values.min()
    assert missed <= binom.ppf(0.9999, runs, 1 - confidence)
