"""Many nets at once against one by one: time per model and step, and how far the losses differ.

    python benchmarks/bench_ensemble.py            # a few minutes on one thread

The digits MLP (64–32–32–10, tanh) is trained for some epochs by `thalweg.training.ensemble` as an ensemble of
K members, and the same nets are trained by the plain PyTorch loop that anybody would write (zero_grad,
backward, torch.optim step, batches by indexing), one after the other. Both have the same starts, rates and
batches. The contestants take turns; a ratio is the median over the rounds of plain seconds per model against
ensemble seconds per model. Of the plain loop ``--alone`` members are timed in each round. Below a ratio of 4,
or above a difference of 1e-5 in a loss, it ends with exit code 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thalweg import Problem
from thalweg.problem.batches import Batch
from thalweg.problem.builtin.digits import digits
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.parameters import ParameterSpace
from thalweg.rng import generator
from thalweg.training.ensemble import Member, train_ensemble

LEAST, AGREE = 4.0, 1e-5
PLAIN = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
}
RATES = {"sgd": 0.1, "momentum": 0.03, "adam": 1e-3}


def net(seed: int) -> nn.Sequential:
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    return initialised(make, generator(seed, "bench"))


def members(count: int, lr: float) -> list[Member]:
    nets = [net(i) for i in range(count)]
    return [Member(ParameterSpace.of(n).read(n), lr * 1.1 ** (i % 8), i) for i, n in enumerate(nets)]


def together(
    name: str, nets: list[Member], data: tuple[Tensor, Tensor], size: int, epochs: int
) -> tuple[float, dict[int, float]]:
    problem, losses = Problem(net(0), nn.CrossEntropyLoss(), data), {}
    last: dict[int, Tensor] = {}

    def watch(member: int, steps: int, cost: float, theta: Tensor, scale: float | None) -> None:
        last[member] = theta.clone()

    begun = time.perf_counter()
    reason = train_ensemble(
        problem, name, nets, Batch(data, len(data[0])), batch_size=size, at=(epochs,), watch=watch
    )
    seconds = time.perf_counter() - begun
    assert reason is None, reason
    model = net(0)
    for i, theta in last.items():
        ParameterSpace.of(model).write(model, theta)
        with torch.no_grad():
            losses[i] = float(cross_entropy(model(data[0]), data[1]))
    return seconds / len(nets), losses


def one_by_one(
    name: str, nets: list[Member], data: tuple[Tensor, Tensor], size: int, epochs: int
) -> tuple[float, dict[int, float]]:
    x, y = data
    losses, seconds = {}, 0.0
    for i, member in enumerate(nets):
        model = net(0)
        ParameterSpace.of(model).write(model, member.start)
        optimizer = PLAIN[name](model.parameters(), member.lr)
        begun = time.perf_counter()
        for epoch in range(1, epochs + 1):
            for rows in torch.randperm(len(x), generator=generator(member.order, "epoch", epoch)).split(size):
                optimizer.zero_grad()
                cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        seconds += time.perf_counter() - begun
        with torch.no_grad():
            losses[i] = float(cross_entropy(model(x), y))
    return seconds / len(nets), losses


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--alone", type=int, default=4, help="members of the plain loop in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits(0).train
    print(
        f"digits MLP, {len(data[0]):,} examples, {options.epochs} epochs, torch {torch.__version__}, "
        "1 thread\n"
    )
    print(
        f"{'':10}{'K':>5}{'batch':>7}{'plain ms/step':>15}{'ensemble':>10}{'ratio':>8}{'loss differs by':>17}"
    )
    held = True
    for name, count, size in [
        *(("sgd", k, b) for k in (32, 128) for b in (16, 32, 64)),
        *((n, k, 32) for n in ("momentum", "adam") for k in (32, 128)),
    ]:
        nets = members(count, RATES[name])
        steps = options.epochs * -(-len(data[0]) // size)
        ratios, plain, quick, worst = [], [], [], 0.0
        for _ in range(options.rounds):
            alone, expected = one_by_one(name, nets[: options.alone], data, size, options.epochs)
            group, found = together(name, nets, data, size, options.epochs)
            ratios.append(alone / group)
            plain.append(1e3 * alone / steps)
            quick.append(1e3 * group / steps)
            worst = max(worst, *(abs(found[i] - loss) for i, loss in expected.items()))
        ratio = statistics.median(ratios)
        held = held and ratio >= LEAST and worst <= AGREE
        print(
            f"{name:10}{count:5}{size:7}{statistics.median(plain):15.3f}{statistics.median(quick):10.4f}"
            f"{ratio:8.1f}{worst:17.1e}",
            flush=True,
        )
    print(f"\nat least {LEAST:g} times faster, losses equal to {AGREE:g}: {'held' if held else 'missed'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
