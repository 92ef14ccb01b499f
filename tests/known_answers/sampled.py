"""Losses that are means over data, with gradient and curvature noise that is known."""

import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.known_answers.point import Point, point
from thalweg.problem.problem import Problem
from thalweg.rng import generator

NUM = 512


def normal(*shape, seed, name):
    return torch.randn(*shape, generator=generator(seed, name), dtype=torch.float64)


class Vector(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.x = nn.Parameter(start.clone())

    def forward(self, _):
        return self.x


def example_loss(curvatures):
    """½Σaᵢxᵢ² + zᵀx + ½xᵀ(uuᵀ − I)x + 1 for each example (z, u): gradient noise z, curvature noise uuᵀ."""

    def loss(model, batch):
        z, u = batch[0], batch[1]
        x = model(z)
        spread = ((u @ x) ** 2 - (x**2).sum()) / 2
        return 1.0 + 0.5 * (curvatures * x**2).sum() + z @ x + spread

    return loss


def noisy(curvatures, seed, *, gradient=0.5, curvature=0.0, away=0.0, num=NUM, heldout=NUM, tails=False,
          exact=True, optimizer=None):  # fmt: skip
    """A quadratic with noise of known size; with ``exact`` the sample's own gradient is the quadratic's."""
    a = torch.as_tensor(curvatures, dtype=torch.float64)
    n = len(a)
    pairs = []
    for role, size in (("train", num), ("heldout", heldout)):
        z = normal(size, n, seed=seed, name=f"{role}-z")
        if tails:  # Student's t with 3 degrees of freedom
            chi = normal(size, 3, seed=seed, name=f"{role}-chi").square().sum(1, keepdim=True)
            z = z / (chi / 3).sqrt()
        z = gradient * z
        if exact:
            z = z - z.mean(0)
        # E = uuᵀ − c·I with u ~ N(0, c·I): its mean is 0, its spread c.
        u = math.sqrt(curvature) * normal(size, n, seed=seed, name=f"{role}-u")
        pairs.append((z, u))
    model = Vector(torch.full((n,), away, dtype=torch.float64))
    plain = example_loss(a)

    def loss(model, batch):
        x = model(batch[0])
        return plain(model, batch) + 0.5 * (1 - curvature) * (x**2).sum()

    problem = Problem(model, loss, pairs[0], pairs[1])
    if optimizer is not None:
        problem.optimizer = optimizer(model.parameters())
    return problem


def spread(n, low=0.5, high=20.0):
    return torch.linspace(low, high, n, dtype=torch.float64)


def down(n, *lowest):
    return torch.cat([torch.tensor(lowest, dtype=torch.float64), spread(n)[len(lowest) :]])


class Linear(nn.Module):
    def __init__(self, features, outputs, start):
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Linear, features, outputs, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(start[:, :-1])
            self.layer.bias.copy_(start[:, -1])

    def forward(self, x):
        return self.layer(x)


def regression(seed, *, features=6, num=NUM, noise=0.5, away=0.0, batch=None, optimizer=None):
    """Least squares at its solution, or ``away`` from it: the Hessian is that of the inputs."""
    x = normal(num, features, seed=seed, name="x")
    truth = normal(features, 1, seed=seed, name="w")
    y = x @ truth + noise * normal(num, 1, seed=seed, name="y")
    xh = normal(num, features, seed=seed, name="xh")
    yh = xh @ truth + noise * normal(num, 1, seed=seed, name="yh")
    one = torch.ones(num, 1, dtype=torch.float64)
    start = torch.linalg.lstsq(torch.cat([x, one], 1), y).solution.T + away
    model = Linear(features, 1, start)
    train = (x, y) if batch is None else loader(x, y, batch, seed)
    problem = Problem(model, nn.MSELoss(), train, (xh, yh))
    if optimizer is not None:
        problem.optimizer = optimizer(model.parameters())
    return problem


def loader(x, y, batch, seed):
    return DataLoader(
        TensorDataset(x, y), batch_size=batch, shuffle=True, generator=generator(seed, "loader")
    )


def valley(seed, *, condition, left):
    """Least squares whose first input is small, displaced along it by ``left`` of the loss."""
    x = normal(NUM, 3, seed=seed, name="x")
    x[:, 0] /= math.sqrt(condition)
    y = x @ torch.ones(3, 1, dtype=torch.float64) + normal(NUM, 1, seed=seed, name="y")
    one = torch.ones(NUM, 1, dtype=torch.float64)
    start = torch.linalg.lstsq(torch.cat([x, one], 1), y).solution.T
    best = float(((torch.cat([x, one], 1) @ start.T - y) ** 2).mean())
    start[0, 0] += math.sqrt(left * best / float((x[:, 0] ** 2).mean()))
    return Problem(Linear(3, 1, start), nn.MSELoss(), (x, y))


def softmax(seed, *, classes=4, features=5, decay=0.01, away=0.0, num=NUM):
    """Penalised softmax regression at its minimum: convex, by Newton's method."""
    x = normal(num, features, seed=seed, name="x")
    logits = x @ normal(features, classes, seed=seed, name="w")
    y = torch.multinomial(logits.softmax(1), 1, generator=generator(seed, "y")).squeeze(1)
    wide = torch.cat([x, torch.ones(num, 1, dtype=torch.float64)], 1)

    def risk(w):
        w = w.view(classes, features + 1)
        return nn.functional.cross_entropy(wide @ w.T, y) + decay / 2 * w.square().sum()

    w = torch.zeros(classes * (features + 1), dtype=torch.float64)
    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(risk, w)
        w = w - torch.linalg.solve(torch.autograd.functional.hessian(risk, w), gradient)
    model = Linear(features, classes, (w + away).view(classes, -1))

    def loss(model, batch):
        penalty = sum(p.square().sum() for p in model.parameters())
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + decay / 2 * penalty

    half = num // 4
    return Problem(model, loss, (x, y), (x[:half], y[:half]))


def stationary(seed, *, lr, batch=1):
    """Least squares where one-example steps have taken it: up and down without a trend."""
    problem = regression(seed, noise=1.0, batch=batch, optimizer=lambda p: torch.optim.SGD(p, lr=lr))
    x, y = problem._train.dataset.tensors
    model, rng = problem.model, generator(seed, "sgd")
    seen = []
    while True:
        for _ in range(20):
            rows = torch.randint(0, len(x), (batch,), generator=rng)
            residual = model(x[rows]).detach() - y[rows]
            with torch.no_grad():
                model.layer.weight -= lr * 2 * residual.T @ x[rows] / batch
                model.layer.bias -= lr * 2 * residual.mean(0)
        with torch.no_grad():
            seen.append(float(((model(x) - y) ** 2).mean()))
        if len(seen) > 60 and seen[-1] <= sorted(seen[20:])[len(seen[20:]) // 3]:
            return problem


POINTS: list[Point] = [
    *(
        point(f"a noisy bowl, noise {g:g}", lambda s, g=g: noisy(spread(20), s, gradient=g), "minimum")
        for g in (0.0, 0.1, 1.0, 5.0)
    ),
    *(
        point(f"a noisy saddle, noise {g:g}", lambda s, g=g: noisy(down(20, -4.0), s, gradient=g), "saddle")
        for g in (0.0, 0.1, 1.0)
    ),
    point("a noisy dome", lambda s: noisy(-spread(20), s, gradient=0.1), "maximum"),
    point("a bowl with heavy-tailed noise", lambda s: noisy(spread(20), s, tails=True), "minimum"),
    point("a saddle with heavy-tailed noise", lambda s: noisy(down(20, -4.0), s, tails=True), "saddle"),
    point(
        "a bowl with noisy curvature",
        lambda s: noisy(spread(20, 2.0), s, gradient=0.1, curvature=0.5),
        "minimum",
    ),
    point(
        "a saddle with noisy curvature",
        lambda s: noisy(down(20, -6.0), s, gradient=0.1, curvature=0.5),
        "saddle",
    ),
    point("beside a noisy bottom", lambda s: noisy(spread(20), s, away=0.5), "descending"),
    point("beside a noisy ridge", lambda s: noisy(down(20, -4.0), s, away=0.5), "descending"),
    point("a noisy saddle of many ways down", lambda s: noisy(down(50, *[-5.0] * 20), s), "saddle"),
    point("few examples in a bowl", lambda s: noisy(spread(5), s, num=24, heldout=12), "minimum"),
    point(
        "a sample of a bowl's data, at the bottom for all of them",
        lambda s: noisy(spread(10), s, num=6000, heldout=500),
        "minimum",
    ),
    point("least squares, solved", regression, "minimum"),
    point("least squares, solved, in batches of 64", lambda s: regression(s, batch=64), "minimum"),
    point("least squares, on the way", lambda s: regression(s, away=0.3), "descending"),
    point("least squares with one feature", lambda s: regression(s, features=1), "minimum"),
    point("least squares with ten examples", lambda s: regression(s, num=10, features=3), "minimum"),
    *(
        point(
            f"a valley of condition {c:g}, {left:.0%} of the loss to gain",
            lambda s, c=c, left=left: valley(s, condition=c, left=left),
            "plateau",
            "descending",
        )
        for c, left in ((1e4, 0.02), (1e4, 0.05), (1e6, 0.05), (1e6, 0.09))
    ),
    point("penalised softmax regression, solved", softmax, "minimum"),
    point("penalised softmax regression, on the way", lambda s: softmax(s, away=0.5), "descending"),
    point("softmax regression of two classes", lambda s: softmax(s, classes=2), "minimum"),
    point("one-example steps, far too long", lambda s: stationary(s, lr=0.06), "bouncing"),
    point("four-example steps, far too long", lambda s: stationary(s, lr=0.15, batch=4), "bouncing"),
]
