"""Functions to descend on, and a run that writes down what an optimiser did."""

from dataclasses import dataclass

import numpy as np
import torch


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def rosenbrock_start(n):
    return np.array([-1.2, 1.0] * (n // 2))


def quadratic(eigenvalues, seed=0):
    """Return A and b of ½xᵀAx − bᵀx with these eigenvalues and a start, in a random basis."""
    rng = np.random.default_rng(seed)
    n = len(eigenvalues)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = basis @ np.diag(eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2, rng.normal(size=n), rng.normal(size=n)


def quadratic_loss(matrix, b):
    A, b = torch.tensor(matrix), torch.tensor(b)
    return lambda x: x @ A @ x / 2 - b @ x


@dataclass
class Run:
    """Positions, gradients (at the positions), records of the steps, and evaluations of the loss."""

    positions: list
    gradients: list
    steps: list
    evaluations: int = 0
    optimizer: object = None

    @property
    def taken(self):
        return [step for step in self.steps if step.accepted]


def descend(make, loss, start, steps, *, backward=True, dtype=torch.float64):
    """Take ``steps`` steps, or until the gradient is below its tolerance."""
    x = torch.nn.Parameter(torch.tensor(np.asarray(start), dtype=dtype))
    optimizer = make([x])
    run = Run([x.detach().numpy().copy()], [gradient_of(loss, x)], [], optimizer=optimizer)

    def closure():
        run.evaluations += 1
        optimizer.zero_grad()
        value = loss(x)
        if backward:
            value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
        run.steps.append(optimizer.last)
        if optimizer.last.reason == "gradient below tolerance":
            break
        run.positions.append(x.detach().numpy().copy())
        run.gradients.append(gradient_of(loss, x))
    return run


def gradient_of(loss, x):
    with torch.enable_grad():
        return torch.autograd.grad(loss(x), x)[0].numpy().copy()


def spied(optimizer):
    """Write down every direction that an optimiser forms, with the gradient it was formed from."""
    seen, form = [], optimizer.direction

    def direction(gradient):
        seen.append((gradient.numpy().copy(), form(gradient).numpy().copy()))
        return form(gradient)

    optimizer.direction = direction
    return seen
