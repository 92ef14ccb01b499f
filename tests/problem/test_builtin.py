"""The built-in problems are reproducible, and their states are what they are said to be."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from tests.selection import all_but, some
from thalweg.errors import InputError
from thalweg.problem.builtin.digits import digits
from thalweg.problem.builtin.registry import build, problems
from thalweg.problem.builtin.saddle import fitted, halves, split_unit
from thalweg.problem.builtin.training import train
from thalweg.problem.loss import batch_loss
from thalweg.rng import generator

NAMES = [info.name for info in problems()]
FUNCTIONS = ["x-cos-pi-x", "empirical-risk", "cube", "saddle", "tanh", "rosenbrock"]
MODELS = [name for name in NAMES if name not in FUNCTIONS]


class Parts:
    """Takes what a Problem is made from, and keeps it."""

    def __init__(self, model, loss, train, heldout=None, *, name=None, optimizer=None):
        self.model, self.loss, self.name, self.optimizer = model, loss, name, optimizer
        self.train, self.heldout = tensors(train), tensors(heldout)

    @classmethod
    def from_function(cls, function, start, *, name=None, lr=None, domain=None, risk=None):
        parts = cls.__new__(cls)
        parts.function, parts.start, parts.name, parts.lr = function, start, name, lr
        parts.domain, parts.risk = domain, risk
        return parts

    def bits(self):
        if hasattr(self, "start"):
            return [self.start]
        steps = [] if self.optimizer is None else self.optimizer.state_dict()["state"].values()
        moments = [v for state in steps for v in state.values() if isinstance(v, torch.Tensor)]
        return [*self.model.parameters(), *self.train, *(self.heldout or ()), *moments]


def tensors(data):
    return data if data is None or isinstance(data, tuple) else data.dataset.tensors


_made = {}


def made(name, seed=0):
    if (name, seed) not in _made:
        _made[name, seed] = build(Parts, name, seed)
    return _made[name, seed]


def precise(parts):
    """Model, loss and training data in float64."""
    data = tuple(t.double() if t.is_floating_point() else t for t in parts.train)
    return copy.deepcopy(parts.model).double(), batch_loss(parts.loss), data


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def gradient_of(model, loss, data, *, graph=False):
    parameters = list(model.parameters())
    return flat(torch.autograd.grad(loss(model, data).mean, parameters, create_graph=graph))


def dense_hessian(model, loss, data):
    gradient = gradient_of(model, loss, data, graph=True)
    parameters = list(model.parameters())
    num = len(gradient)
    rows = [flat(torch.autograd.grad(gradient[i], parameters, retain_graph=True)) for i in range(num)]
    hessian = torch.stack(rows)
    assert torch.allclose(hessian, hessian.T, atol=1e-10)
    return hessian


@pytest.fixture(scope="module")
def small():
    """The halves of the digits in float64, and the net with one hidden unit that is fitted to them."""
    data = halves(digits(0))
    return data.train[0].double(), data.train[1].double(), fitted(0, data)


def derivatives(parts):
    x = parts.start
    gradient = torch.autograd.functional.jacobian(parts.function, x)
    return gradient, torch.autograd.functional.hessian(parts.function, x)


@pytest.mark.parametrize(
    "name", some(["xor", "rbf", *FUNCTIONS, *(n for n in MODELS if n not in {"xor", "rbf"})], now=8)
)
def test_the_same_seed_gives_the_same_bits_and_the_global_random_states_stay(name):
    first = made(name).bits()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(12345)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        again = build(Parts, name, 0).bits()
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert len(first) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["digits-started", "xor", "rbf"])
def test_another_seed_gives_another_model(name):
    pairs = zip(made(name).model.parameters(), made(name, 1).model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_the_number_of_threads_stays_and_does_not_matter():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = build(Parts, "digits-started", 0).bits()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(made("digits-started").bits(), again, strict=True))


def test_an_unknown_name_is_answered_with_the_closest_and_the_list():
    with pytest.raises(InputError) as caught:
        build(Parts, "digit-mpl", 0)
    assert "try: 'digits-mlp'" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)


def test_every_problem_has_its_own_name_and_a_summary_of_one_line():
    assert len(set(NAMES)) == len(NAMES) == 17
    assert all(info.summary and "\n" not in info.summary for info in problems())
    assert all(made(name).name == name for name in FUNCTIONS)


@pytest.mark.parametrize("name", all_but(MODELS, {"digits-cnn", "digits-transformer", "elman"}))
def test_models_are_float32_without_leftover_gradients_and_with_their_own_optimiser(name):
    parts = made(name)
    parameters = list(parts.model.parameters())
    assert all(p.dtype == torch.float32 and p.grad is None and p.is_leaf for p in parameters)
    assert all(bool(torch.isfinite(p).all()) for p in parameters)
    if parts.optimizer is not None:
        known = [id(p) for group in parts.optimizer.param_groups for p in group["params"]]
        assert known == [id(p) for p in parameters]


def test_the_digits_are_split_without_overlap():
    data = digits(3)
    assert len(data.train[0]) == 1437
    assert len(data.heldout[0]) == 360
    assert float(data.train[0].min()) == 0
    assert float(data.train[0].max()) == 1
    counts = torch.bincount(torch.cat([data.train[1], data.heldout[1]]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.slow
def test_digits_mlp_is_a_minimum_gradient_zero_and_every_curvature_positive():
    parts = made("digits-mlp")
    assert float(gradient_of(parts.model, batch_loss(parts.loss), parts.train).norm()) < 2e-6
    model, loss, data = precise(parts)
    assert float(gradient_of(model, loss, data).norm()) < 2e-6
    curvatures = torch.linalg.eigvalsh(dense_hessian(model, loss, data))
    assert float(curvatures[0]) > 1e-3 * float(curvatures[-1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_digits_mlp_is_a_minimum_for_other_seeds(seed):
    model, loss, data = precise(made("digits-mlp", seed))
    assert float(gradient_of(model, loss, data).norm()) < 2e-6
    assert float(torch.linalg.eigvalsh(dense_hessian(model, loss, data))[0]) > 5e-3


@pytest.mark.parametrize("share", [0.5, -1.0, 2.0])
def test_splitting_a_unit_leaves_the_function_and_the_zero_gradient(small, share):
    inputs, targets, small = small
    wide = split_unit(small, 0, share)
    assert torch.allclose(wide(inputs), small(inputs), atol=1e-13)
    assert torch.equal(wide[0].weight[0], wide[0].weight[1])
    loss = batch_loss(nn.MSELoss())
    assert float(gradient_of(small, loss, (inputs, targets)).norm()) < 1e-12
    assert float(gradient_of(wide, loss, (inputs, targets)).norm()) < 1e-11
    assert float(torch.linalg.eigvalsh(dense_hessian(wide, loss, (inputs, targets)))[0]) < -1e-3


def test_the_change_of_the_loss_at_the_split_is_the_form_in_the_proof(small):
    inputs, targets, small = small
    share, rng = 0.3, generator(0, "test")
    wide = split_unit(small, 0, share)
    d, b = (torch.randn(n, generator=rng, dtype=torch.float64) for n in (9, 8))
    with torch.no_grad():
        outgoing = small[2].weight[:, 0]
        padded = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
        hidden = torch.tanh(small[0](inputs))[:, 0]
        slope, bend = 1 - hidden**2, -2 * hidden * (1 - hidden**2)
        residual = 2 * (small(inputs) - targets) / targets.numel()
        cross = torch.einsum("nk,n,ni->ki", residual, slope, padded)
        block = torch.einsum("n,ni,nj->ij", (residual @ outgoing) * bend, padded, padded)
    hessian = dense_hessian(wide, batch_loss(nn.MSELoss()), (inputs, targets))
    ways = [(1 - share) * d, -share * d]
    direction = torch.cat(
        [ways[0][:8], ways[1][:8], ways[0][8:], ways[1][8:], torch.stack([b, -b], 1).reshape(-1), 0 * b]
    )
    proved = 2 * b @ cross @ d + share * (1 - share) * d @ block @ d
    assert float(direction @ hessian @ direction) == pytest.approx(float(proved), rel=1e-8)


@pytest.mark.parametrize("seed", some(range(5), now=1))
def test_digits_saddle_has_a_way_down_that_also_helps_on_held_out_digits(seed):
    parts = made("digits-saddle", seed)
    assert float(gradient_of(parts.model, batch_loss(parts.loss), parts.train).norm()) < 1e-6
    model, loss, data = precise(parts)
    values, vectors = torch.linalg.eigh(dense_hessian(model, loss, data))
    assert float(values[0]) < -1e-2 * float(values[-1])
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(theta + 0.5 * vectors[:, 0], model.parameters())
    for inputs, targets in (parts.train, parts.heldout):
        before = mse_loss(parts.model(inputs), targets).item()
        after = mse_loss(model(inputs.double()), targets.double()).item()
        assert after < 0.99 * before


def test_digits_deep_sigmoid_has_learnt_the_class_frequencies_and_lost_its_first_layers():
    parts = made("digits-deep-sigmoid")
    inputs, classes = parts.train
    share = torch.bincount(classes) / len(classes)
    entropy = float(-(share * share.log()).sum())
    loss = cross_entropy(parts.model(inputs), classes)
    assert loss.item() == pytest.approx(entropy, abs=1e-4)
    assert abs(loss.item() - math.log(10)) < 2e-3
    norms = [g.norm().item() for g in torch.autograd.grad(loss, list(parts.model.parameters()))[::2]]
    assert max(norms[:3]) < 1e-3 * norms[-1] < 1e-5


def change_after_steps(parts, lr, *, runs=10, steps=10, batch_size=16):
    """Mean change of the training loss, and its standard error."""
    inputs, classes = parts.train
    ends = []
    for run in range(runs):
        model = copy.deepcopy(parts.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        rng = generator(run, "test")
        train(model, cross_entropy, optimizer, parts.train, steps=steps, batch_size=batch_size, rng=rng)
        ends.append(cross_entropy(model(inputs), classes).detach())
    change = torch.stack(ends) - cross_entropy(parts.model(inputs), classes).detach()
    return change.mean().item(), change.std().item() / math.sqrt(runs)


@pytest.mark.parametrize("seed", some(range(5), now=1))
def test_digits_hot_goes_down_only_with_shorter_steps(seed):
    parts = made("digits-hot", seed)
    (group,) = parts.optimizer.param_groups
    mean, error = change_after_steps(parts, group["lr"])
    assert mean > -2 * error
    mean, error = change_after_steps(parts, group["lr"] / 10)
    assert mean < -10 * error


def test_digits_started_goes_down_as_it_is_trained():
    mean, error = change_after_steps(made("digits-started"), 0.1, batch_size=64)
    assert mean < -10 * error


@pytest.mark.parametrize(
    ("name", "signs"), [("x-cos-pi-x", {-1}), ("empirical-risk", {1}), ("cube", {0}), ("saddle", {-1, 1})]
)
def test_stationary_functions_have_no_gradient_and_the_curvature_they_are_named_for(name, signs):
    gradient, hessian = derivatives(made(name))
    assert float(gradient.abs().max()) < 1e-14
    assert set(torch.linalg.eigvalsh(hessian).sign().tolist()) == signs


def test_the_points_on_the_textbook_curves_are_the_ones_that_are_named():
    risk, empirical = made("x-cos-pi-x"), made("empirical-risk")
    around = torch.linspace(-0.2, 0.2, 41, dtype=torch.float64)
    assert all(risk.function(risk.start + d) <= risk.function(risk.start) for d in around)
    grid = torch.linspace(0.5, 1.5, 1001, dtype=torch.float64)
    assert all(empirical.function(x) >= empirical.function(empirical.start) for x in grid)


def test_functions_are_float64_and_tanh_has_a_step_size():
    assert all(made(name).start.dtype == torch.float64 for name in FUNCTIONS)
    assert made("tanh").lr == 0.1
    assert derivatives(made("tanh"))[0].item() == pytest.approx(1 / math.cosh(4) ** 2)
    assert made("rosenbrock").function(torch.ones(2, dtype=torch.float64)).item() == 0
