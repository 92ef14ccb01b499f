"""What the recorder measures, held to oracles; and what it does when a quantity fails or costs too much."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.models import classification, mlp, seeded
from thalweg.errors import InputError
from thalweg.training.agenda import Agenda
from thalweg.training.budget import Budget, water_filled
from thalweg.training.critical_sharpness import crossing
from thalweg.training.quantities import Own
from thalweg.training.recorded import read_run
from thalweg.training.recorder import Recorder
from thalweg.training.schedule import AtSteps, Every, LogSpaced, as_schedule
from thalweg.training.sketch import CountSketch

FREE = float("inf")


def recorded(folder, model, steps, *, optimizer=None, batches=1, after=None, penalty=0.0, **settings):
    """Take ``steps`` steps on the same data and return the run, and the gradients of each step's examples."""
    x, y = classification(12)
    twin = copy.deepcopy(model)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"quantities": {"noise": 1, "gradient": 1}, "budget": FREE, **settings}
    examples = []
    with Recorder(folder, model, optimizer, **settings) as recorder:
        for _ in range(steps):
            twin.load_state_dict(model.state_dict())
            if batches == 1:
                ones = zip(x.split(1), y.split(1), strict=True)
                examples.append(torch.stack([flat_gradient(twin, *one) for one in ones]))
            optimizer.zero_grad()
            for part, answers in zip(x.chunk(batches), y.chunk(batches), strict=True):
                loss = cross_entropy(model(part), answers) / batches
                squares = sum(p.square().sum() for p in model.parameters())
                recorder.loss(loss + penalty * squares).backward()
            if after is not None:
                after(model)
            optimizer.step()
    return read_run(folder), examples


def flat_gradient(model, x, y):
    gradients = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients])


def noise_of(rows):
    """tr Σ/B of independent examples, by definition."""
    return float(rows.var(dim=0, unbiased=True).sum()) / len(rows)


class TestNoise:
    def test_it_is_the_sample_covariance_of_the_examples_gradients(self, tmp_path):
        run, examples = recorded(tmp_path / "a", mlp(), 3)
        for step, rows in enumerate(examples):
            assert run.series("grad/noise")[1][step] == pytest.approx(noise_of(rows), rel=1e-6)
            square = float(rows.mean(0).square().sum()) - noise_of(rows)
            assert run.series("grad/square")[1][step] == pytest.approx(square, rel=1e-6, abs=1e-9)

    def test_clipping_and_a_penalty_are_told_apart(self, tmp_path):
        def clip(model):
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)

        run, (rows,) = recorded(tmp_path / "a", mlp(), 1, after=clip)
        factor = 0.01**2 / float(rows.mean(0).square().sum())
        assert run.series("grad/noise")[1][0] == pytest.approx(factor * noise_of(rows), rel=1e-3)

        model = mlp()
        weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        run, (rows,) = recorded(tmp_path / "b", model, 1, penalty=0.3)
        whole = rows.mean(0) + 0.6 * weights
        assert run.series("grad/noise")[1][0] == pytest.approx(noise_of(rows), rel=1e-6)
        assert run.series("grad/square")[1][0] == pytest.approx(
            float(whole.square().sum()) - noise_of(rows), rel=1e-6
        )

    def test_accumulated_batches_show_it_for_nothing(self, tmp_path):
        """Of K batches the estimate is (K‖g₁‖² − ‖g‖²)/(K−1), whatever the layers are."""
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double())
        x, y = classification(12)
        first = cross_entropy(model(x[:4]), y[:4])
        alone = sum(float(g.square().sum()) for g in torch.autograd.grad(first, list(model.parameters())))
        run, _ = recorded(
            tmp_path / "a", model, 2, batches=3, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)
        )
        together = run.series("grad/norm")[1][1] ** 2
        steps, noise = run.series("grad/noise")
        assert list(steps) == [
            1,
            2,
        ]  # the first by the layers: it is not known yet that there will be several
        assert noise[1] == pytest.approx((alone - together) / 2, rel=1e-5)
        assert list(run.series("grad/examples")[1]) == [12, 12]

    def test_an_unbatched_step_and_weights_used_twice_are_reported_and_not_guessed(self, tmp_path):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

            def forward(self, x):
                return self.head(self.layer(torch.tanh(self.layer(x))))

        with pytest.warns(UserWarning, match="'noise' failed and is switched off.*applied twice"):
            run, _ = recorded(tmp_path / "a", seeded(Twice), 3)
        assert len(run.series("grad/noise")[0]) == 0
        assert len(run.series("grad/norm")[0]) == 3

    def test_a_model_can_be_copied_and_saved_whole_while_it_is_watched(self, tmp_path):
        model, file = mlp(), io.BytesIO()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(tmp_path / "a", model, optimizer, quantities={"noise": [1]}):
            assert model[0]._forward_hooks
            twin = copy.deepcopy(model)
            torch.save(model, file)
            for one in (twin, torch.load(io.BytesIO(file.getvalue()), weights_only=False)):
                one(classification(12)[0]).sum().backward()
            assert model[0].weight.grad is None

    def test_the_noise_scale_is_a_ratio_of_averages(self, tmp_path):
        run, _ = recorded(tmp_path / "a", mlp(), 5)
        noise, square = run.series("grad/noise")[1], run.series("grad/square")[1]
        weights = 0.9 ** torch.arange(4, -1, -1, dtype=torch.float64).numpy()
        expected = 12 * (noise * weights).sum() / (square * weights).sum()
        if expected > 0:
            assert run.noise_scale()[1][-1] == pytest.approx(expected, rel=1e-9)


class TestOtherQuantities:
    def test_paths_are_exact_for_few_weights(self, tmp_path):
        model, way = mlp(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        way.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        optimizer.register_step_post_hook(
            lambda *_: way.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        )
        wanted = {"path": 2, "update": 1, "rank": [1]}
        run, _ = recorded(tmp_path / "a", model, 5, optimizer=optimizer, quantities=wanted)
        steps, distance = run.series("dist/init")
        assert list(steps) == [1, 3, 5]
        assert distance[1] == pytest.approx(float((way[3] - way[0]).norm()), rel=1e-12)
        a, b = way[1] - way[0], way[2] - way[1]
        assert run.series("step/cos_prev")[1][0] == pytest.approx(
            float(a @ b / a.norm() / b.norm()), rel=1e-9
        )
        assert run.series("update/ratio")[1][0] == pytest.approx(float(a.norm() / way[0].norm()), rel=1e-9)
        values = torch.linalg.svdvals(model[0].weight)
        assert 1 <= run.series("rank/0")[1][0] <= len(values)

    def test_curvature_and_critical_length_on_a_quadratic_are_those_of_its_hessian(self, tmp_path):
        curvatures = torch.tensor([5.0, 2.0, 0.5, 0.1], dtype=torch.float64)

        class Bowl(nn.Module):
            def __init__(self):
                super().__init__()
                self.point = nn.Parameter(torch.tensor([0.3, -1.0, 2.0, 4.0], dtype=torch.float64))

            def forward(self, x):
                return x * (curvatures * self.point.square()).sum() / 2

        model = Bowl()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        one, wanted = torch.ones(1, dtype=torch.float64), {"critical_sharpness": 1, "curvature": 1, "lr": 1}
        gradients = []
        with Recorder(
            tmp_path / "a",
            model,
            optimizer,
            loss=lambda m, b: m(b).mean(),
            probe=one,
            quantities=wanted,
            budget=FREE,
        ) as recorder:
            for _ in range(3):
                gradients.append(curvatures * model.point.detach())
                optimizer.zero_grad()
                recorder.loss(model(one).mean()).backward()
                optimizer.step()
        run = read_run(tmp_path / "a")
        assert run.series("curv/lambda_max")[1] == pytest.approx([5.0] * 3, rel=1e-9)
        assert run.series("curv/lambda_max_x_lr_half")[1] == pytest.approx([0.125] * 3, rel=1e-9)
        rayleigh = [float(g @ (curvatures * g) / (g @ g)) for g in gradients]
        assert run.series("curv/critical")[1] == pytest.approx(rayleigh, rel=0.03)

    @pytest.mark.parametrize("root", [0.01, 1.0, 1.9, 2.0, 37.0, 4000.0])
    def test_the_critical_length_is_found_in_ten_evaluations(self, root):
        found = crossing(lambda s: 3 - s + s * s / root, start=2.0)
        assert found.scale == pytest.approx(root, rel=0.03)
        assert found.lower <= root <= found.upper
        assert found.evaluations <= 10

    def test_a_step_uphill_and_one_without_end_have_no_critical_length(self):
        assert math.isnan(crossing(lambda s: 3 + s).scale)
        assert crossing(lambda s: 3 - s).scale == math.inf
        assert crossing(lambda s: 3 - s if s < 1.3 else math.nan).scale == pytest.approx(1.3, rel=0.05)

    def test_sketches_keep_lengths_and_angles(self):
        rng = torch.Generator().manual_seed(3)
        errors, dots = [], []
        for seed in range(30):
            sketch = CountSketch(20_000, seed=seed)
            a, b = torch.randn(2, 20_000, generator=rng)
            errors.append(float(sketch.of([a]).norm() / a.norm()) - 1)
            dots.append(float(sketch.of([a]) @ sketch.of([b]) - a @ b) / float(a.norm() * b.norm()))
        assert 0.5 * sketch.error < torch.tensor(errors).square().mean().sqrt() < 1.5 * sketch.error
        assert abs(sum(dots) / 30) < 3 * 512**-0.5 / 30**0.5
        assert CountSketch(512).error == 0.0
        assert CountSketch(513).error > 0.0


class TestWhenSomethingFails:
    def test_a_quantity_that_raises_is_reported_once_and_training_goes_on(self, tmp_path):
        calls = []

        def breaks(moment):
            calls.append(moment.step)
            if moment.step == 2:
                raise ZeroDivisionError("no\nreason")
            return 1.0

        twin = mlp()
        plain, _ = recorded(tmp_path / "a", twin, 5)
        model = mlp()
        with pytest.warns(
            UserWarning, match="'breaks' failed and is switched off: ZeroDivisionError: no;"
        ) as told:
            run, _ = recorded(tmp_path / "b", model, 5, quantities={breaks: 1, "gradient": 1})
        assert len(told) == 1
        assert calls == [1, 2]
        assert [e.kind for e in run.events] == ["off", "cost"]
        assert list(run.series("breaks")[0]) == [1]
        assert list(run.series("grad/norm")[1]) == list(plain.series("grad/norm")[1])
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))

    def test_it_does_not_stop_training_where_warnings_are_errors(self, tmp_path):
        def breaks(moment):
            raise ValueError

        run, _ = recorded(tmp_path / "a", mlp(), 3, quantities={breaks: 1, "gradient": 1})
        assert len(run.series("grad/norm")[0]) == 3

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"quantities": ["noize"]}, "no quantity 'noize'.*try: 'noise'"),
            ({"quantities": ["curvature"]}, "needs a loss and a probe"),
            ({"quantities": {"loss": 0}}, "interval cannot be used"),
            ({"quantities": {"loss": "often"}}, "no schedule"),
            ({"probe": torch.ones(3, 4)}, "a probe but no loss"),
            ({"budget": 0.0}, "budget cannot be used"),
        ],
    )
    def test_what_cannot_be_recorded_is_said_at_once_and_leaves_no_hooks(self, tmp_path, settings, message):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(InputError, match=message):
            Recorder(tmp_path / "a", model, optimizer, **settings)
        assert not optimizer._optimizer_step_pre_hooks
        assert not (tmp_path / "a").exists()


class TestWhen:
    def test_schedules(self):
        def times(schedule, until):
            found, step = [], 0
            while (step := schedule.next_after(step)) is not None and step <= until:
                found.append(step)
            return found

        assert times(Every(4), 13) == [1, 5, 9, 13]
        assert times(AtSteps((9, 2)), 50) == [2, 9]
        assert times(LogSpaced(3), 100) == [1, 2, 5, 10, 22, 46, 100]
        assert as_schedule(7) == Every(7)

    def test_what_is_cheap_gets_what_it_needs_and_the_dear_share_the_rest(self):
        assert water_filled({"a": 1.0, "b": 9.0, "c": 8.0}, 7.0) == {"a": 1.0, "c": 3.0, "b": 3.0}

    @pytest.mark.parametrize("fraction", [0.02, 0.05, 0.5, math.inf])
    def test_the_budget_is_kept_and_used(self, fraction):
        """Steps of a second; costs of a thousandth to thirty seconds, on a clock of the test's own."""
        costs = {"cheap": 0.001, "middling": 0.3, "dear": 30.0}
        wanted = [
            Own(lambda m: 0.0, "cheap", Every(1)),
            Own(lambda m: 0.0, "middling", Every(2)),
            Own(lambda m: 0.0, "dear", Every(10)),
            Own(lambda m: 0.0, "promised", AtSteps((5,))),
        ]
        budget = Budget(fraction, dict.fromkeys([*costs, "promised"], 0.1))
        agenda, times = Agenda(wanted, budget, 0), dict.fromkeys([*costs, "promised"], 0)
        for step in range(1, 20_001):
            for quantity in agenda.due(step):
                times[quantity.name] += 1
                if not agenda.is_steady(quantity):
                    budget.spend(costs.get(quantity.name, 1.0), quantity.name)
                    agenda.measured(quantity, step)
                else:
                    budget.spend(costs[quantity.name])
            budget.train(1.0)
            if step % 50 == 0:
                agenda.plan(step)
        assert times["promised"] == 1
        if math.isinf(fraction):
            assert (times["cheap"], times["middling"], times["dear"]) == (20_000, 10_000, 2_000)
            return
        assert times["cheap"] > 19_800
        unseen = fraction - budget.overhead  # what is left for what no clock sees
        assert 0.4 * fraction <= unseen < 0.6 * fraction
        assert times["dear"] * 30 > 0.1 * fraction * 20_000
        assert times["middling"] * 0.3 > 0.1 * min(fraction, 0.15) * 20_000
