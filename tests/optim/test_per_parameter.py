"""What LAMB, LARS and Rprop with backtracking owe to whoever uses them as optimisers of torch."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from thalweg.errors import InputError, NumericalError
from thalweg.optim.lamb import LAMB
from thalweg.optim.lars import LARS
from thalweg.optim.rprop_plus import RpropPlus
from thalweg.rng import generator

MAKERS = {
    "lamb": lambda params, **more: LAMB(params, **{"lr": 0.02, **more}),
    "lamb, foreach": lambda params, **more: LAMB(params, **{"lr": 0.02, "foreach": True, **more}),
    "lars": lambda params, **more: LARS(params, **{"lr": 0.05, "trust": 0.2, "weight_decay": 0.01, **more}),
    "irprop+": lambda params, **more: RpropPlus(params, **{"lr": 0.02, **more}),
    "rprop+": lambda params, **more: RpropPlus(params, **{"lr": 0.02, "variant": "rprop+", **more}),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


class Training:
    """A small regression that an optimiser goes down."""

    def __init__(self, make, seed=0, **more):
        rng = generator(seed, "training")
        self.x, self.y = (torch.randn(20, n, generator=rng, dtype=torch.float64) for n in (4, 2))
        self.parameters = [
            torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_()
            for s in [(4, 6), (6,), (6, 2), (2,)]
        ]
        self.optimiser = make(self.parameters, **more)

    def loss(self):
        first, bias, second, other = self.parameters
        return (torch.tanh(self.x @ first + bias) @ second + other - self.y).square().mean()

    def closure(self):
        self.optimiser.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def run(self, steps):
        return [float(self.optimiser.step(self.closure)) for _ in range(steps)]

    def point(self):
        return [p.detach().clone() for p in self.parameters]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@each
def test_the_loss_falls(make):
    losses = Training(make).run(60)
    assert losses[-1] < 0.8 * losses[0]


@each
def test_training_resumed_is_training_not_interrupted(make):
    whole, first = Training(make), Training(make)
    whole.run(14)
    first.run(7)
    file = io.BytesIO()
    torch.save({"weights": first.point(), "optimiser": first.optimiser.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = Training(make)
    with torch.no_grad():
        for parameter, value in zip(second.parameters, saved["weights"], strict=True):
            parameter.copy_(value)
    second.optimiser.load_state_dict(saved["optimiser"])
    second.run(7)
    assert equal(second.point(), whole.point())


@each
def test_a_copy_and_a_pickle_go_on_like_the_original(make):
    training = Training(make)
    training.run(3)
    copied, pickled = copy.deepcopy(training), pickle.loads(pickle.dumps(training.optimiser))
    training.run(3)
    copied.run(3)
    assert equal(copied.point(), training.point())
    assert pickled.state_dict()["param_groups"][0].keys() == training.optimiser.param_groups[0].keys()


@each
def test_the_step_returns_the_loss_where_it_began(make):
    training = Training(make)
    before = float(training.loss().detach())
    assert float(training.optimiser.step(training.closure)) == before


@each
def test_up_on_minus_the_loss_is_down_on_the_loss(make):
    down, up = Training(make), Training(make, maximize=True)
    plain = up.loss
    up.loss = lambda: -plain()
    down.run(8)
    up.run(8)
    assert equal(down.point(), up.point())


@each
def test_frozen_parameters_and_those_without_gradient_stay(make):
    training = Training(make)
    training.run(2)
    training.parameters[0].requires_grad_(False)
    idle = torch.ones(3, 3, requires_grad=True)
    training.optimiser.add_param_group({"params": [idle]})
    before = training.point()
    training.run(3)
    assert torch.equal(training.parameters[0], before[0])
    assert not torch.equal(training.parameters[1], before[1])
    assert torch.equal(idle, torch.ones(3, 3))
    assert idle not in training.optimiser.state


@each
def test_an_empty_group_and_a_single_number_are_fine(make):
    number = torch.tensor(2.0, requires_grad=True)
    optimiser = make([{"params": []}, {"params": [number]}])

    def closure():
        optimiser.zero_grad()
        loss = number.square()
        loss.backward()
        return loss

    for _ in range(3):
        optimiser.step(closure)
    assert 0 < number.item() < 2


@each
def test_a_loss_that_is_no_number_moves_nothing(make):
    training = Training(make)
    training.run(3)
    before, saved = training.point(), copy.deepcopy(training.optimiser.state_dict())
    training.x[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="the loss is not finite, and no step was taken; got: nan"):
        training.optimiser.step(training.closure)
    assert equal(training.point(), before)
    now = training.optimiser.state_dict()
    torch.testing.assert_close(now["state"], saved["state"], rtol=0, atol=0)
    assert now["param_groups"] == saved["param_groups"]


@each
def test_a_sparse_gradient_is_refused_before_anything_moves(make):
    table, weight = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = make([{"params": [weight]}, {"params": [table]}])

    def closure():
        optimiser.zero_grad()
        looked_up = nn.functional.embedding(torch.tensor([1, 2]), table, sparse=True)
        loss = (looked_up @ weight).square().mean()
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"a gradient is sparse.*SparseAdam"):
        optimiser.step(closure)
    assert torch.equal(weight, torch.ones(2, 2))


@each
def test_complex_parameters_are_refused(make):
    with pytest.raises(InputError, match=r"a parameter is complex.*view_as_real"):
        make([torch.ones(2, dtype=torch.complex64, requires_grad=True)])


@each
def test_a_group_with_bad_settings_is_not_taken_in(make):
    training = Training(make)
    with pytest.raises(InputError, match="lr is out of its range"):
        training.optimiser.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": -1.0})
    assert len(training.optimiser.param_groups) == 1


@each
def test_a_closure_without_return_is_refused(make):
    training = Training(make)
    with pytest.raises(InputError, match="a missing return"):
        training.optimiser.step(lambda: None)


@each
def test_steps_leave_no_tensors_behind(make, live_tensors):
    training = Training(make)
    training.run(3)
    before = live_tensors()
    training.run(50)
    assert live_tensors() <= before


@pytest.mark.parametrize("name", ["lamb", "lamb, foreach", "lars"])
def test_a_scheduler_sets_the_rate(name):
    training = Training(MAKERS[name])
    scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimiser, lambda step: float(step == 0))
    training.run(1)
    scheduler.step()
    if name == "lars":  # the velocity holds steps of the rate before
        training.optimiser.state.clear()
    before = training.point()
    training.run(1)
    assert equal(training.point(), before)


@pytest.mark.parametrize("name", ["lamb", "lamb, foreach", "lars"])
def test_gradients_made_beforehand_need_no_closure(name):
    one, other = Training(MAKERS[name]), Training(MAKERS[name])
    one.run(4)
    for _ in range(4):
        other.closure()
        assert other.optimiser.step() is None
    assert equal(one.point(), other.point())


@pytest.mark.parametrize("name", ["lamb", "lars", "rprop+"])
def test_groups_of_their_own_settings_are_optimisers_of_their_own(name):
    """The gradients are fixed, so that nothing else ties the two together."""
    rng = generator(0, "groups")
    gradients = torch.randn(5, 2, 3, 4, generator=rng)

    def walk(optimiser, parameters, rows):
        for row in rows:
            for parameter, gradient in zip(parameters, row, strict=True):
                parameter.grad = gradient.clone()
            optimiser.step()

    both = [torch.ones(3, 4, requires_grad=True) for _ in range(2)]
    walk(MAKERS[name]([{"params": [both[0]], "lr": 0.1}, {"params": [both[1]], "lr": 0.2}]), both, gradients)
    for index, rate in enumerate((0.1, 0.2)):
        alone = torch.ones(3, 4, requires_grad=True)
        walk(MAKERS[name]([alone], lr=rate), [alone], gradients[:, index : index + 1])
        assert torch.equal(alone, both[index])
