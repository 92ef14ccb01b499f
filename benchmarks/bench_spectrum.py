"""Both ends of the Hessian's spectrum: products, seconds and error of Thalweg and of its peers.

    python benchmarks/bench_spectrum.py                       # the 26,122-parameter MLP on digits
    python benchmarks/bench_spectrum.py resnet --images 64    # ResNet-20 on CIFAR-shaped images

The peers are not dependencies of Thalweg; those that are not installed are left out:

    pip install curvlinops-for-pytorch pyhessian && pip install --pre hessian-eigenthings

Every tool measures the same weights on the same data in one process, one after the other. The truth is a
float64 Lanczos run by scipy's ARPACK on float64 double backward, to a residual of 1e-9. A ratio above one
says that Thalweg is faster.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import Tensor, nn

from thalweg.curvature.hessian import ExactHessian
from thalweg.curvature.spectrum import GAP, find_extremes
from thalweg.problem.problem import Problem


@dataclass
class Row:
    """What a tool found, with how many products, in how many seconds."""

    tool: str
    products: int
    seconds: float
    high: float
    low: float


Data = tuple[Tensor, Tensor]


def mlp_case() -> tuple[nn.Module, Data]:
    """The 64-128-128-10 tanh MLP after 200 full-batch steps of Adam on 1,437 digits."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    data = torch.tensor(x[:1437] / 16, dtype=torch.float32), torch.tensor(y[:1437])
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
    train(model, data, steps=200, batch=len(x))
    return model, data


def resnet_case(images: int) -> tuple[nn.Module, Data]:
    """A ResNet-20 after 20 steps of Adam on CIFAR-shaped images of ten noisy patterns."""
    torch.manual_seed(0)
    y = torch.arange(images) % 10
    x = torch.randn(10, 3, 32, 32)[y] + torch.randn(images, 3, 32, 32)
    model = resnet20()
    train(model, (x, y), steps=20, batch=64)
    return model, (x, y)


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = (
            nn.Identity()
            if width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet20() -> nn.Module:
    """Return the 20-layer residual net for 32×32 images."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def train(model: nn.Module, data: Data, *, steps: int, batch: int) -> None:
    """Take ``steps`` steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = data
    for step in range(steps):
        at = slice(step * batch % len(x), step * batch % len(x) + batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()


def truth(model: nn.Module, data: Data) -> tuple[float, float]:
    """Return λmax and λmin in float64 to 1e-9, by ARPACK."""
    precise = copy.deepcopy(model).double()
    x, y = data
    parameters = list(precise.parameters())
    loss = nn.functional.cross_entropy(precise(x.double()), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])

    def matvec(v: np.ndarray) -> np.ndarray:
        product = torch.autograd.grad(gradient @ torch.as_tensor(v.ravel()), parameters, retain_graph=True)
        return torch.cat([p.reshape(-1) for p in product]).numpy()

    n = gradient.numel()
    ends = eigsh(
        LinearOperator((n, n), matvec, dtype=np.float64),
        k=2,
        which="BE",
        tol=1e-9,
        ncv=60,
        return_eigenvectors=False,
        v0=np.random.default_rng(0).normal(size=n),
    )
    return float(ends.max()), float(ends.min())


def timed(tool: str, run: Callable[[], tuple[int, float, float]]) -> Row:
    """Run a tool once; the products it reports are counted, not assumed."""
    begun = time.perf_counter()
    products, high, low = run()
    return Row(tool, products, time.perf_counter() - begun, high, low)


def thalweg_runs(model: nn.Module, data: Data) -> Iterator[Row]:
    """One Lanczos run for both ends, until they have converged; and until that is certified."""
    for tool, open_gap in (("thalweg", 1.0), ("thalweg, with certificate", GAP)):

        def run(open_gap: float = open_gap) -> tuple[int, float, float]:
            objective = Problem(model, nn.CrossEntropyLoss(), data).measured().train
            operator = ExactHessian(objective, objective.theta)
            found = find_extremes(operator, seed=0, open_gap=open_gap)
            return objective.ledger.num_hvps, found.lambda_max.value, found.lambda_min.value

        yield timed(tool, run)


def curvlinops_runs(model: nn.Module, data: Data) -> Iterator[Row]:
    """Its Hessian operator with ARPACK for both ends, at ARPACK's default and at a loose tolerance."""
    from curvlinops import HessianLinearOperator

    for tol in (1e-3, 0.0):

        def run(tol: float = tol) -> tuple[int, float, float]:
            calls = 0
            operator = HessianLinearOperator(
                model,
                nn.CrossEntropyLoss(),
                [p for p in model.parameters() if p.requires_grad],
                [data],
                check_deterministic=False,
            ).to_scipy()

            def matvec(v: np.ndarray) -> np.ndarray:
                nonlocal calls
                calls += 1
                return operator @ v.astype(np.float32)

            counted = LinearOperator(operator.shape, matvec, dtype=np.float32)
            rng = np.random.default_rng(0)
            ends = eigsh(
                counted,
                k=2,
                which="BE",
                tol=tol,
                return_eigenvectors=False,
                v0=rng.normal(size=operator.shape[0]).astype(np.float32),
            )
            return calls, float(ends.max()), float(ends.min())

        yield timed(f"curvlinops + eigsh, tol {tol:g}", run)


def eigenthings_runs(model: nn.Module, data: Data) -> Iterator[Row]:
    """Its Lanczos, one end a call, with as many steps as it is given."""
    from hessian_eigenthings import HessianOperator, lanczos

    def loss(model: nn.Module, batch: Data) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    for steps in (40, 80):

        def run(steps: int = steps) -> tuple[int, float, float]:
            calls = 0

            class Counted(HessianOperator):
                def matvec(self, v: Tensor) -> Tensor:
                    nonlocal calls
                    calls += 1
                    return super().matvec(v)

            operator = Counted(model, [data], loss)
            options = {"k": 1, "max_iter": steps, "reorthogonalize": True, "seed": 0}
            high = lanczos(operator, which="LA", **options).eigenvalues
            low = lanczos(operator, which="SA", **options).eigenvalues
            return calls, float(high.max()), float(low.min())

        yield timed(f"hessian-eigenthings, {steps} steps", run)


def pyhessian_runs(model: nn.Module, data: Data) -> Iterator[Row]:
    """Its power iteration for λmax; its density, where λmin would show, calls torch.eig, which is gone."""
    from pyhessian import hessian

    # `pyhessian.hessian` names the class, which hides the module of the same name.
    module = sys.modules[hessian.__module__]

    def run() -> tuple[int, float, float]:
        calls = 0
        original = module.hessian_vector_product

        def counted(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            return original(*arguments)

        module.hessian_vector_product = counted
        try:
            tool = hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
            values, _ = tool.eigenvalues(top_n=1)
        finally:
            module.hessian_vector_product = original
            model.zero_grad(set_to_none=True)
        return calls, float(values[0]), float("nan")

    yield timed("PyHessian", run)


PEERS = {
    "curvlinops": curvlinops_runs,
    "hessian_eigenthings": eigenthings_runs,
    "pyhessian": pyhessian_runs,
}


def report(rows: list[Row], high: float, low: float) -> None:
    """Print the table; the first row is Thalweg's."""
    own = rows[0]
    print(f"truth (float64)                       λmax {high:.7g}  λmin {low:.7g}")
    print(f"{'':34s}{'products':>9s}{'seconds':>9s}{'err λmax':>10s}{'err λmin':>10s}{'ratio':>8s}")
    for row in rows:
        errors = abs(row.high / high - 1), abs(row.low / low - 1)
        print(
            f"{row.tool:34s}{row.products:9d}{row.seconds:9.2f}{errors[0]:10.1e}{errors[1]:10.1e}"
            f"{row.seconds / own.seconds:8.1f}"
        )


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=["mlp", "resnet"], nargs="?", default="mlp")
    parser.add_argument("--images", type=int, default=64, help="of the ResNet case")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest run of each tool counts")
    arguments = parser.parse_args()
    model, data = mlp_case() if arguments.case == "mlp" else resnet_case(arguments.images)
    repeats = arguments.repeats if arguments.case == "mlp" else 1
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{arguments.case}: {parameters:,} parameters, {len(data[0]):,} examples", flush=True)
    found = {name: runs for name, runs in PEERS.items() if importlib.util.find_spec(name)}
    best: dict[str, Row] = {}
    for _ in range(repeats):
        for runs in (thalweg_runs, *found.values()):
            for row in runs(model, data):
                if row.tool not in best or row.seconds < best[row.tool].seconds:
                    best[row.tool] = row
    report(list(best.values()), *truth(model, data))
    for name in PEERS.keys() - found.keys():
        print(f"{name} is not installed")


if __name__ == "__main__":
    main()
