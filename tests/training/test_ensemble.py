"""Many nets at once are the same nets as one by one."""

import pytest
import torch
from torch import nn

from thalweg import Problem, train
from thalweg.errors import InputError
from thalweg.problem.batches import Batch
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.parameters import ParameterSpace
from thalweg.rng import generator
from thalweg.training.ensemble import Member, train_ensemble
from thalweg.training.stacked import ENOUGH_CALLS, StackedModel

N = 21  # leaves a last batch of 5 with batches of 8


def net(activation=nn.Tanh, seed=0, extra=()):
    return initialised(
        lambda: nn.Sequential(nn.Linear(6, 8), activation(), *extra, nn.Linear(8, 3)), generator(seed, "net")
    )


def data(n=N):
    rng = generator(0, "data")
    x = torch.randn(n, 6, generator=rng)
    return x, (x @ torch.randn(6, 3, generator=rng)).argmax(1)


def members(count, rates=(0.01, 0.05)):
    starts = [ParameterSpace.of(net(seed=i)).read(net(seed=i)) for i in range(count)]
    return [Member(start, rates[i % len(rates)], order=100 + i) for i, start in enumerate(starts)]


def watched(problem, optimizer, nets, batch_size=8, at=(0, 1, 12), batch=None):
    """Train an ensemble and return the weights by (member, steps), and why it was not stacked."""
    x, y = data()
    seen = {}

    def watch(member, steps, cost, theta, scale):
        seen[member, steps] = theta.clone()

    batch = batch or Batch((x, y), len(x))
    reason = train_ensemble(problem, optimizer, nets, batch, batch_size=batch_size, at=at, watch=watch)
    return seen, reason


@pytest.mark.parametrize(
    "name",
    ["sgd", "momentum", "nesterov", "ema-momentum", "adagrad", "rmsprop", "adam", "adamw", "lamb", "lars"],
)
def test_members_go_the_way_that_thalweg_train_goes_with_each_of_them_alone(name):
    problem, nets = Problem(net(), nn.CrossEntropyLoss(), data()), members(3)
    seen, reason = watched(problem, name, nets)
    assert reason is None
    for i, member in enumerate(nets):
        alone = Problem(net(seed=i), nn.CrossEntropyLoss(), data())
        train(alone, name, lr=member.lr, batch_size=8, epochs=12, seed=member.order)
        expected = ParameterSpace.of(alone.model).read(alone.model)
        moved = float((expected - member.start).norm())
        assert moved > 1e-3
        assert float((seen[i, 36] - expected).norm()) < 1e-5 * moved + 1e-6


def test_what_is_written_down_after_many_calls_gives_the_same_numbers():
    problem, nets = Problem(net(), nn.CrossEntropyLoss(), data()), members(2)
    stacked = StackedModel(problem, ParameterSpace.of(problem.model))
    theta = torch.stack([member.start for member in nets])
    batch = [part[torch.arange(8).expand(2, -1)] for part in data()]
    before = stacked.gradients(theta, batch)
    for _ in range(ENOUGH_CALLS):
        after = stacked.gradients(theta, batch)
    assert stacked.num_written == 1
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_members_go_the_same_way_when_the_operations_have_been_written_down():
    problem, nets = Problem(net(), nn.CrossEntropyLoss(), data()), members(2)
    seen, _ = watched(problem, "sgd", nets, at=(120,))  # 240 full batches: all but 20 as written down
    alone = Problem(net(seed=1), nn.CrossEntropyLoss(), data())
    train(alone, "sgd", lr=0.05, batch_size=8, epochs=120, seed=101)
    expected = ParameterSpace.of(alone.model).read(alone.model)
    torch.testing.assert_close(seen[1, 360], expected, rtol=1e-4, atol=1e-5)


def test_a_member_that_diverges_ends_alone():
    problem = Problem(net(nn.ReLU), nn.MSELoss(), (data()[0], data()[0][:, :3]))
    x = data()[0]
    nets = members(2, rates=(1e6, 0.01))
    seen, reason = watched(problem, "sgd", nets, batch=Batch((x, x[:, :3]), N))
    assert reason is None
    assert (0, 36) not in seen
    assert bool(torch.isfinite(seen[1, 36]).all())


@pytest.mark.parametrize(
    ("layer", "word"), [(nn.Dropout(0.5), "random"), (nn.BatchNorm1d(8), "")], ids=["dropout", "batch norm"]
)
def test_what_cannot_be_stacked_is_trained_one_by_one_and_that_is_said(layer, word):
    model = net(extra=(layer,))
    start = ParameterSpace.of(model).read(model)
    problem = Problem(model, nn.CrossEntropyLoss(), data())
    seen, reason = watched(problem, "sgd", [Member(start, 0.05, order=7)], at=(3,))
    assert reason is not None
    assert word in reason
    train(problem, "sgd", lr=0.05, batch_size=8, epochs=3, seed=7)
    expected = ParameterSpace.of(model).read(model)
    torch.testing.assert_close(seen[0, 9], expected, rtol=1e-5, atol=1e-6)


def test_a_line_search_is_run_one_by_one_and_its_cost_counted():
    costs = []

    def watch(member, steps, cost, theta, scale):
        costs.append((steps, cost))

    problem, batch = Problem(net(), nn.CrossEntropyLoss(), data()), Batch(data(), N)
    reason = train_ensemble(problem, "lbfgs", members(1), batch, batch_size=N, at=(0, 5, 30), watch=watch)
    assert "lbfgs" in reason
    assert costs[0] == (0, 0.0)
    assert costs[-1][1] >= 30
    assert costs[-1][0] < 30  # a step evaluates many times


def test_the_model_and_its_mode_stay_as_they_were():
    model = net().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watched(Problem(model, nn.CrossEntropyLoss(), data()), "adam", members(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_member_that_has_had_enough_is_not_shown_again():
    calls = []

    def watch(member, steps, cost, theta, scale):
        calls.append((member, steps))
        return member == 0

    problem, batch = Problem(net(), nn.CrossEntropyLoss(), data()), Batch(data(), N)
    train_ensemble(problem, "sgd", members(2), batch, batch_size=8, at=(1, 2, 3), watch=watch)
    assert calls == [(0, 3), (1, 3), (1, 6), (1, 9)]


def test_a_method_that_cannot_take_the_loss_says_so():
    problem, batch = Problem(net(), nn.CrossEntropyLoss(), data()), Batch(data(), N)
    with pytest.raises(InputError, match="mean squared error"):
        train_ensemble(
            problem,
            "matlab:trainlm",
            members(1, (None,)),
            batch,
            batch_size=N,
            at=(1,),
            watch=lambda *_: None,
        )


def test_shapes_at_the_edges_batches_of_one_and_all():
    problem, nets = Problem(net(), nn.CrossEntropyLoss(), data()), members(2)
    for size, steps in ((1, 2 * N), (N - 1, 4), (N, 2), (N + 1, 2)):
        seen, _ = watched(problem, "sgd", nets, batch_size=size, at=(2,))
        alone = Problem(net(seed=1), nn.CrossEntropyLoss(), data())
        train(alone, "sgd", lr=0.05, batch_size=size, epochs=2, seed=101)
        expected = ParameterSpace.of(alone.model).read(alone.model)
        torch.testing.assert_close(seen[1, steps], expected, rtol=1e-4, atol=1e-6)
