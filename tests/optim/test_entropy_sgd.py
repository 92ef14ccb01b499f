"""EntropySGD against a numpy re-implementation, its limits, resuming, and misuse."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.errors import InputError
from thalweg.optim.entropy_sgd import EntropySGD
from thalweg.rng import generator

CURVATURES = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
START = (1.0, -2.0, 3.0)


def problem(sign=1.0, start=START):
    """A quadratic with a quartic, so that the gradient is not linear: parameter, closure, its calls."""
    x, calls = nn.Parameter(torch.tensor(start, dtype=torch.float64)), []

    def closure():
        calls.append(x.detach().clone())
        x.grad = None
        loss = sign * ((CURVATURES * x.square()).sum() / 2 + x.pow(4).sum() / 40)
        loss.backward()
        return loss

    return x, closure, calls


def reference(steps, *, lr, num, eta, gamma, scoping, noise, alpha, seed):
    """Algorithm 1 in numpy, with lr for ηγ; yields the point after each step."""
    x = np.array(START)
    for time in range(steps):
        rng = generator(seed, "entropy-sgd", time)
        walker, mean, scope = x.copy(), x.copy(), gamma * (1 + scoping) ** time
        for _ in range(num):
            slope = CURVATURES.numpy() * walker + walker**3 / 10
            draw = torch.randn(3, generator=rng, dtype=torch.float64).numpy()
            walker = walker - eta * (slope - scope * (x - walker)) + np.sqrt(eta) * noise * draw
            mean = (1 - alpha) * mean + alpha * walker
        x = x - lr * (x - mean)
        yield x


@pytest.mark.parametrize("num", [1, 2, 5])
def test_ten_steps_are_those_of_the_algorithm(num):
    x, closure, calls = problem()
    settings = {"gamma": 0.3, "scoping": 0.1, "noise": 0.2, "alpha": 0.6, "seed": 7}
    optimizer = EntropySGD([x], 0.8, inner_steps=num, inner_lr=0.05, **settings)
    for step, point in enumerate(reference(10, lr=0.8, num=num, eta=0.05, **settings), start=1):
        optimizer.step(closure)
        np.testing.assert_allclose(x.detach().numpy(), point, rtol=1e-12, atol=1e-14)
        assert len(calls) == step * num
    assert optimizer.last.gradient_equivalents == num
    assert optimizer.last.details["gamma"] == pytest.approx(0.3 * 1.1**9)


def test_one_quiet_step_of_the_walk_is_gradient_descent():
    x, closure, _ = problem()
    y, plain, _ = problem()
    ours = EntropySGD([x], 1.0, inner_steps=1, inner_lr=0.1, noise=0.0, alpha=1.0)
    sgd = torch.optim.SGD([y], lr=0.1)
    for _ in range(5):
        ours.step(closure)
        sgd.step(plain)
    torch.testing.assert_close(x, y, rtol=1e-14, atol=0)


def test_a_strong_pull_keeps_the_walk_at_the_proximal_point():
    # without noise the walk converges to where ∇f(x′) = γ (x − x′); in a bowl of curvature d at γ x/(γ + d)
    x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def closure():
        x.grad = None
        loss = x.square().sum() * 1.5
        loss.backward()
        return loss

    optimizer = EntropySGD([x], 1.0, inner_steps=400, inner_lr=0.1, noise=0.0, gamma=2.0, scoping=0.0)
    optimizer.step(closure)
    torch.testing.assert_close(x.detach(), torch.tensor([0.4, -0.8], dtype=torch.float64))


def test_the_loss_returned_is_that_before_the_step():
    x, closure, calls = problem()
    expected = closure().item()
    calls.clear()
    assert EntropySGD([x]).step(closure).item() == expected
    assert calls[0].tolist() == list(START)


def test_maximising_mirrors_minimising():
    x, closure, _ = problem(sign=-1.0)
    y, plain, _ = problem()
    up, down = EntropySGD([x], 0.5, inner_lr=0.02, maximize=True), EntropySGD([y], 0.5, inner_lr=0.02)
    for _ in range(5):
        up.step(closure)
        down.step(plain)
    assert torch.equal(x, y)


def test_a_resumed_run_walks_as_the_uninterrupted_one(tmp_path):
    x, closure, _ = problem()
    optimizer = EntropySGD([x], 0.5, inner_steps=3, inner_lr=0.05, noise=0.1, gamma=0.1, scoping=0.2, seed=5)
    for _ in range(4):
        optimizer.step(closure)
    point = x.detach().clone()
    torch.save(copy.deepcopy(optimizer.state_dict()), tmp_path / "state.pt")
    for _ in range(4):
        optimizer.step(closure)
    y, other, _ = problem()
    y.data.copy_(point)
    resumed = EntropySGD([y], seed=99)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(4):
        resumed.step(other)
    assert torch.equal(x, y)


def test_the_seed_decides_the_walk():
    ends = []
    for seed in (0, 0, 1):
        x, closure, _ = problem()
        EntropySGD([x], noise=0.1, inner_lr=0.02, seed=seed).step(closure)
        ends.append(x.tolist())
    assert ends[0] == ends[1] != ends[2]


def test_groups_have_learning_rates_of_their_own_and_schedulers_work():
    x, y = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    groups = [{"params": [x]}, {"params": []}, {"params": [frozen, y], "lr": 0.0}]
    optimizer = EntropySGD(groups, lr=1.0, inner_steps=1, inner_lr=0.5, noise=0.0, alpha=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (x.square() + y.square()).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (x.item(), y.item(), frozen.item()) == (0.5, 1.0, 1.0)
    scheduler.step()
    optimizer.step(closure)
    assert (x.item(), y.item()) == (0.375, 1.0)


@pytest.mark.parametrize("bad", [1, 3])
def test_a_loss_that_is_nan_within_the_walk_leaves_the_parameters(bad):
    x, closure, _ = problem()
    optimizer, calls = EntropySGD([x], inner_steps=3, inner_lr=0.01), []

    def broken():
        calls.append(1)
        loss = closure()
        return loss * math.nan if len(calls) == bad else loss

    optimizer.step(broken)
    assert x.tolist() == list(START)
    assert not optimizer.last.accepted
    assert "not finite" in optimizer.last.reason
    assert optimizer.last.num_gradients == bad
    optimizer.step(closure)
    assert optimizer.last.accepted


def test_an_exception_within_the_walk_leaves_the_parameters():
    x, closure, calls = problem()

    def broken():
        loss = closure()
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return loss

    with pytest.raises(RuntimeError, match="out of memory"):
        EntropySGD([x], inner_lr=0.01).step(broken)
    assert x.tolist() == list(START)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0},
        {"inner_lr": math.inf},
        {"gamma": math.nan},
        {"scoping": -0.1},
        {"noise": -1.0},
        {"inner_steps": 0},
        {"alpha": 0.0},
        {"alpha": 1.1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))} is out of range"):
        EntropySGD([nn.Parameter(torch.ones(1))], **settings)


def test_a_missing_closure_and_complex_parameters_are_refused():
    x, _, _ = problem()
    with pytest.raises(InputError, match="needs a closure"):
        EntropySGD([x]).step()
    with pytest.raises(InputError, match="complex"):
        EntropySGD([nn.Parameter(torch.ones(1, dtype=torch.complex64))])
