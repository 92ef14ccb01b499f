"""What a spectrum says to people, and what it refuses."""

import math

import pytest
import torch
from torch import nn

import thalweg
from tests.models import classification, mlp
from thalweg.errors import NumericalError
from thalweg.problem.problem import Problem

MEASURES = [thalweg.spectrum, thalweg.sharpness, thalweg.density, thalweg.trace]


def told(function, start):
    return str(thalweg.spectrum(Problem.from_function(function, start, name="f")))


def row(text, label):
    return next(line.split(maxsplit=1)[1] for line in text.splitlines() if line.split()[:1] == [label])


def test_a_function_has_no_examples():
    text = told(lambda t: t[0] ** 2 - t[1] ** 2, [0.0, 0.0])
    assert text.splitlines()[0].strip() == "f · 2 parameters"
    assert told(lambda t: (t**2).sum(), [1.0]).splitlines()[0].strip() == "f · 1 parameter"
    data = str(thalweg.spectrum(Problem(mlp(), nn.CrossEntropyLoss(), classification(40))))
    assert data.splitlines()[0].strip().endswith(" parameters · 40 examples")


def test_a_trace_below_rounding_is_zero_and_one_above_is_exact():
    assert row(told(lambda t: t[0] ** 2 - t[1] ** 2, [0.0, 0.0]), "trace") == "0"
    assert row(told(lambda t: t[0] ** 2 - 0.5 * t[1] ** 2, [0.0, 0.0]), "trace") == "1.00 (exact)"
    assert row(told(lambda t: 1e-9 * (t**2).sum(), [1.0, 2.0]), "trace") == "4.00e−09 (exact)"


def test_a_trace_from_one_probe_keeps_its_error():
    text = str(thalweg.spectrum(Problem(mlp((4, 40, 3)), nn.CrossEntropyLoss(), classification(40))))
    assert "±" in row(text, "trace")
    assert row(text, "trace").endswith("(one probe)")


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
@pytest.mark.parametrize("size", [None, 16])
def test_data_that_hold_nan_are_blamed_and_not_the_second_derivative(measure, size):
    x, y = classification(40)
    x[37, 2] = math.nan
    data = (x, y) if size is None else list(zip(x.split(size), y.split(size), strict=True))
    with pytest.raises(NumericalError, match=r"the training loss is nan.*example 37 .*data hold NaN"):
        measure(Problem(mlp(), nn.CrossEntropyLoss(), data))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_a_loss_that_is_not_finite_is_said_of_a_function_too(measure):
    with pytest.raises(NumericalError, match="the training loss is -inf"):
        measure(Problem.from_function(lambda t: torch.log(t).sum(), [0.0, 1.0]))
