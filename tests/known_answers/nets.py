"""Nets at places whose answer is proved: by a symmetry, by linear algebra, or by the dense Hessian."""

import itertools

import torch
from torch import nn
from torch.func import functional_call

from tests.known_answers.point import Point, point
from tests.known_answers.sampled import normal
from thalweg.problem.builtin.digits import digits
from thalweg.problem.builtin.initialise import initialised, refill
from thalweg.problem.builtin.saddle import fitted, halves, split_unit
from thalweg.problem.builtin.training import minimise, polish
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Problem
from thalweg.rng import generator

DIGITS = {
    "digits-mlp": "minimum",
    "digits-saddle": "saddle",
    "digits-deep-sigmoid": "plateau",
    "digits-started": "descending",
    "digits-hot": "bouncing",
}


# --- deep linear nets: every critical point is known (Baldi and Hornik 1989; Kawaguchi 2016) -------------


def linear_net(seed, sizes):
    """A chain of linear maps without biases, at zero; y is a linear map of x and noise, both centred."""
    x = normal(200, sizes[0], seed=seed, name="x")
    truth = normal(sizes[0], sizes[-1], seed=seed, name="map")
    y = x @ truth + 0.1 * normal(200, sizes[-1], seed=seed, name="y")
    x, y = x - x.mean(0), y - y.mean(0)
    layers = [
        nn.utils.skip_init(nn.Linear, a, b, bias=False, dtype=torch.float64)
        for a, b in itertools.pairwise(sizes)
    ]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
    return model, x, y


def deep_linear_origin(seed, depth):
    model, x, y = linear_net(seed, (4, *[5] * (depth - 1), 3))
    return Problem(model, nn.MSELoss(), (x, y))


def deep_linear_rank(seed, rank):
    """A two-layer linear net that fits the ``rank`` strongest directions: the minimum when that is all 3."""
    model, x, y = linear_net(seed, (4, 5, 3))
    # The best map of rank r projects the least-squares map on the top r directions of its predictions.
    best = torch.linalg.lstsq(x, y).solution.T
    u = torch.linalg.svd(best @ x.T, full_matrices=False)[0][:, :rank]
    inner = u.T @ best
    with torch.no_grad():
        model[0].weight[:rank] = inner
        model[1].weight[:, :rank] = u
    return Problem(model, nn.MSELoss(), (x, y))


# --- small nonlinear nets --------------------------------------------------------------------------------


def small(seed, activation, hidden=4):
    rng = generator(seed, "small")
    return initialised(lambda: nn.Sequential(nn.Linear(3, hidden), activation(), nn.Linear(hidden, 2)), rng)


def penalised(criterion, decay=1e-2):
    def loss(model, batch):
        penalty = sum(p.square().sum() for p in model.parameters())
        return criterion(model(batch[0]), batch[1]) + decay / 2 * penalty

    return loss


def as_function(model, loss, batch):
    """The loss as a function of one vector, and where the model stands."""
    space = ParameterSpace.of(model)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, data):
            return loss(self.model, data)

    whole = Whole()

    def risk(theta):
        named = dict(zip((f"model.{n}" for n in space.names), space.unflatten(theta), strict=True))
        return functional_call(whole, named, (batch,))

    return risk, space.read(model), space


def bends(seed):
    x = normal(120, 3, seed=seed, name="x")
    y = torch.stack([torch.sin(2 * x[:, 0]) * x[:, 1], torch.tanh(x[:, 2] - x[:, 0])], 1)
    return x, y + 0.1 * normal(120, 2, seed=seed, name="y")


def trained(seed, activation):
    """A small net at a critical point that the dense Hessian proves to be a minimum."""
    for attempt in range(20):
        model = small(seed + 1000 * attempt, activation).double()
        loss, batch = penalised(nn.functional.mse_loss), bends(seed)
        risk, start, space = as_function(model, loss, batch)
        theta = polish(risk, minimise(risk, start, tolerance=1e-9, iterations=800), steps=50)
        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(risk, theta))
        gradient = torch.autograd.functional.jacobian(risk, theta)
        if values[0] > 1e-4 * values[-1] and gradient.abs().max() < 1e-12:
            space.write(model, theta)
            return Problem(model, loss, batch, bends(seed + 77))
    raise AssertionError("no attempt ended in a minimum")


def newton_saddle(seed, activation):
    """A critical point that Newton's method falls into, proved a strict saddle by the dense Hessian."""
    for attempt in range(200):
        model = small(seed + 1000 * attempt, activation).double()
        loss, batch = penalised(nn.functional.mse_loss), bends(seed)
        risk, theta, space = as_function(model, loss, batch)
        for _ in range(60):
            gradient = torch.autograd.functional.jacobian(risk, theta)
            hessian = torch.autograd.functional.hessian(risk, theta)
            step = torch.linalg.solve(hessian, gradient)
            theta = theta - step * min(1.0, 1.0 / float(step.norm()))
        values = torch.linalg.eigvalsh(hessian)
        away = theta.norm() > 0.3  # not the trivial point
        if gradient.abs().max() < 1e-12 and values[0] < -0.01 * values[-1] and away:
            space.write(model, theta)
            return Problem(model, loss, batch, bends(seed + 77))
    raise AssertionError("no attempt ended in a saddle")


def zero_start(seed, activation):
    """All weights zero, centred targets: no gradient, but the two layers together could fit at once."""
    model = small(seed, activation).double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    x, y = bends(seed)
    return Problem(model, nn.MSELoss(), (x, y - y.mean(0)))


def split(seed, share):
    """digits-saddle with another share for the copies; beyond 0 … 1 the two units work against each other."""
    data = halves(digits(seed))
    model = split_unit(fitted(seed, data), 0, share)
    (x, y), (xh, yh) = data.train, data.heldout
    model = model.double()
    return Problem(model, nn.MSELoss(), (x.double(), y.double()), (xh.double(), yh.double()))


def symmetric_start(seed):
    """Two hidden units that are equal and stay equal under gradient descent, still on their way."""
    model = small(seed, nn.Tanh, hidden=2).double()
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
        model[0].bias[1] = model[0].bias[0]
        model[2].weight[:, 1] = model[2].weight[:, 0]
    return Problem(model, nn.MSELoss(), bends(seed), bends(seed + 77))


# --- no signal -------------------------------------------------------------------------------------------


def labels(seed, num=300):
    x = normal(num, 4, seed=seed, name="x")
    y = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), num, True, generator=generator(seed, "y"))
    return x, y


def best_last_layer(model, x, y):
    """Put the last layer, which sees fixed features, at its penalised optimum (a convex problem)."""
    last, body = model[-1], model[:-1]
    with torch.no_grad():
        features = body(x)
    wide = torch.cat([features, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    classes = last.out_features

    def risk(w):
        w = w.view(classes, -1)
        return nn.functional.cross_entropy(wide @ w.T, y) + 5e-3 * w.square().sum()

    w = torch.zeros(classes * wide.shape[1], dtype=x.dtype)
    for _ in range(40):
        g, h = torch.autograd.functional.jacobian(risk, w), torch.autograd.functional.hessian(risk, w)
        w = w - torch.linalg.solve(h, g)
    with torch.no_grad():
        last.weight.copy_(w.view(classes, -1)[:, :-1])
        last.bias.copy_(w.view(classes, -1)[:, -1])

    def loss(model, batch):
        penalty = model[-1].weight.square().sum() + model[-1].bias.square().sum()
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 5e-3 * penalty

    return loss


def cut_off(seed, activation, *, scale=1.0, bias=None):
    """Hidden layers that pass nothing back: saturated by their weights, or dead by their biases."""
    rng = generator(seed, "cut-off")

    def build():
        return nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 3))

    model = initialised(build, rng).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= scale
            layer.bias *= scale
            if bias is not None:
                layer.bias.fill_(bias)
    x, y = labels(seed)
    loss = best_last_layer(model, x, y)
    return Problem(model, loss, (x, y), labels(seed + 50))


def faded(seed, activation=nn.Tanh, depth=12):
    """Small weights in many layers: what reaches the end does not depend on the input, nor the way back."""
    rng = generator(seed, "faded")

    def build():
        layers = [nn.Linear(4, 8), activation()]
        for _ in range(depth - 2):
            layers += [nn.Linear(8, 8), activation()]
        return nn.Sequential(*layers, nn.Linear(8, 3))

    model = initialised(build, rng).double()
    refill(model, rng)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight *= 0.15
    x, y = labels(seed)
    loss = best_last_layer(model, x, y)
    return Problem(model, loss, (x, y), labels(seed + 50))


# --- on the way ------------------------------------------------------------------------------------------


class Reads(nn.Module):
    """The last state of a recurrent layer, read out."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(2, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x.view(len(x), 2, 2))[0][:, -1])


def fresh(seed, build):
    """An untrained net on classes that can be learnt."""
    model = initialised(build, generator(seed, "fresh"))
    x = normal(300, 4, seed=seed, name="x").float()
    y = (x @ normal(4, 3, seed=seed, name="w").float()).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Problem(model, nn.CrossEntropyLoss(), (x[:200], y[:200]), (x[200:], y[200:]), optimizer=optimizer)


FRESH = {
    "a net with batch normalisation": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "a net with layer normalisation and dropout": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3)
    ),
    "an LSTM": lambda: Reads(nn.LSTM),
    "a GRU": lambda: Reads(nn.GRU),
    "a convolutional net": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    ),
}

POINTS: list[Point] = [
    *(point(f"built in: {n}", lambda s, n=n: Problem.builtin(n, s), right) for n, right in DIGITS.items()),
    point("a two-layer linear net at zero", lambda s: deep_linear_origin(s, 2), "saddle"),
    point("a three-layer linear net at zero", lambda s: deep_linear_origin(s, 3), "degenerate"),
    point("a four-layer linear net at zero", lambda s: deep_linear_origin(s, 4), "degenerate"),
    point("a linear net that fits one direction", lambda s: deep_linear_rank(s, 1), "saddle"),
    point("a linear net that fits two directions", lambda s: deep_linear_rank(s, 2), "saddle"),
    point("a linear net that fits all", lambda s: deep_linear_rank(s, 3), "minimum"),
    *(
        point(f"a small {a.__name__} net in a minimum", lambda s, a=a: trained(s, a), "minimum")
        for a in (nn.Tanh, nn.GELU, nn.Softplus, nn.Sigmoid)
    ),
    *(
        point(f"a small {a.__name__} net on a saddle", lambda s, a=a: newton_saddle(s, a), "saddle")
        for a in (nn.Tanh, nn.GELU, nn.SiLU)
    ),
    point("all weights zero, tanh", lambda s: zero_start(s, nn.Tanh), "saddle"),
    point("all weights zero, SiLU", lambda s: zero_start(s, nn.SiLU), "saddle"),
    point("a unit split in shares of 0.3 and 0.7", lambda s: split(s, 0.3), "saddle"),
    point("a unit split in shares of 1.5 and −0.5", lambda s: split(s, 1.5), "saddle"),
    point("two equal units on the way", symmetric_start, "descending"),
    point("saturated sigmoid layers", lambda s: cut_off(s, nn.Sigmoid, scale=1e6), "plateau"),
    point("saturated tanh layers", lambda s: cut_off(s, nn.Tanh, scale=1e6), "plateau"),
    point("dead ReLU layers", lambda s: cut_off(s, nn.ReLU, bias=-100.0), "plateau"),
    point("twelve tanh layers with small weights", faded, "plateau"),
    *(point(f"{name}, untrained", lambda s, b=b: fresh(s, b), "descending") for name, b in FRESH.items()),
]
