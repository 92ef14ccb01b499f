"""Line searches: the inequalities themselves on random lines, hard lines, lines that break."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import InputError
from thalweg.optim.line_search import backtracking, strong_wolfe


class Recorded:
    """A line that remembers where it was asked."""

    def __init__(self, line):
        self.line, self.asked = line, []

    def __call__(self, step):
        self.asked.append(step)
        return self.line(step)


def wavy(seed):
    """A parabola with three waves on it, falling at 0; it has a minimum and rises without end."""
    rng = np.random.default_rng(seed)
    a, b = 10.0 ** rng.uniform(-2, 2), rng.normal()
    height, often, shift = rng.normal(size=3), rng.uniform(0.1, 10, 3), rng.uniform(0, 6, 3)

    def line(x):
        return (
            float(a * (x - b) ** 2 + height @ np.sin(often * x + shift)),
            float(2 * a * (x - b) + (height * often) @ np.cos(often * x + shift)),
        )

    return line if line(0.0)[1] < 0 else lambda x: (line(-x)[0], -line(-x)[1])


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(-5, 5),
    st.sampled_from([(1e-4, 0.9), (1e-4, 0.1), (1e-3, 0.1), (0.1, 0.2), (1e-6, 1e-3)]),
)
def test_both_inequalities_hold_where_strong_wolfe_ends(seed, magnitude, constants):
    line, (c1, c2) = Recorded(wavy(seed)), constants
    value, slope = line.line(0.0)
    found = strong_wolfe(line, value, slope, first=10.0**magnitude, c1=c1, c2=c2)
    assert found.satisfied
    assert (found.value, found.slope) == line.line(found.step)
    assert found.step == line.asked[-1], "what is found is what was evaluated last"
    assert found.value <= value + c1 * found.step * slope
    assert abs(found.slope) <= c2 * abs(slope)
    assert found.num_evaluations == len(line.asked)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 5))
def test_the_decrease_suffices_where_backtracking_ends(seed, magnitude):
    line = Recorded(wavy(seed))
    value, slope = line.line(0.0)
    found = backtracking(line, value, slope, first=10.0**magnitude, shortest=1e-12)
    assert found.satisfied
    assert (found.value, found.slope) == line.line(found.step)
    assert found.value <= value + 1e-3 * found.step * slope
    assert found.num_evaluations == len(line.asked)
    for before, after in zip(line.asked, line.asked[1:], strict=False):
        assert after == 2 * before or 0.1 * before <= after <= 0.5 * before


# Moré and Thuente (1994), section 5: functions 1, 2 and 4 with their constants.
def _one(x, beta=2.0):
    return -x / (x * x + beta), (x * x - beta) / (x * x + beta) ** 2


def _two(x, beta=0.004):
    return (x + beta) ** 5 - 2 * (x + beta) ** 4, 5 * (x + beta) ** 4 - 8 * (x + beta) ** 3


def _four(x, b1=0.001, b2=0.001):
    g1, g2 = math.sqrt(1 + b1**2) - b1, math.sqrt(1 + b2**2) - b2
    one, two = math.sqrt((1 - x) ** 2 + b2**2), math.sqrt(x**2 + b1**2)
    return g1 * one + g2 * two, -g1 * (1 - x) / one + g2 * x / two


@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize(("line", "c1", "c2"), [(_one, 1e-3, 0.1), (_two, 0.1, 0.11), (_four, 1e-3, 0.0011)])
def test_hard_lines_of_the_literature_are_solved(line, c1, c2, first):
    value, slope = line(0.0)
    # The second is so flat at 0 that its interval is 1e-9 wide: there the values are equal to rounding.
    found = strong_wolfe(line, value, slope, first=first, c1=c1, c2=c2, noise=2e-15)
    assert found.satisfied
    assert found.value <= value + c1 * found.step * slope
    assert abs(found.slope) <= c2 * abs(slope)
    assert found.num_evaluations <= 15


@pytest.mark.parametrize("first", [1e-3, 0.5, 3.0, 40.0])
def test_a_parabola_is_solved_exactly_once_two_points_are_known(first):
    line = Recorded(lambda x: (2 * (x - 3) ** 2 + 1, 4 * (x - 3)))
    found = strong_wolfe(line, *line.line(0.0), first=first, c1=1e-9, c2=1e-8)
    assert found.step == pytest.approx(3, abs=1e-8)
    growth = max(0, math.ceil(math.log10(3 / first)) - 1)  # a trial is at most ten times the one before
    assert found.num_evaluations <= 4 + growth


@pytest.mark.parametrize("beyond", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("search", [strong_wolfe, backtracking])
def test_a_wall_of_nan_or_infinity_means_too_long(search, beyond):
    def walled(x):
        return (x * x - 2 * x, 2 * x - 2) if x < 0.7 else (beyond, beyond)

    found = search(walled, 0.0, -2.0, first=1e4)
    assert 0 < found.step < 0.7
    assert found.value < 0


@pytest.mark.parametrize("search", [strong_wolfe, backtracking])
def test_a_slope_that_is_nan_is_not_accepted(search):
    found = search(lambda x: (-x, math.nan), 0.0, -1.0)
    assert found.step == 0
    assert not found.satisfied


def test_a_logarithmic_barrier_is_respected():
    def barrier(x):
        return (-math.log(1 - x) - 3 * x, 1 / (1 - x) - 3) if x < 1 else (math.nan, math.nan)

    found = strong_wolfe(barrier, 0.0, -2.0, first=1e6, c2=0.01)
    assert found.satisfied
    assert found.step == pytest.approx(2 / 3, abs=0.02)


def test_a_line_that_falls_for_ever_ends_at_its_last_trial_and_says_so():
    found = strong_wolfe(lambda x: (-x, -1.0), 0.0, -1.0, most=6)
    assert not found.satisfied
    assert found.num_evaluations == 6
    assert found.step == 1e5
    assert backtracking(lambda x: (-x, -1.0), 0.0, -1.0).step == 64  # doublings up to 100


@pytest.mark.parametrize("search", [strong_wolfe, backtracking])
def test_a_slope_that_lies_leads_nowhere(search):
    line = Recorded(lambda x: (x, 1.0))
    found = search(line, 0.0, -1.0)
    assert found.step == 0
    assert (found.value, found.slope) == (0.0, -1.0)
    assert not found.satisfied
    assert len(line.asked) <= 31


class TestRounding:
    """Near a minimum in float32 values are steps, and only slopes know better."""

    @staticmethod
    def rounded(x):
        return float(np.float32(1.0 + 1e-8 * (x - 1) ** 2)), 2e-8 * (x - 1)

    def test_slopes_decide_where_values_are_rounded(self):
        found = strong_wolfe(self.rounded, *self.rounded(0.0), first=7.0, c2=0.1, noise=1e-6)
        assert found.satisfied
        assert found.step == pytest.approx(1, abs=0.1)

    def test_without_knowing_the_noise_the_search_fails(self):
        assert not strong_wolfe(self.rounded, *self.rounded(0.0), first=7.0, c2=0.1).satisfied


def test_backtracking_takes_the_minimum_of_the_parabola_then_of_the_cubic():
    line = Recorded(lambda x: (-x + 4 * x**2, -1 + 8 * x))
    backtracking(line, 0.0, -1.0, first=1.0, c1=0.6, c2=0.7)
    assert line.asked[:2] == [1.0, 0.125]  # -slope/(2·rest) = 1/8
    cubic = Recorded(lambda x: (-x + x**2 + 30 * x**3, -1 + 2 * x + 90 * x**2))
    backtracking(cubic, 0.0, -1.0, first=1.0, c1=0.9, c2=0.95)
    assert cubic.asked[1] == 0.1  # 1/62 of the parabola, kept at a tenth
    bottom = (-1 + math.sqrt(1 + 90)) / 90  # where −1 + 2x + 90x² = 0
    assert cubic.asked[2] == pytest.approx(min(bottom, 0.05))


def test_backtracking_gives_up_below_its_shortest_step():
    line = Recorded(lambda x: (-x + 1e20 * x**2, -1 + 2e20 * x))
    found = backtracking(line, 0.0, -1.0)
    assert found.step == 0
    assert min(line.asked) >= 1e-6


@pytest.mark.parametrize("search", [strong_wolfe, backtracking])
@pytest.mark.parametrize(
    ("value", "slope", "settings", "message"),
    [
        (0.0, 0.0, {}, "negative slope"),
        (0.0, 1.0, {}, "negative slope"),
        (0.0, math.nan, {}, "negative slope"),
        (0.0, -math.inf, {}, "negative slope"),
        (math.nan, -1.0, {}, "finite value"),
        (0.0, -1.0, {"c1": 0.9, "c2": 0.1}, "out of their order"),
        (0.0, -1.0, {"c1": 0.0}, "out of their order"),
        (0.0, -1.0, {"c2": 1.0}, "out of their order"),
        (0.0, -1.0, {"first": 0.0}, "out of their order"),
        (0.0, -1.0, {"first": math.inf}, "out of their order"),
    ],
)
def test_what_no_search_can_begin_with_is_refused(search, value, slope, settings, message):
    with pytest.raises(InputError, match=message):
        search(lambda x: (x, 1.0), value, slope, **settings)
