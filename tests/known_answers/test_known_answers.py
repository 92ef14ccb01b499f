"""A hundred and more places whose answer is proved: never a wrong verdict, and seldom none."""

import pytest

from tests.known_answers import functions, nets, sampled
from thalweg.diagnosis.diagnosis import diagnose
from thalweg.diagnosis.verdict import Verdict

POINTS = [*functions.POINTS, *sampled.POINTS, *nets.POINTS]


# Every other plain function, and every fourth of the others: the slow test below takes them all.
SOME = [*functions.POINTS[::2], *[*sampled.POINTS, *nets.POINTS][::4]]


@pytest.mark.parametrize("place", SOME, ids=lambda place: place.name)
def test_no_wrong_verdict(place):
    assert diagnose(place.make(0), seed=0).verdict.value in place.right | {"undetermined"}


@pytest.mark.slow
@pytest.mark.parametrize("budget", [30, 60])
def test_a_small_budget_says_less_but_nothing_wrong(budget):
    wrong = []
    for place in POINTS:
        found = diagnose(place.make(0), seed=0, budget=budget)
        allowed = place.right | {"undetermined"}
        if "bouncing" in place.right and "not measured" in found.summary:
            allowed |= {"descending"}  # the gradient does lead down; that the steps jump takes trying them
        checks = 20 * min(1.0, 16 / found.num_examples)
        if found.verdict.value not in allowed or found.cost.gradient_equivalents > budget + 1 + checks:
            wrong.append((place.name, found.verdict.value, found.cost.gradient_equivalents, found.summary))
    assert wrong == []


@pytest.mark.slow
def test_five_seeds_of_every_place_give_no_wrong_verdict_and_seldom_none():
    wrong, undetermined = [], []
    for place in POINTS:
        for seed in range(5):
            found = diagnose(place.make(seed), seed=seed)
            if found.verdict.value in place.right:
                continue
            kept = undetermined if found.verdict is Verdict.UNDETERMINED else wrong
            kept.append((place.name, seed, found.verdict.value, found.summary))
    assert wrong == []
    assert len(undetermined) < 0.05 * 5 * len(POINTS), undetermined


def test_the_places_are_many_and_ask_for_every_verdict():
    assert len(POINTS) >= 80
    assert len({place.name for place in POINTS}) == len(POINTS)
    assert {word for place in POINTS for word in place.right} == {verdict.value for verdict in Verdict}
