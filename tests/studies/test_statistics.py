"""What five seeds can say, and what they cannot."""

import itertools
import math

import numpy as np
import pytest

from thalweg.studies.statistics import (
    compared,
    geometric_ratio,
    sign_flip_floor,
    spread,
    typical_best,
    wilson,
)


def test_the_interval_of_five_paired_differences_covers_what_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        shared = 10 * rng.normal(size=5)  # the seeds differ much more than the methods
        found = compared(list(shared + 0.3 + rng.normal(size=5)), list(shared))
        hits += found.lower <= 0.3 <= found.upper
    assert 0.935 <= hits / 1000 <= 0.965


def test_of_many_comparisons_without_a_difference_one_in_twenty_studies_finds_one():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(600):
        reference = rng.normal(size=5)
        others = [rng.normal(size=5) for _ in range(6)]
        alarms += any(compared(list(o), list(reference), comparisons=6).detectable for o in others)
    assert alarms / 600 < 0.07  # without the correction it is about one in five


def test_a_difference_that_is_there_is_found_and_has_its_sign():
    found = compared([1.0, 1.2, 1.1, 0.9, 1.0], [0.5, 0.7, 0.62, 0.38, 0.5])
    assert found.detectable
    assert found.lower > 0
    assert found.p == sign_flip_floor(5) == 0.0625


def test_identical_runs_and_failed_runs_are_no_difference_to_be_told():
    assert compared([1.0, 2.0], [1.0, 2.0]).detectable is False
    failed = compared([math.inf, 1.0, 1.0], [0.1, 0.1, 0.1])
    assert math.isnan(failed.mean)
    assert not failed.detectable


def test_medians_put_failures_last():
    assert spread([1.0, math.inf, 2.0]).median == 2.0
    assert spread([1.0, math.inf, math.nan]).median == math.inf
    assert spread([3.0]).median == spread([3.0]).low == 3.0
    assert spread([1.0, 2.0, 3.0, 4.0]).median == 2.5


@pytest.mark.parametrize("tries", [1, 2, 3, 5])
def test_the_typical_best_of_some_tries_is_the_median_over_all_ways_to_draw_them(tries):
    values = [0.5, 0.1, 0.9, math.inf, 0.3]
    bests = sorted(min(draw) for draw in itertools.combinations(values, tries))
    below = typical_best(values, tries)
    assert sum(b <= below for b in bests) >= len(bests) / 2
    assert sum(b < below for b in bests) <= len(bests) / 2


def test_wilsons_interval_is_the_textbooks():
    low, high = wilson(0, 5)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(0.4345, abs=1e-4)
    assert wilson(5, 5)[0] == pytest.approx(1 - high)


def test_a_ratio_of_ten_with_scatter_lies_in_its_interval():
    mean, low, high = geometric_ratio([10.0, 22.0, 8.0], [1.0, 2.0, 1.0])
    assert low < mean < high
    assert 9 < mean < 11
