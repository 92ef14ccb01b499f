"""What holds for every method that goes down by a standard closure: resuming, batches, refusals, sizes."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.optim.descending import descend, quadratic, rosenbrock, rosenbrock_start
from tests.selection import some
from thalweg.errors import InputError
from thalweg.optim.bfgs import BFGS
from thalweg.optim.descent import Start
from thalweg.optim.nonlinear_conjugate_gradient import NonlinearConjugateGradient
from thalweg.optim.one_step_secant import OneStepSecant
from thalweg.optim.scaled_conjugate_gradient import ScaledConjugateGradient

METHODS = {
    "OSS": OneStepSecant,
    "CG": NonlinearConjugateGradient,
    "BFGS": BFGS,
    "SCG": ScaledConjugateGradient,
}
LINE_SEARCHES = {name: method for name, method in METHODS.items() if name != "SCG"}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def layers(inputs, hidden, outputs, generator, scale=1.0):
    first, last = (
        nn.utils.skip_init(nn.Linear, *shape, dtype=torch.float64)
        for shape in [(inputs, hidden), (hidden, outputs)]
    )
    model = nn.Sequential(first, nn.Tanh(), last)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def net(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    model = layers(3, 5, 2, generator, 0.5).to(dtype)
    x = torch.randn(17, 3, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(17, 2, generator=generator, dtype=torch.float64).to(dtype)
    return model, x, y


def standard(optimizer, model, x, y):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    return closure


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def run_of(method, steps, resume_after=None, **settings):
    """Train; if asked, go on in a new optimiser and a new model, both from saved bytes."""
    model, x, y = net()
    optimizer = method(model.parameters(), **settings)
    path = []
    for k in range(steps):
        if k == resume_after:
            saved = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
            saved.seek(0)
            loaded = torch.load(saved, weights_only=True)
            model, x, y = net(seed=9)[0], x, y
            model.load_state_dict(loaded["model"])
            optimizer = method(model.parameters(), **settings)
            optimizer.load_state_dict(loaded["optimizer"])
        optimizer.step(standard(optimizer, model, x, y))
        path.append(weights(model))
    return torch.stack(path), optimizer


class TestResuming:
    @pytest.mark.parametrize("full_batch", [False, True])
    @pytest.mark.parametrize("after", some([3, 12, 1, 2, 7], now=2))
    def test_training_resumed_is_training_not_interrupted_bit_for_bit(self, method, after, full_batch):
        whole, _ = run_of(method, 20, full_batch=full_batch)
        parts, _ = run_of(method, 20, resume_after=after, full_batch=full_batch)
        assert torch.equal(whole, parts)

    @pytest.mark.parametrize("full_batch", [False, True])
    def test_also_after_a_trial_that_was_taken_back(self, full_batch):
        def positions(resume):
            x = nn.Parameter(torch.tensor(rosenbrock_start(2)))
            optimizer, path, resumed = ScaledConjugateGradient([x], full_batch=full_batch), [], 0
            for _ in range(40):
                if resume and optimizer.last is not None and not optimizer.last.accepted:
                    state = copy.deepcopy(optimizer.state_dict())
                    x = nn.Parameter(x.detach().clone())
                    optimizer = ScaledConjugateGradient([x], full_batch=full_batch)
                    optimizer.load_state_dict(state)
                    resumed += 1

                def closure(x=x, optimizer=optimizer):
                    optimizer.zero_grad()
                    value = rosenbrock(x)
                    value.backward()
                    return value

                optimizer.step(closure)
                path.append(x.detach().clone())
            return torch.stack(path), resumed

        resumed, times = positions(True)
        assert times > 3
        assert torch.equal(resumed, positions(False)[0])

    def test_a_copy_goes_the_same_way(self, method):
        model, x, y = net()
        optimizer = method(model.parameters())
        for _ in range(4):
            optimizer.step(standard(optimizer, model, x, y))
        other, twin = copy.deepcopy((model, optimizer))
        for _ in range(4):
            optimizer.step(standard(optimizer, model, x, y))
            twin.step(standard(twin, other, x, y))
        assert torch.equal(weights(model), weights(other))


class TestFullBatch:
    def test_it_saves_one_evaluation_a_step_and_changes_nothing(self, method):
        spared, one = run_of(method, 15, full_batch=True)
        plain, other = run_of(method, 15)
        assert torch.equal(spared, plain)
        assert other.last.num_gradients == one.last.num_gradients + 1

    def test_weights_written_from_outside_are_noticed(self, method):
        model, x, y = net()
        optimizer = method(model.parameters(), full_batch=True)
        for _ in range(3):
            optimizer.step(standard(optimizer, model, x, y))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        moved = float(nn.functional.mse_loss(model(x), y).detach())
        optimizer.step(standard(optimizer, model, x, y))
        assert optimizer.last.loss == pytest.approx(moved)


class TestBatches:
    def test_another_batch_at_every_step_is_fine(self, method):
        """What is learnt of the curvature is of one batch, so the loss of each step's batch never rises."""
        model, x, y = net()
        optimizer = method(model.parameters())
        for k in range(30):
            rows = slice(0, 9) if k % 2 else slice(9, 17)  # 9 and 8 examples
            optimizer.step(standard(optimizer, model, x[rows], y[rows]))
            assert optimizer.last.new_loss <= optimizer.last.loss

    def test_the_difference_kept_is_of_the_batch_of_the_step(self):
        x = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
        optimizer = OneStepSecant([x])
        hessians = [torch.tensor([1.0, 5.0]).double(), torch.tensor([4.0, 2.0]).double()]

        def closure(h):
            optimizer.zero_grad()
            loss = (h * (x - 1) ** 2).sum() / 2
            loss.backward()
            return loss

        optimizer.step(lambda: closure(hessians[0]))
        assert torch.allclose(optimizer.kept("difference"), hessians[0] * optimizer.kept("step"), atol=1e-12)


class TestTheRecord:
    def test_evaluations_are_counted_and_the_first_loss_is_returned(self, method):
        model, x, y = net()
        optimizer, count = method(model.parameters()), 0
        inner = standard(optimizer, model, x, y)

        def closure():
            nonlocal count
            count += 1
            return inner()

        for _ in range(10):
            count, before, loss = 0, weights(model), nn.functional.mse_loss(model(x), y).detach()
            returned = optimizer.step(closure)
            last = optimizer.last
            assert float(returned) == pytest.approx(float(loss), rel=1e-6)
            assert last.loss == float(loss)
            assert last.num_gradients == count == last.gradient_equivalents
            assert last.new_loss == pytest.approx(
                float(nn.functional.mse_loss(model(x), y).detach()), rel=1e-14
            )
            assert last.step_norm == pytest.approx(float((weights(model) - before).norm()))
            assert last.accepted == (last.step_norm > 0)

    def test_the_loss_of_a_net_falls_at_every_step_that_is_taken(self, method):
        model, x, y = net()
        optimizer = method(model.parameters())
        taken = 0
        for _ in range(60):
            optimizer.step(standard(optimizer, model, x, y))
            last = optimizer.last
            assert last.new_loss < last.loss if last.accepted else last.new_loss == last.loss
            taken += last.accepted
        assert taken > 50


class TestWhatCannotBeStepped:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite_moves_nothing(self, method, value):
        model, x, y = net()
        optimizer = method(model.parameters())
        for _ in range(3):
            optimizer.step(standard(optimizer, model, x, y))
        before, state = weights(model), copy.deepcopy(optimizer.state_dict())
        bad = y.clone()
        bad[0, 0] = value
        optimizer.step(standard(optimizer, model, x, bad))
        assert optimizer.last.reason == "loss or gradient is not finite"
        assert not optimizer.last.accepted
        assert torch.equal(weights(model), before)
        optimizer.step(standard(optimizer, model, x, y))
        assert optimizer.last.accepted, "and the next batch is taken as if nothing had been"
        twin, x, y = net()
        other = method(twin.parameters())
        other.load_state_dict(state)
        twin.load_state_dict(model.state_dict())
        torch.nn.utils.vector_to_parameters(before, twin.parameters())
        other.step(standard(other, twin, x, y))
        assert torch.equal(weights(twin), weights(model))

    @pytest.mark.parametrize("size", [1e-90, 1e90])
    def test_a_gradient_beyond_all_measure_is_said(self, method, size):
        x = nn.Parameter(torch.ones(3, dtype=torch.float64))
        run = descend(lambda p: method(p, tolerance_grad=0), lambda x: size * x.sum(), x.detach().numpy(), 1)
        assert run.steps[0].reason in {"gradient below tolerance", "loss or gradient is not finite"}

    def test_a_gradient_of_zero_is_no_step(self, method):
        run = descend(method, rosenbrock, np.ones(4), 3)
        assert run.steps[0].reason == "gradient below tolerance"
        assert len(run.steps) == 1
        assert np.array_equal(run.optimizer.param_groups[0]["params"][0].detach().numpy(), np.ones(4))

    @pytest.mark.parametrize("beyond", [math.nan, math.inf])
    @pytest.mark.parametrize("search", ["strong_wolfe", "backtracking"])
    @pytest.mark.parametrize("name", LINE_SEARCHES)
    def test_a_wall_on_the_way_is_never_crossed(self, name, search, beyond):
        run = descend(
            lambda p: LINE_SEARCHES[name](p, line_search=search),
            lambda x: torch.where(x > 0.5, beyond, (x - 1) ** 2).sum(),
            [-30.0, 0.2],
            15,
        )
        assert run.taken
        assert (run.positions[-1] <= 0.5).all()
        assert all(math.isfinite(step.new_loss) for step in run.steps)

    @pytest.mark.parametrize("name", LINE_SEARCHES)
    def test_a_gradient_that_lies_moves_nothing_and_is_said(self, name):
        x = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
        optimizer = LINE_SEARCHES[name]([x])

        def closure():
            loss = (x**2).sum()
            x.grad = -2 * x.detach()
            return loss

        optimizer.step(closure)
        assert optimizer.last.reason == "no lower loss along the direction"
        assert x.tolist() == [1.0, 2.0]

    def test_a_closure_that_fails_half_way_leaves_the_parameters(self, method):
        model, x, y = net()
        optimizer, count = method(model.parameters()), 0
        inner = standard(optimizer, model, x, y)

        def closure():
            nonlocal count
            count += 1
            if count == 5:
                raise KeyboardInterrupt
            return inner()

        before = weights(model)
        with pytest.raises(KeyboardInterrupt):
            for _ in range(5):
                before = weights(model)
                optimizer.step(closure)
        assert torch.equal(weights(model), before)


class TestParameters:
    def test_groups_are_one_vector(self, method):
        model, x, y = net()
        groups = [{"params": list(model[0].parameters())}, {"params": []}, {"params": model[2].parameters()}]
        optimizer = method(groups)
        for _ in range(10):
            optimizer.step(standard(optimizer, model, x, y))
        assert torch.equal(weights(model), run_of(method, 10)[0][-1])

    def test_frozen_and_unused_parameters_stay(self, method):
        model, x, y = net()
        model[0].bias.requires_grad_(False)
        unused = nn.Parameter(torch.tensor([-0.0, 7.0], dtype=torch.float64))
        before = model[0].bias.clone()
        optimizer = method([*model.parameters(), unused])
        for _ in range(8):
            optimizer.step(standard(optimizer, model, x, y))
        assert optimizer.last.accepted
        assert torch.equal(model[0].bias, before)
        assert unused.tolist() == [0.0, 7.0]

    def test_a_layer_frozen_on_the_way_is_left_alone(self, method):
        model, x, y = net()
        optimizer = method(model.parameters())
        for k in range(8):
            if k == 4:
                model[0].requires_grad_(False)
                before = weights(model[0])
            optimizer.step(standard(optimizer, model, x, y))
        assert torch.equal(weights(model[0]), before)
        assert optimizer.last.accepted

    def test_one_number_is_enough(self, method):
        run = descend(method, lambda x: torch.cosh(x - 2).sum(), [0.0], 30)
        assert run.positions[-1][0] == pytest.approx(2, abs=1e-6)

    def test_complex_and_sparse_are_refused(self, method):
        with pytest.raises(InputError, match="complex"):
            method([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
        table = nn.Embedding(5, 2, sparse=True, _weight=torch.ones(5, 2))
        optimizer = method(table.parameters())

        def closure():
            loss = (table(torch.tensor([1, 3])) ** 2).sum()
            loss.backward()
            return loss

        with pytest.raises(InputError, match="sparse"):
            optimizer.step(closure)

    @pytest.mark.parametrize("name", METHODS)
    def test_float32_goes_on_where_the_loss_is_all_rounding(self, name, monkeypatch):
        """At a gradient of 1e-5 the loss is some 1e-10 above 1, whose float32 neighbour is 1e-7 away."""
        run = self.in_float32(METHODS[name])
        assert run.steps[-1].reason == "gradient below tolerance"
        assert run.positions[-1].dtype == np.float32
        if name != "SCG":  # the comparison: a search that believes every digit
            monkeypatch.setattr(Start, "noise", 0.0)
            assert self.in_float32(METHODS[name]).steps[-1].reason != "gradient below tolerance"

    @staticmethod
    def in_float32(method):
        matrix, b, start = quadratic(np.linspace(1, 10, 12))
        A, b = torch.tensor(matrix, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
        return descend(
            lambda p: method(p, tolerance_grad=1e-5),
            lambda x: 1 + (torch.cosh(A @ (x - b) / 10) - 1).sum(),
            start,
            100,
            dtype=torch.float32,
        )


class TestMisuse:
    @pytest.mark.parametrize(
        ("closure", "message"),
        [
            (None, "needs a closure"),
            (lambda: None, "returned no loss"),
            (lambda: torch.ones(2), "returned no loss"),
            (lambda: torch.ones(()), "made no gradient.*backward"),
        ],
    )
    def test_a_closure_of_another_kind_is_refused(self, method, closure, message):
        with pytest.raises(InputError, match=message):
            method([nn.Parameter(torch.ones(2))]).step(closure)

    def test_a_tolerance_below_zero_is_refused(self, method):
        for bad in (-1.0, math.nan):
            with pytest.raises(InputError, match="tolerance_grad"):
                method([nn.Parameter(torch.ones(2))], tolerance_grad=bad)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (
                {"line_search": "armijo"},
                "no line search 'armijo'; expected: 'strong_wolfe' or 'backtracking'",
            ),
            ({"c1": 0.0}, "0 < c1 < c2 < 1"),
            ({"c1": 0.5, "c2": 0.4}, "0 < c1 < c2 < 1"),
            ({"c2": 1.0}, "0 < c1 < c2 < 1"),
            ({"c1": math.nan}, "0 < c1 < c2 < 1"),
        ],
    )
    @pytest.mark.parametrize("name", LINE_SEARCHES)
    def test_settings_that_mean_nothing_are_refused(self, name, setting, message):
        with pytest.raises(InputError, match=message):
            LINE_SEARCHES[name]([nn.Parameter(torch.ones(2))], **setting)


@pytest.mark.parametrize(
    ("name", "search"),
    [("SCG", None)]
    + [
        pytest.param(name, search, marks=pytest.mark.slow)
        for name in LINE_SEARCHES
        for search in ("strong_wolfe", "backtracking")
    ],
)
def test_the_manuals_example_is_learnt_within_50_epochs(name, search):
    """p = 0..5, t = 000111, two hidden units: a mean squared error of 0.1 from 8 of 10 starts at least."""
    x = torch.arange(6.0, dtype=torch.float64).reshape(-1, 1) / 2.5 - 1  # scaled to ±1, as the toolbox does
    y = torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64).reshape(-1, 1)
    learnt = 0
    for seed in range(10):
        model = layers(1, 2, 1, torch.Generator().manual_seed(seed))
        settings = {} if search is None else {"line_search": search}
        optimizer = METHODS[name](model.parameters(), **settings)
        for _ in range(50):
            optimizer.step(standard(optimizer, model, x, y))
        learnt += optimizer.last.new_loss <= 0.1
    assert learnt >= 8
