"""A 51×51 plane of the loss: seconds of Thalweg and of the loss-landscapes package, at the same points.

    python benchmarks/bench_landscape.py              # the 26,122-parameter MLP, 1,437 digits
    python benchmarks/bench_landscape.py narrow       # digits-mlp, 3,466 parameters
    python benchmarks/bench_landscape.py few          # the same on 64 digits
    python benchmarks/bench_landscape.py resnet --images 256 --side 5      # ResNet-20, a 5×5 plane

The peer is no dependency of Thalweg: ``pip install --no-deps loss-landscapes``. Both get the same two
filter-normalised directions and the same data, and the losses are compared at every point. (The peer's odd
rows lie one step beside its even ones; Thalweg is asked for just those points.) ``--side`` takes a coarser
plane over the same extent, for what takes long.

Seconds are of the processor (one thread), so that other work on the machine counts less; the runs alternate;
a ratio above one says that Thalweg is faster. Beside them: Thalweg's objective asked for one point after the
other, as all the rest of Thalweg asks it; and the checks of the model, once before everything.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import time

import numpy as np
import torch
from bench_spectrum import mlp_case, resnet_case
from torch import Tensor, nn

from thalweg.landscape.directions import filter_normalised
from thalweg.landscape.evaluation import Evaluation, Family, evaluate
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.intact import intact
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Problem
from thalweg.rng import gaussian, generator

REACH = 0.5  # in filter-normalised directions: half as far as the weights are long
Case = tuple[nn.Module, tuple[Tensor, Tensor]]


def narrow_case(examples: int) -> Case:
    """The net of the built-in digits-mlp with plain cross-entropy, on the first digits."""
    problem = Problem.builtin("digits-mlp")
    assert problem.model is not None
    batches = problem.measured().train.sample.batches  # type: ignore[attr-defined]
    x, y = (torch.cat([batch.data[i] for batch in batches])[:examples] for i in (0, 1))
    return problem.model.eval(), (x, y)


def corner_and_steps(model: nn.Module, side: int) -> tuple[Tensor, Tensor]:
    """Return the corner of the plane (n,) and the two steps from point to point (2, n)."""
    space = ParameterSpace.of(model)
    theta = space.read(model)
    spans = [
        filter_normalised(gaussian(theta.numel(), generator(0, "bench", i), like=theta), theta, space)
        for i in (0, 1)
    ]
    return theta - REACH * (spans[0] + spans[1]), torch.stack([2 * REACH / side * s for s in spans])


def places(side: int) -> np.ndarray:
    """Return the steps (side², 2) from the corner at which the peer measures, row by row."""
    return np.array([(i, j + 1 - i % 2) for i in range(side) for j in range(side)], dtype=np.float64)


def ours(objective: EmpiricalRisk, corner: Tensor, steps: Tensor, side: int) -> tuple[np.ndarray, Evaluation]:
    """Return the losses (side²,) by Thalweg."""
    losses, how = evaluate(objective, Family(corner, steps), places(side), by="whole")
    return losses.means(), how


def peer(case: Case, corner: Tensor, steps: Tensor, side: int) -> np.ndarray:
    """Return the losses (side²,) by loss-landscapes' planar interpolation."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    model, (x, y) = case
    ends = [copy.deepcopy(model) for _ in range(3)]
    for end, theta in zip(ends, (corner, corner + side * steps[0], corner + side * steps[1]), strict=True):
        ParameterSpace.of(model).write(end, theta)
    found = loss_landscapes.planar_interpolation(*ends, Loss(nn.CrossEntropyLoss(), x, y), steps=side)
    return np.asarray(found).ravel()


def one_by_one(objective: EmpiricalRisk, corner: Tensor, steps: Tensor, points: int) -> float:
    """Return the seconds that a point takes through `Objective.value`."""
    with intact(objective.model):
        begun = time.process_time()
        for i in range(points):
            objective.value(corner + i * steps[0])
        return (time.process_time() - begun) / points


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=["mlp", "narrow", "few", "resnet"], nargs="?", default="mlp")
    parser.add_argument("--images", type=int, default=256, help="of the ResNet case")
    parser.add_argument("--side", type=int, default=51)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        "mlp": mlp_case,
        "narrow": lambda: narrow_case(1437),
        "few": lambda: narrow_case(64),
        "resnet": lambda: resnet_case(arguments.images),
    }
    model, data = cases[arguments.case]()
    begun = time.process_time()
    objective = Problem(model, nn.CrossEntropyLoss(), data).measured().train
    ready = time.process_time() - begun
    assert isinstance(objective, EmpiricalRisk)
    side, parameters = arguments.side, sum(p.numel() for p in model.parameters())
    print(f"{arguments.case}: {parameters:,} parameters, {len(data[0]):,} examples, {side}×{side} points")
    corner, steps = corner_and_steps(model, side)
    seconds: dict[str, list[float]] = {"thalweg": [], "loss-landscapes": []}
    for _ in range(arguments.repeats):
        begun = time.process_time()
        found, how = ours(objective, corner, steps, side)
        seconds["thalweg"].append(time.process_time() - begun)
        begun = time.process_time()
        theirs = peer((model, data), corner, steps, side)
        seconds["loss-landscapes"].append(time.process_time() - begun)
        pair = [runs[-1] for runs in seconds.values()]
        print(f"  {pair[0]:8.2f} s   {pair[1]:8.2f} s   ratio {pair[1] / pair[0]:.2f}", flush=True)
    alone = one_by_one(objective, corner, steps, min(side, 20))
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    for name, median in medians.items():
        print(f"{name:28s}{median:9.2f} s{1e3 * median / side**2:9.3f} ms a point")
    print(f"{'through Objective.value':28s}{alone * side**2:9.2f} s{1e3 * alone:9.3f} ms a point")
    print(f"{'once before: the checks':28s}{ready:9.2f} s")
    print(f"ratio (median of {len(ratios)})          {statistics.median(ratios):9.2f}")
    difference = np.abs(found - theirs) / np.maximum(np.abs(theirs), 1)
    print(
        f"largest difference of losses    {difference.max():9.1e}, "
        f"losses {theirs.min():.3g} … {theirs.max():.3g}"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{how.sentence()}; peak memory {peak} MiB")


if __name__ == "__main__":
    main()
