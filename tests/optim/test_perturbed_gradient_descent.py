"""PerturbedGradientDescent against a numpy re-implementation, at saddles and minima, resuming, and misuse."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import classification, mlp
from thalweg.errors import InputError
from thalweg.optim.perturbed_gradient_descent import PerturbedGradientDescent, uniform_in_ball
from thalweg.rng import generator

NUMPY_LOSS = {
    "saddle": (
        lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4 / 4,
        lambda w: np.array([2 * w[0], w[1] ** 3 - 2 * w[1]]),
    ),
    "bowl": (lambda w: (w**2).sum() / 2, lambda w: w.copy()),
}


def problem(kind="saddle", start=(1.0, 0.0), sign=1.0):
    x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def closure():
        x.grad = None
        loss = sign * (x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4 if kind == "saddle" else x.square().sum() / 2)
        loss.backward()
        return loss

    return x, closure


def reference(kind, start, steps, *, lr, radius, threshold, wait, decrease, seed=0):
    """Algorithm 2 in numpy, going on after it would have returned; yields the point after each step."""
    loss, slope = NUMPY_LOSS[kind]
    w, last, draws, kept = np.array(start), -wait - 1, 0, None
    for time in range(steps):
        if np.linalg.norm(slope(w)) <= threshold and time - last > wait:
            draws, last, kept = draws + 1, time, w
            rng = generator(seed, "perturbed-gradient-descent", draws)
            direction = torch.randn(len(w), generator=rng, dtype=torch.float64).numpy()
            share = torch.rand(1, generator=rng, dtype=torch.float64).item() ** (1 / len(w))
            w = w + radius * share * direction / np.linalg.norm(direction)
        if kept is not None and time - last == wait and loss(w) - loss(kept) > -decrease:
            w, kept = kept, None
            yield w
            continue
        w = w - lr * slope(w)
        yield w


@pytest.mark.parametrize(("kind", "start"), [("saddle", (1.0, 0.0)), ("bowl", (1.0, 0.5))])
def test_the_steps_are_those_of_the_algorithm(kind, start):
    x, closure = problem(kind, start)
    optimizer = PerturbedGradientDescent(
        [x], 0.1, radius=0.05, gradient_threshold=0.02, time_threshold=7, decrease=1e-6
    )
    expected = reference(kind, start, 120, lr=0.1, radius=0.05, threshold=0.02, wait=7, decrease=1e-6)
    reasons = set()
    for point in expected:
        optimizer.step(closure)
        reasons.add(optimizer.last.reason.split(":")[0])
        np.testing.assert_allclose(x.detach().numpy(), point, rtol=1e-12, atol=1e-14)
    assert reasons >= {"accepted", "perturbed"}
    assert ("went back" in reasons) == (kind == "bowl" or optimizer.numbers["perturbations"] > 1)


def test_far_from_where_the_gradient_is_small_it_is_gradient_descent():
    x, closure = problem("bowl")
    y, plain = problem("bowl")
    ours, sgd = PerturbedGradientDescent([x], 0.1), torch.optim.SGD([y], lr=0.1)
    for _ in range(10):
        ours.step(closure)
        sgd.step(plain)
    torch.testing.assert_close(x, y, rtol=1e-14, atol=0)  # torch rounds once, in a fused multiply-add
    assert ours.last.num_gradients == 1


def test_a_saddle_is_left_where_gradient_descent_stays():
    x, closure = problem()
    y, plain = problem()
    ours = PerturbedGradientDescent([x], 0.1, gradient_threshold=1e-3, time_threshold=50)
    sgd = torch.optim.SGD([y], lr=0.1)
    for _ in range(150):
        loss = ours.step(closure)
        sgd.step(plain)
    assert y[1].item() == 0
    assert abs(x[1].item()) == pytest.approx(math.sqrt(2), abs=0.02)
    assert loss.item() < -0.99


def test_at_a_minimum_it_goes_back_bit_for_bit_and_says_so():
    x, closure = problem("bowl", (1e-5, 0.0))
    optimizer = PerturbedGradientDescent([x], 0.1, radius=0.1, gradient_threshold=1e-3, time_threshold=3)
    reasons = []
    for _ in range(4):
        optimizer.step(closure)
        reasons.append(optimizer.last.reason.split(":")[0])
    assert reasons == ["perturbed", "accepted", "accepted", "went back"]
    assert x.tolist() == [1e-5, 0.0]
    assert optimizer.last.new_loss == pytest.approx(5e-11)


def test_maximising_mirrors_minimising():
    x, closure = problem(sign=-1.0)
    y, plain = problem()
    settings = {"gradient_threshold": 0.05, "time_threshold": 3}
    up = PerturbedGradientDescent([x], 0.1, maximize=True, **settings)
    down = PerturbedGradientDescent([y], 0.1, **settings)
    for _ in range(80):
        up.step(closure)
        down.step(plain)
    assert up.numbers["perturbations"] > 1
    assert torch.equal(x, y)


@pytest.mark.parametrize("stop", [1, 40, 45, 60])
def test_a_resumed_run_draws_and_steps_as_the_uninterrupted_one(stop):
    settings = {"lr": 0.1, "time_threshold": 8, "gradient_threshold": 1e-3, "seed": 3}
    x, closure = problem()
    optimizer = PerturbedGradientDescent([x], **settings)
    for _ in range(stop):
        optimizer.step(closure)
    point, state = x.detach().clone(), copy.deepcopy(optimizer.state_dict())
    for _ in range(60):
        optimizer.step(closure)
    y, other = problem()
    y.data.copy_(point)
    resumed = PerturbedGradientDescent([y], lr=1.0, seed=99)
    resumed.load_state_dict(state)
    for _ in range(60):
        resumed.step(other)
    assert resumed.numbers["perturbations"] == optimizer.numbers["perturbations"] > 0
    assert torch.equal(x, y)


def test_the_state_goes_through_a_file_of_weights_only(tmp_path):
    x, closure = problem(start=(0.0, 0.0))
    optimizer = PerturbedGradientDescent([x])
    optimizer.step(closure)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    y, _ = problem()
    other = PerturbedGradientDescent([y])
    other.load_state_dict(loaded)
    assert other.numbers["perturbations"] == 1
    assert other.kept("before").tolist() == [0.0, 0.0]


def test_the_seed_decides_the_perturbation():
    ends = []
    for seed in (0, 0, 1):
        x, closure = problem(start=(0.0, 0.0))
        PerturbedGradientDescent([x], seed=seed).step(closure)
        ends.append(x.tolist())
    assert ends[0] == ends[1] != ends[2]


def test_groups_have_learning_rates_of_their_own_and_schedulers_work():
    x, y = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    groups = [{"params": [x]}, {"params": []}, {"params": [frozen, y], "lr": 0.5}]
    optimizer = PerturbedGradientDescent(groups, lr=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (x.square() + y.square()).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (x.item(), y.item(), frozen.item()) == (0.75, 0.5, 1.0)
    scheduler.step()
    optimizer.step(closure)
    assert (x.item(), y.item()) == (0.75 * 0.875, 0.5 * 0.75)


@pytest.mark.parametrize("bad", [1, 2])
def test_a_loss_that_is_nan_leaves_the_parameters(bad):
    x, closure = problem(start=(0.0, 0.0))
    optimizer, calls = PerturbedGradientDescent([x]), []

    def broken():
        calls.append(1)
        loss = closure()
        return loss * math.nan if len(calls) == bad else loss

    optimizer.step(broken)
    assert x.tolist() == [0.0, 0.0]
    assert not optimizer.last.accepted
    assert "not finite" in optimizer.last.reason
    optimizer.step(closure)
    assert optimizer.last.reason == "perturbed"


@pytest.mark.parametrize("num", [1, 2, 5])
def test_points_in_the_ball_are_uniform(num):
    rng = generator(0, "test")
    like = torch.zeros(0, dtype=torch.float64)
    points = torch.stack([uniform_in_ball(num, 2.0, rng, like=like) for _ in range(4000)])
    lengths = points.norm(dim=1)
    assert lengths.max() <= 2
    share = 0.5**num  # of the volume within half the radius
    within = (lengths <= 1).double().mean().item()
    assert within == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
    assert points.mean(dim=0).abs().max() < 4 * 2 / math.sqrt(4000)


def test_a_float32_net_trains_with_its_dtype():
    model, (inputs, targets) = mlp(dtype=torch.float32), classification(dtype=torch.float32)
    optimizer = PerturbedGradientDescent(model.parameters(), 0.5)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0},
        {"radius": math.nan},
        {"gradient_threshold": -1.0},
        {"decrease": math.inf},
        {"time_threshold": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))} is out of range"):
        PerturbedGradientDescent([nn.Parameter(torch.ones(1))], **settings)


def test_a_closure_without_backward_and_complex_parameters_are_refused():
    x = nn.Parameter(torch.ones(1))
    with pytest.raises(InputError, match="made no gradient"):
        PerturbedGradientDescent([x]).step(lambda: x.square().sum())
    with pytest.raises(InputError, match="complex"):
        PerturbedGradientDescent([nn.Parameter(torch.ones(1, dtype=torch.complex64))])
