"""The evidence in words."""

import pytest

from tests.diagnosis.test_rules import evidence, gradient
from thalweg.diagnosis.facts import facts


def signal(*layers):
    return dict(facts(evidence(gradient=gradient(layers=layers)), 100))["signal"]


@pytest.mark.parametrize("layers", [(1.0, 1.0), (1.0, 1.9), (1.99, 1.0, 1.5)])
def test_layers_that_receive_about_as_much_are_not_called_weak(layers):
    assert signal(*layers) == "all layers receive about as much gradient, relative to their weights"


@pytest.mark.parametrize(("weakest", "times"), [(0.5, "2"), (0.1, "10"), (1e-4, "10,000")])
def test_a_weak_layer_is_named_with_how_weak_it_is(weakest, times):
    assert f"is {times} times weaker in layer" in signal(weakest, 1.0)


def test_layers_without_any_signal_are_named():
    assert "no gradient reaches layer" in signal(0.0, 1.0)
    assert signal(0.0, 0.0) == "no layer receives any"
