"""Nets of growing width, trained by gradient descent, against the kernel prediction of the infinite one.

    python benchmarks/bench_kernel_width.py
    python benchmarks/bench_kernel_width.py --picture docs/pictures     # draws kernel-width.svg and .png

Two hidden ReLU layers in the NTK parametrisation, float32, 24 training and 24 other examples of 8 features
on the sphere, the target a product of two features; 50 full-batch steps at half the largest stable learning
rate of the infinite net. The prediction begins at the outputs of each net before the first step and follows
the exact discrete descent with the infinite kernel: nothing of the net but its start goes in. For each width:

- gap: root mean square, on the other examples, between net and prediction after the steps, relative to how
  far the prediction moved;
- kernel: distance of the empirical kernel before the first step from the infinite one;
- drift: 1 − alignment of the empirical kernel after the steps with that before.

The rate is the slope of the logarithm's means over the nets against the logarithm of the width, by weighted
least squares, with its standard error.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.estimates import Estimate
from thalweg.kernels import DriftWatch, KernelDescent, largest_stable_lr, ntk
from thalweg.kernels.ridge import decompose
from thalweg.report.drawing import to_png, to_svg
from thalweg.report.figures import Axis, Figure, LinePlot, Series
from thalweg.rng import generator

TRAIN, TEST, FEATURES, STEPS, PROBES = 24, 24, 8, 50, 8
QUANTITIES = ("gap", "kernel", "drift")


class Net(nn.Module):
    """Two hidden ReLU layers with weights N(0, 1) and √(2/width) in front of each later layer."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        rng = generator(seed, "net", width)
        sizes = [(width, FEATURES), (width, width), (1, width)]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(size, generator=rng)) for size in sizes)
        self.scale = math.sqrt(2 / width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (n, 1) for x (n, features)."""
        hidden = x @ self.weights[0].T
        for k in (1, 2):
            hidden = self.scale * torch.relu(hidden) @ self.weights[k].T
        return hidden


def examples() -> tuple[Tensor, Tensor]:
    rng = generator(0, "examples")
    x = torch.randn(TRAIN + TEST, FEATURES, generator=rng, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    return x, FEATURES * x[:, :1] * x[:, 1:2]


def train_one(width: int, seed: int, x: Tensor, y: Tensor) -> dict[str, float]:
    """Train one net and return the three quantities."""
    net, single = Net(width, seed), x.float()
    train, test, targets = single[:TRAIN], single[TRAIN:], y[:TRAIN]
    infinite = ntk(x.numpy(), depth=3)
    watch = DriftWatch(net, train[:PROBES], infinite=infinite[:PROBES, :PROBES])
    lr = 0.5 * largest_stable_lr(infinite[:TRAIN, :TRAIN])
    with torch.no_grad():
        start = net(single).double().numpy()
    before = watch.measure(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (((net(train) - targets.float()) ** 2).sum() / (2 * TRAIN)).backward()
        optimizer.step()
    eigen = decompose(infinite[:TRAIN, :TRAIN])
    descent = KernelDescent(eigen, targets.numpy(), lr, start=start[:TRAIN])
    predicted = descent.predict(infinite[TRAIN:, :TRAIN], STEPS, start=start[TRAIN:])
    with torch.no_grad():
        reached = net(test).double().numpy()
    return {
        "gap": float(np.linalg.norm(reached - predicted) / np.linalg.norm(predicted - start[TRAIN:])),
        "kernel": before.infinite,
        "drift": watch.measure(STEPS).drift,
    }


def mean(values: list[float]) -> Estimate:
    """Return the mean of the logarithms."""
    logs = np.log(values)
    return Estimate(float(logs.mean()), float(logs.std(ddof=1) / math.sqrt(len(logs))), len(logs))


def rate(widths: list[int], means: list[Estimate]) -> Estimate:
    """Return the slope over the logarithm of the width, weighted by the errors of the means."""
    x, y = np.log(widths), np.array([m.value for m in means])
    w = np.array([1 / m.stderr**2 for m in means])
    centre = np.sum(w * x) / np.sum(w)
    spread = np.sum(w * (x - centre) ** 2)
    return Estimate(float(np.sum(w * (x - centre) * y) / spread), float(1 / np.sqrt(spread)))


def picture(widths: list[int], means: dict[str, list[Estimate]], slopes: dict[str, Estimate]) -> Figure:
    labels = {
        "gap": "net − prediction",
        "kernel": "kernel − infinite kernel",
        "drift": "drift of the kernel",
    }
    series = []
    for name in QUANTITIES:
        ends = [m.interval() for m in means[name]]
        slope = f"slope {slopes[name].value:.2f} ± {1.96 * slopes[name].stderr:.2f}".replace("-", "−")
        series.append(
            Series(
                f"{labels[name]}: {slope}",
                tuple(map(float, widths)),
                tuple(math.exp(m.value) for m in means[name]),
                tuple(math.exp(low) for low, _ in ends),
                tuple(math.exp(high) for _, high in ends),
            )
        )
    ends = [math.exp(means["gap"][k].value) for k in (0, -1)]
    plot = LinePlot("", Axis("width", "log"), Axis("relative difference", "log"), tuple(series))
    return Figure(
        "kernel-width",
        "Wide nets are kernel regression",
        f"Three falling lines over the width from {widths[0]} to {widths[-1]}, both axes logarithmic: the "
        f"gap between trained net and kernel prediction falls from {ends[0]:.2f} to {ends[1]:.3f}.",
        (plot,),
        "Geometric means over nets with 95 % intervals.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--picture", type=Path, help="a folder for kernel-width.svg and .png")
    arguments = parser.parse_args()
    x, y = examples()
    means: dict[str, list[Estimate]] = {name: [] for name in QUANTITIES}
    begun = time.perf_counter()
    print(f"{'width':>6s} {'nets':>5s}" + "".join(f"{name:>26s}" for name in QUANTITIES))
    for width in arguments.widths:
        nets = max(5, min(16, 8192 // width))
        found = [train_one(width, seed, x, y) for seed in range(nets)]
        told = ""
        for name in QUANTITIES:
            one = mean([values[name] for values in found])
            means[name].append(one)
            low, high = one.interval()
            told += f"{math.exp(one.value):.2g} [{math.exp(low):.2g}, {math.exp(high):.2g}]".rjust(26)
        print(f"{width:6d} {nets:5d}{told}   {time.perf_counter() - begun:.0f} s", flush=True)
    slopes = {name: rate(arguments.widths, means[name]) for name in QUANTITIES}
    for name, slope in slopes.items():
        low, high = slope.interval()
        print(f"{name}: width^{slope.value:.3f}, 95 % [{low:.3f}, {high:.3f}]")
    if arguments.picture is not None:
        drawn = picture(arguments.widths, means, slopes)
        to_png(drawn, arguments.picture / "kernel-width.png")
        (arguments.picture / "kernel-width.svg").write_text(to_svg(drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
