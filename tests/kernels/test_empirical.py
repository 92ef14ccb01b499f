"""The kernel of a net as it is: against its definition, and without a trace on the net."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

from thalweg.errors import InputError, ModelError, NumericalError
from thalweg.kernels import (
    DriftWatch,
    EmpiricalNTK,
    alignment,
    distance,
    effective_rank,
    empirical_ntk,
    ntk,
    target_alignment,
)
from thalweg.problem.intact import random_state_kept
from thalweg.rng import generator


class Net(nn.Module):
    """ReLU layers in the NTK parametrisation, without biases: its kernel tends to that of `ntk`."""

    def __init__(self, sizes, seed=0):
        super().__init__()
        rng = generator(seed, "net")
        self.layers = nn.ModuleList(skip_init(nn.Linear, a, b, bias=False) for a, b in pairwise(sizes))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng))
        self.double()

    def forward(self, x):
        for k, layer in enumerate(self.layers):
            x = layer(x if k == 0 else torch.relu(x) * (2 / x.shape[-1]) ** 0.5)
        return x


def inputs(n, d=3, seed=0):
    return torch.randn(n, d, generator=generator(seed, "inputs"), dtype=torch.float64)


def jacobian(model, x):
    """Return J (n, c, p), one backward pass an output."""
    rows = []
    for output in model(x).flatten():
        grads = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows).reshape(len(x), -1, len(rows[0]))


@pytest.fixture
def net():
    return Net((3, 7, 5, 2))


def test_the_matrix_is_the_mean_over_outputs_of_its_definition(net):
    x, z = inputs(6), inputs(4, seed=1)
    j, k = jacobian(net, x), jacobian(net, z)
    assert torch.allclose(empirical_ntk(net, x), torch.einsum("ncp,mcp->nm", j, j) / 2, rtol=1e-12)
    assert torch.allclose(empirical_ntk(net, x, z), torch.einsum("ncp,mcp->nm", j, k) / 2, rtol=1e-12)


def test_products_are_those_with_the_whole_kernel(net):
    x = inputs(5)
    j = jacobian(net, x)
    v = torch.randn(5, 2, generator=generator(0, "v"), dtype=torch.float64)
    expected = torch.einsum("ncp,mdp,md->nc", j, j, v)
    assert torch.allclose(EmpiricalNTK(net, x).matvec(v), expected, rtol=1e-12)


def test_blocks_give_the_same_matrix(net, monkeypatch):
    x, whole = inputs(7), empirical_ntk(net, inputs(7))
    for size in (1, 3, 6):
        monkeypatch.setattr(EmpiricalNTK, "_block", lambda self, size=size: size)
        assert torch.allclose(empirical_ntk(net, x), whole, rtol=1e-12)
        assert torch.allclose(empirical_ntk(net, x, x), whole, rtol=1e-12)


def test_what_vmap_cannot_batch_is_done_one_by_one(net):
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner(x) * (2.0 if float(x.sum()) > -1e9 else 1.0)  # looks at values

    assert torch.allclose(empirical_ntk(Looks(), inputs(4)), 4 * empirical_ntk(net, inputs(4)), rtol=1e-12)


def test_one_output_without_a_dimension(net):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner(x)[:, 0]

    j = jacobian(net, inputs(4))[:, 0]
    assert torch.allclose(empirical_ntk(First(), inputs(4)), j @ j.T, rtol=1e-12)


def test_frozen_parameters_do_not_count(net):
    x = inputs(4)
    net.layers[0].weight.requires_grad_(False)
    tail = sum(layer.weight.numel() for layer in net.layers[1:])
    assert EmpiricalNTK(net, x).num_parameters == tail
    whole = copy.deepcopy(net).requires_grad_(True)
    j = jacobian(whole, x)[:, :, -tail:]
    assert torch.allclose(empirical_ntk(net, x), torch.einsum("ncp,mcp->nm", j, j) / 2, rtol=1e-12)


def test_it_leaves_no_trace():
    with random_state_kept():
        model = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)
        ).double()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model.train()
    before = copy.deepcopy(model.state_dict())
    x = inputs(6)
    with torch.no_grad():
        first = empirical_ntk(model, x)
        EmpiricalNTK(model, x).matvec(torch.ones(6, 2, dtype=torch.float64))
    with torch.inference_mode():
        second = empirical_ntk(model, x)
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[4].weight.grad is None
    assert all(module.training for module in model.modules())


def test_it_tends_to_the_infinite_kernel():
    """Monte Carlo over nets: unbiased at the start of training to order 1/width, so a z-score tells."""
    x = inputs(4)
    exact = ntk(x.numpy(), depth=3)
    draws = np.stack([empirical_ntk(Net((3, 200, 200, 1), seed), x).numpy() for seed in range(60)])
    error = draws.std(axis=0, ddof=1) / np.sqrt(60)
    bias = 3 * exact.max() / 200
    assert np.all(np.abs(draws.mean(axis=0) - exact) < 4 * error + bias)
    assert distance(draws.mean(axis=0), exact) < distance(draws[0], exact)


class TestRefusals:
    def test_nothing_to_train(self, net):
        with pytest.raises(InputError, match="nothing to train"):
            empirical_ntk(net.requires_grad_(False), inputs(3))

    def test_outputs_that_have_no_kernel(self):
        with pytest.raises(InputError, match="outputs"):
            empirical_ntk(skip_init(nn.Conv1d, 1, 2, 1), torch.zeros(2, 1, 3))

    def test_inputs_that_do_not_fit(self, net):
        with pytest.raises(ModelError, match="fails on these inputs"):
            empirical_ntk(net, inputs(3, d=4))

    def test_a_vector_that_does_not_fit(self, net):
        with pytest.raises(InputError, match=r"expected: \(3, 2\); got: \(3, 1\)"):
            EmpiricalNTK(net, inputs(3)).matvec(torch.ones(3, 1, dtype=torch.float64))

    def test_weights_that_the_model_copies_before_use(self):
        class Slices(nn.Module):
            def __init__(self):
                super().__init__()
                self.weights = nn.ParameterList(nn.Parameter(torch.ones(2, 2)) for _ in range(2))

            def forward(self, x):
                for weight in self.weights[0:]:  # a slice wraps substituted weights anew
                    x = x @ weight
                return x

        with pytest.raises(ModelError, match=r"weights\.0"):
            empirical_ntk(Slices(), torch.ones(3, 2))


class TestAlikeness:
    def test_multiples_are_the_same_kernel(self):
        kernel = ntk(inputs(5).numpy(), depth=2)
        assert alignment(kernel, 3 * kernel) == pytest.approx(1)
        assert distance(kernel, 3 * kernel) == pytest.approx(0, abs=1e-15)
        assert distance(kernel, kernel + 1e-9) == pytest.approx(1e-9 * 5 / np.linalg.norm(kernel), rel=1)

    def test_distance_is_the_sine_and_alignment_the_cosine(self):
        a, b = ntk(inputs(5).numpy(), depth=2), ntk(inputs(5, seed=1).numpy(), depth=3)
        assert distance(a, b) == pytest.approx(np.sqrt(1 - alignment(a, b) ** 2))

    def test_the_rank_of_the_identity_and_of_one_direction(self):
        assert effective_rank(np.eye(7)) == pytest.approx(7)
        assert effective_rank(np.ones((7, 7))) == pytest.approx(1)

    def test_a_kernel_made_of_the_targets_points_along_them(self):
        y = np.random.default_rng(0).normal(size=(9, 2))
        centred = y - y.mean(axis=0)
        assert target_alignment(y @ y.T + 5, y) == pytest.approx(1)
        assert target_alignment(np.eye(9), centred[:, :1]) == pytest.approx(1 / np.sqrt(8))

    def test_what_cannot_be_compared(self):
        with pytest.raises(InputError):
            alignment(np.eye(2), np.eye(3))
        with pytest.raises(NumericalError):
            alignment(np.eye(2), np.zeros((2, 2)))


class TestDrift:
    def train(self, watch, net, x, y, lr, steps):
        watch.measure(0)
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            (0.5 * (net(x) - y) ** 2).mean().backward()
            optimizer.step()
            if step % 10 == 0:
                watch.measure(step)
        return watch.drift()

    def test_a_wide_net_stays_and_a_narrow_one_leaves(self):
        x = inputs(12)
        y = 2 * x[:, :1] * x[:, 1:2]
        found = {}
        for width in (8, 2000):
            net = Net((3, width, 1))
            watch = DriftWatch(net, x, targets=y.numpy(), infinite=ntk(x.numpy(), depth=2))
            found[width] = self.train(watch, net, x, y, lr=0.05, steps=60)
        assert found[2000].states[-1].drift < 1e-4 < 10 * 1e-3 < found[8].states[-1].drift
        assert "LAZY" in str(found[2000])
        assert "RICH" in str(found[8])
        assert found[2000].states[0].infinite < 0.2 < found[8].states[0].infinite

    def test_each_number_is_what_it_says(self, net):
        x = inputs(5)
        watch = DriftWatch(net, x)
        first = empirical_ntk(net, x).numpy()
        watch.measure(0)
        with torch.no_grad():
            net.layers[0].weight.mul_(1.1)
        second = empirical_ntk(net, x).numpy()
        state = watch.measure(4)
        assert state.drift == pytest.approx(1 - alignment(first, second), abs=1e-12)
        assert state.velocity == pytest.approx(state.drift / 4)
        assert state.norm == pytest.approx(np.linalg.norm(second) / np.linalg.norm(first))
        assert np.isnan(state.targets)
        assert watch.drift().to_dict()["states"][0]["velocity"] is None

    def test_steps_go_forward(self, net):
        watch = DriftWatch(net, inputs(3))
        with pytest.raises(InputError, match="nothing has been measured"):
            watch.drift()
        watch.measure(3)
        with pytest.raises(InputError, match="above 3"):
            watch.measure(3)
