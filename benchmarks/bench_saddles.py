"""How long each method takes to leave a saddle: steps and gradient-equivalents.

    python benchmarks/bench_saddles.py                 # the tables of docs/saddles.md, ten minutes
    python benchmarks/bench_saddles.py --only plane    # one place

A method has **left** when the loss over all examples is below that of the saddle by a tenth of what there is
to gain, that is of the difference between the saddle and the lowest loss of the problem, and stays there for
ten further steps; the step that first came there counts. A gradient-equivalent is one forward and backward
pass over all examples: a batch of 64 of 1,437 counts 64/1437, a loss 1/3, a Hessian–vector product 2. Looking
whether a method has left is not counted. After 3,000 steps a run has not left.

Learning rates are tuned: of 1e-3, 3e-3, …, 10 the one that leaves on most of the seeds 5 to 9, and of these
the one whose slowest run is the fastest. The table shows seeds 0 to 4. The methods of second order have no
learning rate and run as they come. Where nothing disturbs the saddle, the learning rates are those of the
disturbed case.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, mse_loss

from thalweg.optim.perturbed_gradient_descent import PerturbedGradientDescent
from thalweg.optim.saddle_free_newton import SaddleFreeNewton
from thalweg.optim.trust_region_newton_cg import TrustRegionNewtonCG
from thalweg.optim.whole import WholeVector
from thalweg.problem.builtin.digits import digits
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.builtin.saddle import halves
from thalweg.problem.builtin.training import minimise
from thalweg.problem.parameters import ParameterSpace
from thalweg.problem.problem import Problem
from thalweg.rng import gaussian, generator

SHARE = 0.1  # of what there is to gain, by which the loss must be below the saddle's
STAY = 10  # steps
MOST_STEPS = 3000
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
SEEDS, TUNING_SEEDS = range(5), range(5, 10)
DISTURBANCE = 1e-8


@dataclass(frozen=True)
class Place:
    """Where a run begins: parameters near a saddle, and the loss over some or all examples."""

    parameters: list[Tensor]
    loss: Callable[[Tensor | None], Tensor]  # of the examples with these indices; None: of all
    num_examples: int
    saddle: float
    lowest: float

    @property
    def threshold(self) -> float:
        """The loss below which the saddle is left."""
        return self.saddle - SHARE * (self.saddle - self.lowest)


@dataclass(frozen=True)
class Run:
    """How many steps and gradient-equivalents it took to leave; infinite where it did not."""

    steps: float
    cost: float


NEVER = Run(math.inf, math.inf)

# Places ---------------------------------------------------------------------------------------------------


def plane(seed: int) -> Place:
    """x² − y² + y⁴/4 (minima −1 at y = ±√2) from (x, 1e-8), x between ½ and 1½ by seed."""
    x = 0.5 + torch.rand(1, generator=generator(seed, "bench", "plane"), dtype=torch.float64).item()
    point = nn.Parameter(torch.tensor([x, DISTURBANCE], dtype=torch.float64))

    def loss(rows: Tensor | None) -> Tensor:
        return point[0] ** 2 - point[1] ** 2 + point[1] ** 4 / 4

    return Place([point], loss, 1, saddle=0.0, lowest=-1.0)


def xor(seed: int, disturbance: float = 0.0) -> Place:
    """The 2-2-1 tanh net on exclusive or with all weights alike: hidden ones a, their biases −a, outputs 0.

    The hidden units say −tanh a, 0, 0, tanh a to the four examples and the net ½ to all, so that the gradient
    is exactly zero and the loss ln 2. The outputs' curvature is positive, that of the hidden weights zero,
    and the block between them is not: a strict saddle for any a. It is between ½ and 1½ by seed.
    """
    inputs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    targets = torch.tensor([[0], [1], [1], [0]], dtype=torch.float64)
    rng = generator(seed, "bench", "xor")
    a = 0.5 + torch.rand(1, generator=rng, dtype=torch.float64).item()
    model = initialised(lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), rng).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (a, -a, 0.0, 0.0), strict=True):
            parameter.fill_(value)
    parameters = disturbed(model, disturbance, rng)

    def loss(rows: Tensor | None) -> Tensor:
        some = slice(None) if rows is None else rows
        return binary_cross_entropy_with_logits(model(inputs[some]), targets[some])

    return Place(parameters, loss, 4, saddle=math.log(2), lowest=0.0)


def digits_saddle(seed: int, disturbance: float = 0.0) -> Place:
    """The built-in problem, its weights in float64: two hidden units alike, a gradient of about 1e-8."""
    saddle, lowest = digits_model(seed)
    model = copy.deepcopy(saddle)
    inputs, targets = (part.double() for part in halves(digits(seed)).train)
    parameters = disturbed(model, disturbance, generator(seed, "bench", "digits"))

    def loss(rows: Tensor | None) -> Tensor:
        some = slice(None) if rows is None else rows
        return mse_loss(model(inputs[some]), targets[some])

    return Place(parameters, loss, len(inputs), float(loss(None).detach()), lowest)


@cache
def digits_model(seed: int) -> tuple[nn.Module, float]:
    """Return the net at its saddle, and the lowest minimum that L-BFGS finds from five points around."""
    model = Problem.builtin("digits-saddle", seed).model
    assert model is not None
    model = model.double()
    inputs, targets = (part.double() for part in halves(digits(seed)).train)
    space = ParameterSpace.of(model)
    saddle, rng = space.read(model), generator(seed, "bench", "lowest")

    def risk(theta: Tensor) -> Tensor:
        weight, bias, outgoing, constant = space.unflatten(theta)
        return mse_loss(linear(torch.tanh(linear(inputs, weight, bias)), outgoing, constant), targets)

    starts = [saddle + 0.3 * gaussian(len(saddle), rng, like=saddle) for _ in range(5)]
    ends = [minimise(risk, start, tolerance=1e-7, iterations=500) for start in starts]
    return model, min(float(risk(end)) for end in ends)


@torch.no_grad()
def disturbed(model: nn.Module, size: float, rng: torch.Generator) -> list[Tensor]:
    """Add normal noise to every weight; return the parameters."""
    for parameter in model.parameters():
        parameter += size * gaussian(parameter.numel(), rng, like=parameter).view_as(parameter)
    return list(model.parameters())


@dataclass(frozen=True)
class Case:
    """A place as a row of the docs; learning rates are tuned at the case of the name ``tuned_at``."""

    title: str
    build: Callable[[int], Place]
    batch: int | None
    tuned_at: str


def nearby(build: Callable[[int, float], Place]) -> Callable[[int], Place]:
    """Return the place with a normal disturbance in every weight."""
    return lambda seed: build(seed, DISTURBANCE)


NEAR, AT = "weights disturbed by 1e-8", "undisturbed"
CASES = {
    "plane": Case("x² − y² + y⁴/4 from (x, 1e-8)", plane, None, "plane"),
    "xor": Case(f"XOR, {NEAR}", nearby(xor), None, "xor"),
    "xor-exact": Case(f"XOR, {AT}", xor, None, "xor"),
    "xor-exact-batches": Case(f"XOR, {AT}, one example at a time", xor, 1, "xor-exact-batches"),
    "digits": Case(f"digits-saddle, {NEAR}", nearby(digits_saddle), None, "digits"),
    "digits-batches": Case(
        f"digits-saddle, {NEAR}, batches of 64", nearby(digits_saddle), 64, "digits-batches"
    ),
    "digits-exact": Case(f"digits-saddle, {AT}", digits_saddle, None, "digits"),
    "digits-exact-batches": Case(f"digits-saddle, {AT}, batches of 64", digits_saddle, 64, "digits-batches"),
}

# Methods --------------------------------------------------------------------------------------------------

Make = Callable[[list[Tensor], float, int], torch.optim.Optimizer]
FIRST_ORDER: dict[str, Make] = {
    "SGD": lambda p, lr, seed: torch.optim.SGD(p, lr=lr),
    "momentum 0.9": lambda p, lr, seed: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "Adam": lambda p, lr, seed: torch.optim.Adam(p, lr=lr),
    "PGD": lambda p, lr, seed: PerturbedGradientDescent(p, lr=lr, seed=seed),
}
SECOND_ORDER: dict[str, Make] = {
    "saddle-free Newton": lambda p, lr, seed: SaddleFreeNewton(p, seed=seed),
    "trust region": lambda p, lr, seed: TrustRegionNewtonCG(p, seed=seed),
}


def leave(
    place: Place, optimizer: torch.optim.Optimizer, batch: int | None, seed: int, most: float = MOST_STEPS
) -> Run:
    """Step until the place is left; ``most`` steps at most."""
    cost, left = 0.0, None
    for step, rows in enumerate(batches(place.num_examples, batch, seed), start=1):
        part = 1.0 if rows is None else len(rows) / place.num_examples
        optimizer.step(closure_of(place, optimizer, rows))
        last = optimizer.last if isinstance(optimizer, WholeVector) else None
        cost += part * (1.0 if last is None else last.gradient_equivalents)
        with torch.no_grad():
            loss = float(place.loss(None))
        if not loss < place.threshold:  # NaN is not
            left = None
        elif left is None:
            left = Run(step, cost)
        if left is not None and step == left.steps + STAY:
            return left
        if not math.isfinite(loss) or (left is None and step >= most):
            break
    return NEVER


def closure_of(place: Place, optimizer: torch.optim.Optimizer, rows: Tensor | None) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        return place.loss(rows)

    def standard() -> Tensor:
        optimizer.zero_grad()
        value = place.loss(rows)
        value.backward()
        return value

    return loss if isinstance(optimizer, (SaddleFreeNewton, TrustRegionNewtonCG)) else standard


def batches(num: int, size: int | None, seed: int) -> Iterator[Tensor | None]:
    """Yield the rows of one batch after the other, shuffled each epoch; None for all of them."""
    rng = generator(seed, "bench", "batches")
    while True:
        if size is None:
            yield None
            continue
        yield from torch.randperm(num, generator=rng).split(size)


def run(case: Case, make: Make, lr: float, seed: int, most: float = MOST_STEPS) -> Run:
    place = case.build(seed)
    return leave(place, make(place.parameters, lr, seed), case.batch, seed, most)


@cache
def tuned(name: str, method: str) -> float | None:
    """Return the learning rate that leaves on most seeds, at worst in the fewest steps; None if none does."""
    best, failed, worst = None, len(TUNING_SEEDS), math.inf
    for lr in reversed(LEARNING_RATES):  # the long ones are quick, and then bound how long others may take
        steps: list[float] = []
        for seed in TUNING_SEEDS:
            most = worst - 1 if failed == 0 else MOST_STEPS
            steps.append(run(CASES[name], FIRST_ORDER[method], lr, seed, most).steps)
            if steps.count(math.inf) >= max(failed, 1):
                break
        else:
            slowest = max(number for number in steps if math.isfinite(number))
            best, failed, worst = lr, steps.count(math.inf), slowest
    return best


# Table ----------------------------------------------------------------------------------------------------


def row(method: str, lr: str, found: list[Run]) -> str:
    left = [run for run in found if run is not NEVER]
    share = f"{len(left)} of {len(found)}"
    if 2 * len(left) <= len(found):
        return f"| {method} | {lr} | {share} | – | – | – |"
    steps = statistics.median(run.steps for run in found)
    costs = sorted(run.cost for run in found)
    most = f"{costs[-1]:,.0f}" if len(left) == len(found) else "never"
    return (
        f"| {method} | {lr} | {share} | {steps:,.0f} | {statistics.median(costs):,.0f} | "
        f"{costs[0]:,.0f} … {most} |"
    )


def table(name: str) -> None:
    case = CASES[name]
    place = case.build(0)
    saddle = f"loss {place.saddle:.4g} at the saddle, left below {place.threshold:.4g} (seed 0)"
    print(f"\n**{case.title}**: {saddle}\n")
    print("| method | learning rate | left | steps | gradient-equivalents | least … most |")
    print("|---|---|---|---|---|---|", flush=True)
    for method, make in FIRST_ORDER.items():
        lr = tuned(case.tuned_at, method)
        found = [NEVER if lr is None else run(case, make, lr, seed) for seed in SEEDS]
        print(row(method, "none" if lr is None else f"{lr:g}", found), flush=True)
    if case.batch is None:
        for method, make in SECOND_ORDER.items():
            print(row(method, "", [run(case, make, 0.0, seed) for seed in SEEDS]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=CASES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in CASES if arguments.only is None else [arguments.only]:
        table(name)


if __name__ == "__main__":
    main()
