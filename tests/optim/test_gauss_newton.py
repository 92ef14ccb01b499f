"""Generalised Gauss–Newton for cross-entropy against a re-implementation, the Hessian and extremes."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.nn.functional import cross_entropy

from tests.models import classification, mlp
from thalweg.errors import InputError
from thalweg.optim.damped import triangle
from thalweg.optim.gauss_newton import GaussNewton, _damped_minimiser


def gradient_and_curvature(logits, parameters, targets):
    """g (n,), JᵀSJ (n, n) with S written out and the unit of μ, from one backward pass for each logit."""
    num, classes = logits.shape
    rows = []
    for value in logits.reshape(-1):
        parts = torch.autograd.grad(value, parameters, retain_graph=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    J = torch.stack(rows).numpy().reshape(num, classes, -1)
    p = softmax(logits.detach().numpy(), axis=1)
    S = np.stack([np.diag(q) - np.outer(q, q) for q in p]) / num
    slopes = (p - np.eye(classes)[targets.numpy()]) / num
    scale = (J**2).sum(axis=(0, 1)).max() / (4 * num)
    return np.einsum("nck,nc->k", J, slopes), np.einsum("nck,ncd,ndl->kl", J, S, J), scale


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


class TestTheFormula:
    @pytest.mark.parametrize("num", [1, 4, 9, 10, 37])  # 23 parameters, 3 logits an example
    def test_a_step_solves_the_damped_equations(self, num):
        model = mlp((4, 2, 3), seed=num)
        x, y = classification(num)
        logits = model(x)
        g, G, scale = gradient_and_curvature(logits, list(model.parameters()), y)
        before, mu = flat(model), 0.2 * scale
        optimizer = GaussNewton(model.parameters(), mu=0.2)
        optimizer.step(lambda: (model(x), y))
        assert optimizer.last.accepted
        used = optimizer.last.details["damping"]
        assert math.log2(used / mu) == pytest.approx(round(math.log2(used / mu)), abs=1e-10)
        step = np.linalg.solve(G + used * np.eye(len(g)), -g)
        np.testing.assert_allclose(flat(model) - before, step, rtol=1e-10, atol=1e-12)
        predicted = -g @ step - step @ G @ step / 2
        gain = (optimizer.last.loss - optimizer.last.new_loss) / predicted
        assert optimizer.last.details["gain"] == pytest.approx(gain, rel=1e-8)
        assert optimizer.last.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-12)

    @pytest.mark.parametrize("rule", ["nielsen", "marquardt"])
    def test_five_steps_of_softmax_regression_are_those_of_a_reimplementation_in_numpy(self, rule):
        x, y = classification(25, features=3, classes=3)
        w = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)  # the logits of class 0 are 0
        W, X, T = np.zeros((2, 3)), x.numpy(), np.eye(3)[y.numpy()]

        def logits(W):
            return np.concatenate([np.zeros((25, 1)), X @ W.T], axis=1)

        def loss(W):
            return -(T * log_softmax(logits(W), axis=1)).sum() / 25

        optimizer = GaussNewton([w], damping=rule, mu=0.3)
        mu, nu = 0.3 * ((X**2).sum(axis=0).max() / 100 if rule == "nielsen" else 1), 2.0
        for _ in range(5):
            p = softmax(logits(W), axis=1)
            g = ((p - T)[:, 1:].T @ X / 25).ravel()
            S = np.stack([np.diag(q) - np.outer(q, q) for q in p[:, 1:]])
            G = np.einsum("ncd,na,nb->cadb", S, X, X).reshape(6, 6) / 25
            while True:
                h = np.linalg.solve(G + mu * np.eye(6), -g)
                gain = (loss(W) - loss(W + h.reshape(2, 3))) / (-g @ h - h @ G @ h / 2)
                if rule == "marquardt":
                    mu *= 0.1 if gain > 0 else 10
                elif gain > 0:
                    mu, nu = mu * max(1 / 3, 1 - (2 * min(gain, 1) - 1) ** 3), 2.0
                else:
                    mu, nu = mu * nu, nu * 2
                if gain > 0:
                    break
            W = W + h.reshape(2, 3)
            optimizer.step(lambda: (torch.cat([torch.zeros(25, 1).double(), x @ w.T], dim=1), y))
            np.testing.assert_allclose(w.detach().numpy(), W, rtol=1e-12, atol=1e-12)

    def test_where_the_logits_are_linear_the_undamped_step_is_newtons(self):
        x, y = classification(40, features=3, classes=2)
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)

        def logits(w):
            return torch.stack([torch.zeros(40, dtype=torch.float64), x @ w], dim=1)

        H = torch.autograd.functional.hessian(lambda w: cross_entropy(logits(w), y), w.detach())
        g = torch.func.grad(lambda w: cross_entropy(logits(w), y))(w.detach())
        GaussNewton([w], mu=1e-13).step(lambda: (logits(w), y))
        torch.testing.assert_close(w.detach(), -torch.linalg.solve(H, g), rtol=1e-10, atol=1e-12)

    def test_an_ill_conditioned_step_is_solved_in_float32_where_the_normal_equations_break_down(self):
        rng = np.random.default_rng(0)
        left = np.linalg.qr(rng.standard_normal((30, 10)))[0]
        right = np.linalg.qr(rng.standard_normal((10, 10)))[0]
        A = torch.tensor((left * np.geomspace(1, 1e-6, 10)) @ right.T, dtype=torch.float32)
        g, mu = A.T @ torch.tensor(rng.standard_normal(30), dtype=torch.float32), 1e-8
        A64, eye = A.double(), torch.eye(10, dtype=torch.float64)
        exact = torch.linalg.solve(A64.T @ A64 + mu * eye, -g.double())
        y = _damped_minimiser(triangle(A), g, mu)
        assert float((y - exact).norm() / exact.norm()) < 0.01
        assert int(torch.linalg.cholesky_ex(A.T @ A + mu * eye.float()).info) > 0

    def test_positions_of_a_sequence_are_examples(self):
        """Logits (N, C, T) with targets (N, T), as `torch.nn.functional.cross_entropy` takes them."""
        x, y = classification(12)
        ends = []
        for shape in ((12,), (4, 3)):
            model = mlp((4, 2, 3))

            def closure(model=model, shape=shape):
                outputs = model(x)
                if len(shape) == 2:
                    outputs = outputs.view(4, 3, 3).movedim(2, 1)
                return outputs, y.view(shape)

            GaussNewton(model.parameters()).step(closure)
            ends.append(flat(model))
        np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


class TestExtremes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_separable_data_never_make_nan_however_large_the_logits(self, dtype):
        """The loss falls to nothing, its gradient underflows, and every number stays finite."""
        x, _ = classification(30, dtype=dtype)
        y = (x[:, 0] > 0).long()
        model = mlp((4, 6, 2), dtype=dtype)
        optimizer = GaussNewton(model.parameters(), min_grad=0)
        for _ in range(150):
            optimizer.step(lambda: (model(x), y))
            assert optimizer.last.new_loss <= optimizer.last.loss
            assert all(bool(p.isfinite().all()) for p in model.parameters())
        assert math.isfinite(optimizer.last.gradient_norm)
        assert optimizer.last.new_loss < (1e-7 if dtype == torch.float32 else 1e-14)
        gaps = (model(x)[:, 1] - model(x)[:, 0]).detach().abs()
        assert float(gaps.max()) > (15 if dtype == torch.float32 else 30)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [1e2, 1e4])
    def test_examples_that_are_certainly_wrong_can_be_left(self, dtype, size):
        """The probability of the right class is 0 in floating point, and S with it."""
        x, y = classification(20, features=3, dtype=dtype)
        w = torch.zeros(3, 3, dtype=dtype)
        w[0] = size
        w.requires_grad_()
        optimizer = GaussNewton([w])
        first = float(cross_entropy((x @ w.T).detach(), y))
        for _ in range(40):
            optimizer.step(lambda: (x @ w.T, y))
            assert optimizer.last.new_loss <= optimizer.last.loss
            assert bool(w.isfinite().all())
        assert optimizer.last.new_loss < 2 < first

    def test_a_loss_of_nan_is_refused_and_every_bit_stays(self):
        w = torch.tensor([math.inf, 1.0], requires_grad=True)
        optimizer = GaussNewton([w])
        optimizer.step(lambda: ((w * 0).reshape(1, 2), torch.tensor([0])))
        assert (optimizer.last.accepted, optimizer.last.reason) == (False, "the loss is not finite")
        assert w.tolist() == [math.inf, 1.0]


class TestAsATorchOptimizer:
    def test_a_classifier_is_fitted_in_a_few_steps(self):
        x, _ = classification(60)
        y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
        model = mlp((4, 8, 3))
        optimizer = GaussNewton(model.parameters())
        for _ in range(40):
            optimizer.step(lambda: (model(x), y))
        assert float((model(x).argmax(dim=1) == y).double().mean()) == 1
        assert optimizer.last.new_loss < 0.01

    def test_a_run_resumed_is_the_run_not_interrupted(self):
        x, y = classification(30)
        one, two = mlp(), mlp()
        optimizer = GaussNewton(one.parameters())
        for _ in range(4):
            optimizer.step(lambda: (one(x), y))
        two.load_state_dict(copy.deepcopy(one.state_dict()))
        resumed = GaussNewton(two.parameters())
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in range(4):
            optimizer.step(lambda: (one(x), y))
            resumed.step(lambda: (two(x), y))
        assert np.array_equal(flat(one), flat(two))


class TestBadInput:
    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            (lambda z: None, "no predictions"),
            (lambda z: z.sum(), "computes the loss itself"),
            (lambda z: (z, None), "no predictions"),
            (lambda z: (z.detach(), torch.zeros(4).long()), "cannot be differentiated"),
            (lambda z: (z, torch.zeros(3).long()), "do not fit"),
            (lambda z: (z, torch.zeros(4)), "do not fit"),
            (lambda z: (z[:, 0], torch.zeros(4).long()), r"logits \(0, z\)"),
            (lambda z: (z, torch.full((4,), 3)), "not the number of a class"),
            (lambda z: (z, torch.full((4,), -100)), "padded"),
        ],
    )
    def test_what_is_no_prediction_is_refused(self, returned, words):
        z = torch.zeros(4, 3, requires_grad=True)
        with pytest.raises(InputError, match=words):
            GaussNewton([z]).step(lambda: returned(z))
