"""Plain functions: planted spectra in up to 1,000 dimensions, and the textbook's critical points."""

import math

import torch

from tests.known_answers.point import Point, point
from thalweg.problem.problem import Problem
from thalweg.rng import gaussian, generator

SIZES = (1, 2, 3, 20, 100, 1000)
ONE = torch.zeros(1, dtype=torch.float64)


def rotated(theta, seed):
    """Turn by three reflections, so that the eigenvectors are not the axes."""
    for i in range(3):
        v = gaussian(theta.numel(), generator(seed, "reflection", i), like=ONE)
        theta = theta - 2 * v * (v @ theta) / (v @ v)
    return theta


def planted(curvatures, seed, *, away=0.0, lr=None, quartic=0.0):
    """½ Σ λᵢ tᵢ² in turned coordinates, at its critical point or ``away`` from it in every coordinate."""
    values = torch.as_tensor(curvatures, dtype=torch.float64)

    def function(theta):
        t = rotated(theta, seed)
        return 1.0 + 0.5 * (values * t * t).sum() + quartic * (t**4).sum()

    start = rotated(torch.full_like(values, away), seed) if away else torch.zeros_like(values)
    if away:  # the reflections undo themselves in the opposite order
        start = unrotated(torch.full_like(values, away), seed)
    return Problem.from_function(function, start, lr=lr)


def unrotated(theta, seed):
    for i in reversed(range(3)):
        v = gaussian(theta.numel(), generator(seed, "reflection", i), like=ONE)
        theta = theta - 2 * v * (v @ theta) / (v @ v)
    return theta


def uniform(n, seed, low=0.1, high=1.0):
    return low + (high - low) * torch.rand(n, generator=generator(seed, "spectrum"), dtype=torch.float64)


def graded(n, decades=6):
    return torch.logspace(-decades, 0, n, dtype=torch.float64)


def repeated(n, *values):
    return torch.tensor([values[i % len(values)] for i in range(n)], dtype=torch.float64)


def with_lowest(values, *lowest):
    return torch.cat([torch.tensor(lowest, dtype=torch.float64), values[len(lowest) :]])


def outliers(n, seed):
    """Like a trained net: five outliers over a bulk near zero."""
    bulk = 0.01 * torch.rand(n, generator=generator(seed, "bulk"), dtype=torch.float64)
    return torch.cat([torch.tensor([100.0, 50, 20, 10, 5], dtype=torch.float64), bulk[5:]])


def quadratics() -> list[Point]:
    points = []
    for n in SIZES:
        points += [
            point(f"a bowl, n={n}", lambda s, n=n: planted(uniform(n, s), s), "minimum"),
            point(f"a dome, n={n}", lambda s, n=n: planted(-uniform(n, s), s), "maximum"),
            point(
                f"beside the bottom of a bowl, n={n}",
                lambda s, n=n: planted(uniform(n, s), s, away=0.5),
                "descending",
            ),
        ]
    for n in SIZES[1:]:
        points += [
            point(
                f"one direction down, n={n}",
                lambda s, n=n: planted(with_lowest(uniform(n, s), -0.5), s),
                "saddle",
            ),
            point(
                f"all directions down but one, n={n}",
                lambda s, n=n: planted(with_lowest(-uniform(n, s), 0.5), s),
                "saddle",
            ),
        ]
    for depth in (1e-2, 1e-3, 1e-4):
        points.append(
            point(
                f"one curvature of −{depth:g} below positive ones, n=1000",
                lambda s, d=depth: planted(with_lowest(uniform(1000, s), -d), s, quartic=0.01),
                "saddle",
            )
        )
    points += [
        point("a graded bowl, n=40", lambda s: planted(graded(40), s), "minimum"),
        point("a graded bowl, n=1000", lambda s: planted(graded(1000), s), "minimum"),
        point(
            "a graded saddle, n=1000",
            lambda s: planted(with_lowest(graded(1000), -0.02), s, quartic=0.01),
            "saddle",
        ),
        point("a bowl of three repeated curvatures", lambda s: planted(repeated(300, 1, 2, 5), s), "minimum"),
        point("a sphere, n=1000", lambda s: planted(repeated(1000, 3.0), s), "minimum"),
        point(
            "two curvatures, up and down, repeated",
            lambda s: planted(repeated(300, 1.0, -1.0), s),
            "saddle",
        ),
        point(
            "a clustered bowl",
            lambda s: planted(torch.cat([1 + 1e-9 * uniform(60, s), uniform(3, s)]), s),
            "minimum",
        ),
        point(
            "a flat valley, ten of fifty directions level",
            lambda s: planted(with_lowest(uniform(50, s), *[0.0] * 10), s),
            "minimum",
        ),
        point("a net-like spectrum at a minimum", lambda s: planted(outliers(1000, s), s), "minimum"),
        point(
            "a net-like spectrum at a saddle",
            lambda s: planted(with_lowest(outliers(1000, s).flip(0), -1.0), s, quartic=0.01),
            "saddle",
        ),
        point("steps beyond 2/λ", lambda s: planted(uniform(20, s), s, away=0.5, lr=3.0), "bouncing"),
        point("steps of a millionth", lambda s: planted(uniform(20, s), s, away=0.5, lr=1e-6), "descending"),
    ]
    return points


def of(function, *start, lr=None):
    return lambda seed: Problem.from_function(function, list(map(float, start)), lr=lr)


def himmelblau(t):
    return (t[0] ** 2 + t[1] - 11) ** 2 + (t[0] + t[1] ** 2 - 7) ** 2


def camel(t):
    x, y = t
    return (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (-4 + 4 * y**2) * y**2


def beale(t):
    x, y = t
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def powell(t):
    a, b, c, d = t
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


def newton(function, near):
    """Return the critical point near ``near``, by Newton's method to rounding."""
    x = torch.tensor(near, dtype=torch.float64)
    for _ in range(30):
        g = torch.autograd.functional.jacobian(function, x)
        h = torch.autograd.functional.hessian(function, x)
        x = x - torch.linalg.solve(h, g)
    return x.tolist()


def factorisation(theta):
    """‖UV − M‖²/2 for U (4, 2), V (2, 3) and a fixed M."""
    m = torch.linspace(-1, 1.5, 12, dtype=torch.float64).view(4, 3).sin()
    return 0.5 * ((theta[:8].view(4, 2) @ theta[8:].view(2, 3) - m) ** 2).sum()


def textbook() -> list[Point]:
    pi = math.pi
    return [
        point("x cos πx at its local minimum", of(lambda t: (t * torch.cos(pi * t)).sum(), *newton(
            lambda t: (t * torch.cos(pi * t)).sum(), [-0.3])), "minimum"),
        point("x cos πx at its global minimum", of(lambda t: (t * torch.cos(pi * t)).sum(), *newton(
            lambda t: (t * torch.cos(pi * t)).sum(), [1.1])), "minimum"),
        point("x cos πx between them", of(lambda t: (t * torch.cos(pi * t)).sum(), 0.7), "descending"),
        point("x³", of(lambda t: (t**3).sum(), 0), "degenerate"),
        point("x⁴", of(lambda t: (t**4).sum(), 0), "degenerate"),
        point("−x⁴", of(lambda t: -(t**4).sum(), 0), "degenerate"),
        point("x⁵", of(lambda t: (t**5).sum(), 0), "degenerate"),
        point("the monkey saddle", of(lambda t: t[0] ** 3 - 3 * t[0] * t[1] ** 2, 0, 0), "degenerate"),
        point("x⁴ − y⁴", of(lambda t: t[0] ** 4 - t[1] ** 4, 0, 0), "degenerate"),
        point("x³ beside a valley", of(lambda t: t[0] ** 3 + t[1] ** 2, 0, 0), "degenerate"),
        point("−x⁴ beside a valley", of(lambda t: -(t[0] ** 4) + t[1] ** 2, 0, 0), "degenerate"),
        point("xyz, a deep linear net", of(lambda t: t.prod(), 0, 0, 0), "degenerate"),
        point("a quartic valley", of(lambda t: t[0] ** 4 + t[1] ** 2, 0, 0), "minimum", "degenerate"),
        point("x² − y²", of(lambda t: t[0] ** 2 - t[1] ** 2, 0, 0), "saddle"),
        point("xy", of(lambda t: t[0] * t[1], 0, 0), "saddle"),
        point("x² − y² on its stable line", of(lambda t: t[0] ** 2 - t[1] ** 2, 0.5, 0), "descending"),
        point("Rosenbrock's start", of(
            lambda t: (1 - t[0]) ** 2 + 100 * (t[1] - t[0] ** 2) ** 2, -1.2, 1), "descending"),
        point("Rosenbrock's minimum", of(
            lambda t: (1 - t[0]) ** 2 + 100 * (t[1] - t[0] ** 2) ** 2, 1, 1), "minimum"),
        point("Himmelblau's minimum", of(himmelblau, *newton(himmelblau, [3.0, 2.0])), "minimum"),
        point("Himmelblau's saddle", of(himmelblau, *newton(himmelblau, [3.4, 0.1])), "saddle"),
        point("Himmelblau's maximum", of(himmelblau, *newton(himmelblau, [-0.27, -0.92])), "maximum"),
        point("the camel's deepest minimum", of(camel, *newton(camel, [0.09, -0.71])), "minimum"),
        point("the camel's saddle at 0", of(camel, 0, 0), "saddle"),
        point("Beale's minimum", of(beale, 3, 0.5), "minimum"),
        point("Powell's singular minimum", of(powell, 0, 0, 0, 0), "minimum", "degenerate"),
        point("tanh at 4", of(lambda t: torch.tanh(t).sum(), 4, lr=0.1), "plateau"),
        point("a logistic far out", of(lambda t: torch.sigmoid(t).sum(), 12, lr=0.1), "plateau"),
        point("a Gaussian dip from afar", of(
            lambda t: 1 - torch.exp(-(t**2).sum()), 3.2, 1, lr=0.1), "plateau", "descending"),
        point("a slope", of(lambda t: 3 * t.sum() + 1, 0.5, 1), "descending"),
        point("a constant", of(lambda t: 0 * t.sum() + 2, 0, 0), "undetermined"),
        point("a factorisation at zero", of(factorisation, *[0] * 14), "saddle"),
        point("a steep bowl, the loss four fifths too high", of(
            lambda t: 1 + ((1000 * (t - 0.5)) ** 2).sum(), 0.502, 0.5), "descending"),
        point("a bowl over weights of 1e-8", of(
            lambda t: 1 + ((t * 1e8 - 1) ** 2).sum(), 3e-8, 1e-8), "descending"),
        point("a valley, half the loss still to gain", of(
            lambda t: 1e4 * t[0] ** 2 + 1e-2 * (t[1] - 10) ** 2 + 1, 0, 0), "plateau", "descending"),
        point("one side flat, the other steep", of(
            lambda t: 1 + torch.exp(t).sum(), -40), "plateau", "undetermined"),
        point("down one way, up the other only in sixth order", of(
            lambda t: t[0] ** 6 - t[1] ** 2 + 1, 0, 0), "saddle"),
        point("a saddle with minima beside it", of(
            lambda t: t[0] ** 2 - t[1] ** 2 + t[1] ** 4, 0, 0), "saddle"),
        point("a sum of cosines at the top", of(lambda t: torch.cos(t).sum(), *[0] * 30), "maximum"),
        point("a sum of cosines at the bottom", of(lambda t: torch.cos(t).sum(), *[pi] * 30), "minimum"),
        point("a sum of cosines between", of(
            lambda t: torch.cos(t).sum(), *[0] * 15, *[pi] * 15), "saddle"),
    ]  # fmt: skip


POINTS = [*quadratics(), *textbook()]
