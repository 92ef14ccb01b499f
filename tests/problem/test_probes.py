"""No false alarm on healthy models, in whatever state; the module at fault by its name; at a small cost."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.constructs import SineWrong
from tests.models import classification, mlp, seeded
from tests.selection import some
from thalweg.curvature.hessian import choose_hessian
from thalweg.errors import ModelError
from thalweg.problem.blur import blur
from thalweg.problem.builtin.registry import problems
from thalweg.problem.derivatives import Bench, check_gradient, check_products, compare, jumps, precise
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.problem import Problem

LOSS = nn.CrossEntropyLoss()


def trained(model, x, y, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model


@torch.no_grad()
def put(model, state):
    for p in model.parameters():
        if state == "saturated":
            p *= 30
        elif state == "at zero":
            p.zero_()
    if state == "dead":
        model[0].bias -= 100
    return model


def net(activation, state, dtype):
    x, y = classification(60, 10, dtype=dtype)
    model = mlp((10, 32, 32, 3), activation, dtype=dtype)
    steps = {"trained": 50, "memorised": 600}.get(state, 0)
    return trained(put(model, state), x, y, steps), LOSS, (x, y)


def image_net(steps, dtype):
    def build():
        return nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 3),
        )

    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 2, 8, 8, generator=rng, dtype=dtype), torch.randint(0, 3, (30,), generator=rng)
    return trained(seeded(build).to(dtype), x, y, steps), LOSS, (x, y)


class SinglePrecisionInside(nn.Module):
    """Computes in float32 whatever its weights are, as some norms and softmaxes do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.b(functional.gelu(self.a(x)).float().softmax(-1).to(x.dtype) * 32)


class NotInDouble(nn.Module):
    """Cannot be run in double precision: a constant that no cast reaches."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.b, self.activation = nn.Linear(10, 32), nn.Linear(32, 3), activation
        self.constants = [torch.eye(32)]

    def forward(self, x):
        return self.b(self.activation(self.a(x)) @ self.constants[0])


class Positive(nn.Module):
    """Has no value where a parameter is negative, and one is nearly so."""

    def __init__(self):
        super().__init__()
        self.scale, self.a = nn.Parameter(torch.full((3,), 1e-3)), nn.Linear(10, 3)

    def forward(self, x):
        return self.a(x) * self.scale.log()


def odd(build, loss=LOSS, dtype=torch.float32):
    x, y = classification(40, 10, dtype=dtype)
    return lambda: (seeded(build).to(dtype), loss, (x, y))


def fitted():
    x, _ = classification(40, 10)
    model = seeded(lambda: nn.Linear(10, 1, bias=False)).double()
    return model, nn.MSELoss(), (x, model(x).detach())


STATES = ("begun", "trained", "memorised", "saturated", "at zero", "dead")
DTYPES = {"single": torch.float32, "double": torch.float64}
HEALTHY = {
    f"{activation.__name__}, {state}, {name}": lambda a=activation, s=state, d=dtype: net(a, s, d)
    for activation in (nn.Tanh, nn.ReLU, nn.GELU)
    for state in STATES
    for name, dtype in DTYPES.items()
}
HEALTHY |= {
    f"images, {steps} steps, {name}": lambda s=steps, d=dtype: image_net(s, d)
    for steps in (0, 40)
    for name, dtype in DTYPES.items()
}
HEALTHY |= {
    "single precision inside": odd(SinglePrecisionInside),
    "single precision inside double": odd(SinglePrecisionInside, dtype=torch.float64),
    "not in double, smooth": odd(lambda: NotInDouble(torch.tanh)),
    "not in double, kinks": odd(lambda: NotInDouble(torch.relu)),
    "half": odd(lambda: nn.Linear(10, 3), dtype=torch.float16),
    "bfloat16": odd(
        lambda: nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)), dtype=torch.bfloat16
    ),
    "few places where it is defined": odd(Positive),
    "one parameter": lambda: (
        seeded(lambda: nn.Linear(1, 1, bias=False)),
        nn.MSELoss(),
        (torch.arange(5.0)[:, None], torch.ones(5, 1)),
    ),
    "one example": lambda: (seeded(lambda: nn.Linear(4, 3)), LOSS, (torch.ones(1, 4), torch.tensor([1]))),
    "loss zero": odd(lambda: nn.Linear(10, 3), lambda m, b: 0.0 * m(b[0]).sum()),
    "loss linear": odd(lambda: nn.Linear(10, 3), lambda m, b: m(b[0]).sum(1)),
    "loss far from zero": odd(
        lambda: nn.Linear(10, 3), lambda m, b: 1e6 + functional.cross_entropy(m(b[0]), b[1])
    ),
    "loss tiny": odd(lambda: nn.Linear(10, 3), lambda m, b: 1e-12 * functional.cross_entropy(m(b[0]), b[1])),
    "loss at its minimum": fitted,
}


def assert_healthy(problem):
    measured = problem.measured()
    choice = choose_hessian(measured.train, measured.train.theta, seed=0)
    assert choice.name == "exact", choice.reason
    assert not [note for note in measured.notes if "rough" in note]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_raises_no_alarm(name):
    assert_healthy(Problem(*HEALTHY[name]()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [info.name for info in problems()])
def test_a_built_in_problem_raises_no_alarm(name):
    assert_healthy(Problem.builtin(name))


class WrongSine(nn.Module):
    def forward(self, x):
        return SineWrong.apply(x)


class Noise(nn.Module):
    def forward(self, x):
        return x + 1e-3 * torch.rand_like(x)


def inside(part):
    """A part deep in a model that is otherwise healthy."""

    def build():
        block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), part, nn.LayerNorm(6))
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), block, nn.Linear(6, 3))

    return seeded(build).double()


def test_the_module_with_the_wrong_backward_pass_is_named():
    with pytest.raises(ModelError, match=r"because of '2\.2' \(WrongSine\)"):
        Problem(inside(WrongSine()), LOSS, classification()).measured()


def test_the_module_that_draws_is_named():
    with pytest.raises(ModelError, match=r"from '2\.2' \(Noise\).*rand_like"):
        Problem(inside(Noise()), LOSS, classification()).measured()


def test_a_refused_model_is_left_as_it_was():
    model = inside(WrongSine()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ModelError):
        Problem(model, LOSS, classification()).measured()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.nn.modules.module._global_forward_hooks == {}


def test_a_buffer_that_the_forward_pass_writes_to_starts_anew_every_time():
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            h = self.linear(x)
            self.mean.mul_(0.5).add_(0.5)
            return h * (1 + self.mean.clone())

    objective = Problem(seeded(Averaging).double(), LOSS, classification()).measured().train
    theta = objective.theta
    assert len({objective.value(theta) for _ in range(5)}) == 1
    assert torch.equal(objective.gradient(theta), objective.gradient(theta))


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_checking_a_large_sample_costs_next_to_nothing(dtype):
    x, y = classification(2000, 10, dtype=dtype)
    problem = Problem(mlp((10, 16, 3), dtype=dtype), LOSS, (x, y))
    objective = problem.measured().train
    before = objective.ledger.gradient_equivalents
    assert before <= 0.8  # of these, 0.7 is to see whether the losses of batches add up
    choose_hessian(objective, objective.theta, seed=0)
    assert objective.ledger.gradient_equivalents - before <= 1.2  # of these, 1.0 is the graph that is kept
    assert objective.ledger.num_hvps == 0


@pytest.mark.parametrize(
    ("num", "dtype", "most"), [(8, torch.float64, 17), (8, torch.float32, 22), (30, torch.float32, 9)]
)
def test_checking_a_small_sample_is_bounded(num, dtype, most):
    objective = Problem(mlp(dtype=dtype), LOSS, classification(num, dtype=dtype)).measured().train
    choose_hessian(objective, objective.theta, seed=0)
    assert objective.ledger.gradient_equivalents <= most


def test_the_padding_of_an_embedding_is_a_constant():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = nn.Embedding(5, 4, padding_idx=1), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rows(x).mean(1))

    data = torch.arange(20).view(10, 2) % 5, torch.arange(10) % 3
    objective = Problem(seeded(Bag).double(), LOSS, data).measured().train
    theta = objective.theta
    moved = theta.clone()
    moved[4:8] += 1.0
    assert objective.value(moved) == objective.value(theta)
    assert float(objective.gradient(theta)[4:8].norm()) == 0


class TestOfPlainFunctions:
    def bench(self, function, start, dtype=torch.float64):
        objective = FunctionObjective(function, torch.tensor(start, dtype=dtype))
        return Bench(objective, objective.theta)

    def test_a_detached_factor_is_refused(self):
        with pytest.raises(ModelError, match="not the derivative of its loss"):
            Problem.from_function(lambda t: (t * t.detach()).sum(), [1.0, 2.0]).measured()

    def test_a_step_is_a_jump_and_a_kink_is_none(self):
        assert jumps(self.bench(lambda t: t.sum() + (t[0] >= 1.0).to(t.dtype), [1.0, 2.0, 3.0]))
        assert not jumps(self.bench(lambda t: (t - 1.0).abs().sum(), [1.0, 1.0]))
        assert not jumps(self.bench(lambda t: (t**2).sum(), [0.0, 0.0]))

    def test_a_kink_at_the_point_is_no_fault(self):
        bench = self.bench(lambda t: torch.relu(t).sum() ** 2, [0.0, 0.0, 1.0])
        assert check_gradient(bench).verdict == "agrees"
        assert check_products(bench).verdict == "agrees"

    def test_a_stair_is_not_mistaken_for_rounding(self):
        stair = self.bench(lambda t: ((4 * t).round() / 4 - 4 * t.detach() + 4 * t).sum() ** 2, [0.3, 0.7])
        assert check_gradient(stair).verdict == "disagrees"

    def test_noise_is_rough_or_flat_and_no_fault(self):
        rng = torch.Generator().manual_seed(0)

        def quotient(step):
            return torch.randn(3, generator=rng, dtype=torch.float64) / step, 0.0

        claim = torch.ones(3, dtype=torch.float64)
        steps = (1e-6, 1e-5, 1e-4)
        assert compare(claim, quotient, steps, tolerance=1e-5).verdict == "rough"
        drowned = compare(claim, lambda step: (quotient(step)[0], 1 / step), steps, tolerance=1e-5)
        assert drowned.verdict == "flat"

    def test_what_runs_in_double_is_checked_in_double(self):
        single = FunctionObjective(lambda t: (t**4).sum(), torch.ones(3))
        assert precise(single, single.theta).theta.dtype == torch.float64
        fixed = FunctionObjective(lambda t: t @ torch.ones(3, dtype=torch.float32), torch.ones(3))
        assert precise(fixed, fixed.theta).theta.dtype == torch.float32


class Pulled(nn.Module):
    """A linear layer whose gradient is half of what it should be."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        h = self.layer(x)
        return (h + h.detach()) / 2


def certain(kind, margin, dtype):
    """A linear model that gets all of its examples right, by ``margin``; MSE has fitted such numbers."""
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    x = (0.1 * noise + (6 * y - 3)[:, None]).to(dtype)
    model = seeded(lambda: nn.Linear(2, 2 if kind == "cross-entropy" else 1)).to(dtype)
    with torch.no_grad():
        model.bias.zero_()
        model.weight[-1] = margin / 6
        if kind == "cross-entropy":
            model.weight /= 2
            model.weight[0] = -model.weight[1]
    if kind == "cross-entropy":
        return model, nn.CrossEntropyLoss(), (x, y)
    if kind == "binary":
        return model, nn.BCEWithLogitsLoss(), (x, y[:, None].to(dtype))
    return model, nn.MSELoss(), (x, model(x).detach())


CERTAIN = pytest.mark.parametrize("kind", ["cross-entropy", "binary", "squares"])
MARGINS = pytest.mark.parametrize("margin", some([10, 34, 60, 1000, 25, 30, 38, 200], now=4))
PRECISIONS = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@CERTAIN
@MARGINS
@PRECISIONS
def test_a_model_that_is_certain_of_everything_raises_no_alarm(kind, margin, dtype):
    objective = Problem(*certain(kind, margin, dtype)).measured().train
    choice = choose_hessian(objective, objective.theta, seed=0)
    assert choice.name == "exact", choice.reason
    for bench in (precise(objective, objective.theta), Bench(objective, objective.theta)):
        assert check_gradient(bench).verdict != "disagrees"
        assert check_products(bench).verdict != "disagrees"


@CERTAIN
@pytest.mark.parametrize("margin", [10, 25, 60, 200])
@PRECISIONS
def test_certainty_does_not_hide_a_wrong_gradient(kind, margin, dtype):
    model, loss, data = certain(kind, margin, dtype)
    with pytest.raises(ModelError, match=r"not the derivative of its loss.*Pulled"):
        Problem(Pulled(model), loss, data).measured()


@pytest.mark.parametrize("steps", [50, 300])
def test_a_trained_net_whose_loss_is_rounding_is_measured(steps):
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.randn(200, 4, generator=rng).clamp(-1, 1) + (6 * y - 3)[:, None]
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    assert float(LOSS(model(x), y).detach()) < 1e-5
    assert_healthy(Problem(model, LOSS, (x, y)))


class TestOfBlur:
    def bench(self, function, start):
        return FunctionObjective(function, torch.tensor(start, dtype=torch.float64))

    def test_it_covers_what_is_left_of_large_numbers(self):
        loss = self.bench(lambda t: ((t + 100.0) - 100.0).sum(), [1e-16])
        assert loss.value(loss.theta) == 0
        assert 1e-16 < blur(loss, loss.theta) < 1e-11

    def test_it_covers_what_is_magnified(self):
        loss = self.bench(lambda t: 1e8 * (t[0] - t[1]), [1.0, 1.0])
        assert blur(loss, loss.theta) >= 1e-8

    def test_masks_do_not_count(self):
        mask = torch.tensor([0.0, -1e30], dtype=torch.float64)
        loss = self.bench(lambda t: (t + mask).logsumexp(0), [1.0, 2.0])
        assert blur(loss, loss.theta) < 1e-12
