"""Points that invite a wrong verdict: each is provable, and most were once answered wrongly."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.models import classification, seeded
from tests.selection import some
from thalweg.diagnosis.diagnosis import diagnose
from thalweg.diagnosis.verdict import Verdict
from thalweg.problem.problem import Problem


def of_function(function, start):
    return diagnose(Problem.from_function(function, start))


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t[0] ** 3 + t[1] ** 2,
        lambda t: -(t[0] ** 4) + t[1] ** 2,
        lambda t: t[1] ** 2 - t[0] ** 4 + t[0] ** 6,
    ],
)
def test_a_way_down_of_higher_order_beside_a_valley_is_no_minimum(function):
    assert of_function(function, [0.0, 0.0]).verdict is Verdict.DEGENERATE


def test_a_quartic_valley_is_no_saddle():
    found = of_function(lambda t: t[0] ** 4 + t[1] ** 2, [0.0, 0.0])
    assert found.verdict in {Verdict.MINIMUM, Verdict.DEGENERATE}


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("depth", [0.5, 0.04])
def test_a_strict_saddle_among_curvatures_a_thousand_times_larger_is_no_minimum(n, depth):
    steep = torch.linspace(1, 1000, n - 1, dtype=torch.float64)

    def function(t):
        return 0.5 * (steep * t[1:] ** 2).sum() - 0.5 * depth * t[0] ** 2 + 0.25 * t[0] ** 4 + 1

    found = of_function(function, torch.zeros(n, dtype=torch.float64))
    assert found.verdict is Verdict.SADDLE
    assert found.evidence.curvature.lambda_min.value == pytest.approx(-depth, rel=1e-3)


class Shifted(nn.Module):
    """Per-example losses ½Σaᵢ(xᵢ−zᵢ)² − …: a quadratic whose noise comes from the data z."""

    def __init__(self, curvatures, start):
        super().__init__()
        self.register_buffer("a", curvatures)
        self.x = nn.Parameter(start)

    def forward(self, z):
        return 0.5 * (self.a * self.x**2).sum() + z @ self.x


def noisy_quadratic(curvatures, noise, start=None, num=512, seed=0, shift=1.0):
    a = torch.tensor(curvatures, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    z = noise * torch.randn(2, num, len(a), generator=rng, dtype=torch.float64)
    z = z - z.mean(1, keepdim=True)  # the gradient of either sample is that of the quadratic
    start = torch.zeros(len(a), dtype=torch.float64) if start is None else start

    def loss(model, batch):
        return model(batch[0]) + shift

    pairs = [(part, torch.zeros(num)) for part in z]
    return Problem(Shifted(a, start), loss, pairs[0], pairs[1])


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", some(range(3), now=1))
def test_noise_makes_a_saddle_undetermined_at_worst(noise, seed):
    curvatures = [-0.5, *torch.linspace(1, 100, 49).tolist()]
    assert diagnose(noisy_quadratic(curvatures, noise, seed=seed), seed=seed).verdict in {
        Verdict.SADDLE,
        Verdict.UNDETERMINED,
    }


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", some(range(3), now=1))
def test_noise_makes_no_saddle_of_a_minimum(noise, seed):
    curvatures = torch.linspace(0.5, 100, 50).tolist()
    assert diagnose(noisy_quadratic(curvatures, noise, seed=seed), seed=seed).verdict is Verdict.MINIMUM


def test_a_constant_added_to_the_loss_does_not_hide_the_way_down():
    away = torch.full((20,), 2.0, dtype=torch.float64)
    for shift in (0.0, 1.0, 1e4):
        problem = noisy_quadratic([0.5] * 20, 0.1, start=away.clone(), shift=shift)
        assert diagnose(problem).verdict is Verdict.DESCENDING, shift


def test_a_point_beside_the_edge_of_the_domain_is_not_degenerate():
    barrier = of_function(lambda t: (-torch.log(t[0]) - torch.log(1e-4 - t[0])) * 1.0, [1e-5])
    assert barrier.verdict is Verdict.DESCENDING


class LeastSquares(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.body = nn.Linear(4, 1)
        self.idle = nn.Linear(5, 2)
        self.weak = nn.Linear(4, 1, bias=False)
        self.factor = factor

    def forward(self, x):
        return self.body(x) + self.factor * self.weak(x)


def test_an_unused_or_weakly_coupled_layer_makes_no_plateau_of_a_minimum():
    x, _ = classification(200)
    rng = torch.Generator().manual_seed(1)
    y = x.sum(1, keepdim=True) + 0.3 * torch.randn(200, 1, generator=rng, dtype=torch.float64)
    for factor in (0.0, 1e-4):
        model = seeded(lambda f=factor: LeastSquares(f)).double()
        with torch.no_grad():
            model.weak.weight.zero_()
            solution = torch.linalg.lstsq(torch.cat([x, torch.ones_like(y)], 1), y).solution
            model.body.weight.copy_(solution[:4].T)
            model.body.bias.copy_(solution[4])
        found = diagnose(Problem(model, nn.MSELoss(), (x, y)))
        assert found.verdict is Verdict.MINIMUM
        assert any("idle" in note for note in found.notes)


def test_a_sampler_that_repeats_examples_is_not_taken_for_all_the_data():
    x, _ = classification(300)
    rng = torch.Generator().manual_seed(1)
    y = x @ torch.ones(4, 1, dtype=torch.float64) + torch.randn(300, 1, generator=rng, dtype=torch.float64)
    model = seeded(lambda: nn.Linear(4, 1)).double()
    with torch.no_grad():
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones_like(y)], 1), y).solution
        model.weight.copy_(solution[:4].T)
        model.bias.copy_(solution[4])
    sampler = WeightedRandomSampler([1.0] * 300, 100, generator=torch.Generator().manual_seed(2))
    loader = DataLoader(TensorDataset(x, y), batch_size=10, sampler=sampler)
    found = diagnose(Problem(model, nn.MSELoss(), loader))
    assert not found.evidence.complete
    assert found.verdict in {Verdict.MINIMUM, Verdict.UNDETERMINED}
    assert torch.equal(sampler.generator.get_state(), torch.Generator().manual_seed(2).get_state())


@pytest.mark.parametrize("margin", [20.0, 60.0])
def test_a_loss_that_comes_out_as_zero_is_not_called_descending(margin):
    """Certain of everything in float32: log-softmax rounds the loss to 0, though not its gradient."""
    y = torch.arange(40) % 2
    x = (6.0 * y - 3)[:, None].repeat(1, 2)
    model = seeded(lambda: nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]) * margin / 6)
    found = diagnose(Problem(model, nn.CrossEntropyLoss(), (x, y)), budget=60)
    assert found.evidence.loss.value == 0
    assert found.evidence.gradient.norm > 0
    assert found.verdict is Verdict.UNDETERMINED, found.summary
