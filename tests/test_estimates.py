"""An estimate's interval covers the truth as often as it says, and its edges are honest."""

import math

import numpy as np
import pytest

from thalweg.estimates import Estimate, paired_difference, weighted_mean


def test_the_interval_of_a_weighted_mean_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        sizes = rng.integers(20, 40, size=24)
        means = [float(rng.normal(1.5, 2.0, size=n).mean()) for n in sizes]
        low, high = weighted_mean(means, [float(n) for n in sizes]).interval(0.95)
        covered += low <= 1.5 <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_one_sided_bounds_hold_as_often_as_they_say():
    rng = np.random.default_rng(1)
    above = 0
    for _ in range(2000):
        above += weighted_mean(rng.normal(0.0, 1.0, size=12).tolist(), [1.0] * 12).upper(0.99) >= 0
    assert 0.98 <= above / 2000 <= 0.998


def test_equal_weights_give_the_usual_standard_error():
    values = [1.0, 2.0, 4.0, 8.0]
    estimate = weighted_mean(values, [3.0] * 4)
    assert estimate.value == pytest.approx(3.75)
    assert estimate.stderr == pytest.approx(np.std(values, ddof=1) / 2)


def test_one_sample_leaves_the_error_unknown_and_none_sampled_leaves_none():
    assert weighted_mean([2.0], [5.0]).interval() == (-math.inf, math.inf)
    assert Estimate(2.0, 0.0).interval() == (2.0, 2.0)
    known = Estimate(0.0, 1.0)
    assert known.interval(0.95) == pytest.approx((-1.959964, 1.959964), abs=1e-6)


def test_pairing_removes_what_the_batches_share():
    rng = np.random.default_rng(2)
    before = rng.normal(0, 10, size=30)
    after = before - 0.1 + rng.normal(0, 0.01, size=30)
    change = paired_difference(after.tolist(), before.tolist(), [1.0] * 30)
    assert change.value == pytest.approx(-0.1, abs=0.01)
    assert change.stderr < 0.01
    assert change.upper(0.99) < 0
