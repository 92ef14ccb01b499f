"""What recording costs: the same training with and without the recorder, in turns.

    python benchmarks/bench_recorder.py                    # digits-cnn and a ResNet-20, default budget
    python benchmarks/bench_recorder.py digits-cnn --budget inf

Both trainings begin from the same weights and see the same batches; the recorder has all its quantities on,
the noise scale and the critical sharpness among them. Two processes take turns, a fortieth of the steps at a
time, so that a machine that is now faster and now slower tells on both. The ratio is that of the whole times,
setting up and closing the recorder within them (importing it is not); its interval is from drawing the parts
again, and does not know that two processes of the same training differ by a few per cent too: hence several
rounds. A ratio above 1.05 at the default budget ends with exit code 1. The weights at the end must be the
same bits.

For comparison, of cockpit 1.0.2 (its own figures, on every step): the cheapest useful set takes 5.7 to 63
times as long as training on a CPU, and 1.51 times on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import thalweg
from thalweg.rng import generator

LIMIT = 1.05
PARTS = 40
Case = tuple[nn.Module, Tensor, Tensor]
Ended = tuple[list[float], list[float], dict[str, np.ndarray]]


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
        torch.manual_seed(0)
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


class Training:
    """One training, a few steps at a time, and the time that took.

    Attributes:
        seconds: on the clock, one number for each part of the training.
        processor: the same, of the processor.
    """

    def __init__(self, case: Case, batch: int, folder: Path | None, budget: float) -> None:
        model, images, classes = copy.deepcopy(case[0]).train(), *case[1:]
        self.seconds, self.processor = list[float](), list[float]()
        self._recorder: thalweg.Recorder | None = None
        with self._timed():
            self._optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
            self._criterion, self._order = nn.CrossEntropyLoss(), generator(0, "order")
            self.model, self._images, self._classes, self._batch = model, images, classes, batch
            if folder is not None:
                probe = (images[:batch], classes[:batch])
                self._recorder = thalweg.Recorder(
                    folder, model, self._optimizer, loss=self._criterion, probe=probe, budget=budget
                )

    def advance(self, steps: int) -> None:
        """Go on for so many steps."""
        with self._timed():
            for _ in range(steps):
                rows = torch.randint(0, len(self._images), (self._batch,), generator=self._order)
                self._optimizer.zero_grad()
                loss = self._criterion(self.model(self._images[rows]), self._classes[rows])
                if self._recorder is not None:
                    self._recorder.loss(loss)
                loss.backward()
                self._optimizer.step()

    def close(self) -> None:
        """End the recording."""
        with self._timed():
            if self._recorder is not None:
                self._recorder.close()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begun, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds.append(time.perf_counter() - begun)
        self.processor.append(time.process_time() - processor)


_trainings: list[Training] = []  # of this process, which has one


def begin(name: str, batch: int, folder: Path | None, budget: float) -> None:
    """Begin the training of this process, warmed up."""
    torch.set_num_threads(1)
    case = CASES[name][0]()
    _ = thalweg.Recorder  # imported here, or its import would be timed
    Training(case, batch, None, budget).advance(5)
    _trainings.append(Training(case, batch, folder, budget))


def advance(steps: int) -> None:
    """Go on with it."""
    _trainings[0].advance(steps)


def end() -> Ended:
    """End it; return its times and the weights."""
    training = _trainings[0]
    training.close()
    weights = {name: value.numpy() for name, value in training.model.state_dict().items()}
    return training.seconds, training.processor, weights


def side_by_side(
    name: str, steps: int, folder: Path, options: argparse.Namespace
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Train without and with the recorder, in two processes that take turns.

    Returns:
        Seconds on the clock and of the processor without it, then with it, part by part.
    """
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        plain, recorded = (
            stack.enter_context(
                ProcessPoolExecutor(1, spawn, begin, (name, options.batch, place, options.budget))
            )
            for place in (None, folder)
        )
        part = max(1, steps // PARTS)
        for number in range(-(-steps // part)):
            for training in (plain, recorded) if number % 2 else (recorded, plain):
                training.submit(advance, min(part, steps - number * part)).result()
        ends = plain.submit(end).result(), recorded.submit(end).result()
    assert all(np.array_equal(ends[1][2][key], value) for key, value in ends[0][2].items())
    return *ends[0][:2], *ends[1][:2]


def ratio(plain: np.ndarray, recorded: np.ndarray) -> str:
    """Write the ratio of the times, over all rounds, with a 95 % interval over the parts."""
    drawn = np.random.default_rng(0).integers(0, len(plain), (2000, len(plain)))
    low, high = np.quantile(recorded[drawn].sum(1) / plain[drawn].sum(1), (0.025, 0.975))
    return f"{recorded.sum() / plain.sum():.3f} ({low:.3f} … {high:.3f})"


CASES: dict[str, tuple[Callable[[], Case], int]] = {
    "digits-cnn": (digits_cnn, 1200),
    "resnet-20": (resnet20, 1000),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES, nargs="?")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=64, help="examples a step, and in the probe")
    options = parser.parse_args()
    held = True
    for name, (_, usual) in CASES.items():
        if options.case not in {None, name}:
            continue
        steps, rounds = options.steps or usual, []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as place:
                rounds.append(side_by_side(name, steps, Path(place) / "run", options))
                run = thalweg.read_run(Path(place) / "run")
        plain, plain_processor, recorded, recorded_processor = np.concatenate(rounds, axis=1)
        counts = {key: len(run.series(key)[0]) for key in ("grad/norm", "grad/noise", "step/critical")}
        each = 1e3 * plain.sum() / options.rounds / steps
        print(
            f"{name}: {options.rounds} × {steps} steps of {each:.1f} ms; "
            f"recorded × {ratio(plain, recorded)} on the clock, "
            f"× {ratio(plain_processor, recorded_processor)} of the processor\n"
            f"  {run.events[-1].text}; measured: "
            + ", ".join(f"{key} {count}×" for key, count in counts.items())
        )
        held = held and recorded.sum() / plain.sum() <= LIMIT
    if options.budget == 0.05:
        print(f"at most {LIMIT} times as long: {'held' if held else 'missed'}")
    return 0 if held or options.budget != 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
