"""SharpnessAware against a numpy re-implementation, its closed forms, resuming, and misuse."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import classification, mlp, seeded
from thalweg.errors import InputError
from thalweg.optim.one_step_secant import OneStepSecant
from thalweg.optim.sharpness_aware import SharpnessAware

CURVATURES = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
START = (1.0, -2.0, 3.0)


def quadratic(sign=1.0):
    """Half x'Dx from START: parameter, standard closure."""
    x = nn.Parameter(torch.tensor(START, dtype=torch.float64))

    def closure():
        x.grad = None
        loss = sign * (CURVATURES * x.square()).sum() / 2
        loss.backward()
        return loss

    return x, closure


def net(base=torch.optim.SGD, seed=0, wrap=True, rho=0.05, **settings):
    model, (inputs, targets) = mlp(seed=seed), classification()
    optimizer = base(model.parameters(), **({"lr": 0.1} | settings))
    if wrap:
        optimizer = SharpnessAware(optimizer, rho=rho)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    return model, optimizer, closure


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("adaptive", "rho", "eta"), [(False, 0.05, 0.01), (True, 0.7, 0.01), (True, 0.7, 0.0)]
)
def test_ten_steps_are_those_of_the_formula(adaptive, rho, eta):
    x, closure = quadratic()
    base = torch.optim.SGD([x], lr=0.1, momentum=0.9)
    optimizer = SharpnessAware(base, rho=rho, adaptive=adaptive, eta=eta)
    w, velocity, curvatures = np.array(START), np.zeros(3), CURVATURES.numpy()
    for _ in range(10):
        expected_loss = (curvatures * w**2).sum() / 2
        g = curvatures * w
        t = np.abs(w) + eta if adaptive else np.ones(3)
        e = rho * t**2 * g / (np.linalg.norm(t * g) + 1e-12)
        velocity = 0.9 * velocity + curvatures * (w + e)
        w = w - 0.1 * velocity
        assert optimizer.step(closure).item() == pytest.approx(expected_loss, rel=1e-12)
        np.testing.assert_allclose(x.detach().numpy(), w, rtol=1e-12, atol=1e-14)


def test_the_norm_is_that_of_all_groups_together():
    x, y = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (3.0, 4.0))
    optimizer = SharpnessAware(torch.optim.SGD([{"params": [x]}, {"params": [y]}], lr=1.0), rho=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (x.square() + y.square()).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert x.item() == pytest.approx(-0.3)  # lr·(3 + 0.5·3/5) taken from 3
    assert y.item() == pytest.approx(-0.4)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adadelta, torch.optim.Rprop])
def test_without_a_radius_every_step_is_the_bases_bit_for_bit(base):
    model, optimizer, closure = net(base, rho=0.0)
    plain, reference, plain_closure = net(base, wrap=False)
    for _ in range(5):
        loss, expected = optimizer.step(closure), reference.step(plain_closure)
        assert loss.item() == expected.item()
    assert same(weights(model), weights(plain))
    assert optimizer.last.num_gradients == 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_weights_between_the_passes_come_back_bit_for_bit(adaptive):
    model, _, _ = net()
    before = weights(model)
    optimizer = SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.3, adaptive=adaptive)
    inputs, targets = classification()
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(weights(model))
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert same(weights(model), before)
    assert same(seen[0], before)
    assert not same(seen[1], before)
    moved = sum((a - b).square().sum() for a, b in zip(*seen, strict=True)).sqrt().item()
    if not adaptive:
        assert moved == pytest.approx(0.3)
    assert optimizer.last.details["perturbed_loss"] > optimizer.last.loss


def test_maximising_looks_for_the_worst_the_other_way():
    x, closure = quadratic(sign=-1.0)
    y, mirrored = quadratic()
    up = SharpnessAware(torch.optim.SGD([x], lr=0.1, maximize=True), rho=0.5)
    down = SharpnessAware(torch.optim.SGD([y], lr=0.1), rho=0.5)
    for _ in range(5):
        up.step(closure)
        down.step(mirrored)
    assert torch.equal(x, y)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(base):
    settings = {"momentum": 0.9} if base is torch.optim.SGD else {}
    model, optimizer, closure = net(base, **settings)
    for _ in range(4):
        optimizer.step(closure)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for _ in range(4):
        optimizer.step(closure)
    other, resumed, other_closure = net(base, seed=1, rho=0.5, **settings)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.rho == 0.05
    for _ in range(4):
        resumed.step(other_closure)
    assert same(weights(model), weights(other))


def test_a_state_dict_goes_through_a_file_of_weights_only(tmp_path):
    _, optimizer, closure = net(momentum=0.9)
    optimizer.step(closure)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    _, other, _ = net(momentum=0.9)
    other.load_state_dict(loaded)
    kept = [entry["momentum_buffer"] for entry in optimizer.state.values()]
    assert same(kept, [entry["momentum_buffer"] for entry in other.state.values()])


def test_the_states_of_the_plain_base_and_of_the_wrapper_load_into_each_other():
    _, plain, plain_closure = net(momentum=0.9, wrap=False)
    plain.step(plain_closure)
    _, wrapped, _ = net(momentum=0.9, rho=0.2)
    wrapped.load_state_dict(plain.state_dict())
    assert wrapped.rho == 0.2
    assert len(wrapped.state) == 4
    plain.load_state_dict(wrapped.state_dict())
    assert "sharpness_aware" not in plain.state_dict()


@pytest.mark.parametrize("through", ["wrapper", "base"])
def test_schedulers_work_on_either_also_after_loading(through):
    _, optimizer, closure = net()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    scheduled = optimizer if through == "wrapper" else optimizer.base
    scheduler = torch.optim.lr_scheduler.StepLR(scheduled, step_size=1, gamma=0.5)
    optimizer.step(closure)
    scheduler.step()
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[0]["lr"] == optimizer.base.param_groups[0]["lr"] == 0.05
    optimizer.base.load_state_dict(state)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_is_whole(again):
    _, optimizer, closure = net(momentum=0.9)
    optimizer.step(closure)
    other = again(optimizer)
    assert other.rho == optimizer.rho
    assert other.param_groups is other.base.param_groups is not optimizer.param_groups
    assert len(other.state) == 4
    assert other.last.details == optimizer.last.details


def batch_normalised(kept):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double())
    inputs, targets = classification()
    buffers = model.buffers() if kept else ()
    optimizer = SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, buffers=buffers)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    return model, optimizer, closure


def test_running_statistics_are_those_of_the_first_pass_where_buffers_are_kept():
    model, optimizer, closure = batch_normalised(kept=True)
    reference = copy.deepcopy(model)
    reference(classification()[0])
    optimizer.step(closure)
    assert same(model.buffers(), reference.buffers())
    assert model[1].num_batches_tracked == 1


def test_running_statistics_move_twice_where_they_are_not():
    model, optimizer, closure = batch_normalised(kept=False)
    optimizer.step(closure)
    assert model[1].num_batches_tracked == 2


@pytest.mark.parametrize("bad", [1, 2])
def test_a_loss_that_is_nan_in_either_pass_leaves_weights_and_base_alone(bad):
    model, optimizer, closure = net(momentum=0.9)
    before, calls = weights(model), []

    def broken():
        calls.append(1)
        loss = closure()
        return loss * math.nan if len(calls) == bad else loss

    optimizer.step(broken)
    assert same(weights(model), before)
    assert not optimizer.state
    assert not optimizer.last.accepted
    assert "not finite" in optimizer.last.reason
    assert optimizer.last.num_gradients == bad
    optimizer.step(closure)
    assert optimizer.last.accepted


def test_an_exception_in_the_second_pass_leaves_weights_and_buffers_as_they_were():
    model, optimizer, closure = batch_normalised(kept=True)
    before, calls = weights(model), []

    def broken():
        calls.append(1)
        loss = closure()
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return loss

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(broken)
    assert same(weights(model), before)
    assert model[1].num_batches_tracked == 1


def test_frozen_and_unused_parameters_are_left_alone():
    x, _ = quadratic()
    frozen, unused = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([{"params": [x, frozen]}, {"params": []}, {"params": [unused]}], lr=0.1)
    optimizer = SharpnessAware(base, rho=0.5)

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert unused.grad is None
    assert frozen.tolist() == unused.tolist() == [1.0, 1.0]
    assert x.tolist() != list(START)


def test_at_a_zero_gradient_nothing_happens():
    x = nn.Parameter(torch.zeros(1))
    optimizer = SharpnessAware(torch.optim.SGD([x], lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert x.item() == 0
    assert optimizer.last.accepted


def test_a_group_added_later_is_the_bases():
    x, _ = quadratic()
    optimizer = SharpnessAware(torch.optim.SGD([x], lr=0.1))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5})
    assert len(optimizer.base.param_groups) == 2


def misuse_closure(case, x):
    def no_backward():
        return x.square().sum()

    def sparse():
        x.grad = torch.ones(3, dtype=x.dtype).to_sparse()
        return x.detach().sum()

    return {"nothing": None, "no backward": no_backward, "sparse": sparse}[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [("nothing", "needs a closure"), ("no backward", "made no gradient"), ("sparse", "sparse")],
)
def test_a_closure_of_another_kind_is_refused(case, message):
    x, _ = quadratic()
    optimizer = SharpnessAware(torch.optim.SGD([x], lr=0.1))
    with pytest.raises(InputError, match=message):
        optimizer.step(misuse_closure(case, x))
    assert x.tolist() == list(START)


def test_complex_parameters_are_refused():
    x = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    with pytest.raises(InputError, match="complex"):
        SharpnessAware(torch.optim.SGD([x], lr=0.1)).step(lambda: x.abs().sum())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.SGD, "no optimiser to wrap"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS cannot be wrapped"),
        (OneStepSecant, "OneStepSecant cannot be wrapped"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        SharpnessAware(make([nn.Parameter(torch.ones(1))]))


@pytest.mark.parametrize("settings", [{"rho": -1.0}, {"rho": math.nan}, {"eta": math.inf}])
def test_settings_out_of_range_are_refused(settings):
    base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(InputError, match="out of range"):
        SharpnessAware(base, **settings)
