"""What every optimiser of the registry keeps to, whoever wrote it."""

import copy
import inspect
import io

import pytest
import torch
from torch import nn

from tests.models import mlp
from thalweg.errors import InputError, ThalwegError
from thalweg.optim.registry import get, names
from thalweg.problem.intact import random_state_kept

# What torch's L-BFGS cannot do.
LBFGS = {"lbfgs"}
# Names under which a step at zero gradient moves the weights all the same, and why.
MOVES_WITHOUT_GRADIENT = {
    "adamw": "weight decay",
    "lamb": "weight decay",
    "perturbed-gradient-descent": "a random push is what it is for",
    "entropy-sgd": "a random walk",
}


def opened(name):
    """The factory of a name, with what it needs imported."""
    factory = get(name)
    with random_state_kept():  # some libraries draw from it when they are imported
        factory([torch.zeros(2, requires_grad=True)])
    return factory


@pytest.fixture(params=list(names()))
def factory(request):
    return opened(request.param)


def is_ours(factory):
    return type(factory([torch.zeros(2, requires_grad=True)])).__module__.startswith("thalweg.")


class Case:
    """A small net, data for it, and an optimiser over its parameters."""

    def __init__(self, factory, *, groups=1, frozen=(), dtype=torch.float64, **settings):
        self.factory = factory
        self.model = mlp((3, 4, 2), dtype=dtype)
        rng = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(12, 3, generator=rng, dtype=dtype)
        self.targets = torch.randn(12, 2, generator=rng, dtype=dtype)
        for i in frozen:
            self.parameters[i].requires_grad_(False)
        two = [{"params": self.parameters[:2]}, {"params": self.parameters[2:]}]
        given = self.parameters if groups == 1 else two
        self.optimizer = factory(given, **settings)

    @property
    def parameters(self):
        return list(self.model.parameters())

    @property
    def classes(self):
        return (self.targets[:, 0] > 0).long()

    @property
    def loss(self):
        with torch.no_grad():
            if self.factory.closure == "prediction":
                return float(nn.functional.cross_entropy(self.model(self.inputs), self.classes))
            return float((self.model(self.inputs) - self.targets).square().mean())

    def closure(self):
        if self.factory.closure == "prediction":
            return self.model(self.inputs), self.classes
        errors = self.model(self.inputs) - self.targets
        if self.factory.closure == "residual":
            return errors / errors.numel() ** 0.5
        loss = errors.square().mean()
        if self.factory.closure == "standard":
            self.optimizer.zero_grad()
            loss.backward()
        return loss

    def run(self, steps):
        for _ in range(steps):
            self.optimizer.step(self.closure)
        return self

    def weights(self):
        return [p.detach().clone() for p in self.parameters]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_goes_down(factory):
    case = Case(factory)
    before = case.loss
    case.run(30)
    assert case.loss < before


def test_training_resumed_is_training_not_interrupted(factory):
    whole = Case(factory).run(3)
    stored = io.BytesIO()
    torch.save(whole.optimizer.state_dict(), stored)
    stored.seek(0)
    resumed = Case(factory)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.optimizer.load_state_dict(torch.load(stored, weights_only=True))
    for _ in range(4):
        whole.run(1)
        resumed.run(1)
        assert same(whole.weights(), resumed.weights())


def test_the_same_twice(factory):
    assert same(Case(factory).run(6).weights(), Case(factory).run(6).weights())


def test_groups_are_taken(factory):
    if factory.name in LBFGS:
        with pytest.raises(InputError, match="per-parameter options"):
            Case(factory, groups=2)
        return
    assert same(Case(factory).run(4).weights(), Case(factory, groups=2).run(4).weights())


def test_a_group_has_its_own_learning_rate(factory):
    by_sign = "rprop" in factory.name or factory.name == "matlab:trainrp"  # lr is only the first step
    if factory.lr is None or factory.name in LBFGS or by_sign:
        pytest.skip("no learning rate by group")
    case = Case(factory, groups=2)
    before = case.weights()
    case.optimizer.param_groups[1]["lr"] = 0.0
    case.run(3)
    after = case.weights()
    assert same(after[2:], before[2:])
    assert not torch.equal(after[0], before[0])


def test_an_empty_group_does_no_harm(factory):
    if not is_ours(factory):
        pytest.skip("not ours")
    case = Case(factory, groups=1)
    case.optimizer.add_param_group({"params": []})
    assert same(case.run(2).weights(), Case(factory).run(2).weights())


@pytest.mark.parametrize("frozen", [0, 3])
def test_frozen_parameters_stay(factory, frozen):
    case = Case(factory, frozen=[frozen])
    before = case.weights()
    case.run(3)
    after = case.weights()
    assert torch.equal(after[frozen], before[frozen])
    assert not torch.equal(after[1], before[1])


def test_parameters_that_the_loss_does_not_use_stay(factory):
    case = Case(factory)
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    if factory.name in LBFGS:
        case.optimizer = factory([*case.parameters, unused])
    else:
        case.optimizer.add_param_group({"params": [unused]})
    case.run(3)
    if factory.name not in MOVES_WITHOUT_GRADIENT:
        assert torch.equal(unused.detach(), torch.ones(3, dtype=torch.float64))
    assert torch.isfinite(unused).all()


def test_a_copy_goes_its_own_way_with_the_same_steps(factory):
    if factory.name in LBFGS:
        pytest.skip("torch's L-BFGS forgets its parameters when it is copied")
    case = Case(factory).run(2)
    twin = copy.deepcopy(case)
    before = case.weights()
    twin.run(2)
    assert same(case.weights(), before)
    assert same(case.run(2).weights(), twin.weights())


def test_the_loss_where_a_step_began_is_returned(factory):
    case = Case(factory)
    for _ in range(3):
        before = case.loss
        assert float(case.optimizer.step(case.closure).detach()) == pytest.approx(before, rel=1e-12)


def test_a_missing_closure_is_told(factory):
    case = Case(factory)
    before = case.weights()
    if not factory.evaluates:
        case.closure()
        case.optimizer.step()
        assert not same(case.weights(), before)
        return
    with pytest.raises(InputError if is_ours(factory) else TypeError, match="closure"):
        case.optimizer.step()
    assert same(case.weights(), before)


def test_a_closure_of_another_kind_is_told(factory):
    if not (is_ours(factory) and factory.evaluates):
        pytest.skip("torch's own, or without need of a closure")
    case = Case(factory)
    before = case.weights()

    def without_return():
        case.closure()

    def detached():
        with torch.no_grad():
            return (case.model(case.inputs) - case.targets).square().mean()

    one_gradient = factory.name == "rprop-plus"  # which stays where there is none, as torch's own do
    for wrong in (without_return,) if one_gradient else (without_return, detached):
        case.optimizer.zero_grad()
        with pytest.raises(InputError, match="closure"):
            case.optimizer.step(wrong)
        assert same(case.weights(), before)


def test_nothing_moves_where_the_gradient_is_zero(factory):
    if factory.name in MOVES_WITHOUT_GRADIENT:
        pytest.skip(MOVES_WITHOUT_GRADIENT[factory.name])
    case = Case(factory)
    before = case.weights()

    def flat():
        errors = 0.0 * case.model(case.inputs)
        if factory.closure == "residual":
            return errors
        if factory.closure == "prediction":
            return errors, case.classes
        if factory.closure == "standard":
            case.optimizer.zero_grad()
            errors.sum().backward()
        return errors.sum()

    for _ in range(2):
        case.optimizer.step(flat)
    assert same(case.weights(), before)


def test_a_loss_that_is_not_finite_moves_nothing(factory):
    if not (is_ours(factory) and factory.evaluates):
        pytest.skip("torch's own take the gradient as it is")
    case = Case(factory).run(2)
    before = case.weights()
    case.inputs = case.inputs * float("nan")
    try:
        case.optimizer.step(case.closure)
    except ThalwegError:
        pass
    else:
        assert case.optimizer.last.accepted is False
    assert same(case.weights(), before)


def test_complex_parameters_are_refused_or_taken(factory):
    parameter = torch.tensor([1 + 2j, -1j], requires_grad=True)
    before = parameter.detach().clone()

    def closure():
        parameter.grad = None
        loss = parameter.abs().square().sum()
        if factory.closure == "standard":
            loss.backward()
        return loss

    try:
        optimizer = factory([parameter])
        for _ in range(3):
            optimizer.step(closure)
    except InputError as error:
        assert "complex" in str(error)  # noqa: PT017
        assert torch.equal(parameter.detach(), before)
        return
    assert factory.closure == "standard"
    assert parameter.detach().abs().square().sum() < before.abs().square().sum()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_are_refused_or_taken(factory):
    def net(sparse):
        layer = nn.Embedding(5, 2, sparse=sparse, _weight=torch.ones(5, 2, dtype=torch.float64))
        return layer, factory(layer.parameters())

    rows = torch.tensor([0, 2, 2])

    def closure(layer, optimizer):
        residuals = layer(rows) - 0.5
        if factory.closure == "residual":
            return residuals
        if factory.closure == "prediction":
            return layer(rows), torch.tensor([0, 1, 1])
        loss = residuals.square().sum()
        if factory.closure == "standard":
            optimizer.zero_grad()
            loss.backward()
        return loss

    layer, optimizer = net(sparse=True)
    try:
        optimizer.step(lambda: closure(layer, optimizer))
    except (InputError, RuntimeError) as error:
        assert isinstance(error, InputError) or not is_ours(factory)  # noqa: PT017
        assert "sparse" in str(error).lower()  # noqa: PT017
        return
    dense, plain = net(sparse=False)
    plain.step(lambda: closure(dense, plain))
    assert torch.allclose(layer.weight, dense.weight, atol=1e-12)


def test_fifty_steps_leave_no_more_tensors_than_ten(factory, live_tensors):
    case = Case(factory, **({"history_size": 3} if factory.name in LBFGS else {})).run(10)
    before = live_tensors()
    case.run(40)
    assert live_tensors() <= before


def test_one_parameter_of_one_number(factory):
    parameter = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = factory([parameter])

    def closure():
        if factory.closure == "residual":
            return parameter - 1
        if factory.closure == "prediction":
            return torch.stack([parameter, 1 - parameter], dim=1), torch.tensor([0])
        loss = (parameter - 1).square().sum()
        if factory.closure == "standard":
            optimizer.zero_grad()
            loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    moved = float(parameter.detach())
    assert moved > 3 if factory.closure == "prediction" else abs(moved - 1) < 2


def test_climbing_is_descending_the_negative(factory):
    if "maximize" not in inspect.signature(factory.load()).parameters:
        pytest.skip("it does not climb")

    def end(sign, maximize):
        parameter = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        optimizer = factory([parameter], maximize=maximize)

        def closure():
            optimizer.zero_grad()
            loss = sign * parameter.sin().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return parameter.detach()

    assert torch.equal(end(1.0, maximize=True), end(-1.0, maximize=False))


def test_a_learning_rate_is_taken_where_there_is_one(factory):
    parameter = torch.zeros(2, requires_grad=True)
    if factory.lr is None:
        with pytest.raises(InputError, match="takes no learning rate"):
            factory([parameter], lr=0.1)
        return
    weight = 1 - factory.settings.get("beta", 0.0)  # of the gradient in a moving average
    assert factory([parameter]).param_groups[0]["lr"] == pytest.approx(factory.lr * weight)
    assert factory([parameter], lr=0.25).param_groups[0]["lr"] == pytest.approx(0.25 * weight)
    with pytest.raises((InputError, ValueError)):
        factory([parameter], lr=-1.0)
