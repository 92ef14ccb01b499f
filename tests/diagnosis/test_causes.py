"""Causes that are not landscape: each planted, named, and not seen where it is not."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.models import classification, mlp, seeded
from thalweg.diagnosis.baseline import measure_baseline
from thalweg.diagnosis.causes import find_causes
from thalweg.diagnosis.gradient import measure_gradient
from thalweg.errors import NumericalError
from thalweg.estimates import weighted_mean
from thalweg.problem.builtin.registry import problems
from thalweg.problem.finite import require_finite_gradient, require_finite_loss
from thalweg.problem.problem import Problem


def causes_of(problem):
    measured = problem.measured()
    theta = measured.train.theta
    loss = weighted_mean(*measured.train.batch_values(theta))
    gradient = measure_gradient(measured.train, theta, seed=0)
    return find_causes(measured, problem.stepping(), gradient, loss, seed=0)


def baseline_of(model, data, loss):
    risk = Problem(model, loss, data).measured().train
    return measure_baseline(risk, risk.theta, risk.value(risk.theta))


def learnable(num=256, dtype=torch.float32):
    x, _ = classification(num, 8, 3, dtype=dtype)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def training(optimizer, dtype=torch.float32, model=None, batch=32):
    model = model or mlp((8, 32, 3), dtype=dtype)
    x, y = learnable(dtype=dtype)
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    return Problem(model, nn.CrossEntropyLoss(), batches, optimizer=optimizer(model))


def sgd(lr):
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr)


def adamw(lr):
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr)


class TestTheOptimiser:
    @pytest.mark.parametrize(
        "optimizer",
        [
            sgd(0.1),
            adamw(1e-3),
            lambda m: torch.optim.LBFGS(m.parameters()),
            lambda m: torch.optim.Rprop(m.parameters()),
            lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_healthy_training_has_no_causes(self, optimizer, dtype):
        assert causes_of(training(optimizer, dtype)) == ()

    def test_without_an_optimiser_nothing_is_said_of_it(self):
        assert (
            causes_of(Problem(mlp((8, 32, 3)), nn.CrossEntropyLoss(), learnable(dtype=torch.float64))) == ()
        )

    @pytest.mark.parametrize("make", [sgd(0.0), adamw(0.0)])
    def test_a_learning_rate_of_zero_blocks_training(self, make):
        (cause,) = causes_of(training(make))
        assert (cause.name, cause.blocks_training, cause.value) == ("learning rate zero", True, 0)

    def test_a_scheduler_that_has_ended_is_named(self):
        def annealed(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
            for _ in range(3):
                optimizer.step()
                schedule.step()
            return optimizer

        (cause,) = causes_of(training(annealed))
        assert cause.name == "learning rate zero"
        assert "scheduler" in cause.sentence

    @pytest.mark.parametrize(("steps", "said"), [(0, False), (3, False), (4, True)])
    def test_a_learning_rate_that_was_scheduled_away_is_said(self, steps, said):
        def decayed(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            for _ in range(steps):
                optimizer.step()
                schedule.step()
            return optimizer

        found = causes_of(training(decayed))
        assert [c.name for c in found] == (["scheduler ended"] if said else [])
        assert not any(c.blocks_training for c in found)

    def test_parameters_missing_from_the_optimiser_are_named_with_their_share(self):
        problem = training(lambda m: torch.optim.SGD(m[2].parameters(), lr=0.1))
        (cause,) = causes_of(problem)
        measured = problem.measured()
        g = measured.train.gradient(measured.train.theta)
        first = 8 * 32 + 32
        expected = float(g[:first].square().sum() / g.square().sum())
        assert cause.name == "missing from the optimiser"
        assert cause.value == pytest.approx(expected, rel=1e-4)
        assert "2 of 4 trainable tensors (0)" in cause.sentence
        assert not cause.blocks_training

    def test_it_blocks_training_when_the_gradient_is_all_theirs(self):
        class Used(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.spare = mlp((8, 32, 3), dtype=torch.float32), nn.Parameter(torch.ones(2))

            def forward(self, x):
                return self.body(x) + 1e-3 * self.spare.sum() * x[:, :1] * torch.tensor([1.0, 0.0, 0.0])

        (cause,) = causes_of(training(lambda m: torch.optim.SGD([m.spare], lr=0.1), model=Used()))
        assert cause.blocks_training
        assert cause.value > 0.99

    def test_missing_parameters_that_receive_nothing_are_said_to(self):
        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.idle = mlp((8, 32, 3), dtype=torch.float32), nn.Parameter(torch.ones(2))

            def forward(self, x):
                return self.body(x)

        (cause,) = causes_of(training(lambda m: torch.optim.SGD(m.body.parameters(), lr=0.1), model=Idle()))
        assert "no gradient either" in cause.sentence
        assert (cause.value, cause.blocks_training) == (0, False)

    def test_a_group_with_learning_rate_zero_is_named(self):
        def grouped(model):
            groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
            return torch.optim.SGD(groups, lr=0.1)

        (cause,) = causes_of(training(grouped))
        assert cause.name == "learning rate zero in part"
        assert "(0)" in cause.sentence


class TestRounding:
    @pytest.mark.parametrize(
        ("dtype", "make", "found", "blocks"),
        [
            (torch.bfloat16, sgd(0.1), False, False),
            (torch.bfloat16, sgd(1e-3), True, False),
            (torch.bfloat16, sgd(1e-4), True, True),
            (torch.bfloat16, adamw(1e-2), False, False),
            (torch.bfloat16, adamw(1e-4), True, False),
            (torch.bfloat16, adamw(1e-6), True, True),
            (torch.float16, sgd(1e-2), False, False),
            (torch.float16, sgd(1e-5), True, True),
            (torch.float32, sgd(1e-6), False, False),
            (torch.float32, sgd(1e-9), True, True),
            (torch.float64, sgd(1e-9), False, False),
            (torch.float64, sgd(1e-18), True, True),
        ],
    )
    def test_steps_that_the_weights_cannot_take_up_are_seen(self, dtype, make, found, blocks):
        causes = causes_of(training(make, dtype))
        assert [c.name for c in causes] == (["updates below precision"] if found else [])
        if found:
            assert causes[0].blocks_training == blocks
            assert str(dtype).removeprefix("torch.") in causes[0].sentence

    @pytest.mark.parametrize("lr", [1e-3, 3e-4, 2e-4])
    def test_what_survives_is_what_a_master_copy_would_have_done(self, lr):
        problem = training(sgd(lr), torch.bfloat16, batch=256)
        (cause,) = causes_of(problem)
        train = problem.measured().train
        weights = train.theta
        g = train.training_step(weights, train.sample.batches)[1].bfloat16().double()
        real = (weights.double() - lr * g).bfloat16().double() - weights.double()
        expected = float(real @ (-lr * g) / (lr * g).square().sum())
        assert cause.value == pytest.approx(expected, rel=0.05)

    def test_weights_at_rest_do_not_lose_their_steps(self):
        for name in ("x-cos-pi-x", "empirical-risk", "cube", "saddle"):
            problem = Problem.builtin(name)
            problem.optimizer = torch.optim.SGD([problem._start], lr=0.1)
            assert causes_of(problem) == ()

    def test_rows_of_an_embedding_that_a_batch_leaves_out_are_not_lost(self):
        model = seeded(lambda: nn.Sequential(nn.Embedding(5000, 4), nn.Flatten(), nn.Linear(8, 3)))
        x = torch.arange(64).reshape(32, 2)
        y = torch.arange(32) % 3
        problem = Problem(model, nn.CrossEntropyLoss(), [(x, y)], optimizer=sgd(0.1)(model))
        assert "updates below precision" not in [c.name for c in causes_of(problem)]

    def test_an_optimiser_that_cannot_be_run_is_not_judged(self):
        class Refuses(torch.optim.SGD):
            def step(self, closure=None):
                raise RuntimeError("not here")

        assert causes_of(training(lambda m: Refuses(m.parameters(), lr=1e-20))) == ()


def entropy(labels):
    shares = torch.bincount(labels).double() / len(labels)
    return -float(torch.xlogy(shares, shares).sum())


class Constant(nn.Module):
    """The same answer to every input, with as much of the input as ``mixed`` says."""

    def __init__(self, answer, mixed=0.0):
        super().__init__()
        self.answer = nn.Parameter(torch.as_tensor(answer, dtype=torch.float64))
        self.mixed = mixed

    def forward(self, x):
        return self.answer.expand(len(x), *self.answer.shape) + self.mixed * x[:, : self.answer.numel()]


class TestThePrior:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    x = classification(100)[0]

    def prior(self):
        return (torch.bincount(self.labels) / 100).double().log()

    def test_a_model_that_knows_the_frequencies_only_is_seen(self):
        (cause,) = causes_of(
            Problem(Constant(self.prior() + 3), nn.CrossEntropyLoss(), (self.x, self.labels))
        )
        assert (cause.name, cause.blocks_training) == ("label prior", False)
        assert cause.value == pytest.approx(entropy(self.labels), rel=1e-12)

    def test_a_penalty_in_the_loss_does_not_hide_it(self):
        def loss(model, batch):
            return cross_entropy(model(batch[0]), batch[1]) + 5 + model.answer.square().sum()

        assert [c.name for c in causes_of(Problem(Constant(self.prior()), loss, (self.x, self.labels)))] == [
            "label prior"
        ]

    def test_a_model_that_looks_at_the_input_is_not_at_the_prior(self):
        for mixed, expected in ((1e-3, ["label prior"]), (0.3, [])):
            model = Constant(self.prior(), mixed)
            found = causes_of(Problem(model, nn.CrossEntropyLoss(), (self.x, self.labels)))
            assert [c.name for c in found] == expected

    def test_one_bad_answer_to_all_is_called_that(self):
        model = Constant([0.0, 0.0, 9.0])
        (cause,) = causes_of(Problem(model, nn.CrossEntropyLoss(), (self.x, self.labels)))
        assert cause.name == "constant predictions"

    @pytest.mark.parametrize("depth", [1, 3, 6])
    @pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU, nn.Sigmoid])
    def test_a_net_that_has_not_been_trained_is_not_accused(self, depth, kind):
        x, _ = learnable()
        model = mlp((8, *[32] * depth, 3), activation=kind, dtype=torch.float32)
        for rare in (0.5, 1.3):  # even labels would be guessed right by chance
            assert causes_of(Problem(model, nn.CrossEntropyLoss(), (x, (x[:, 0] > rare).long()))) == ()

    @pytest.mark.parametrize("classes", [2, 10, 100])
    def test_frequencies_learnt_from_other_examples_are_still_the_prior(self, classes):
        rng = torch.Generator().manual_seed(classes)
        truth = torch.rand(classes, generator=rng, dtype=torch.float64) + 0.1
        seen = 0
        for _ in range(20):
            others, labels = (torch.multinomial(truth, 1000, True, generator=rng) for _ in range(2))
            answer = (torch.bincount(others, minlength=classes) + 0.5).double().log()
            x = torch.zeros(1000, 1, dtype=torch.float64)
            found = baseline_of(Constant(answer), (x, labels), nn.CrossEntropyLoss())
            assert found.told_apart < 1e-12
            seen += found.model - found.constant < max(1e-3 * found.constant, 2 * found.error)
        assert seen >= 19

    def test_ignored_labels_do_not_count(self):
        labels = self.labels.clone()
        labels[:40] = -100
        found = baseline_of(Constant([0.0] * 3), (self.x, labels), nn.CrossEntropyLoss())
        assert found.constant == pytest.approx(entropy(self.labels[40:]))
        assert found.is_loss

    @pytest.mark.parametrize("keyed", [False, True])
    def test_tokens_are_labels_each(self, keyed):
        class Speaker(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(7, 5)

            def forward(self, tokens):
                return self.table(tokens)

        rng = torch.Generator().manual_seed(0)
        pairs = [[torch.randint(0, k, (4, length), generator=rng) for k in (7, 5)] for length in (3, 6, 4)]
        batches = [{"tokens": x, "labels": y} if keyed else (x, y) for x, y in pairs]
        found = baseline_of(seeded(Speaker), batches, nn.CrossEntropyLoss())
        assert found.kind == "classes"
        assert found.constant == pytest.approx(entropy(torch.cat([y.reshape(-1) for _, y in pairs])))
        assert found.is_loss

    def test_classes_in_the_second_place_are_found_there(self):
        rng = torch.Generator().manual_seed(0)
        x, y = torch.randn(6, 2, 4, 4, generator=rng), torch.randint(0, 3, (6, 4, 4), generator=rng)
        found = baseline_of(seeded(lambda: nn.Conv2d(2, 3, 1)), (x, y), nn.CrossEntropyLoss())
        assert found.is_loss
        assert found.constant == pytest.approx(entropy(y.reshape(-1)))

    @pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
    def test_zeros_and_ones_have_a_prior_too(self, criterion):
        y = (torch.arange(100) < 20).double()[:, None]
        answer = [math.log(0.2 / 0.8)] if isinstance(criterion, nn.BCEWithLogitsLoss) else [0.2]
        problem = Problem(Constant(answer), criterion, (self.x, y))
        (cause,) = causes_of(problem)
        assert cause.name == "label prior"
        assert cause.value == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)))

    def test_a_regression_that_knows_the_mean_only_is_seen(self):
        y = self.x @ torch.ones(4, 2, dtype=torch.float64) + 1e3
        (cause,) = causes_of(Problem(Constant(y.mean(0)), nn.MSELoss(), (self.x, y)))
        assert cause.name == "targets' mean"
        assert cause.value == pytest.approx(float(y.var(0, correction=0).mean()))
        assert causes_of(Problem(Constant(y.mean(0), 0.5), nn.MSELoss(), (self.x, y))) == ()

    def test_targets_that_were_never_scaled_show(self):
        y = self.x @ torch.ones(4, 2, dtype=torch.float64) + 1e3
        (cause,) = causes_of(Problem(Constant([0.0, 0.0], 1e-3), nn.MSELoss(), (self.x, y)))
        assert cause.name == "constant predictions"

    def test_constant_labels_are_said(self):
        y = torch.full((100,), 2)
        (cause,) = causes_of(Problem(mlp(), nn.CrossEntropyLoss(), (self.x, y)))
        assert (cause.name, cause.blocks_training) == ("constant labels", False)
        y = torch.full((100, 3), 0.1, dtype=torch.float64)
        (cause,) = causes_of(Problem(mlp(), nn.MSELoss(), (self.x, y)))
        assert cause.name == "constant targets"
        y = torch.ones(100, 3, dtype=torch.float64)
        (cause,) = causes_of(Problem(mlp(), nn.BCEWithLogitsLoss(), (self.x, y)))
        assert cause.name == "constant labels"

    def test_a_second_tensor_that_the_loss_does_not_use_is_no_target(self):
        x = self.x

        def unsupervised(model, batch):
            return (model(batch[0]) ** 2).mean() + 1

        for second in (torch.zeros(100), torch.zeros(100, 3), torch.zeros(100, dtype=torch.long)):
            assert causes_of(Problem(mlp(), unsupervised, (x, second))) == ()

    @pytest.mark.parametrize(
        ("batch", "loss"),
        [
            ({"a": x, "b": x}, lambda m, b: m(b["a"]).square().mean()),
            ((x, [x, labels]), lambda m, b: m(b[0]).square().mean()),
            ([x], lambda m, b: m(b[0]).square().mean()),
            (x, lambda m, b: m(b).square().mean()),
            ((x, labels), lambda m, b: (m(b[0]) + m(2 * b[0])).square().mean()),
            ((x, labels), lambda m, b: m[0](b[0]).square().mean()),
            ((x, labels + 40), lambda m, b: m(b[0]).square().mean()),
            ((x, labels[:, None]), lambda m, b: m(b[0]).square().mean()),
            ((x, labels.to(torch.uint8) + 40), lambda m, b: m(b[0]).square().mean()),
            ((x, labels.bool()), lambda m, b: m(b[0]).square().mean()),
            ((x, x[:50]), lambda m, b: m(b[0]).square().mean()),
        ],
    )
    def test_batches_of_other_forms_are_passed_over(self, batch, loss):
        assert causes_of(Problem(mlp(), loss, [batch])) == ()


class TestWhatIsNotFinite:
    def test_the_example_that_breaks_the_loss_is_named(self):
        x, y = classification(100)
        x[37, 2] = math.nan
        risk = Problem(mlp(), nn.CrossEntropyLoss(), (x, y)).measured().train
        values, _ = risk.batch_values(risk.theta)
        with pytest.raises(NumericalError, match=r"first example 37 of the sample.*data hold NaN"):
            require_finite_loss(risk, risk.theta, values, "the training loss")

    def test_of_several_the_first_is_named(self):
        x, y = classification(100)
        x[[11, 99]] = 1e308
        model = mlp((4, 3))
        with torch.no_grad():
            model[0].weight.mul_(100)
        batches = list(zip(x.split(16), y.split(16), strict=True))
        risk = Problem(model, nn.CrossEntropyLoss(), batches).measured().train
        values, _ = risk.batch_values(risk.theta)
        with pytest.raises(NumericalError, match=r"2 of .* first example 11 of the sample.*extreme size"):
            require_finite_loss(risk, risk.theta, values, "the training loss")

    def test_where_all_are_broken_none_is_named(self):
        risk = Problem(mlp(), nn.CrossEntropyLoss(), classification()).measured().train
        with pytest.raises(NumericalError, match="the training loss is inf; likely cause: weights"):
            require_finite_loss(risk, risk.theta, [math.inf, math.nan], "the training loss")

    def test_a_finite_loss_passes_at_no_cost(self):
        risk = Problem(mlp(), nn.CrossEntropyLoss(), classification()).measured().train
        values, _ = risk.batch_values(risk.theta)
        before = risk.ledger.gradient_equivalents
        require_finite_loss(risk, risk.theta, values, "the training loss")
        assert risk.ledger.gradient_equivalents == before

    def test_a_gradient_that_does_not_exist_is_named(self):
        class Root(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.root = mlp(), nn.Parameter(torch.zeros(3, dtype=torch.float64))

            def forward(self, x):
                return self.body(x) + (self.root**2).sum().sqrt()

        risk = Problem(Root(), lambda m, b: m(b[0]).square().mean(), classification()).measured().train
        with pytest.raises(NumericalError, match="1 of 5 parameters: root"):
            require_finite_gradient(risk, risk.gradient(risk.theta))
        require_finite_gradient(risk, torch.ones_like(risk.theta))


@pytest.mark.slow
def test_built_in_problems_raise_no_false_alarm():
    found = {info.name: [c.name for c in causes_of(Problem.builtin(info.name))] for info in problems()}
    assert {name: causes for name, causes in found.items() if causes} == {
        "digits-deep-sigmoid": ["label prior"],
        "digits-hot": ["constant predictions"],
    }
