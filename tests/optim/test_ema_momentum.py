"""Momentum as a moving average: the identity with torch's SGD."""

import numpy as np
import pytest
import torch

from thalweg.errors import InputError
from thalweg.optim.ema_momentum import ema_momentum


def positions(optimiser, parameter, gradients):
    found = [parameter.item()]
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimiser.step()
        found.append(parameter.item())
    return found


def test_a_constant_gradient_is_taken_in_step_by_step():
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    found = positions(ema_momentum([parameter], lr=1.0, beta=0.9), parameter, [1.0, 1.0, 1.0])
    assert -np.diff(found) == pytest.approx([0.1, 0.19, 0.271], abs=1e-15)


def test_torchs_dampening_is_something_else():
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], lr=1.0, momentum=0.9, dampening=0.9)
    assert -np.diff(positions(optimiser, parameter, [1.0, 1.0, 1.0])) == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99])
def test_it_is_the_moving_average_also_where_the_rate_is_scheduled(beta):
    gradients = np.random.default_rng(0).normal(size=12)
    parameter = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimiser = ema_momentum([parameter], lr=0.3, beta=beta)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.8)
    w, v, rate = 1.0, 0.0, 0.3
    for g in gradients:
        parameter.grad = torch.full_like(parameter, g)
        optimiser.step()
        scheduler.step()
        v = beta * v + (1 - beta) * g
        w, rate = w - rate * v, rate * 0.8
        assert parameter.item() == pytest.approx(w, rel=1e-12)


def test_the_rate_of_a_group_means_the_same_as_the_common_one():
    one, other = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    optimiser = ema_momentum([{"params": [one], "lr": 2.0}, {"params": [other]}], lr=1.0, beta=0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [1.0, 0.5]
    assert [group["momentum"] for group in optimiser.param_groups] == [0.5, 0.5]


def test_named_parameters_are_taken_as_torch_takes_them():
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
    optimiser = ema_momentum(layer.named_parameters(), lr=1.0)
    assert optimiser.param_groups[0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("arguments", "group", "message"),
    [
        ({"lr": -1.0}, {}, "lr is out of its range"),
        ({"lr": 1.0, "beta": 1.0}, {}, "beta is out of its range"),
        ({"lr": 1.0}, {"lr": -1.0}, "lr is out of its range"),
        ({"lr": 1.0}, {"momentum": 0.5}, "momentum of a group is out of its range"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, group, message):
    with pytest.raises(InputError, match=message):
        ema_momentum([{"params": [torch.ones(2, requires_grad=True)], **group}], **arguments)
