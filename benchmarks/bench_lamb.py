"""LAMB and LARS: time a step against torch's Adam, and how far from the published algorithm they end.

    python benchmarks/bench_lamb.py                  # 10 million parameters in 100 tensors, on the CPU
    python benchmarks/bench_lamb.py --device cuda

The peers are not dependencies of Thalweg; those that are not installed are left out:

    pip install timm torchvision pytorch_optimizer

Time: the optimisers take turns, a few steps each in every round; a ratio is the median over the rounds of
the time against that of torch's foreach Adam in the same round. One above 1.5 for Thalweg's LAMB ends with
exit code 1. Error: five steps in float32 from the same weights along the same gradients, against Algorithm 2
of the paper in float64; and by how much the length of a step differs from lr·‖w‖, which for φ = identity is
what it has to be. AdamW, which is another method, shows that the error sees one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from thalweg.optim.lamb import LAMB
from thalweg.optim.lars import LARS
from thalweg.rng import generator

LIMIT = 1.5
RATE, DECAY = 0.01, 0.01
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def shapes() -> list[tuple[int, ...]]:
    """An eight-layer transformer of width 320: 100 tensors, 10,065,280 numbers."""
    width = 320
    layer = [
        *[(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)],
        *[(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)],
    ]
    return [(500, width), (128, width), *layer * 8, (width,), (width,)]


def weights(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Draw the same weights every time."""
    rng = generator(0, "weights")
    return [(0.02 * torch.randn(s, generator=rng)).to(device, dtype).requires_grad_() for s in shapes()]


def gradients(step: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Draw the gradients of a step, as large as the weights to a thousand times as small."""
    rng = generator(0, "gradients", step)
    scales = torch.logspace(-4.7, -1.7, len(shapes()))
    return [
        (scale * torch.randn(s, generator=rng)).to(device, dtype)
        for s, scale in zip(shapes(), scales.tolist(), strict=True)
    ]


def peers() -> dict[str, Make]:
    """The LAMB of other packages, those that can be imported."""
    found: dict[str, Make] = {}
    try:
        from timm.optim import Lamb as TimmLamb

        found["timm Lamb"] = lambda p: TimmLamb(p, lr=RATE, weight_decay=DECAY)
        found["timm Lamb, unclipped"] = lambda p: TimmLamb(
            p, lr=RATE, weight_decay=DECAY, max_grad_norm=None, always_adapt=True
        )
    except ImportError as error:
        print(f"timm is left out: {error}")
    try:
        from pytorch_optimizer import Lamb as OtherLamb

        found["pytorch_optimizer Lamb"] = lambda p: OtherLamb(p, lr=RATE, weight_decay=DECAY)
    except ImportError as error:
        print(f"pytorch_optimizer is left out: {error}")
    return found


def times(others: dict[str, Make], device: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return seconds a step, by optimiser and round."""
    makers: dict[str, Make] = {
        "torch Adam, foreach": lambda p: torch.optim.Adam(p, foreach=True),
        "torch Adam, one by one": lambda p: torch.optim.Adam(p, foreach=False),
        "thalweg LAMB, foreach": lambda p: LAMB(p, foreach=True),
        "thalweg LAMB, one by one": lambda p: LAMB(p, foreach=False),
        "thalweg LARS, foreach": lambda p: LARS(p, weight_decay=DECAY, foreach=True),
        "thalweg LARS, one by one": lambda p: LARS(p, weight_decay=DECAY, foreach=False),
        **others,
    }
    optimisers = {}
    for name, make in makers.items():
        parameters = weights(device)
        for parameter, gradient in zip(parameters, gradients(0, device), strict=True):
            parameter.grad = gradient
        optimisers[name] = make(parameters)
        optimisers[name].step()  # makes its state
    found: dict[str, list[float]] = {name: [] for name in optimisers}
    for _ in range(rounds):
        for name, optimiser in optimisers.items():
            wait(device)
            begun = time.perf_counter()
            for _ in range(steps):
                optimiser.step()
            wait(device)
            found[name].append((time.perf_counter() - begun) / steps)
    return found


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def algorithm_2(device: str, steps: int) -> list[Tensor]:
    """The paper's pseudocode in float64, with φ = identity; return how far each tensor has moved."""
    low, high, eps = 0.9, 0.999, 1e-6
    start = [w.detach() for w in weights(device, torch.float64)]
    now = [w.clone() for w in start]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in start]
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(t, device, torch.float64)):
            m, v = low * moments[i][0] + (1 - low) * g, high * moments[i][1] + (1 - high) * g**2
            moments[i] = m, v
            u = (m / (1 - low**t)) / ((v / (1 - high**t)).sqrt() + eps) + DECAY * now[i]
            now[i] = now[i] - RATE * now[i].norm() / u.norm() * u
    return [b - a for a, b in zip(start, now, strict=True)]


def errors(make: Make, truth: list[Tensor], device: str, steps: int) -> tuple[float, float]:
    """Return the relative error of the displacement, and the largest one of a step's length."""
    parameters = weights(device)
    start = [p.detach().double() for p in parameters]
    optimiser, worst = make(parameters), 0.0
    for t in range(1, steps + 1):
        before = [p.detach().double() for p in parameters]
        for parameter, gradient in zip(parameters, gradients(t, device), strict=True):
            parameter.grad = gradient
        optimiser.step()
        for old, new in zip(before, parameters, strict=True):
            length = float((new.detach().double() - old).norm())
            worst = max(worst, abs(length / (RATE * float(old.norm())) - 1))
    missed = [(p.detach().double() - a) - b for p, a, b in zip(parameters, start, truth, strict=True)]
    return float(whole(missed) / whole(truth)), worst


def whole(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors together."""
    return torch.stack([t.norm() for t in tensors]).norm()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="of one optimiser in a round")
    parser.add_argument("--threads", type=int, default=1, help="more only help on a machine that is idle")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    numbers = sum(torch.Size(s).numel() for s in shapes())
    print(
        f"{numbers:,} parameters in {len(shapes())} tensors, torch {torch.__version__}, {options.device}, "
        f"{options.threads} threads"
    )

    others = peers()
    found = times(others, options.device, options.rounds, options.steps)
    adam = found["torch Adam, foreach"]
    print(f"\n{'':28}{'ms a step':>10}{'ratio':>8}   quartiles of the ratio")
    medians = {}
    for name, seconds in found.items():
        low, medians[name], high = statistics.quantiles(
            [a / b for a, b in zip(seconds, adam, strict=True)], n=4
        )
        typical = 1e3 * statistics.median(seconds)
        print(f"{name:28}{typical:10.1f}{medians[name]:8.2f}   {low:.2f} to {high:.2f}")

    makers: dict[str, Make] = {
        "thalweg LAMB": lambda p: LAMB(p, lr=RATE, weight_decay=DECAY, adapt_ndim_min=0),
        **others,
        "torch AdamW": lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=DECAY),
    }
    truth = algorithm_2(options.device, 5)
    print(f"\n{'after five steps':28}{'displacement error':>20}{'step against lr·‖w‖':>22}")
    for name, make in makers.items():
        error, worst = errors(make, truth, options.device, 5)
        print(f"{name:28}{error:20.1e}{worst:22.1e}")

    ratios = [ratio for name, ratio in medians.items() if name.startswith("thalweg LAMB")]
    held = max(ratios) <= LIMIT
    print(f"\nLAMB takes at most {LIMIT} times as long as foreach Adam: {'held' if held else 'missed'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
