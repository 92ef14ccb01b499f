"""Stepping a copy is what the user's optimiser would have done, and leaves it alone."""

import copy

import pytest
import torch
from torch import nn

from tests.models import classification, mlp
from thalweg.diagnosis.continuation import continue_training, stream
from thalweg.errors import InputError
from thalweg.problem.problem import Problem
from thalweg.problem.stepping import stepping_from_optimizer, stepping_from_state

MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=1),
}


def warmed(name):
    """A model and its optimiser after a few real steps, so that there is state."""
    model = mlp()
    optimizer = MAKERS[name](model.parameters())
    x, y = classification()

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return model, optimizer, closure, (x, y)


@pytest.mark.parametrize("name", MAKERS)
def test_steps_on_a_copy_equal_the_users_own(name):
    model, optimizer, closure, data = warmed(name)
    torch.optim.lr_scheduler.StepLR(optimizer, 100)
    problem = Problem(model, nn.CrossEntropyLoss(), data, optimizer=optimizer)
    objective = problem.measured().train
    stepping = problem.stepping()
    state, theta = repr(optimizer.state_dict()), objective.theta
    there, _ = continue_training(objective, theta, stepping, stream(objective, stepping, 0, "x"), steps=4)
    assert torch.equal(objective.theta, theta)
    assert repr(optimizer.state_dict()) == state
    for _ in range(4):
        optimizer.step(closure)
    assert torch.allclose(objective.theta, there, atol=1e-12)
    assert not torch.allclose(objective.theta, theta)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad"])
def test_an_optimiser_is_rebuilt_from_the_state_in_a_checkpoint(name):
    model, optimizer, _, data = warmed(name)
    saved = copy.deepcopy(optimizer.state_dict())
    problem = Problem(model, nn.CrossEntropyLoss(), data)
    objective = problem.measured().train
    rebuilt = stepping_from_state(saved, problem.parameters(), None)
    assert rebuilt is not None
    own = Problem(model, nn.CrossEntropyLoss(), data, optimizer=optimizer).stepping()
    paths = [
        continue_training(objective, objective.theta, s, stream(objective, s, 0, "x"), steps=3)[0]
        for s in (rebuilt, own)
    ]
    assert torch.allclose(*paths, atol=1e-12)
    assert (rebuilt.name, rebuilt.lr) == (own.name, own.lr)


def test_a_state_of_an_unknown_kind_is_no_stepping():
    parameters = list(mlp().parameters())
    assert (
        stepping_from_state({"param_groups": [{"lr": 0.1, "params": [0, 1, 2, 3]}]}, parameters, None) is None
    )
    assert stepping_from_state({}, parameters, None) is None
    sgd = torch.optim.SGD(mlp((4, 3)).parameters(), lr=0.1).state_dict()
    assert stepping_from_state(sgd, parameters, None) is None


def test_an_optimiser_of_another_model_is_refused():
    x, y = classification()
    other = torch.optim.SGD(mlp(seed=1).parameters(), lr=0.1)
    with pytest.raises(InputError, match="none of the model's trainable parameters"):
        Problem(mlp(), nn.CrossEntropyLoss(), (x, y), optimizer=other).stepping()
    with pytest.raises(InputError, match="wrong type"):
        Problem(mlp(), nn.CrossEntropyLoss(), (x, y), optimizer="adam").stepping()


def test_parameters_that_the_optimiser_lacks_stay_and_are_counted():
    model = mlp()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    problem = Problem(model, nn.CrossEntropyLoss(), classification(), optimizer=optimizer)
    objective = problem.measured().train
    stepping = problem.stepping()
    there, _ = continue_training(
        objective, objective.theta, stepping, stream(objective, stepping, 0, "x"), steps=2
    )
    first = objective.space.slices()["0.weight"]
    assert stepping.num_missing == 2
    assert torch.equal(there[first], objective.theta[first])
    assert not torch.equal(there, objective.theta)


def test_a_sum_reduction_steps_with_the_sum_as_the_user_does():
    x, y = classification(16)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    problem = Problem(model, nn.CrossEntropyLoss(reduction="sum"), (x, y), optimizer=optimizer)
    objective, theta = problem.measured().train, None
    stepping, theta = problem.stepping(), problem.measured().train.theta
    there, _ = continue_training(objective, theta, stepping, stream(objective, stepping, 0, "x"), steps=1)
    assert torch.allclose(there, theta - 1e-3 * 16 * objective.gradient(theta), atol=1e-14)


class Tweaked(torch.optim.SGD):
    """A class of the user's own with a step of its own."""

    def step(self, closure=None):
        return super().step(closure)


def test_settings_and_state_of_each_tensor_are_there_in_the_order_of_theta():
    model, optimizer, _, data = warmed("adam")
    head = torch.optim.Adam([{"params": model[2].parameters(), "lr": 0.5}])
    whole = Problem(model, nn.CrossEntropyLoss(), data, optimizer=optimizer).stepping()
    part = Problem(model, nn.CrossEntropyLoss(), data, optimizer=head).stepping()
    for tensor, p in zip(whole.tensors, model.parameters(), strict=True):
        assert tensor.size == p.numel()
        assert torch.equal(tensor.state["exp_avg_sq"], optimizer.state[p]["exp_avg_sq"])
        assert tensor.settings["lr"] == 1e-2
    assert [bool(tensor.settings) for tensor in part.tensors] == [False, False, True, True]
    assert [tensor.size for tensor in part.tensors] == [32, 8, 24, 3]
    assert part.tensors[2].settings["lr"] == 0.5
    assert part.tensors[2].state == {}


def test_the_rule_is_the_step_that_is_taken_whatever_the_class_is_called():
    parameters = list(mlp().parameters())

    def rule(optimizer):
        return stepping_from_optimizer(optimizer, parameters, None).rule

    assert rule(torch.optim.AdamW(parameters)) == "Adam"
    assert rule(torch.optim.RMSprop(parameters)) == "RMSprop"
    assert rule(torch.optim.Adagrad(parameters)) == "Adagrad"
    assert rule(type("Mine", (torch.optim.SGD,), {})(parameters, lr=0.1)) == "SGD"
    assert rule(Tweaked(parameters, lr=0.1)) is None
