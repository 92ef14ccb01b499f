"""Dead and saturated units against nets in which they were planted, and no trace of having looked."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from tests.models import classification, mlp, seeded
from thalweg.diagnosis.activity import measure_activity, signal_fall
from thalweg.diagnosis.gradient import LayerSignal, measure_gradient
from thalweg.errors import InputError
from thalweg.problem.batches import Batch, Sample
from thalweg.problem.empirical_risk import EmpiricalRisk
from thalweg.problem.loss import batch_loss
from thalweg.problem.problem import Problem


def risk_of(model, data, loss=None):
    return Problem(model, loss or nn.CrossEntropyLoss(), data).measured().train


def activity(model, data, loss=None):
    risk = risk_of(model, data, loss)
    return measure_activity(risk, risk.theta)


@pytest.mark.parametrize("planted", [0, 1, 7, 8])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus])
def test_units_that_were_killed_are_counted_dead(kind, planted):
    x, y = classification(200)
    model = mlp((4, 8, 3), activation=kind)
    with torch.no_grad():
        model[0].bias.fill_(0.5)
        model[0].bias[:planted] = -1e3
    (layer,) = activity(model, (x, y))
    assert (layer.name, layer.num_units, layer.examples) == ("0", 8, 200)
    assert layer.dead == planted / 8
    assert layer.saturated == 0


def test_a_leaky_unit_never_dies():
    model = mlp((4, 8, 3), activation=nn.LeakyReLU)
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    (layer,) = activity(model, classification())
    assert layer.dead == layer.saturated == 0


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign])
def test_units_that_were_driven_to_an_end_are_counted_saturated(kind):
    model = mlp((4, 8, 3), activation=kind)
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        model[0].bias.zero_()
        model[0].bias[:3] = 1e3
        model[0].bias[3] = -1e3
    (layer,) = activity(model, classification(200))
    assert layer.saturated == 4 / 8
    assert layer.dead == layer.dormant == 0


def test_saturation_is_what_the_derivative_says():
    x, y = classification(300)
    for gain in (1, 10, 100, 1e3, 1e5):
        model = mlp((4, 16, 3), activation=nn.Sigmoid)
        with torch.no_grad():
            model[0].weight.mul_(gain)
            s = torch.sigmoid(model[0](x))
        shut = 4 * s * (1 - s) < 0.01
        (layer,) = activity(model, (x, y))
        assert layer.saturated == float((shut.double().mean(0) >= 0.99).double().mean())
    assert layer.saturated > 0.9
    assert layer.variation > 0.5  # at both ends: closed to the gradient, but the inputs are told apart


def test_dormant_units_follow_their_definition():
    x, y = classification(100)
    model = mlp((4, 10, 3), activation=nn.ReLU)
    with torch.no_grad():
        model[0].weight[:4] *= 1e-3
        model[0].bias[:4] = 1e-3
        score = model[:2](x).abs().mean(0)
    expected = float((score <= 0.025 * score.mean()).double().mean())
    (layer,) = activity(model, (x, y))
    assert layer.dormant == expected >= 0.4
    assert layer.dead == 0


def images(num=40, dtype=torch.float64):
    rng = torch.Generator().manual_seed(3)
    return torch.randn(num, 1, 6, 6, generator=rng, dtype=dtype), torch.randint(0, 3, (num,), generator=rng)


def test_a_unit_of_a_convolution_is_a_channel():
    def build():
        return nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
        ).double()

    model = seeded(build)
    with torch.no_grad():
        model[1].bias.fill_(0.1)
        model[1].bias[1] = model[1].bias[3] = -1e3
    (layer,) = activity(model, images())
    assert (layer.name, layer.num_units, layer.dead) == ("0", 5, 2 / 5)


def test_a_channel_of_a_one_dimensional_convolution_is_not_taken_for_a_position():
    model = seeded(
        lambda: nn.Sequential(nn.Conv1d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(170, 3)).double()
    )
    with torch.no_grad():
        model[0].bias[0] = -1e3
    x, y = images()
    (layer,) = activity(model, (x.reshape(40, 1, 36), y))
    assert (layer.num_units, layer.dead) == (5, 1 / 5)


class Tokens(nn.Module):
    """(batch, length) of numbers to class scores, by a layer over features, with functional activations."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.inner = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, tokens):
        return self.head(relu(self.inner(self.embed(tokens)), inplace=True).mean(1))


def test_functional_activations_are_seen_and_features_of_tokens_are_units():
    model = seeded(Tokens)
    with torch.no_grad():
        model.inner.bias.fill_(10.0)
        model.inner.bias[2] = -1e3
    rng = torch.Generator().manual_seed(0)
    data = [
        (torch.randint(0, 9, (3, length), generator=rng), torch.tensor([0, 1, 2])) for length in (4, 7, 5)
    ]
    (layer,) = activity(model, data)  # batches of other lengths cannot be joined
    assert (layer.name, layer.activation, layer.num_units, layer.dead) == ("inner", "relu", 4, 1 / 4)


class Shared(nn.Module):
    """One activation module for two layers, one layer called twice, a tuple on the way."""

    def __init__(self):
        super().__init__()
        self.first, self.loop, self.act = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU()
        self.rnn, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        h = self.act(self.first(x))
        for _ in range(3):
            h = self.act(self.loop(h))
        steps, _ = self.rnn(h[:, None])
        return self.head(steps[:, -1]), h


def test_a_shared_activation_is_told_apart_by_the_layer_that_feeds_it():
    model = seeded(Shared).double()
    with torch.no_grad():
        model.first.bias[:2] = -1e3
        model.loop.bias.fill_(1.0)
        model.loop.bias[:1] = -1e3
    layers = activity(model, classification(60))
    assert [(a.name, a.num_units, a.dead) for a in layers] == [("first", 6, 2 / 6), ("loop", 6, 1 / 6)]


@pytest.mark.parametrize("mapped", [False, True])
def test_calls_that_cannot_be_looked_into_stay_unseen(mapped):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x):
            if mapped:
                return torch.func.vmap(lambda row: torch.tanh(self.body(row)))(x)
            return torch.tanh(self.body(x.to_sparse().to_dense())) + torch.relu(torch.tensor(1.0))

    model = seeded(Odd)
    risk = risk_of(model, classification(dtype=torch.float32))
    value = risk.value(risk.theta)
    seen = measure_activity(risk, risk.theta)
    assert [a.activation for a in seen] == ([] if mapped else ["tanh"])
    assert risk.value(risk.theta) == value


def test_activations_of_the_loss_are_not_the_models():
    def loss(model, batch):
        return torch.sigmoid(100 * model(batch[0])).mean() + relu(batch[0]).mean()

    model = mlp((4, 8, 3), activation=nn.Tanh)
    assert [a.activation for a in activity(model, classification(), loss)] == ["tanh"]


def test_a_model_without_activations_has_nothing_to_show():
    assert activity(mlp((4, 3)), classification()) == ()


def test_variation_is_the_spread_over_examples_relative_to_the_size():
    x, y = classification(150)
    model = mlp((4, 8, 3), activation=nn.Sigmoid)
    (layer,) = activity(model, (x, y))
    h = model[:2](x).detach()
    assert layer.variation == pytest.approx(
        math.sqrt(float(h.var(0).mean()) / float(h.square().mean())), rel=1e-9
    )
    with torch.no_grad():
        model[0].weight.zero_()
    assert activity(model, (x, y))[0].variation == pytest.approx(0, abs=1e-7)


def test_positions_do_not_count_as_variation():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.places = nn.Parameter(torch.arange(12.0).reshape(3, 4))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.places + 0 * x[:, :1, None]).mean(1))

    (layer,) = activity(seeded(Places), classification(dtype=torch.float32))
    assert layer.name == ""  # the model itself holds the weights
    assert layer.variation == 0


@pytest.mark.parametrize("num", [1, 2, 33])
def test_few_examples_are_said_to_be_few(num):
    (layer,) = activity(mlp((4, 8, 3), activation=nn.ReLU), classification(num))
    assert layer.examples == num
    assert (layer.variation is None) == (num == 1)
    assert 0 <= layer.dead <= 1


def test_uneven_batches_count_every_example_once():
    x, y = classification(37)
    model = mlp((4, 8, 3), activation=nn.ReLU)
    batches = tuple(Batch((a, b), len(a)) for a, b in zip(x.split(16), y.split(16), strict=True))
    assert [b.examples for b in batches] == [16, 16, 5]
    whole, cut = (
        EmpiricalRisk(model, batch_loss(nn.CrossEntropyLoss()), sample)
        for sample in (
            Sample((Batch((x, y), 37),), None, True, ""),
            Sample(batches, 16, True, "", joinable=False),
        )
    )
    (one,), (other,) = measure_activity(whole, whole.theta), measure_activity(cut, cut.theta)
    assert one.dead == other.dead
    assert one.variation == pytest.approx(other.variation, rel=1e-12)


def test_looking_costs_a_forward_pass():
    risk = risk_of(mlp(), classification())
    before = risk.ledger.gradient_equivalents
    measure_activity(risk, risk.theta)
    assert risk.ledger.gradient_equivalents - before == pytest.approx(1 / 3)


def hooks_of(model):
    return [
        (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)) for m in model.modules()
    ]


def test_looking_leaves_no_trace():
    x, y = images()

    def build():
        return nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(80, 3),
        ).double()

    model = seeded(build).train()
    seen = []
    model[2].register_forward_hook(lambda *_: seen.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = hooks_of(model)
    risk = risk_of(model, (x, y))
    value = risk.value(risk.theta)
    measure_activity(risk, risk.theta)
    assert risk.value(risk.theta) == value
    assert hooks_of(model) == hooks
    assert seen
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_no_hook_stays_when_the_model_fails():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.broken = nn.Linear(4, 3), False

        def forward(self, x):
            h = relu(self.body(x))
            if self.broken:
                raise ValueError("broken")
            return h

    model = seeded(Fails).double()
    hooks = hooks_of(model)
    risk = risk_of(model, classification())
    model.broken = True
    with pytest.raises(InputError, match="broken"):
        measure_activity(risk, risk.theta)
    assert hooks_of(model) == hooks
    model.broken = False
    assert risk.value(risk.theta) > 0
    assert torch.relu(torch.tensor([-1.0])) == 0  # and functions are themselves again


def test_the_deep_sigmoid_net_is_not_saturated_but_tells_nothing_apart():
    problem = Problem.builtin("digits-deep-sigmoid")
    risk = problem.measured().train
    layers = measure_activity(risk, risk.theta)
    assert [layer.name for layer in layers] == ["0", "2", "4", "6", "8", "10"]
    assert all(layer.saturated == 0 for layer in layers)
    spread = [layer.variation for layer in layers]
    assert all(4 < a / b < 12 for a, b in pairwise(spread))
    fall = signal_fall(measure_gradient(risk, risk.theta, seed=0).layers)
    low, high = fall.interval()
    assert 4 < low < fall.factor < high < 12
    assert (fall.first, fall.last, fall.num_layers) == ("0", "12", 7)


def test_a_net_at_its_minimum_is_healthy():
    risk = Problem.builtin("digits-mlp").measured().train
    layers = measure_activity(risk, risk.theta)
    assert len(layers) == 2
    assert all(layer.dead == layer.saturated == 0 and layer.variation > 0.5 for layer in layers)
    low, high = signal_fall(measure_gradient(risk, risk.theta, seed=0).layers).interval()
    assert low < 1 < high


def layers_of(signals):
    return [LayerSignal(str(i), signal) for i, signal in enumerate(signals)]


def test_an_exact_geometric_fall_is_found_exactly():
    fall = signal_fall(layers_of([1e-4, 1e-3, 1e-2, 1e-1]))
    assert fall.factor == pytest.approx(10)
    assert fall.log_factor.stderr == pytest.approx(0, abs=1e-12)
    assert fall.interval() == pytest.approx((10, 10))


def test_layers_without_signal_are_left_out_of_the_fit():
    fall = signal_fall(layers_of([0.0, 0.0, 1e-2, 1e-1, 1.0]))
    assert (fall.first, fall.last, fall.num_layers) == ("2", "4", 3)
    assert fall.factor == pytest.approx(10)
    assert signal_fall(layers_of([])) is None
    assert signal_fall(layers_of([1.0])) is None
    assert signal_fall(layers_of([0.0, 1.0, math.nan])) is None


def test_two_layers_give_a_factor_without_an_error():
    fall = signal_fall(layers_of([1.0, 5.0]))
    assert fall.factor == pytest.approx(5)
    assert fall.interval() == (0.0, math.inf)


def test_the_interval_of_the_fall_covers_the_truth_as_often_as_stated():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        signals = np.exp(0.7 * np.arange(6) + rng.normal(size=6))
        low, high = signal_fall(layers_of(signals)).interval(0.9)
        covered += low < math.exp(0.7) < high
    assert covered / 500 == pytest.approx(0.9, abs=3 * math.sqrt(0.09 / 500))
