"""What recording costs: the same training with and without the recorder, in turns.

    python benchmarks/bench_recorder.py                    # digits-cnn and a ResNet-20, default budget
    python benchmarks/bench_recorder.py digits-cnn --budget inf

Both trainings begin from the same weights and see the same batches; the recorder has all its quantities on,
the noise scale and the critical sharpness among them. Each round times one after the other, the order
changing from round to round; the ratio is the median over the rounds. Setting up and closing the recorder are
within the time. A ratio above 1.05 at the default budget ends with exit code 1. The weights at the end must
be the same bits.

For comparison, of cockpit 1.0.2 (its own figures, on every step): the cheapest useful set takes 5.7 to 63
times as long as training on a CPU, and 1.51 times on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import thalweg
from thalweg.rng import generator

LIMIT = 1.05
Case = tuple[nn.Module, Tensor, Tensor]


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        stride = 1 if width_in == width else 2
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        around = [nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.around = nn.Sequential(*(around if stride > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.body(x) + self.around(x))


def resnet20() -> Case:
    """The 20-layer residual net on random images of CIFAR's shape: time does not depend on them."""
    rng = generator(0, "images")
    widths = [16] * 4 + [32] * 3 + [64] * 3
    with torch.random.fork_rng():
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            *(Block(a, b) for a, b in pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    images = torch.randn(256, 3, 32, 32, generator=rng)
    return model, images, torch.randint(0, 10, (256,), generator=rng)


def digits_cnn() -> Case:
    """The built-in problem's net and data."""
    problem = thalweg.Problem.builtin("digits-cnn")
    assert problem.model is not None
    images, classes = problem.training_data.dataset.tensors
    return problem.model, images, classes


Timed = tuple[float, float, dict[str, Tensor]]


def train(case: Case, steps: int, folder: Path | None, budget: float, batch: int) -> Timed:
    """Train from the case's weights; return seconds, those of the processor, and the weights at the end."""
    model, images, classes = copy.deepcopy(case[0]).train(), *case[1:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    criterion, order = nn.CrossEntropyLoss(), generator(0, "order")
    begun, processor = time.perf_counter(), time.process_time()
    recorder = None
    if folder is not None:
        probe = (images[:batch], classes[:batch])
        recorder = thalweg.Recorder(folder, model, optimizer, loss=criterion, probe=probe, budget=budget)
    for _ in range(steps):
        rows = torch.randint(0, len(images), (batch,), generator=order)
        optimizer.zero_grad()
        loss = criterion(model(images[rows]), classes[rows])
        if recorder is not None:
            recorder.loss(loss)
        loss.backward()
        optimizer.step()
    if recorder is not None:
        recorder.close()
    return time.perf_counter() - begun, time.process_time() - processor, model.state_dict()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = {"digits-cnn": (digits_cnn, 1200), "resnet-20": (resnet20, 200)}
    parser.add_argument("case", choices=cases, nargs="?")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=64, help="examples a step, and in the probe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    held = True
    for name, (make, usual) in cases.items():
        if options.case not in {None, name}:
            continue
        case, steps, ratios = make(), options.steps or usual, list[float]()
        of_processor: list[float] = []
        train(case, 5, None, options.budget, options.batch)
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as place:
                runs = {}
                for recorded in (False, True) if number % 2 else (True, False):
                    folder = Path(place) / "run" if recorded else None
                    runs[recorded] = train(case, steps, folder, options.budget, options.batch)
                assert all(torch.equal(runs[True][2][key], value) for key, value in runs[False][2].items())
                run = thalweg.read_run(Path(place) / "run")
            ratios.append(runs[True][0] / runs[False][0])
            of_processor.append(runs[True][1] / runs[False][1])
        low, middle, high = statistics.quantiles(ratios, n=4)
        counts = {key: len(run.series(key)[0]) for key in ("grad/norm", "grad/noise", "step/critical")}
        print(
            f"{name}: {steps} steps, {1e3 * runs[False][0] / steps:.1f} ms each; recorded × {middle:.3f} "
            f"(quartiles {low:.3f} to {high:.3f} of {options.rounds}), "
            f"processor time × {statistics.median(of_processor):.3f}\n  {run.events[-1].text}; measured: "
            + ", ".join(f"{key} {count}×" for key, count in counts.items())
        )
        held = held and middle <= LIMIT
    if options.budget == 0.05:
        print(f"at most {LIMIT} times as long: {'held' if held else 'missed'}")
    return 0 if held or options.budget != 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
