"""Remedies: the ones that fit are tried, on copies, as they would be in training, with honest errors."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.models import classification, mlp, seeded
from tests.selection import some
from thalweg.diagnosis.continuation import continue_training, shuffled, stream, takes_all, typical_norm
from thalweg.diagnosis.gathering import gather
from thalweg.diagnosis.moves import STEPS, _Bench, try_moves
from thalweg.diagnosis.purse import Purse
from thalweg.diagnosis.rebuild import initialisation_for, rebuilt
from thalweg.diagnosis.remedies import FreshStart, fresh_starts, remedies
from thalweg.diagnosis.retraining import restart_cost, retrained
from thalweg.diagnosis.verdict import Verdict
from thalweg.errors import ModelError
from thalweg.problem.intact import intact
from thalweg.problem.loss import batch_loss
from thalweg.problem.problem import Problem
from thalweg.rng import generator


def minibatched(model, num=40, size=8, loss=None, optimizer=None, heldout=16):
    x, y = classification(num)
    data = DataLoader(TensorDataset(x, y), batch_size=size)
    judge = classification(heldout, seed=1)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return Problem(model, loss or nn.CrossEntropyLoss(), data, judge, optimizer=optimizer)


def moves_of(problem, verdict, *, seed=0, budget=None):
    """The table as if the verdict had been this one, and what it cost."""
    with intact(problem.model):
        measured, stepping = problem.measured(), problem.stepping()
        evidence = gather(measured, stepping, seed=0, purse=Purse(40, measured.ledger))
        spent = measured.ledger.gradient_equivalents
        on_budget = spent - measured.ledger.checks
        purse = Purse(None if budget is None else on_budget + budget, measured.ledger)
        moves = try_moves(
            measured,
            evidence,
            verdict,
            stepping,
            model=problem.model,
            loss=problem.loss,
            seed=seed,
            purse=purse,
        )
    return moves, measured.ledger.gradient_equivalents - spent


def names(moves):
    return [move.name for move in moves]


class TestWhichRemediesFit:
    def table(self, verdict, *, momentum=0.0, noise_scale=10.0, batch_size=64, clip=None, sgd=True):
        evidence = SimpleNamespace(gradient=SimpleNamespace(noise_scale=noise_scale))
        stepping = SimpleNamespace(is_gradient_descent=sgd, momentum=momentum, batch_size=batch_size)
        return names(remedies(verdict, evidence, stepping, examples=1000, clip=clip))

    @pytest.mark.parametrize("verdict", Verdict)
    def test_the_learning_rate_is_always_asked_about(self, verdict):
        expected = {"carry on", "learning rate × 0.1", "learning rate × 10"}
        assert expected <= set(self.table(verdict))
        assert self.table(verdict)[0] == "carry on"

    def test_a_minimum_needs_no_remedy(self):
        assert len(self.table(Verdict.MINIMUM, noise_scale=None)) == 3
        assert fresh_starts(Verdict.MINIMUM) == ()

    def test_momentum_keeps_the_effective_rate_where_steps_are_too_long(self):
        assert "momentum 0.9, learning rate × 0.1" in self.table(Verdict.BOUNCING)
        assert "momentum 0.9" in self.table(Verdict.PLATEAU)
        for table in (self.table(Verdict.PLATEAU, momentum=0.5), self.table(Verdict.PLATEAU, sgd=False)):
            assert not any("momentum" in name for name in table)

    @pytest.mark.parametrize(
        ("noise_scale", "size", "expected"),
        [
            (10.0, 64, None),  # the batch is not mostly noise
            (100.0, 64, "batch size 256 instead of 64"),
            (None, 64, "batch size 256 instead of 64"),  # no signal seen at all
            (None, 400, "batch size 800 instead of 400"),  # as far as the sample reaches
            (None, 500, "batch size 1000 instead of 500"),
            (None, 501, None),
            (None, None, None),  # all the examples already
        ],
    )
    def test_a_larger_batch_is_tried_where_one_is_mostly_noise(self, noise_scale, size, expected):
        table = self.table(Verdict.PLATEAU, noise_scale=noise_scale, batch_size=size)
        assert [name for name in table if name.startswith("batch size")] == ([expected] if expected else [])

    def test_clipping_says_at_which_norm(self):
        assert "gradient clipped at norm 5.8" in self.table(Verdict.BOUNCING, clip=5.8312)
        assert not any("clipped" in name for name in self.table(Verdict.BOUNCING))

    def test_a_flat_point_is_left_by_a_perturbation(self):
        assert "weights perturbed by 10 %, then on" in self.table(Verdict.DEGENERATE)

    def test_fresh_starts_are_for_places_without_a_way_on(self):
        assert {start.name("Glorot") for start in fresh_starts(Verdict.PLATEAU)} == {
            "ReLU + Glorot initialisation",
            "batch normalisation + Glorot initialisation",
            "re-initialisation (Glorot)",
        }
        assert fresh_starts(Verdict.DESCENDING) == fresh_starts(Verdict.SADDLE) == ()


class TestTheTrainingThatIsChanged:
    def setup_method(self):
        self.problem = minibatched(mlp())
        self.objective = self.problem.measured().train
        self.stepping = self.problem.stepping()

    def steps_by_hand(self, optimizer, model, *, together=1, clip=None, steps=5):
        batches = stream(self.objective, self.stepping, 0, "x", together=together)
        for group in itertools.islice(batches, steps):
            x, y = (torch.cat([batch.data[i] for batch in group]) for i in (0, 1))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def steps_of_ours(self, *, together=1, **settings):
        batches = stream(self.objective, self.stepping, 0, "x", together=together)
        theta = self.objective.theta
        return continue_training(self.objective, theta, self.stepping, batches, steps=5, **settings)[0]

    @pytest.mark.parametrize(
        ("ours", "optimizer", "by_hand"),
        [
            ({"momentum": 0.9, "lr_factor": 0.1}, {"lr": 0.01, "momentum": 0.9}, {}),
            ({"clip": 0.2}, {"lr": 0.1}, {"clip": 0.2}),
            ({"clip": 1e6}, {"lr": 0.1}, {}),
            ({"together": 4}, {"lr": 0.1}, {"together": 4}),
        ],
    )
    def test_each_change_is_what_the_user_would_get_from_torch(self, ours, optimizer, by_hand):
        model = copy.deepcopy(self.problem.model)
        there = self.steps_by_hand(torch.optim.SGD(model.parameters(), **optimizer), model, **by_hand)
        assert torch.allclose(self.steps_of_ours(**ours), there, atol=1e-5 if "clip" in by_hand else 1e-12)

    def test_a_change_of_momentum_is_a_change(self):
        assert not torch.allclose(self.steps_of_ours(), self.steps_of_ours(momentum=0.9))

    def test_the_typical_norm_is_the_median_over_batches(self):
        batches = stream(self.objective, self.stepping, 0, "x")
        norm = typical_norm(self.objective, self.objective.theta, batches)
        model, norms = self.problem.model, []
        for (batch,) in itertools.islice(stream(self.objective, self.stepping, 0, "x"), 9):
            loss = nn.functional.cross_entropy(model(batch.data[0]), batch.data[1])
            parts = torch.autograd.grad(loss, list(model.parameters()))
            norms.append(float(torch.cat([part.reshape(-1) for part in parts]).norm()))
        assert norm == pytest.approx(np.median(norms), rel=1e-9)

    @pytest.mark.parametrize("together", [1, 2, 4, 5, 6])
    def test_no_example_comes_twice_in_a_step(self, together):
        x = torch.arange(40.0)
        sample = Problem(mlp((1, 1)), nn.MSELoss(), [(x[:20], x[:20]), (x[20:], x[20:])])._sample(
            "training", [(x[:20, None], x[:20]), (x[20:, None], x[20:])], 100, 0
        )
        groups = list(itertools.islice(shuffled(sample, 8, 0, "x", together=together), 7))
        for group in groups:
            seen = torch.cat([batch.data[1] for batch in group])
            assert len(seen) == len(seen.unique()) == 8 * min(together, 5)  # five batches make an epoch

    def test_a_whole_batch_leaves_nothing_random(self):
        assert not takes_all(self.objective, self.stepping)
        x, y = classification(12)
        whole = Problem(mlp(), nn.CrossEntropyLoss(), (x, y))
        optimizer = torch.optim.SGD(whole.parameters(), lr=1.0)
        assert takes_all(whole.measured().train, whole.stepping(optimizer))


class Block(nn.Module):
    """Convolution, a one-dimensional convolution over rows, and a head, with activations as modules."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.act = nn.Sigmoid()
        self.rows = nn.Conv1d(6, 5, 3, padding=1)
        self.inner = nn.ModuleDict({"act": nn.Tanh()})
        self.hidden = nn.Linear(5 * 16, 7)
        self.last_act = nn.Tanh()
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = self.act(self.stem(x)).flatten(2)
        x = self.inner["act"](self.rows(x)).flatten(1)
        return self.head(self.last_act(self.hidden(x)))


class Tokens(nn.Module):
    """A linear layer over tokens: its channels are the last dimension."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.up, self.act, self.down = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(self.act(self.up(self.embed(x)))).mean(1)


class Twice(nn.Module):
    """One activation module in two places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.act = nn.Tanh()

    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x)))))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


RELU = FreshStart(relu=True, batch_norm=False)
IMAGES = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def variant_of(model, x, *, relu=False, batch_norm=False, seed=0):
    return rebuilt(model, lambda m: m(x), relu=relu, batch_norm=batch_norm, seed=seed)


class TestRebuilding:
    def test_the_channels_are_learnt_from_a_run(self):
        variant = variant_of(seeded(Block), IMAGES, batch_norm=True)
        norms = [variant.act[0], variant.inner["act"][0], variant.last_act[0]]
        kinds = [nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm1d]
        assert [type(norm) for norm in norms] == kinds
        assert [norm.num_features for norm in norms] == [6, 5, 7]
        assert isinstance(variant.act[1], nn.Sigmoid)
        assert variant.train()(IMAGES).shape == (9, 3)

    def test_a_relu_takes_the_place_of_every_activation(self):
        variant = variant_of(seeded(Block), IMAGES, relu=True)
        assert all(type(m) is nn.ReLU for m in (variant.act, variant.inner["act"], variant.last_act))
        both = variant_of(seeded(Block), IMAGES, relu=True, batch_norm=True)
        assert [type(m) for m in both.act] == [nn.BatchNorm2d, nn.ReLU]

    def test_the_original_stays_as_it_was(self):
        model = seeded(Block)
        before, text = copy.deepcopy(model.state_dict()), str(model)
        for relu, batch_norm in itertools.product((False, True), repeat=2):
            assert variant_of(model, IMAGES, relu=relu, batch_norm=batch_norm) is not None
        assert str(model) == text
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
        assert not any(m._forward_pre_hooks for m in model.modules())

    @pytest.mark.parametrize(("activation", "scale"), [(nn.ReLU, 2 / 400), (nn.Tanh, 2 / (400 + 300))])
    def test_the_variance_is_he_s_or_glorot_s(self, activation, scale):
        variant = variant_of(mlp((400, 300, 3), activation), torch.zeros(2, 400, dtype=torch.float64))
        weight = variant[0].weight.detach()
        spread = math.sqrt(2 / weight.numel())  # of a sample variance, relative
        assert float(weight.var()) == pytest.approx(scale, rel=4 * spread)
        assert float(variant[0].bias.detach().abs().max()) == 0
        again = variant_of(mlp((400, 300, 3), activation, seed=5), torch.zeros(2, 400, dtype=torch.float64))
        assert torch.equal(weight, again[0].weight)  # the seed alone decides
        assert initialisation_for(variant, relu=True) == "He"

    def test_a_convolution_counts_its_field(self):
        model = seeded(lambda: nn.Sequential(nn.Conv2d(20, 30, 5), nn.ReLU(), nn.Flatten(), nn.Linear(30, 2)))
        weight = variant_of(model, torch.zeros(1, 20, 5, 5))[0].weight.detach()
        assert float(weight.var()) == pytest.approx(2 / (20 * 25), rel=4 * math.sqrt(2 / weight.numel()))

    def test_tokens_are_not_normalised_over_the_wrong_dimension(self):
        model, x = seeded(Tokens), torch.zeros(4, 6, dtype=torch.int64)
        assert variant_of(model, x, batch_norm=True) is None
        fresh = variant_of(model, x)
        assert not torch.equal(fresh.embed.weight, model.embed.weight)

    def test_one_activation_in_two_places_is_replaced_but_not_normalised(self):
        model, x = seeded(Twice), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        assert variant_of(model, x, batch_norm=True) is None
        assert isinstance(variant_of(model, x, relu=True).act, nn.ReLU)

    def test_what_is_normalised_already_stays(self):
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)))
        model[1].running_mean.fill_(7.0)
        assert variant_of(model, torch.zeros(5, 4), batch_norm=True) is None
        assert float(variant_of(model, torch.zeros(5, 4))[1].running_mean.abs().max()) == 0

    def test_functional_activations_leave_re_initialisation(self):
        model, x = seeded(Functional), torch.zeros(5, 4)
        assert variant_of(model, x) is not None
        assert variant_of(model, x, relu=True) is None
        assert variant_of(model, x, batch_norm=True) is None
        assert variant_of(mlp(activation=nn.ReLU), x.double(), relu=True) is None  # nothing would change

    def test_frozen_layers_keep_their_weights(self):
        model = mlp((4, 8, 8, 3))
        model[0].requires_grad_(False)
        variant = variant_of(model, classification()[0])
        assert torch.equal(variant[0].weight, model[0].weight)
        assert not torch.equal(variant[2].weight, model[2].weight)

    def test_what_cannot_be_drawn_anew_is_left_out(self):
        tied = mlp((4, 4, 4))
        tied[2].weight = tied[0].weight
        normed = seeded(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))))
        owner = mlp((4, 8, 3))
        owner.register_parameter("scale", nn.Parameter(torch.ones(1)))
        for model in (tied, normed, owner):
            x = torch.zeros(5, 4, dtype=next(model.parameters()).dtype)
            assert variant_of(model, x) is None


class TestRetraining:
    def trained(self, problem, start=RELU, *, run=0, steps=STEPS):
        measured = problem.measured()
        stepping = problem.stepping()
        with intact(problem.model):
            return retrained(
                problem.model,
                problem.loss,
                start,
                stepping,
                measured.train,
                measured.heldout,
                batch_size=8,
                steps=steps,
                seed=0,
                run=run,
            ), measured

    def test_it_is_the_training_that_torch_would_do(self):
        problem = minibatched(mlp((4, 8, 3), nn.Tanh))
        problem.optimizer = torch.optim.AdamW(problem.model.parameters(), lr=5.0, weight_decay=0.1)
        problem.optimizer.param_groups[0]["lr"] = 0.02  # as a scheduler does
        losses, measured = self.trained(problem, run=2, steps=7)
        own = generator(0, "fresh start", 2).initial_seed()
        model = rebuilt(problem.model, lambda m: None, relu=True, batch_norm=False, seed=own)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
        for (batch,) in itertools.islice(shuffled(measured.train.sample, 8, 0, "moves-2"), 7):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.data[0]), batch.data[1]).backward()
            optimizer.step()
        by_hand = [
            nn.functional.cross_entropy(model(b.data[0]), b.data[1]).item() for b in measured.heldout.groups
        ]
        assert losses == pytest.approx(by_hand, rel=1e-9)

    def test_a_summed_loss_is_stepped_by_its_sum(self):
        mean, summed = (minibatched(mlp(), loss=nn.CrossEntropyLoss(reduction=r)) for r in ("mean", "sum"))
        summed.optimizer = torch.optim.SGD(summed.model.parameters(), lr=0.1 / 8)
        assert self.trained(mean)[0] == pytest.approx(self.trained(summed)[0], rel=1e-9)

    def test_normalisation_is_judged_with_the_statistics_of_the_data(self):
        problem = minibatched(mlp((4, 8, 3)), num=32, size=8)
        measured, stats = problem.measured(), {}

        def loss(model, batch):
            norm = model[1][0] if isinstance(model[1], nn.Sequential) else None
            if norm is not None and not model.training and not norm.training:
                stats["mean"] = norm.running_mean.clone()
                with torch.no_grad():
                    x = torch.cat([b.data[0] for b in measured.train.sample.batches])
                    stats["truth"] = model[0](x).mean(0)
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        problem.loss = batch_loss(loss)
        losses, _ = self.trained(problem, FreshStart(False, True))
        assert losses is not None
        assert torch.allclose(stats["mean"], stats["truth"], atol=1e-12)  # an epoch of equal batches

    def test_dropout_repeats_with_the_seed_and_leaves_the_random_state(self):
        layers = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()  # noqa: E731
        problem = minibatched(seeded(layers))
        state = torch.get_rng_state()
        first, second, other = (self.trained(problem, run=run)[0] for run in (0, 0, 1))
        assert first == second != other
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_loss_that_ignores_the_model_it_is_given_is_refused(self):
        fixed = mlp((4, 8, 3), seed=9)
        problem = minibatched(mlp((4, 8, 3)))
        measured = problem.measured()
        loss = batch_loss(lambda model, batch: nn.functional.cross_entropy(fixed(batch[0]), batch[1]))
        with intact(problem.model), pytest.raises(ModelError, match="does not use the weights"):
            retrained(
                problem.model,
                loss,
                FreshStart(True, False),
                None,
                measured.train,
                measured.heldout,
                batch_size=8,
                steps=2,
                seed=0,
                run=0,
            )

    def test_an_optimiser_of_the_user_s_own_making_gives_way_to_gradient_descent(self):
        class Odd(torch.optim.SGD):
            def __init__(self, params, partner):
                super().__init__(params, lr=0.1)
                self.partner = partner

        problem = minibatched(mlp())
        plain = self.trained(problem)[0]
        problem.optimizer = Odd(problem.model.parameters(), partner=3)
        assert problem.stepping().afresh([nn.Parameter(torch.zeros(2))]) is None
        assert self.trained(problem)[0] == pytest.approx(plain, rel=1e-12)

    @pytest.mark.parametrize(
        ("examples", "size", "batches"), [(40, 8, 5), (41, 8, 6), (8, 8, 1), (4000, 8, 20)]
    )
    def test_its_cost_is_what_it_says(self, examples, size, batches):
        expected = (STEPS + (1 + batches) / 3) * size / examples
        assert restart_cost(examples, size, steps=STEPS) == pytest.approx(expected)


class TestTheError:
    def bench(self, before, counts, examples=100):
        judge = SimpleNamespace(examples=examples)
        return _Bench(judge, judge, None, before, counts, None, 0)

    def test_it_holds_the_held_out_batches_and_the_runs(self):
        rng = np.random.default_rng(0)
        before, counts = rng.normal(size=12), np.full(12, 5.0)
        runs = before + rng.normal(size=(3, 12))
        change = self.bench(before.tolist(), counts.tolist()).change(runs.tolist())
        d = runs - before
        data = d.mean(0).std(ddof=1) / np.sqrt(12)
        between = d.mean(1).std(ddof=1) / np.sqrt(3)
        assert change.value == pytest.approx(d.mean())
        assert change.stderr == pytest.approx(np.hypot(data, between))

    def test_one_run_holds_the_batches_alone_and_a_plain_function_the_runs_alone(self):
        one = self.bench([1.0, 2.0], [1.0, 1.0]).change([[0.5, 2.5]])
        assert one.stderr == pytest.approx(0.5)
        function = self.bench([1.0], [1.0], examples=1).change([[0.0], [2.0]])
        assert (function.value, function.stderr) == (0.0, pytest.approx(1.0))

    def test_a_run_that_blows_up_is_not_forgotten(self):
        change = self.bench([1.0, 2.0], [1.0, 1.0]).change([[0.5, 2.5], [math.nan, math.inf]])
        assert change.value > 1e20

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "verdict"), [("digits-deep-sigmoid", "plateau"), ("digits-hot", "bouncing")]
    )
    def test_two_seeds_agree_within_it(self, name, verdict):
        problem = Problem.builtin(name)
        tables = [moves_of(problem, Verdict(verdict), seed=seed)[0] for seed in range(8)]
        apart = []
        for one, other in itertools.pairwise(tables):
            found = {move.name: move for move in other}
            for move in one:
                if move.cost and move.stderr and move.name in found:
                    partner = found[move.name]
                    apart.append(
                        abs(move.measured - partner.measured) / math.hypot(move.stderr, partner.stderr)
                    )
        assert len(apart) > 40
        assert np.mean(np.array(apart) > 2) < 0.15
        assert np.median(apart) > 0.2  # nor is it said too large


class TestTheTable:
    @pytest.mark.parametrize("verdict", [Verdict.PLATEAU, Verdict.BOUNCING, Verdict.SADDLE])
    def test_no_trace_is_left(self, verdict):
        def layers():
            return nn.Sequential(
                nn.Linear(4, 8),
                nn.BatchNorm1d(8),
                nn.Tanh(),
                nn.Dropout(0.2),
                nn.Linear(8, 8),
                nn.Tanh(),
                nn.Linear(8, 3),
            ).double()

        model = seeded(layers).train()
        model[4].eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        problem = minibatched(model, optimizer=optimizer)
        weights, settings = copy.deepcopy(model.state_dict()), repr(optimizer.state_dict())
        modes, text = [m.training for m in model.modules()], str(model)
        moves, _ = moves_of(problem, verdict)
        assert len(moves) >= 5
        assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
        assert all(p.grad is None for p in model.parameters())
        assert repr(optimizer.state_dict()) == settings
        assert ([m.training for m in model.modules()], str(model)) == (modes, text)

    def test_a_plateau_is_left_by_a_fresh_start(self):
        moves, _ = moves_of(Problem.builtin("digits-deep-sigmoid"), Verdict.PLATEAU)
        best, second = moves[:2]
        assert {best.name, second.name} == {
            "ReLU + He initialisation",
            "batch normalisation + Glorot initialisation",
        }
        for move in (best, second):
            assert move.measured + 3 * move.stderr < 0
        onward = next(move for move in moves if move.name == "carry on")
        assert abs(onward.measured) < 3 * onward.stderr

    def test_a_bounce_is_stilled_by_shorter_steps(self):
        moves, _ = moves_of(Problem.builtin("digits-hot"), Verdict.BOUNCING)
        found = {move.name: move for move in moves}
        assert moves[0].name == "learning rate × 0.1"
        assert {"momentum 0.9, learning rate × 0.1", "batch size 64 instead of 16"} <= found.keys()
        assert any(name.startswith("gradient clipped at norm ") for name in found)
        averaged, onward = found["average of the iterates"], found["carry on"]
        # How far "carry on" is thrown differs from machine to machine: it bounces.
        assert averaged.measured + averaged.stderr < 0
        assert averaged.measured < onward.measured

    @pytest.mark.parametrize("verdict", [Verdict.PLATEAU, Verdict.BOUNCING, Verdict.DEGENERATE])
    @pytest.mark.parametrize("size", [None, 8])
    @pytest.mark.parametrize("budget", some([3, 30, 0, 10.1], now=2))
    def test_no_more_is_spent_than_there_is(self, verdict, size, budget):
        x, y = classification(40)
        data = (x, y) if size is None else DataLoader(TensorDataset(x, y), batch_size=size)
        model = mlp()
        problem = Problem(
            model,
            nn.CrossEntropyLoss(),
            data,
            classification(16, seed=1),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        )
        moves, spent = moves_of(problem, verdict, budget=budget)
        assert spent <= budget + 1e-9
        assert len(moves) == 2 if budget < 5 else len(moves) > 2 or budget < 30
        # The average of the iterates comes with carrying on.
        assert sum(m.cost for m in moves if m.name != "average of the iterates") <= spent + 0.1

    def test_every_move_says_what_it_cost(self):
        moves, spent = moves_of(minibatched(mlp()), Verdict.PLATEAU)
        found = {move.name: move.cost for move in moves}
        judging = 16 / 40 / 3
        assert found["carry on"] == pytest.approx(2 * (20 * 8 / 40 + judging), abs=0.01)
        assert found["a gradient step, its length searched"] == 0
        assert found["re-initialisation (Glorot)"] == found["ReLU + He initialisation"]
        assert sum(found.values()) == pytest.approx(spent - judging, abs=0.1)  # the loss before, once

    def test_a_remedy_that_the_model_does_not_take_is_left_out(self):
        model = mlp((4, 8, 3))
        start = [p.detach().clone() for p in model.parameters()]

        def penalised(model, batch):
            pairs = list(zip(model.parameters(), start, strict=True))  # counts the parameters
            penalty = torch.stack([(p - s).square().sum() for p, s in pairs]).sum()
            return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 0.01 * penalty

        found = names(moves_of(minibatched(model, loss=penalised), Verdict.PLATEAU)[0])
        assert "ReLU + He initialisation" in found
        assert not any("batch normalisation" in name for name in found)

    @pytest.mark.parametrize("batch_size", [1, 2, 39, 40, 41])
    def test_batches_of_any_size_are_taken(self, batch_size):
        moves, _ = moves_of(minibatched(mlp(), size=batch_size), Verdict.PLATEAU)
        found = names(moves)
        assert "carry on" in found
        assert "re-initialisation (Glorot)" in found
        normalised = any("batch normalisation" in name for name in found)
        assert normalised == (batch_size > 1)  # one example has no variance

    def test_without_an_optimiser_a_flat_point_is_still_perturbed(self):
        moves, _ = moves_of(Problem.from_function(lambda t: (t**3).sum(), [0.0]), Verdict.DEGENERATE)
        move = next(m for m in moves if m.name.startswith("weights perturbed"))
        assert move.measured < 0  # down the cubic on one side
        assert move.stderr > 0

    def test_the_same_seed_gives_the_same_table(self):
        problem = minibatched(mlp())
        first, again, other = (moves_of(problem, Verdict.BOUNCING, seed=seed)[0] for seed in (0, 0, 1))
        assert first == again != other
