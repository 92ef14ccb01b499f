"""The limits of the optimisers, held to torch's own optimisers on quadratics just below and above them."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import symmetric
from thalweg.curvature.operators import Dense
from thalweg.curvature.spectrum import find_extremes
from thalweg.curvature.stability import (
    StabilityLimit,
    coupled_decay,
    inverse_preconditioner,
    measure_stability,
    stability_limit,
)
from thalweg.problem.stepping import stepping_from_optimizer

EIGENVALUES = [0.3, 1.0, 2.0, 5.0]
AGES = 1e20  # so many steps that bias corrections are over


def second_moments(optimizer, key, tensors=((4e-4, 1e-2), (1.0, 0.09))):
    """Give an adaptive optimiser a past: second moments that further steps do not change."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p, values in zip(parameters, tensors, strict=True):
        state = optimizer.state[p]
        state["step"] = torch.tensor(AGES)
        state[key] = torch.tensor(values, dtype=p.dtype)
        if key == "exp_avg_sq":
            state["exp_avg"] = torch.zeros_like(p)
        if optimizer.param_groups[0].get("momentum"):
            state["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def adam(p, kind=torch.optim.Adam, **settings):
    return second_moments(kind(p, lr=1e-3, betas=(0.9, 1 - 1e-16), **settings), "exp_avg_sq")


def rmsprop(p, **settings):
    return second_moments(torch.optim.RMSprop(p, lr=1e-2, alpha=1.0, **settings), "square_avg")


def adagrad(p, **settings):
    return second_moments(torch.optim.Adagrad(p, lr=1e-2, **settings), "sum")


def groups(p, **second):
    return [{"params": p[:1]}, {"params": p[1:], **second}]


MAKERS = {
    "gradient descent": lambda p: torch.optim.SGD(p, lr=0.1),
    "gradient descent with decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=2.0),
    "gradient descent, two rates": lambda p: torch.optim.SGD(groups(p, lr=0.03), lr=0.1),
    "gradient descent, two decays": lambda p: torch.optim.SGD(groups(p, weight_decay=5.0), lr=0.1),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "light ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.3, weight_decay=1.0),
    "damped ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.6),
    "dampening without momentum": lambda p: torch.optim.SGD(p, lr=0.1, dampening=0.6),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "nesterov with decay": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.5, nesterov=True, weight_decay=2.0
    ),
    "adam": adam,
    "adam with decay": lambda p: adam(p, weight_decay=30.0),
    "adam, two rates": lambda p: adam(groups(p, lr=1e-4)),
    "adamw": lambda p: adam(p, torch.optim.AdamW, weight_decay=100.0),
    "rmsprop": rmsprop,
    "rmsprop with momentum": lambda p: rmsprop(p, momentum=0.9),
    "adagrad": adagrad,
    "adagrad with decay": lambda p: adagrad(p, weight_decay=0.2),
}


class Point(nn.Module):
    """Four weights in two tensors, so that they can be in two groups."""

    def __init__(self, start=1e-30):
        super().__init__()
        self.first = nn.Parameter(torch.full((2,), start, dtype=torch.float64))
        self.second = nn.Parameter(torch.full((2,), start, dtype=torch.float64))

    def growth(self, optimizer, hessian, steps=1000):
        """Run the optimiser on ½xᵀHx; return how much larger x becomes, far enough to tell."""
        before = growth = self.x.norm()
        for _ in range(steps):
            gradient = hessian @ self.x
            self.first.grad, self.second.grad = gradient[:2], gradient[2:]
            optimizer.step()
            growth = float(self.x.norm() / before)
            if growth > 1e6:  # before the second moments take notice
                break
        return growth

    @property
    def x(self):
        return torch.cat([self.first, self.second]).detach()


def stepping_of(make, start=1e-30):
    point = Point(start)
    parameters = list(point.parameters())
    optimizer = make(parameters)
    return point, optimizer, stepping_from_optimizer(optimizer, parameters, None)


def ratio_of(stepping, hessian):
    operator = Dense(hessian)
    return measure_stability(operator, find_extremes(operator, seed=0).lambda_max, stepping, seed=0).ratio


def hessian_at(ratio, stepping):
    """Scale a Hessian so that the measured ratio becomes ``ratio``."""
    base, scales = symmetric(EIGENVALUES), [0.0, 1.0]
    found = [ratio_of(stepping, scale * base) - ratio for scale in scales]
    while abs(found[-1]) > 1e-6:  # the secant method; without decay the ratio is linear in the scale
        slope = (found[-1] - found[-2]) / (scales[-1] - scales[-2])
        scales.append(scales[-1] - found[-1] / slope)
        found.append(ratio_of(stepping, scales[-1] * base) - ratio)
    return scales[-1] * base


@pytest.mark.parametrize("name", MAKERS)
def test_steps_shrink_just_below_the_limit_and_grow_just_above_it(name):
    _, _, stepping = stepping_of(MAKERS[name])
    for ratio in (0.98, 1.02):
        hessian = hessian_at(ratio, stepping)
        point, optimizer, _ = stepping_of(MAKERS[name])
        growth = point.growth(optimizer, hessian)
        assert growth < 1e-2 if ratio < 1 else growth > 1e6, (ratio, growth)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["ball", "damped", "nesterov", "adamw"])
def test_at_the_limit_the_slowest_mode_neither_grows_nor_shrinks(kind, beta):
    lr, dampening, decay = 0.05, 0.0, 0.0
    if kind == "adamw":
        lr, decay = 1e-3, 20.0
        optimizer = lambda p: adam_with(p, lr, beta, decay)  # noqa: E731
        dampening = beta
    else:
        dampening = 0.3 if kind == "damped" and beta else 0.0
        optimizer = lambda p: torch.optim.SGD(  # noqa: E731
            p, lr=lr, momentum=beta, dampening=dampening, nesterov=kind == "nesterov" and beta > 0
        )
    limit = stability_limit(stepping_of(optimizer)[2])

    def radius(s):
        buffer = np.array([(1 - dampening) * s, beta])  # b⁺ from (x, b)
        ahead = np.array([s, 0.0]) + beta * buffer if kind == "nesterov" else buffer
        x = np.array([1 - lr * decay, 0.0]) - lr * ahead
        return np.abs(np.linalg.eigvals(np.stack([x, buffer]))).max()

    assert radius(limit.curvature) == pytest.approx(1, abs=1e-7)
    assert radius(0.99 * limit.curvature) < 1 < radius(1.01 * limit.curvature)


def adam_with(p, lr, beta, decay):
    optimizer = torch.optim.AdamW(p, lr=lr, betas=(beta, 0.99), weight_decay=decay)
    return second_moments(optimizer, "exp_avg_sq")


def test_the_textbook_values():
    def limit(make):
        return stability_limit(stepping_of(make)[2])

    def sgd(**settings):
        return limit(lambda p: torch.optim.SGD(p, lr=0.1, **settings))

    assert sgd() == StabilityLimit("gradient descent", "2/η", pytest.approx(20), 0.1, 0.0)
    assert sgd(momentum=0.9).curvature == pytest.approx(2 * 1.9 / 0.1)
    assert sgd(momentum=0.9, nesterov=True).curvature == pytest.approx(2 * 1.9 / (0.1 * 2.8))
    assert limit(adam).curvature == pytest.approx(38 / 1e-3)
    assert (limit(adam).rule, limit(rmsprop).rule, limit(adagrad).rule) == ("Adam", "RMSprop", "Adagrad")


PAST = {
    "adam": lambda p: torch.optim.Adam(groups(p, lr=3e-2), lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, eps=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(groups(p, eps=1e-2), lr=1e-2),
    "centred rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, lr_decay=0.3, initial_accumulator_value=0.2),
}


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("name", PAST)
def test_the_preconditioner_is_what_the_last_step_divided_by(name, num_steps):
    point, optimizer, _ = stepping_of(PAST[name], start=1.0)
    rng = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        before = point.x
        for p in point.parameters():
            p.grad = torch.randn(2, generator=rng, dtype=torch.float64)
        optimizer.step()
    moved = point.x - before
    direction = [optimizer.state[p].get("exp_avg", p.grad) for p in point.parameters()]
    stepping = stepping_from_optimizer(optimizer, list(point.parameters()), None)
    inverse = inverse_preconditioner(stepping)
    assert torch.allclose(-stepping.lr * inverse * torch.cat(direction), moved, rtol=1e-9, atol=1e-14)


def test_a_tensor_that_the_optimiser_lacks_does_not_move():
    hessian = torch.diag(torch.tensor([1.0, 2.0, 30.0, 40.0], dtype=torch.float64))
    for make in (lambda p: torch.optim.SGD(p[:1], lr=0.1), lambda p: second_moments_of_one(p[:1])):
        point, _, stepping = stepping_of(make)
        inverse = inverse_preconditioner(stepping)
        assert inverse[2:].tolist() == [0.0, 0.0]
        top = float((inverse * hessian.diagonal()).max())
        assert ratio_of(stepping, hessian) == pytest.approx(top / stability_limit(stepping).curvature)
        assert top <= 2 * float(inverse.max())
        assert point.second.requires_grad


def second_moments_of_one(p):
    return second_moments(torch.optim.Adam(p, lr=1e-3), "exp_avg_sq", tensors=((1.0, 4.0),))


def test_one_decay_for_all_is_a_number_and_gives_what_the_vector_would():
    _, _, one = stepping_of(lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=3.0))
    _, _, same = stepping_of(
        lambda p: torch.optim.SGD(groups(p, weight_decay=3.0 + 1e-12), lr=0.1, weight_decay=3.0)
    )
    hessian = symmetric(EIGENVALUES)
    assert coupled_decay(one) == 3.0
    assert coupled_decay(same).tolist() == [3.0, 3.0, 3.0 + 1e-12, 3.0 + 1e-12]
    assert ratio_of(one, hessian) == pytest.approx(8.0 / 20)
    assert ratio_of(same, hessian) == pytest.approx(8.0 / 20)


def test_a_gradient_that_is_a_sum_meets_so_much_more_curvature():
    operator = Dense(symmetric(EIGENVALUES))
    top = find_extremes(operator, seed=0).lambda_max
    for make in (
        MAKERS["gradient descent"],
        MAKERS["gradient descent with decay"],
        adam,
        MAKERS["adam with decay"],
    ):
        _, _, stepping = stepping_of(make)
        summed = measure_stability(operator, top, stepping, seed=0, gradient_scale=16.0)
        larger = Dense(16 * symmetric(EIGENVALUES))
        plain = measure_stability(larger, find_extremes(larger, seed=0).lambda_max, stepping, seed=0)
        assert summed.curvature == pytest.approx(plain.curvature, rel=1e-10)


class Own(torch.optim.SGD):
    """An SGD of the user's own making."""

    def step(self, closure=None):
        return super().step(closure)


class Renamed(torch.optim.SGD):
    """An SGD under another name."""


REFUSED = {
    "LBFGS": (lambda p: torch.optim.LBFGS(p), "no step-size limit is known for LBFGS"),
    "NAdam": (lambda p: torch.optim.NAdam(p), "no step-size limit is known for NAdam"),
    "a step of one's own": (lambda p: Own(p, lr=0.1), "no step-size limit is known for Own"),
    "climbing": (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "climbs"),
    "no rate": (lambda p: torch.optim.SGD(p, lr=0.0), "learning rate is zero"),
    "momentum 1": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=1.0), "never settle"),
    "two momenta": (lambda p: torch.optim.SGD(groups(p, momentum=0.5), lr=0.1), "differ in their momentum"),
    "no past": (lambda p: torch.optim.Adam(p), "Adam has taken no step yet"),
    "no past of adagrad": (lambda p: torch.optim.Adagrad(p), "Adagrad has taken no step yet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_no_limit_is_known_the_reason_is_said(name):
    make, reason = REFUSED[name]
    _, _, stepping = stepping_of(make)
    assert reason in stability_limit(stepping)
    operator = Dense(symmetric(EIGENVALUES))
    top = find_extremes(operator, seed=0).lambda_max
    assert reason in measure_stability(operator, top, stepping, seed=0)


def test_a_class_that_only_renames_steps_as_its_parent():
    limit = stability_limit(stepping_of(lambda p: Renamed(p, lr=0.1))[2])
    assert (limit.rule, limit.curvature) == ("gradient descent", pytest.approx(20))


def test_a_group_that_stands_still_does_not_count():
    _, _, stepping = stepping_of(lambda p: torch.optim.SGD(groups(p, lr=0.0), lr=0.1))
    hessian = torch.diag(torch.tensor([1.0, 2.0, 30.0, 40.0], dtype=torch.float64))
    assert ratio_of(stepping, hessian) == pytest.approx(2.0 / 20)


def test_the_judgement_follows_the_ratio():
    def judged(largest, batch_size=None):
        point = Point()
        optimizer = torch.optim.SGD(point.parameters(), lr=0.1)
        stepping = stepping_from_optimizer(optimizer, list(point.parameters()), batch_size)
        operator = Dense(largest * torch.eye(4, dtype=torch.float64))
        top = find_extremes(operator, seed=0).lambda_max
        return measure_stability(operator, top, stepping, seed=0).judgement

    assert "every direction shrink" in judged(10)
    assert "can become unstable before" in judged(10, batch_size=64)
    assert "edge of stability" in judged(20)
    assert "beyond the edge" in judged(22)
    assert "no direction curves upwards" in judged(-1)
