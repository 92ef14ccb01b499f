"""Leaving a saddle: the ways out against dense oracles, the decision, and no trace of a refusal."""

import copy
import itertools
import json
import random
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import thalweg
from tests.models import classification, mlp, seeded, symmetric
from tests.problem.test_intact import Interrupting, same, setting, state
from thalweg.curvature.operators import Dense
from thalweg.curvature.spectrum import Extreme, find_extremes
from thalweg.diagnosis import way_search
from thalweg.diagnosis.escape_record import plain_share
from thalweg.diagnosis.ways_out import (
    RADIUS,
    Bordered,
    combined_direction,
    descend,
    follow,
    perturbed,
    reach,
)
from thalweg.errors import InputError, NumericalError
from thalweg.problem.problem import Problem
from thalweg.rng import gaussian, generator

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def vector(n, seed=0, size=1.0):
    return size * gaussian(n, generator(seed, "test"), like=torch.zeros(0, dtype=torch.float64))


def indefinite(n, seed=0, lowest=-0.7):
    """A symmetric matrix with one eigenvalue below zero, and that pair."""
    matrix = symmetric(np.r_[lowest, np.linspace(0.2, 3.0, n - 1)], seed)
    values, vectors = torch.linalg.eigh(matrix)
    return matrix, Extreme(float(values[0]), 0.0, 0.0, vectors[:, 0])


def dense_direction(matrix, gradient, delta):
    """The textbook: the leftmost vector of the bordered matrix by a dense solver."""
    n = len(gradient)
    bordered = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    bordered[:n, :n], bordered[:n, n], bordered[n, :n], bordered[n, n] = matrix, gradient, gradient, -delta
    leftmost = torch.linalg.eigh(bordered)[1][:, 0]
    direction = leftmost[:n] / leftmost[n]
    return bordered, direction / direction.norm()


class TestTheCombinedDirection:
    @pytest.mark.parametrize("n", [1, 2, 5, 20])
    def test_its_operator_is_the_bordered_matrix(self, n):
        matrix, _ = indefinite(n)
        gradient = vector(n)
        bordered, _ = dense_direction(matrix, gradient, 0.3)
        operator = Bordered(Dense(matrix), gradient, 0.3)
        columns = [operator.matvec(column) for column in torch.eye(n + 1, dtype=torch.float64)]
        assert torch.allclose(torch.stack(columns, 1), bordered, atol=1e-14)

    @pytest.mark.parametrize("size", [1e-4, 0.1, 1.0, 100.0])
    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_the_leftmost_vector_of_the_dense_solver(self, seed, size):
        matrix, lowest = indefinite(5, seed)
        gradient = vector(5, seed, size)
        _, expected = dense_direction(matrix, gradient, -lowest.value / 2)
        found = combined_direction(Dense(matrix), gradient, lowest)
        assert torch.allclose(found, expected, atol=2e-3)
        assert float(gradient @ found) < 0

    def test_for_a_large_gradient_it_is_the_gradient_and_for_none_the_lowest_curvature(self):
        matrix, lowest = indefinite(5)
        gradient = vector(5)
        steep = combined_direction(Dense(matrix), 1e6 * gradient, lowest)
        assert torch.allclose(steep, -gradient / gradient.norm(), atol=1e-4)
        silent = combined_direction(Dense(matrix), torch.zeros(5, dtype=torch.float64), lowest)
        assert abs(float(silent @ lowest.vector)) == pytest.approx(1.0, abs=1e-12)

    def test_a_gradient_across_the_lowest_curvature_still_leaves_it_in(self):
        matrix, lowest = indefinite(5)
        across = vector(5, size=1e-3)
        across -= (across @ lowest.vector) * lowest.vector
        found = combined_direction(Dense(matrix), across, lowest)
        assert abs(float(found @ lowest.vector)) > 0.99
        assert float(across @ found) <= 1e-12

    def test_one_dimension_has_one_direction(self):
        matrix, lowest = indefinite(1)
        assert combined_direction(Dense(matrix), torch.ones(1, dtype=torch.float64), lowest) == -1


def objective_of(function, start):
    return Problem.from_function(function, start).measured().train


class TestTheSteps:
    @pytest.mark.parametrize("curvature", [1e-3, 1.0, 50.0])
    def test_their_length_is_where_the_loss_is_lowest_not_one_over_the_curvature(self, curvature):
        # −λs²/2 + λs⁴/4 is lowest at s = 1 whatever λ is
        objective = objective_of(lambda t: curvature * (-(t[0] ** 2) / 2 + t[0] ** 4 / 4), [0.0, 3.0])
        direction = torch.tensor([1.0, 0.0], dtype=torch.float64)
        way = follow(objective, objective.theta, direction, torch.zeros(2).double(), name="up", farthest=1.5)
        assert way.step == pytest.approx(1.0, rel=0.35)
        assert way.change.value < -0.2 * curvature
        assert way.change.value == objective.value(way.theta) - objective.value(objective.theta)

    def test_both_signs_are_tried(self):
        objective = objective_of(lambda t: t[0] ** 3, [0.0])
        up = torch.ones(1, dtype=torch.float64)
        way = follow(objective, objective.theta, up, torch.zeros(1).double(), name="up", farthest=1.0)
        assert float(way.theta) < 0

    def test_where_the_function_is_not_defined_no_step_ends(self):
        objective = objective_of(lambda t: -torch.log(1.0 + t[0] - t[0] ** 2), [0.0])
        way = follow(
            objective,
            objective.theta,
            torch.ones(1).double(),
            torch.ones(1).double(),
            name="up",
            farthest=50.0,
        )
        assert np.isfinite(objective.value(way.theta))
        assert way.change.value < 0

    @pytest.mark.parametrize("n", [1, 2, 1000])
    def test_the_perturbation_stays_in_its_ball(self, n):
        theta = vector(n, size=5.0)
        for seed in range(20):
            distance = float((perturbed(theta, seed=seed) - theta).norm())
            assert 0 < distance <= RADIUS * max(float(theta.norm()), 1.0) * (1 + 1e-12)

    def test_descent_never_rises_and_ends_at_its_reach(self):
        bowl = objective_of(lambda t: (t**2 * torch.tensor([1.0, 50.0]).double()).sum(), [0.3, 0.3])
        way = descend(bowl, bowl.theta, bowl.theta, steps=100, name="down")
        assert bowl.value(way.theta) < 1e-4
        cliff = objective_of(lambda t: -t.sum(), [0.0, 0.0])
        assert 0 < descend(cliff, cliff.theta, cliff.theta, steps=100, name="down").step <= reach(cliff.theta)
        flat = objective_of(lambda t: 0 * t.sum(), [1.0])
        assert descend(flat, flat.theta, flat.theta, steps=100, name="down").step == 0


class TestPlainFunctions:
    @pytest.mark.parametrize("name", ["saddle", "cube", "x-cos-pi-x", "tanh"])
    def test_the_point_moves_where_there_is_a_way_down(self, name):
        problem = Problem.builtin(name)
        before = problem.measured().train
        found = thalweg.escape(problem)
        after = problem.measured().train
        assert found.applied
        assert found.point == tuple(after.theta.tolist())
        assert found.change.value == after.value(after.theta) - before.value(before.theta) < 0

    @pytest.mark.parametrize("name", ["empirical-risk", "rosenbrock"])
    def test_it_stays_where_there_is_none(self, name):
        problem = Problem.builtin(name)
        before = problem.measured().train.theta
        found = thalweg.escape(problem)
        assert not found.applied
        assert "nothing to escape from" in found.reason
        assert torch.equal(problem.measured().train.theta, before)

    def test_a_flat_bottom_is_not_left(self):
        problem = Problem.from_function(lambda t: (t**4).sum(), [0.0, 0.0])
        found = thalweg.escape(problem)
        assert not found.applied
        assert "no step along it" in found.reason

    def test_the_curvature_before_and_after_is_that_of_the_formula(self):
        problem = Problem.from_function(lambda t: t[0] ** 2 - t[1] ** 2 + t[1] ** 4, [0.0, 0.0])
        found = thalweg.escape(problem)
        y = found.point[1]
        assert found.lambda_min.value == pytest.approx(-2)
        assert found.lambda_min_after.value == pytest.approx(min(2.0, 12 * y**2 - 2))
        assert abs(y) == pytest.approx(0.5**0.5, rel=0.35)

    def test_where_the_gradient_does_as_well_it_says_so(self):
        problem = Problem.from_function(
            lambda t: t[0] ** 2 + 8 * (t[1] ** 2 - 0.1) ** 2 + 0.5 * t[1], [0.0, 0.0]
        )
        found = thalweg.escape(problem)
        assert found.applied
        assert "ordinary training" in found.reason
        assert "MOVED" in str(found)
        assert "ESCAPED" not in str(found)

    @pytest.mark.parametrize(("share", "word"), [(0.49, "ESCAPED"), (0.5, "MOVED"), (1.2, "MOVED")])
    def test_the_headline_follows_the_share_that_gradient_steps_buy(self, share, word):
        found = thalweg.escape(Problem.builtin("saddle"))
        change = replace(found.change, value=share * found.ways[0].change.value)
        assert str(replace(found, plain=replace(found.plain, change=change))).count(word) == 1
        assert "STAYED" in str(replace(found, applied=False))

    def test_the_share_is_none_where_nothing_was_gained_or_compared(self):
        found = thalweg.escape(Problem.builtin("saddle"))
        level = replace(found.ways[0], change=replace(found.change, value=0.0))
        assert plain_share((), found.plain) == 0
        assert plain_share(found.ways, None) == 0
        assert plain_share((level,), found.plain) == 0


def heldout_loss(problem):
    """The held-out loss by hand."""
    batches = problem._heldout
    with torch.no_grad():
        total = sum(float(mse_loss(problem.model(x), y)) * len(x) for x, y in batches)
    return total / sum(len(x) for x, _ in batches)


def trained_on(problem, model, *, steps, lr, seed):
    """Continue training a copy with plain SGD, the same batches whatever the start."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sample, rng = problem.measured(seed=seed).train.sample, generator(seed, "continue")
    epochs = (sample.rebatched(64, rng) for _ in itertools.count())
    for batch in itertools.islice(itertools.chain.from_iterable(epochs), steps):
        optimizer.zero_grad()
        mse_loss(model(batch.data[0]), batch.data[1]).backward()
        optimizer.step()
    with torch.no_grad():
        whole = sample.grouped(1)[0].data
        return float(mse_loss(model(whole[0]), whole[1]))


class TestDigits:
    def test_the_saddle_is_left_and_the_heldout_loss_falls(self):
        problem = Problem.builtin("digits-saddle")
        before = heldout_loss(problem)
        found = thalweg.escape(problem)
        assert found.applied
        assert found.judged_on == "held-out data"
        assert found.loss.value == pytest.approx(before, rel=1e-5)
        assert heldout_loss(problem) - before == pytest.approx(found.change.value, rel=1e-3)
        assert found.change.upper(0.99) < 0
        assert found.lambda_min.value < 0
        assert found.lambda_min_after.value > found.lambda_min.value

    def test_the_minimum_is_not_left_and_stays_bit_for_bit(self):
        problem = Problem.builtin("digits-mlp")
        before = [p.detach().clone() for p in problem.model.parameters()]
        found = thalweg.escape(problem)
        assert not found.applied
        assert "nothing to escape from" in found.reason
        assert same(before, [p.detach() for p in problem.model.parameters()])

    @pytest.mark.slow
    def test_a_diagnosis_spares_the_search(self):
        problem = Problem.builtin("digits-saddle")
        diagnosis = thalweg.diagnose(problem)
        anew = thalweg.escape(Problem.builtin("digits-saddle"))
        again = thalweg.escape(problem, diagnosis)
        assert again.applied
        assert again.cost.num_hvps < anew.cost.num_hvps - 10
        assert again.lambda_min.value == diagnosis.evidence.curvature.lambda_min.value
        assert again.change.value == pytest.approx(anew.change.value, rel=0.05)
        # The weights have moved, and the diagnosis is of the old ones.
        moved = thalweg.escape(problem, diagnosis)
        assert any("other weights" in note for note in moved.notes)
        assert moved.lambda_min.value != diagnosis.evidence.curvature.lambda_min.value
        other = thalweg.escape(Problem.builtin("digits-mlp"), diagnosis)
        assert any("other weights" in note for note in other.notes)

    @pytest.mark.slow
    def test_models_too_large_for_lanczos_take_perturbed_gradient_descent(self, monkeypatch):
        monkeypatch.setattr(way_search, "VECTOR_BYTES", 42 * 4 * way_search.LEAST_VECTORS - 1)
        problem = Problem.builtin("digits-saddle")
        before = heldout_loss(problem)
        found = thalweg.escape(problem)
        assert found.applied
        assert found.way == "downhill from a perturbation"
        assert found.cost.num_hvps == 0
        assert found.lambda_min is None
        assert heldout_loss(problem) < before
        assert abs(found.plain.change.value) < 0.01 * abs(found.change.value)  # the gradient alone stays
        minimum = Problem.builtin("digits-mlp")
        weights = [p.detach().clone() for p in minimum.model.parameters()]
        assert not thalweg.escape(minimum).applied
        assert same(weights, [p.detach() for p in minimum.model.parameters()])

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("lr", [0.1, 0.5])
    def test_training_that_goes_on_from_there_ends_lower(self, seed, lr):
        problem = Problem.builtin("digits-saddle", seed)
        stayed = copy.deepcopy(problem.model)
        before = heldout_loss(problem)
        assert thalweg.escape(problem, seed=seed).applied
        assert heldout_loss(problem) < before
        without, with_it = (
            trained_on(problem, model, steps=400, lr=lr, seed=seed) for model in (stayed, problem.model)
        )
        assert with_it < 0.98 * without

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(1, 5))
    def test_the_minima_of_other_seeds_are_not_left(self, seed):
        assert not thalweg.escape(Problem.builtin("digits-mlp", seed), seed=seed).applied


class Quadratic(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, matrices):
        return 0.5 * torch.einsum("i,bij,j->b", self.theta, matrices, self.theta)


def noisy(mean, seed, *, n=4, num=16):
    """A loss whose expected Hessian is mean·I, seen through few noisy examples, with as many held out."""

    def draw(role):
        noise = vector(num * n * n, seed, 1.0).view(num, n, n) if role == "train" else None
        if noise is None:
            noise = vector(num * n * n, seed + 10**6, 1.0).view(num, n, n)
        return [((noise + noise.mT) / 2 + mean * torch.eye(n, dtype=torch.float64),)]

    return Problem(Quadratic(n), lambda model, batch: model(batch[0]), draw("train"), draw("heldout"))


class TestTheDecision:
    @pytest.mark.slow
    def test_sampling_noise_is_taken_for_a_way_out_once_in_a_hundred(self):
        # Every sample has a direction that curves down; the loss they are drawn from has none.
        found = [thalweg.escape(noisy(0.0, seed), seed=seed) for seed in range(200)]
        assert all(one.lambda_min.value < 0 and one.ways[0].change.value < 0 for one in found)
        applied = sum(one.applied for one in found)
        assert applied <= 7  # two are expected; more than seven come once in a thousand

    def test_noise_around_a_minimum_is_not_confirmed(self):
        for seed in range(3):
            problem = noisy(0.05, seed, num=16)
            found = thalweg.escape(problem, seed=seed)
            assert found.ways[0].change.value < 0
            assert not found.applied
            assert "do not confirm" in found.reason
            assert not problem.model.theta.any()

    def test_a_true_saddle_is_confirmed(self):
        assert all(thalweg.escape(noisy(-1.0, seed, num=64), seed=seed).applied for seed in range(2))

    def test_without_heldout_data_half_of_the_batches_judge(self):
        whole = Problem.builtin("digits-saddle")
        problem = Problem(whole.model, nn.MSELoss(), whole._train)
        found = thalweg.escape(problem)
        assert found.applied
        assert found.judged_on == "training data held back"
        assert found.num_examples + found.num_judging == 1437
        assert abs(found.num_examples - found.num_judging) < 50
        assert any("no held-out data" in note for note in found.notes)

    def test_one_batch_alone_cannot_judge(self):
        x, y = classification(1)
        with pytest.raises(InputError, match="nothing to judge"):
            thalweg.escape(Problem(mlp(), nn.CrossEntropyLoss(), (x, y)))

    @pytest.mark.parametrize("num", [1, 40])
    def test_data_that_hold_nan_are_told_from_a_lack_of_data(self, num):
        x, y = classification(num)
        x[num - 1, 2] = float("nan")
        with pytest.raises(NumericalError, match=rf"training loss is nan.*example {num - 1} .*hold NaN"):
            thalweg.escape(Problem(mlp(), nn.CrossEntropyLoss(), (x, y)))

    def test_heldout_data_that_hold_nan_are_told_before_the_search(self, monkeypatch):
        def never(*arguments):
            raise AssertionError("the search was begun")

        monkeypatch.setattr("thalweg.diagnosis.escape.search_ways", never)
        x, y = classification(40)
        x[7, 2] = float("nan")
        with pytest.raises(NumericalError, match=r"held-out loss is nan.*example 7 "):
            thalweg.escape(Problem(mlp(), nn.CrossEntropyLoss(), classification(40), (x, y)))

    def test_two_examples_can_but_hardly_confirm(self):
        x, y = classification(2)
        found = thalweg.escape(Problem(mlp(), nn.CrossEntropyLoss(), (x, y)))
        assert (found.num_examples, found.num_judging) == (1, 1)
        assert not found.applied

    def test_what_is_not_a_problem_or_a_diagnosis_is_refused(self):
        with pytest.raises(InputError, match="a Problem"):
            thalweg.escape(mlp())
        with pytest.raises(InputError, match="expected: a Diagnosis"):
            thalweg.escape(Problem.builtin("cube"), "saddle")
        with pytest.raises(NumericalError):
            thalweg.escape(Problem.from_function(lambda t: torch.log(t).sum(), [0.0]))


def changed(before, after):
    return {key for key in before if not same(before[key], after[key])}


def steep(loss=None):
    """The mixed model of the test for leaving no trace, on classes that can be learnt."""
    problem, model, optimizer, loader = setting(loss)
    x, y = loader.dataset.tensors
    y.copy_((x[:, 0] > 0).long())
    return problem, model, optimizer, loader


@pytest.mark.slow
class TestNoTrace:
    def test_an_escape_changes_the_trainable_weights_and_nothing_else(self):
        problem, model, optimizer, loader = steep()
        before = state(model, optimizer, loader)
        found = thalweg.escape(problem)
        after = state(model, optimizer, loader)
        assert found.applied
        assert changed(before, after) == {"parameters"}
        for (name, p), old, new in zip(
            model.named_parameters(), before["parameters"], after["parameters"], strict=True
        ):
            assert (old[0], old[2], old[3]) == (new[0], new[2], new[3]), name  # the same tensors
            assert torch.equal(old[1], new[1]) == (not p.requires_grad), name

    def test_the_weights_are_those_that_were_judged(self):
        problem, *_ = steep()
        found = thalweg.escape(problem)
        heldout = problem.measured().heldout
        assert heldout.value(heldout.theta) == pytest.approx(found.loss.value + found.change.value, rel=1e-6)
        assert torch.equal(heldout.theta, found.ways[0].theta)

    def test_half_precision_and_tied_weights_are_judged_as_they_are_written(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
                self.b = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
                self.b.weight = self.a.weight
                with torch.no_grad():
                    self.a.weight.zero_()

            def forward(self, x):
                return self.b(self.a(x.bfloat16())).float()

        x = vector(400).view(100, 4).float()
        problem = Problem(seeded(Tied), nn.MSELoss(), (x, x), (x[:50], x[:50]))
        found = thalweg.escape(problem)
        assert found.applied
        assert problem.model.a.weight is problem.model.b.weight
        heldout = problem.measured().heldout
        assert heldout.value(heldout.theta) == pytest.approx(found.loss.value + found.change.value, rel=1e-6)

    def test_every_moment_at_which_the_work_can_stop_leaves_everything_bit_for_bit(self, monkeypatch):
        monkeypatch.setattr(way_search, "STEPS", 2)
        counter = Interrupting(0, None)
        assert thalweg.escape(steep(counter)[0]).applied
        total = counter.calls
        for error in (KeyboardInterrupt(), ZeroDivisionError("boom")):
            for at in [1, 3, *range(5, total, max(1, total // 2)), total]:
                problem, model, optimizer, loader = steep(Interrupting(at, error))
                before = state(model, optimizer, loader)
                with pytest.raises(type(error)):
                    thalweg.escape(problem)
                assert same(before, state(model, optimizer, loader)), f"{error!r} at call {at} of {total}"

    @pytest.mark.slow
    def test_ctrl_c_at_any_instruction_moves_all_or_nothing(self):
        begun = time.perf_counter()
        thalweg.escape(steep()[0])
        length, moments, interrupted = time.perf_counter() - begun, random.Random(0), 0
        for _ in range(60):
            problem, model, optimizer, loader = steep()
            before, found = state(model, optimizer, loader), None
            at = moments.uniform(1e-4, 1.05 * length)
            ctrl_c = threading.Timer(at, signal.raise_signal, [signal.SIGINT])
            try:
                ctrl_c.start()
                found = thalweg.escape(problem)
                ctrl_c.join()
            except KeyboardInterrupt:
                interrupted += 1
            ctrl_c.join()
            moved = changed(before, state(model, optimizer, loader))
            assert moved == ({"parameters"} if found is not None else set())
        assert interrupted > 30

    def test_a_write_that_fails_half_way_is_taken_back(self, monkeypatch):
        problem, model, optimizer, loader = steep()
        before = state(model, optimizer, loader)
        real, writes = torch.Tensor.copy_, []

        def fails_at_the_third(self, *arguments, **options):
            if isinstance(self, nn.Parameter):
                writes.append(self)
                if len(writes) == 3:
                    raise RuntimeError("out of memory")
            return real(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, "copy_", fails_at_the_third)
        with pytest.raises(RuntimeError, match="out of memory"):
            thalweg.escape(problem)
        monkeypatch.undo()
        assert len(writes) > 3
        assert same(before, state(model, optimizer, loader))


class TestTheRecord:
    def test_it_tells_and_becomes_json(self, tmp_path):
        found = thalweg.escape(Problem.builtin("digits-saddle"))
        record = json.loads(found.to_json())
        assert record["schema"] == "thalweg/escape@1"
        assert record["applied"] is True
        assert record["change"].keys() >= {"value", "stderr"}
        assert (
            record["lambda_min"].keys() == record["lambda_min_after"].keys() == {"value", "bound", "residual"}
        )
        assert all(way.keys() == {"name", "step", "slope", "change"} for way in record["ways"])
        assert "\n" not in repr(found)
        assert "applied" in repr(found)
        text = str(found)
        for word in ("ESCAPED", "held-out loss", "λmin", "What was tried", "train on", "→"):
            assert word in text
        found.save(tmp_path / "escape.html")

    def test_a_refusal_says_that_nothing_changed(self):
        text = str(thalweg.escape(Problem.builtin("empirical-risk")))
        assert "STAYED" in text
        assert "bit for bit" in text

    def test_the_same_seed_gives_the_same_answer(self):
        first, second = (thalweg.escape(steep()[0], seed=3).to_dict() for _ in range(2))
        for record in (first, second):
            record["cost"].pop("seconds")
        assert first == second


def test_the_lowest_pair_of_the_oracle_is_that_of_lanczos():
    matrix, lowest = indefinite(20)
    assert find_extremes(Dense(matrix), seed=0).lambda_min.value == pytest.approx(lowest.value, rel=1e-9)
