"""The bold driver: a rate that grows while the loss falls, and steps undone where it jumps."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import InputError
from thalweg.optim.bold_driver import BoldDriver
from thalweg.rng import generator


class Descent:
    """The bold driver on a function of one tensor."""

    def __init__(self, function, start, **settings):
        self.function = function
        self.w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        self.optimiser = BoldDriver([self.w], **settings)

    def closure(self):
        self.optimiser.zero_grad()
        loss = self.function(self.w)
        loss.backward()
        return loss

    def step(self):
        self.optimiser.step(self.closure)
        return self.optimiser.last

    @property
    def lr(self):
        return self.optimiser.param_groups[0]["lr"]


def bowl(w):
    return 0.5 * (torch.tensor([1.0, 10.0], dtype=torch.float64) * w.square()).sum()


def rules(start, steps, lr, *, momentum=0.0, increase=1.05, decrease=0.7, tolerance=0.04, weight=None):
    """The manual's rule on the bowl, in numpy."""
    curvatures, w, d = np.array([1.0, 10.0]), np.array(start), np.zeros(2)
    weight = 1 - momentum if weight is None else weight

    def value(w):
        return 0.5 * np.sum(curvatures * w**2)

    points, rates = [], []
    for _ in range(steps):
        d = momentum * d - weight * lr * curvatures * w
        if value(w + d) > (1 + tolerance) * value(w):
            d, lr = np.zeros(2), lr * decrease
        else:
            lr = lr * (increase if value(w + d) < value(w) else 1.0)
            w = w + d
        points.append(w)
        rates.append(lr)
    return points, rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"lr": 0.01}, {"lr": 0.01}),
        ({"lr": 5.0}, {"lr": 5.0}),
        ({"lr": 0.5, "momentum": 0.9}, {"lr": 0.5, "momentum": 0.9}),
        (
            {"lr": 0.5, "momentum": 0.9, "coefficient": "matlab"},
            {"lr": 0.5, "momentum": 0.9, "weight": 0.9},
        ),
        (
            {"lr": 1.0, "increase": 1.5, "decrease": 0.3, "tolerance": 0.5},
            {"lr": 1.0, "increase": 1.5, "decrease": 0.3, "tolerance": 0.5},
        ),
    ],
    ids=str,
)
def test_it_follows_the_rule(ours, theirs):
    descent = Descent(bowl, [1.0, 1.0], **ours)
    points, rates = rules([1.0, 1.0], 60, **theirs)
    for point, rate in zip(points, rates, strict=True):
        descent.step()
        np.testing.assert_allclose(descent.w.detach().numpy(), point, rtol=1e-12, atol=1e-14)
        assert descent.lr == pytest.approx(rate, rel=1e-12)
    assert len(set(rates)) > 10  # else nothing was adapted


def test_the_rates_of_a_parabola_are_those_worked_out_by_hand():
    """½w² with rate r multiplies w by 1−r: 3 jumps, 2.1 rises by 21 %, 1.47 and on falls."""
    descent = Descent(lambda w: 0.5 * w.square(), 1.0, lr=3.0)
    rates, accepted = [], []
    for _ in range(4):
        accepted.append(descent.step().accepted)
        rates.append(descent.lr)
    assert accepted == [False, False, True, True]
    assert rates == pytest.approx([2.1, 1.47, 1.47 * 1.05, 1.47 * 1.05**2])


def test_a_loss_that_rises_a_little_is_kept_and_leaves_the_rate():
    descent = Descent(lambda w: 0.5 * w.square(), 1.0, lr=2.01)  # F′/F = 1.0201
    last = descent.step()
    assert (last.accepted, descent.lr) == (True, 2.01)
    assert last.new_loss > last.loss


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_undone_leaves_every_bit(momentum, dtype):
    w = torch.randn(50, generator=generator(0, "bits"), dtype=dtype).requires_grad_()
    optimiser = BoldDriver([w], lr=0.01, momentum=momentum)

    def closure():
        optimiser.zero_grad()
        loss = w.square().sum() + w.pow(4).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    optimiser.param_groups[0]["lr"] = 1e3
    before = w.detach().clone()
    optimiser.step(closure)
    assert (optimiser.last.accepted, optimiser.last.reason) == (False, "loss rose")
    assert optimiser.last.step_norm == 0
    assert torch.equal(w, before)
    assert optimiser.kept("velocity") is None


@given(
    curvature=st.floats(1e-3, 1e3),
    rate=st.floats(1e-3, 2.0),
    start=st.floats(0.1, 10.0),
)
def test_on_a_parabola_the_rate_never_grows_past_stability(curvature, rate, start):
    """It grows only where the loss fell, which needs r·λ < 2; so never beyond 1.05·2/λ."""
    descent = Descent(lambda w: 0.5 * curvature * w.square(), start, lr=rate / curvature)
    for _ in range(30):
        descent.step()
        assert descent.lr * curvature <= 2 * 1.05 * (1 + 1e-9)


def test_a_rate_of_a_hundred_comes_down_to_one_that_converges():
    descent = Descent(bowl, [1.0, 1.0], lr=100.0)
    for _ in range(200):
        last = descent.step()
    assert last.loss < 1e-6


def test_a_negative_loss_may_rise_by_its_share_too():
    """With 1.04·F a loss of −1 would have to fall by 4 % to be kept."""
    descent = Descent(lambda w: 0.5 * w.square() - 10.0, 1.0, lr=0.01)
    assert descent.step().accepted


@pytest.mark.parametrize(("momentum", "steps"), [(0.0, 12), (0.9, 12)])
def test_up_on_minus_the_loss_is_down_on_the_loss(momentum, steps):
    down = Descent(bowl, [1.0, 1.0], lr=0.3, momentum=momentum)
    up = Descent(lambda w: -bowl(w), [1.0, 1.0], lr=0.3, momentum=momentum, maximize=True)
    for _ in range(steps):
        assert down.step().accepted == up.step().accepted
    assert torch.equal(down.w, up.w)
    assert down.lr == up.lr


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_resumed_is_training_not_interrupted(momentum):
    settings = {"lr": 0.15, "momentum": momentum}
    whole, first = (Descent(bowl, [1.0, 1.0], **settings) for _ in range(2))
    for _ in range(20):
        whole.step()
    for _ in range(11):
        first.step()
    file = io.BytesIO()
    torch.save(first.optimiser.state_dict(), file)
    file.seek(0)
    second = Descent(bowl, first.w.tolist(), lr=9.0)
    second.optimiser.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(9):
        second.step()
    assert torch.equal(second.w, whole.w)
    assert second.lr == whole.lr


def test_a_loss_that_is_no_number_after_the_step_undoes_it():
    descent = Descent(torch.log, 1.0, lr=2.0)
    last = descent.step()
    assert (last.accepted, last.reason) == (False, "loss after the step is not finite")
    assert (descent.w.item(), descent.lr) == (1.0, 1.4)
    assert (last.loss, last.new_loss) == (0.0, 0.0)


def test_a_loss_that_is_no_number_before_the_step_is_flagged_and_nothing_changes():
    descent = Descent(lambda w: w * float("nan"), 1.0, lr=2.0)
    state = copy.deepcopy(descent.optimiser.state_dict())
    last = descent.step()
    assert (last.accepted, last.reason) == (False, "loss is not finite")
    assert descent.w.item() == 1.0
    assert descent.optimiser.state_dict() == state


def test_a_gradient_that_is_no_number_is_flagged():
    last = Descent(torch.sqrt, 0.0, lr=0.1).step()
    assert (last.accepted, last.reason) == (False, "gradient is not finite")


def test_groups_keep_their_proportion_of_rates():
    one, other = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    frozen = torch.ones((), requires_grad=False)
    optimiser = BoldDriver(
        [{"params": [one], "lr": 0.1}, {"params": []}, {"params": [frozen, other]}], lr=0.01
    )

    def closure():
        optimiser.zero_grad()
        loss = 0.5 * (one.square() + other.square())
        loss.backward()
        return loss

    optimiser.step(closure)
    assert (one.item(), other.item(), frozen.item()) == pytest.approx((0.9, 0.99, 1.0))
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.105, 0.0105, 0.0105])


def test_a_scheduler_may_change_the_rate_too():
    descent = Descent(bowl, [1.0, 1.0], lr=0.01)
    scheduler = torch.optim.lr_scheduler.MultiplicativeLR(descent.optimiser, lambda _: 0.5)
    descent.step()
    scheduler.step()
    assert descent.lr == pytest.approx(0.01 * 1.05 * 0.5)


def test_a_step_says_what_it_cost():
    last = Descent(bowl, [1.0, 1.0]).step()
    assert last.gradient_equivalents == 2
    assert last.details["lr"] == pytest.approx(0.0105)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": 0.0}, "lr is out of its range"),
        ({"momentum": 1.0}, "momentum is out of its range"),
        ({"increase": 0.9}, "increase is out of its range"),
        ({"decrease": 1.0}, "decrease is out of its range"),
        ({"tolerance": -0.1}, "tolerance is out of its range"),
        ({"coefficient": "matlab"}, "coefficient is out of its range"),
    ],
)
def test_bad_settings_are_refused_by_name(setting, message):
    with pytest.raises(InputError, match=message):
        BoldDriver([torch.ones(2, requires_grad=True)], **setting)


def test_a_closure_without_backward_is_named():
    descent = Descent(bowl, [1.0, 1.0])
    with pytest.raises(InputError, match="the closure made no gradient"):
        descent.optimiser.step(lambda: bowl(descent.w))
