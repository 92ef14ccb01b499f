"""Sharpness of models: dense oracles, what rescaling changes and what not, and what is told."""

import copy
import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import thalweg
from tests.models import classification, mlp
from thalweg.cli.sharpness import command
from thalweg.curvature.hessian import choose_hessian
from thalweg.curvature.sharpness import Sharpness, sharpness
from thalweg.curvature.spectrum import find_extremes
from thalweg.curvature.stability import measure_stability
from thalweg.problem.problem import Problem


def problem_of(model, optimizer=None, loss=None, num=37, batch_size=None):
    data = classification(num)
    if batch_size is not None:
        set_of = torch.utils.data.TensorDataset(*data)
        data = torch.utils.data.DataLoader(set_of, batch_size=batch_size)
    return Problem(model, loss or nn.CrossEntropyLoss(), data, optimizer=optimizer)


def dense_hessian(problem):
    objective = problem.measured().train
    theta = objective.theta
    return torch.stack(
        [objective.hvp(theta, unit) for unit in torch.eye(len(theta), dtype=theta.dtype)]
    ), theta


def test_curvatures_agree_with_dense_ones():
    problem = problem_of(mlp())
    hessian, theta = dense_hessian(problem)
    found = sharpness(problem)
    relative = theta.abs()[:, None] * hessian * theta.abs()
    for measured, matrix in ((found.lambda_max, hessian), (found.adaptive, relative)):
        assert abs(measured.value - float(torch.linalg.eigvalsh(matrix)[-1])) <= measured.bound
        assert measured.bound < 1e-2 * measured.value
    trace = float(hessian.trace())
    assert abs(found.trace.value - trace) <= 4 * found.trace.stderr + 1e-9
    assert found.num_parameters == len(theta)


@pytest.mark.parametrize("alpha", [1.0, 5.0, 25.0])
def test_rescaling_a_relu_net_changes_all_but_the_adaptive_measure(alpha):
    model = mlp((4, 8, 3), activation=nn.ReLU)
    scaled = copy.deepcopy(model)
    with torch.no_grad():  # Dinh et al. 2017: the same function of the inputs
        scaled[0].weight *= alpha
        scaled[0].bias *= alpha
        scaled[2].weight /= alpha
    x, _ = classification()
    assert torch.allclose(model(x), scaled(x), atol=1e-13)
    before, after = sharpness(problem_of(model)), sharpness(problem_of(scaled))
    assert after.loss == pytest.approx(before.loss, rel=1e-13)
    assert after.adaptive.value == pytest.approx(before.adaptive.value, rel=1e-6)
    if alpha > 1:
        assert after.lambda_max.value > 3 * before.lambda_max.value
        assert after.trace.value > 3 * before.trace.value
        assert after.keskar[0].value > 1.5 * before.keskar[0].value


def test_the_error_of_the_products_widens_every_bound():
    model, data = mlp(dtype=torch.float32), classification(37, dtype=torch.float32)
    problem = Problem(
        model, nn.CrossEntropyLoss(), data, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    objective = problem.measured().train
    noise = choose_hessian(objective, objective.theta, seed=0).noise
    assert noise > 1e-7
    found = sharpness(problem)
    assert found.lambda_max.bound >= noise * found.lambda_max.value
    assert found.adaptive.bound >= noise * found.adaptive.value
    assert found.stability.bound >= noise * found.stability.curvature
    assert found.trace.stderr >= noise * abs(found.trace.value)


def test_the_measurement_leaves_no_trace_and_repeats():
    model = mlp(dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = classification(dtype=torch.float32)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer)
    first, second = sharpness(problem, seed=1), sharpness(problem, seed=1)
    after = (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()])
    assert repr(after) == repr(before)
    assert model.training
    assert first.keskar == second.keskar
    assert first.stability == second.stability
    assert first.adaptive.value == second.adaptive.value
    assert sharpness(problem, seed=2).keskar != first.keskar


def test_steps_on_a_summed_loss_meet_the_sum_of_the_curvature():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mean = sharpness(problem_of(model, optimizer))
    summed = sharpness(problem_of(model, optimizer, nn.CrossEntropyLoss(reduction="sum")))
    batches = sharpness(problem_of(model, optimizer, nn.CrossEntropyLoss(reduction="sum"), batch_size=8))
    assert summed.lambda_max.value == pytest.approx(mean.lambda_max.value)
    assert summed.stability.ratio == pytest.approx(37 * mean.stability.ratio)
    assert batches.stability.ratio == pytest.approx(8 * mean.stability.ratio)


def test_an_optimiser_handed_in_takes_the_place_of_the_problems_own():
    model = mlp()
    problem = problem_of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    other = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    assert sharpness(problem).stability.limit.rule == "gradient descent"
    assert thalweg.sharpness(problem, optimizer=other).stability.limit.lr == 0.2


def test_without_an_optimiser_the_limit_is_not_known_and_that_is_said():
    found = sharpness(problem_of(mlp()))
    assert found.stability is None
    assert found.no_stability == "no optimiser is known"
    assert "not known: no optimiser is known" in str(found)
    fresh = mlp()
    unstepped = sharpness(problem_of(fresh, torch.optim.Adam(fresh.parameters())))
    assert "Adam has taken no step yet" in str(unstepped)


@pytest.mark.parametrize(("size", "spaces"), [(1, [1]), (99, [99]), (100, [100]), (101, [101, 100])])
def test_the_random_subspace_is_left_out_where_it_would_be_the_whole_space(size, spaces):
    problem = Problem.from_function(lambda t: (t**2).sum(), torch.ones(size, dtype=torch.float64))
    found = sharpness(problem)
    assert [k.dimension for k in found.keskar] == [d for d in spaces for _ in range(2)]
    assert [k.epsilon for k in found.keskar[:2]] == [1e-3, 5e-4]
    assert found.lambda_max.value == pytest.approx(2)
    assert found.adaptive.value == pytest.approx(2)
    assert abs(found.trace.value - 2 * size) <= 4 * found.trace.stderr + 1e-9


def test_keskars_measure_is_left_out_with_its_reason_where_it_is_not_defined():
    found = sharpness(Problem.from_function(lambda t: (t**2).sum() - 3, [0.5, 0.5], lr=0.1))
    assert found.keskar == ()
    assert "relative to 1 + loss" in str(found)
    assert found.stability.ratio == pytest.approx(0.1)


def test_the_record_says_what_it_does_not_predict():
    found = sharpness(Problem.builtin("digits-mlp"))
    text = str(found)
    assert "None of them tells the error on new data" in text
    assert "of the limit" in text
    assert "100 random directions" in text
    assert "\n" not in repr(found)
    assert found.stability.ratio == pytest.approx(found.lambda_max.value * 0.1 / 2)
    assert found.cost.gradient_equivalents < 700
    plain = found.to_dict()
    assert plain["schema"] == "thalweg/sharpness@1"
    assert plain["stability"]["limit"]["formula"] == "2/η"
    assert "vector" not in plain["lambda_max"]
    assert json.loads(found.to_json()) == plain
    assert isinstance(found, Sharpness)


def test_the_verb_gives_the_record_as_json():
    done = CliRunner().invoke(command, ["saddle", "--json", "-"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["lambda_max"]["value"] == pytest.approx(2)


AT_THE_EDGE = {
    "gradient descent": lambda p: torch.optim.SGD(p, lr=0.4),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=0.6, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, betas=(0.5, 0.99)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_THE_EDGE)
def test_training_on_all_data_comes_to_the_edge_of_stability_and_stays_there(name):
    """Cohen et al. 2021 and 2022: the curvature rises until the steps hardly settle."""
    x, y = classification(60)
    target = nn.functional.one_hot(y).double()
    model = mlp((4, 20, 20, 3))
    optimizer = AT_THE_EDGE[name](model.parameters())
    problem = Problem(model, nn.MSELoss(), (x, target), optimizer=optimizer)
    ratios = {}
    for step in range(1651):
        if step in {10, 850, 1250, 1650}:
            ratios[step] = edge_ratio(problem)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    assert ratios.pop(10) < 0.7
    assert all(0.9 < ratio < 1.15 for ratio in ratios.values()), ratios


def edge_ratio(problem):
    objective = problem.measured().train
    hessian = choose_hessian(objective, objective.theta, seed=0).operator
    largest = find_extremes(hessian, seed=0, max_products=40, open_gap=1.0).lambda_max
    return measure_stability(hessian, largest, problem.stepping(), seed=0).ratio
