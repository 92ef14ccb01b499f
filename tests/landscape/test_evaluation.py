"""Many points at once give the losses of one point at a time, and leave no trace."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import classification, mlp, seeded
from thalweg.estimates import paired_difference
from thalweg.landscape.evaluation import Family, evaluate
from thalweg.problem.function_objective import FunctionObjective
from thalweg.problem.problem import Problem


class Normalised(nn.Module):
    """Convolution, batch norm with statistics that are not the default, dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
        )

    def forward(self, x):
        return self.body(x)


class Padded(nn.Module):
    """An embedding whose padding row no step ever moves."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3, padding_idx=0)
        self.head = nn.Linear(3, 3)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(1))


class Viewing(nn.Module):
    """Fails on images laid out channels last."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), 16))


class Branching(nn.Module):
    """Asks for a number inside forward, which vmap cannot give."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        scale = 2.0 if self.head.weight.sum().item() > 0 else 1.0
        return scale * self.head(x)


def images(channels=1):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(19, channels, 4, 4, generator=rng), torch.randint(0, 3, (19,), generator=rng)


def tokens():
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 7, (19, 5), generator=rng), torch.randint(0, 3, (19,), generator=rng)


def statistics_moved(model):
    model.body[1].running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.5]))
    model.body[1].running_var.copy_(torch.tensor([0.5, 2.0, 1.0, 3.0]))
    return model


CASES = {
    "mlp": lambda: (mlp((4, 8, 3), dtype=torch.float32), classification(37, dtype=torch.float32)),
    "batch norm and dropout, in training mode": lambda: (
        statistics_moved(seeded(Normalised)).train(),
        images(),
    ),
    "padding": lambda: (seeded(Padded), tokens()),
    "view of images": lambda: (seeded(Viewing), images(2)),
    "a number inside forward": lambda: (seeded(Branching), classification(37, dtype=torch.float32)),
}


def opened(case, loss=None):
    model, data = CASES[case]()
    objective = Problem(model, loss or nn.CrossEntropyLoss(), data).measured().train
    rng = torch.Generator().manual_seed(2)
    span = torch.randn(2, len(objective.theta), generator=rng) / 3
    return objective, Family(objective.theta, span)


PLACES = np.array([(a, b) for a in (-1.0, 0.0, 0.7) for b in (-0.5, 0.0, 2.0)])


@pytest.mark.parametrize("memory", [1, 16 << 20])
@pytest.mark.parametrize("case", CASES)
def test_the_losses_are_those_of_the_objective_at_each_point(case, memory):
    objective, family = opened(case)
    wanted = [objective.value(point) for point in family.at(PLACES)]
    for by in ("whole", "groups"):
        losses, how = evaluate(objective, family, PLACES, by=by, memory=memory)
        assert losses.means() == pytest.approx(wanted, rel=2e-6)
        assert how.at_once == (1 if memory == 1 or case == "a number inside forward" else len(PLACES))
    assert ("cannot be run stacked" in how.reason) == (case == "a number inside forward" and memory > 1)


def test_batches_are_kept_apart_for_errors_that_are_paired():
    objective, family = opened("mlp")
    losses, _ = evaluate(objective, family, PLACES, by="groups")
    here = 4  # the origin
    for i, point in enumerate(family.at(PLACES)):
        after, counts = objective.batch_values(point)
        before, _ = objective.batch_values(family.origin)
        wanted = paired_difference(after, before, counts)
        assert losses.estimates(here)[i].stderr == pytest.approx(wanted.stderr, rel=1e-4, abs=1e-7)
    assert losses.estimates(here)[here].stderr == 0


@pytest.mark.parametrize("number", [1, 2, 4, 5, 9])
def test_chunks_of_any_size_cover_every_point_once(number):
    objective, family = opened("mlp")
    each = 2 * 4 * len(objective.theta) + objective.bytes_per_example * objective.examples
    told = []

    class Told:
        def phase(self, label): ...
        def advance(self, done, total):
            told.append((done, total))

    losses, how = evaluate(objective, family, PLACES, by="whole", memory=int(4 * each) + 1, progress=Told())
    part, _ = evaluate(objective, family, PLACES[:number], by="whole", memory=int(4 * each) + 1)
    assert how.at_once == 4
    assert part.means() == pytest.approx(losses.means()[:number], rel=1e-6)
    assert [done for done, _ in told] == [4, 8, 9]


def test_targets_that_the_loss_leaves_out_stay_left_out():
    model, (x, y) = CASES["mlp"]()
    y = y.clone()
    y[::5] = -100
    objective = Problem(model, nn.CrossEntropyLoss(), (x, y)).measured().train
    family = Family(objective.theta, torch.ones(1, len(objective.theta)))
    losses, _ = evaluate(objective, family, np.array([[0.0], [0.1]]), by="whole")
    assert losses.means()[0] == pytest.approx(objective.value(objective.theta), rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])),
        nn.CrossEntropyLoss(reduction="sum"),
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
    ],
)
def test_other_losses_are_called_as_they_are(loss):
    objective, family = opened("mlp", loss)
    wanted = [objective.value(point) for point in family.at(PLACES)]
    losses, _ = evaluate(objective, family, PLACES, by="whole")
    assert losses.means() == pytest.approx(wanted, rel=2e-6)


def test_an_overflow_far_out_is_kept_as_it_is():
    function = FunctionObjective(lambda x: torch.exp(x.square()).sum(), torch.zeros(1, dtype=torch.float64))
    family = Family(function.theta, torch.ones(1, 1, dtype=torch.float64))
    losses, _ = evaluate(function, family, np.array([[0.0], [1e3], [1.0]]), by="groups")
    assert losses.means()[1] == np.inf
    assert losses.means()[[0, 2]] == pytest.approx([1.0, np.e])


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("memory", [1, 16 << 20])
def test_nothing_is_left_behind(memory, fails):
    model, data = CASES["batch norm and dropout, in training mode"]()
    objective = Problem(model, nn.CrossEntropyLoss(), data).measured().train
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    held = [id(p) for p in model.parameters()]
    family = Family(objective.theta, torch.ones(1, len(objective.theta)))

    class Stops:
        def phase(self, label): ...
        def advance(self, done, total):
            if fails:
                raise ZeroDivisionError

    places = np.linspace(0, 1, 5)[:, None]
    if fails:
        with pytest.raises(ZeroDivisionError):
            evaluate(objective, family, places, by="whole", memory=memory, progress=Stops())
    else:
        evaluate(objective, family, places, by="whole", memory=memory, progress=Stops())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [id(p) for p in model.parameters()] == held
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
