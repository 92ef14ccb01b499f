"""What all methods of second order owe their users, whatever their formula."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch

from tests.models import classification, mlp
from thalweg.errors import InputError
from thalweg.optim.cubic_newton import CubicNewton
from thalweg.optim.dogleg import Dogleg
from thalweg.optim.modified_newton import ModifiedNewton
from thalweg.optim.saddle_free_newton import SaddleFreeNewton
from thalweg.optim.trust_region_newton_cg import TrustRegionNewtonCG

METHODS = [CubicNewton, Dogleg, ModifiedNewton, SaddleFreeNewton, TrustRegionNewtonCG]
each = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def problem(method, dtype=torch.float64, seed=0):
    """Return a net and its closure of the kind that the method takes."""
    model = mlp((4, 3, 2), seed=seed, dtype=dtype)
    inputs, _ = classification(num=11, dtype=dtype)
    targets, _ = classification(num=11, features=2, seed=1, dtype=dtype)
    if method is Dogleg:
        return model, lambda: model(inputs) - targets
    return model, lambda: ((model(inputs) - targets) ** 2).mean()


def plain(method, function):
    """Turn a loss function, or the residuals of the dogleg, into its closure."""
    return function if method is not Dogleg else lambda: function().reshape(-1)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_falls_and_the_step_returns_where_it_began(method, dtype):
    model, closure = problem(method, dtype)
    optimizer = method(model.parameters())
    for _ in range(8):
        returned = optimizer.step(closure)
        assert float(returned) == pytest.approx(optimizer.last.loss, rel=1e-6)
    with torch.no_grad():
        value = closure()
    loss = float((value**2).sum()) if method is Dogleg else float(value)
    assert loss == pytest.approx(optimizer.last.new_loss, rel=1e-5)
    first, second = problem(method, dtype)
    fresh = method(first.parameters())
    fresh.step(second)
    assert loss < 0.9 * fresh.last.loss


@each
def test_resumed_training_is_the_training_not_interrupted_bit_for_bit(method):
    model, closure = problem(method)
    optimizer = method(model.parameters())
    for _ in range(4):
        optimizer.step(closure)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    other, other_closure = problem(method)
    other.load_state_dict(model.state_dict())
    resumed = method(other.parameters())
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    for _ in range(6):
        optimizer.step(closure)
        resumed.step(other_closure)
        assert same(weights(model), weights(other))
        assert resumed.last == optimizer.last


@each
def test_copies_and_pickles_go_on(method):
    model, closure = problem(method)
    optimizer = method(model.parameters())
    optimizer.step(closure)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.last is None
        assert twin.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@each
def test_a_refused_step_leaves_the_parameters_bit_for_bit(method):
    p = torch.tensor([0.1, 0.7, 1 / 3], dtype=torch.float64, requires_grad=True)
    before = p.detach().clone()

    def closure():  # worse everywhere but here
        value = p if torch.equal(p, before) else p * 0 + 10
        return value if method is Dogleg else (value**2).sum()

    optimizer = method([p])
    optimizer.step(closure)
    assert not optimizer.last.accepted
    assert optimizer.last.step_norm == 0
    assert optimizer.last.new_loss == optimizer.last.loss
    assert torch.equal(p, before)


@each
def test_a_loss_of_nan_is_flagged_and_nothing_moves(method):
    p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = method([p])
    optimizer.step(plain(method, lambda: (p * math.nan).sum()))
    assert optimizer.last.reason == "loss or gradient not finite"
    assert not optimizer.last.accepted
    assert p.tolist() == [1, 2]


@each
def test_a_gradient_of_nan_is_flagged_and_nothing_moves(method):
    p = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = method([p])
    optimizer.step(plain(method, lambda: (p[0] * p[0]).sqrt() + p[1]))
    assert optimizer.last.reason == "loss or gradient not finite"
    assert p.tolist() == [0, 2]


@each
def test_nan_at_the_new_point_is_refused_and_later_steps_are_shorter(method):
    # From 0.3 all of them go below zero at first, where the logarithm is NaN; the minimum is at e⁻³.
    p = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    optimizer, outside = method([p]), []

    def closure():
        outside.append(p.item() < 0)
        residual = p.log() + 3
        return residual if method is Dogleg else (residual**2).sum()

    for _ in range(60):
        optimizer.step(closure)
        assert p.item() > 0
    assert any(outside)
    assert optimizer.last.new_loss < 1e-8


@each
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_where_all_new_losses_are_not_finite_nothing_moves(method, value):
    p = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    before = p.detach().clone()

    def closure():
        residual = p if torch.equal(p, before) else p * 0 + value
        return residual if method is Dogleg else (residual * p).sum()

    optimizer = method([p])
    optimizer.step(closure)
    assert not optimizer.last.accepted
    assert torch.equal(p, before)


@each
def test_an_exception_in_the_closure_leaves_the_parameters_bit_for_bit(method):
    model, closure = problem(method)
    optimizer, before, calls = method(model.parameters()), weights(model), []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("lost")
        return closure()

    with pytest.raises(KeyError, match="lost"):
        optimizer.step(failing)
    assert same(before, weights(model))


@each
def test_frozen_unused_and_absent_parameters_stay(method):
    p, frozen = (
        torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=needs) for needs in (True, False)
    )
    unused = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = method([{"params": [p]}, {"params": []}, {"params": [frozen, unused]}])
    optimizer.step(lambda: (p * frozen - 1) if method is Dogleg else ((p * frozen - 1) ** 2).sum())
    assert optimizer.last.accepted
    assert frozen.tolist() == [0.5, 0.25]
    assert unused.tolist() == [3.0]
    assert all(each.grad is None for each in (p, frozen, unused))


@each
def test_groups_do_not_change_the_steps(method):
    whole, closure = problem(method)
    parts, other_closure = problem(method)
    one = method(whole.parameters())
    two = method([{"params": parts[0].parameters()}, {"params": parts[2].parameters()}])
    for _ in range(4):
        one.step(closure)
        two.step(other_closure)
    assert same(weights(whole), weights(parts))


@each
def test_one_parameter_and_no_dimension(method):
    p = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    optimizer = method([p])
    for _ in range(8):
        optimizer.step(lambda: p - 1 if method is Dogleg else (p - 1) ** 2)
    assert p.item() == pytest.approx(1, abs=1e-6)


@each
def test_at_an_exact_minimum_nothing_happens(method):
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = method([p])
    optimizer.step(lambda: p if method is Dogleg else (p**2).sum())
    assert not optimizer.last.accepted
    assert optimizer.last.reason.startswith("gradient below tolerance")
    assert p.tolist() == [0, 0, 0]


@each
class TestMisuse:
    def test_no_closure(self, method):
        with pytest.raises(InputError, match=r"step\(\) needs a closure"):
            method([torch.zeros(2, requires_grad=True)]).step()

    def test_a_closure_that_calls_backward_and_returns_a_number(self, method):
        p = torch.ones(2, requires_grad=True)

        def standard():
            loss = (p**2).sum()
            loss.backward()
            return loss.detach()

        with pytest.raises(InputError, match=r"cannot be differentiated.*without backward"):
            method([p]).step(standard)

    def test_a_closure_without_return(self, method):
        with pytest.raises(InputError, match="closure returned no"):
            method([torch.ones(2, requires_grad=True)]).step(lambda: None)

    def test_complex_parameters(self, method):
        with pytest.raises(InputError, match=r"complex.*view_as_real"):
            method([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])

    def test_nothing_trainable(self, method):
        frozen = torch.ones(2)
        with pytest.raises(InputError, match="cannot be differentiated"):
            method([frozen]).step(lambda: frozen if method is Dogleg else frozen.sum())


@each
def test_steps_leave_no_tensors_behind_and_no_warning(method, live_tensors):
    model, closure = problem(method)
    optimizer = method(model.parameters())

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of backward(create_graph=True)
        for _ in range(3):
            optimizer.step(closure)
        before = live_tensors()
        for _ in range(10):
            optimizer.step(closure)
        assert live_tensors() == before
