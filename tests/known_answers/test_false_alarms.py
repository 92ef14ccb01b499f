"""Two hundred bowls with noise of every size, and two hundred saddles: no false saddle, no false minimum."""

import pytest
import torch

from tests.known_answers.functions import planted
from tests.known_answers.sampled import noisy
from thalweg.diagnosis.diagnosis import diagnose
from thalweg.diagnosis.verdict import Verdict
from thalweg.rng import generator

pytestmark = pytest.mark.slow


def choice(seed, name, options):
    return options[int(torch.randint(len(options), (1,), generator=generator(seed, name)))]


def psd(seed):
    """A positive-semidefinite population, in part exactly flat, whose sample has curvature of both signs."""
    n = choice(seed, "n", (2, 5, 20, 50))
    curvatures = 10 ** (2 * torch.rand(n, generator=generator(seed, "a"), dtype=torch.float64) - 1)
    flat = choice(seed, "flat", (0, 1, n // 2))
    curvatures[:flat] = 0.0
    return noisy(
        curvatures,
        seed,
        gradient=choice(seed, "gradient", (0.0, 0.1, 1.0)),
        curvature=choice(seed, "curvature", (0.0, 0.1, 1.0)),
        num=choice(seed, "num", (64, 256, 1024)),
        heldout=choice(seed, "heldout", (64, 256, 1024)),
        tails=choice(seed, "tails", (False, False, True)),
    )


def saddle(seed):
    """A saddle whose most negative curvature is between 1 % and 100 % of the largest."""
    n = choice(seed, "n", (2, 5, 20, 100, 1000))
    curvatures = torch.rand(n, generator=generator(seed, "a"), dtype=torch.float64)
    if choice(seed, "graded", (False, True)):
        curvatures = 10 ** (-4 * curvatures)
    curvatures[-1] = 1.0
    down = choice(seed, "how many", (1, 1, max(1, n // 4)))
    depth = 10 ** (-2 * float(torch.rand(1, generator=generator(seed, "depth"))))
    curvatures[:down] = -depth
    if n <= 50 and choice(seed, "sampled", (False, True)):
        return noisy(20 * curvatures, seed, gradient=choice(seed, "gradient", (0.0, 0.1, 1.0)))
    return planted(curvatures, seed, quartic=0.01)


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_no_false_saddle_where_the_population_is_semidefinite(first):
    found = {seed: diagnose(psd(seed), seed=seed).verdict for seed in range(first, first + 20)}
    assert [seed for seed, verdict in found.items() if verdict is Verdict.SADDLE] == []


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_no_false_minimum_where_something_curves_down(first):
    found = {seed: diagnose(saddle(seed), seed=seed).verdict for seed in range(first, first + 20)}
    assert [seed for seed, verdict in found.items() if verdict is Verdict.MINIMUM] == []
