"""Between a small-batch and a large-batch solution: the figure of Keskar et al. (2017) on digits-cnn.

    python benchmarks/keskar_path.py --png keskar.png

The convolutional net of the built-in problem digits-cnn is drawn anew and trained twice by Adam from the same
weights: on 16 examples a step, and on a tenth of the data (the paper's large batch, 144). Each goes on until
its training loss is below 0.01, so that both fit the data equally well. Then the training and the held-out
loss are measured on the straight way between the two and on the curved one, from α = −1 to 2.
"""

from __future__ import annotations

import argparse

from torch import nn

import thalweg
from thalweg.problem.parameters import ParameterSpace
from thalweg.rng import generator

FITS = 0.01  # the training loss at which a solution counts as one
MOST_ROUNDS = 60


def draw_anew(model: nn.Module, seed: int) -> None:
    """Draw the weights as PyTorch does, from a seed."""
    rng = generator(seed, "keskar", "start")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=rng)
            nn.init.uniform_(module.bias, -0.05, 0.05, generator=rng)


def solution(problem: thalweg.Problem, batch_size: int, epochs: int, lr: float, seed: int) -> str:
    """Train in place until the loss is below ``FITS``; return what happened."""
    done = steps = 0
    for round_ in range(MOST_ROUNDS):
        ran = thalweg.train(problem, "adam", batch_size=batch_size, lr=lr, epochs=epochs, seed=seed + round_)
        done, steps = done + epochs, steps + ran.final.steps
        if ran.final.loss < FITS:
            break
    return f"batches of {batch_size}: {steps} steps, {done} epochs, loss {ran.final.loss:.4f}"


def main() -> None:
    """Train both, measure the ways, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=16)
    parser.add_argument("--large", type=int, default=144)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--png", help="where to write the picture")
    parser.add_argument("--html", help="where to write the page")
    arguments = parser.parse_args()
    problem = thalweg.Problem.builtin("digits-cnn", arguments.seed)
    assert problem.model is not None
    space = ParameterSpace.of(problem.model)
    draw_anew(problem.model, arguments.seed)
    start, ends = space.read(problem.model), []
    for size, epochs in ((arguments.small, 5), (arguments.large, 20)):
        space.write(problem.model, start)
        print(solution(problem, size, epochs, arguments.lr, arguments.seed), flush=True)
        ends.append(space.read(problem.model))
    found = thalweg.path(problem, *ends, seed=arguments.seed)
    print(found)
    for file in (arguments.png, arguments.html):
        if file:
            found.save(file)


if __name__ == "__main__":
    main()
