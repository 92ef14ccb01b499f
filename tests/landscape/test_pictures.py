"""Lines, planes and paths: what they say, against closed forms and against the objective."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import thalweg
from tests.models import classification, mlp, seeded
from thalweg.errors import InputError
from thalweg.landscape.directions import filter_normalised, random_walk_share
from thalweg.landscape.plane import trajectory_axes
from thalweg.problem.parameters import ParameterSpace
from thalweg.report.drawing import to_svg


def quadratic():
    d = torch.tensor([4.0, -1.0, 0.5], dtype=torch.float64)
    return thalweg.Problem.from_function(lambda x: 3 + 0.5 * (d * x * x).sum(), [0.0, 0.0, 0.0])


def net(seed=0):
    return thalweg.Problem(
        mlp((4, 8, 3), seed=seed, dtype=torch.float32),
        nn.CrossEntropyLoss(),
        classification(40, dtype=torch.float32),
        heldout=classification(24, seed=1, dtype=torch.float32),
    )


def drawn(record):
    json.loads(record.to_json())
    (figure,) = record.document().figures
    assert "<svg" in to_svg(figure)
    assert str(record)
    return figure


def test_a_slice_along_the_eigenvectors_of_a_quadratic_is_its_parabolas():
    found = thalweg.slice(quadratic(), points=11)
    assert [line.direction.curvature for line in found.lines] == pytest.approx([4.0, -1.0])
    for line in found.lines:
        t = np.array(line.coordinates)
        assert [e.value for e in line.training] == pytest.approx(3 + 0.5 * line.direction.curvature * t**2)
    drawn(found)


def test_training_and_held_out_are_measured_at_the_same_points():
    problem = net()
    found = thalweg.slice(problem, "random", points=5)
    measured = problem.measured()
    for line in found.lines:
        at = [measured.train.theta + x * line.direction.vector for x in line.coordinates]
        assert [e.value for e in line.training] == pytest.approx(
            [measured.train.value(p) for p in at], rel=1e-5
        )
        heldout = [measured.heldout.value(p) for p in at]
        assert [e.value for e in line.heldout] == pytest.approx(heldout, rel=1e-5)
        assert line.training[2].stderr == 0
        assert line.training[0].stderr > 0
    drawn(found)


def test_a_function_of_one_variable_is_drawn_with_its_risk_and_both_minima():
    found = thalweg.slice(thalweg.Problem.builtin("empirical-risk"))
    g = next(p for p in found.critical_points if p.lowest)
    f = next(p for p in found.risk_critical_points if p.lowest)
    assert g.point[0] == pytest.approx(1.017, abs=1e-3)
    assert f.point[0] == pytest.approx(1.090, abs=1e-3)
    text = "".join(mark.label for mark in drawn(found).panels[0].marks)
    assert "empirical risk: −1.21 at 1.017" in text
    assert "risk: −1.05 at 1.090" in text


def test_tanh_at_4_shows_its_slope_of_0_0013():
    found = thalweg.slice(thalweg.Problem.builtin("tanh"))
    assert found.slope == pytest.approx(1 / math.cosh(4) ** 2)
    assert "slope 0.0013" in "".join(mark.label for mark in drawn(found).panels[0].marks)


def test_a_curve_without_errors_is_drawn_over_all_its_range():
    figure = drawn(thalweg.slice(thalweg.Problem.builtin("cube")))
    assert ">−2<" in to_svg(figure) or ">−2.0<" in to_svg(figure)


def test_the_saddle_has_its_two_sections():
    found = thalweg.plane(thalweg.Problem.builtin("saddle"), points=21)
    (saddle,) = found.critical_points
    assert saddle.kind == "saddle"
    assert saddle.eigenvalues == (-2.0, 2.0)
    assert [line.direction.curvature for line in found.sections] == pytest.approx([2.0, -2.0])
    x, y = np.array(found.x), np.array(found.y)
    assert np.array(found.training) == pytest.approx(x[None] ** 2 - y[:, None] ** 2)
    assert any("saddle 0" in mark.label for mark in drawn(found).panels[0].marks)


@pytest.mark.parametrize("along", ["curvature", "random", "gradient"])
def test_a_plane_of_a_net_holds_the_losses_at_its_points(along):
    problem = net()
    found = thalweg.plane(problem, along, points=5)
    train = problem.measured().train
    for row, y in zip(found.training, found.y, strict=True):
        for loss, x in zip(row, found.x, strict=True):
            point = train.theta + x * found.axes[0].vector + y * found.axes[1].vector
            assert loss == pytest.approx(train.value(point), rel=1e-5)
    assert found.lowest.loss == min(map(min, found.training))
    drawn(found)


def test_no_picture_reaches_a_wall_that_hides_the_rest():
    found = thalweg.plane(net(), points=5)
    for line in found.sections:
        assert max(abs(e.value - found.loss) for e in line.training) <= 1.5 * found.loss * 1.001


def test_filters_keep_their_length_and_biases_stay():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(5, 4)))
    space, rng = ParameterSpace.of(model), torch.Generator().manual_seed(0)
    theta, raw = (torch.randn(space.size, generator=rng) for _ in range(2))
    direction = filter_normalised(raw, theta, space)
    for d, r, t in zip(*(space.unflatten(v) for v in (direction, raw, theta)), strict=True):
        if t.dim() < 2:
            assert not d.any()
            continue
        assert torch.allclose(d.flatten(1).norm(dim=1), t.flatten(1).norm(dim=1))
        cosine = nn.functional.cosine_similarity(d.flatten(1), r.flatten(1))
        assert torch.allclose(cosine, torch.ones_like(cosine))


def test_a_random_walk_explains_as_much_as_is_said_of_it():
    rng = torch.Generator().manual_seed(0)
    walk = torch.randn(400, 3000, generator=rng, dtype=torch.float64).cumsum(0)
    _, way = trajectory_axes(walk, torch.zeros(3000, dtype=torch.float64))
    assert way.explained == pytest.approx([random_walk_share(1), random_walk_share(2)], rel=0.1)
    assert random_walk_share(1) == pytest.approx(0.608, abs=1e-3)


def test_a_trajectory_is_drawn_in_its_own_plane():
    problem = net()
    theta = problem.measured().train.theta
    rng = torch.Generator().manual_seed(3)
    steps = torch.randn(6, len(theta), generator=rng).cumsum(0) / 20
    points = theta + torch.cat([steps - steps[-1]])
    found = thalweg.plane(problem, trajectory=points, points=5)
    u = torch.stack([axis.vector for axis in found.axes]).double()
    for at, point in zip(found.way.points, points, strict=True):
        assert torch.tensor(at) == pytest.approx((point.double() - theta.double()) @ u.T, abs=1e-5)
    assert min(found.x) < min(a for a, _ in found.way.points)
    drawn(found)
    with pytest.raises(InputError, match="3 finite points"):
        thalweg.plane(problem, trajectory=points[:2])


def test_both_ways_meet_both_solutions_and_say_how_they_differ():
    one, other = net(0), net(1)
    train = one.measured().train
    a, b = train.theta, other.measured().train.theta
    found = thalweg.path(one, a, dict(other.model.state_dict()), points=13)
    for way in found.ways:
        assert way.training[way.index(0.0)].value == pytest.approx(train.value(a), rel=1e-5)
        assert way.training[way.index(1.0)].value == pytest.approx(train.value(b), rel=1e-5)
        half = (a + b) / 2 if way.shape == "straight" else (a + b) / math.sqrt(2)
        assert way.training[way.index(0.5)].value == pytest.approx(train.value(half), rel=1e-5)
        assert len(way.wrong) == len(way.alphas)
    with torch.no_grad():
        x, y = train.sample.batches[0].data
        wrong = float((one.model(x).argmax(1) != y).float().mean())
    assert found.ways[0].wrong[found.ways[0].index(0.0)] == pytest.approx(wrong)
    assert found.distance == pytest.approx(float((a - b).norm()))
    drawn(found)


def test_the_wall_between_two_wells_has_its_height():
    problem = thalweg.Problem.from_function(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, [0.0, 0.0])
    ends = [torch.tensor([s, 0.0], dtype=torch.float64) for s in (-1.0, 1.0)]
    straight = thalweg.path(problem, *ends, points=31).ways[0]
    assert straight.barrier.value == pytest.approx(1.0)
    # (x²−1)² at a quarter of the way, ±0.5 from the well: 1.25²−1 = 0.5625² on one side, 0.75²… on the other.
    assert straight.rises[0].value == pytest.approx(((1.5**2 - 1) ** 2 + (0.5**2 - 1) ** 2) / 2)


def test_the_problem_is_left_bit_for_bit_as_it_was():
    problem = net()
    before = [p.clone() for p in problem.model.parameters()]
    thalweg.slice(problem, points=3)
    thalweg.plane(problem, "random", points=3)
    thalweg.path(problem, torch.zeros(67), torch.ones(67), points=3)
    assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: thalweg.slice(p, "sideways"), "no such way"),
        (lambda p: thalweg.slice(p, []), "no direction"),
        (lambda p: thalweg.slice(p, points=2), "number of points"),
        (lambda p: thalweg.slice(p, "random", reach=-1.0), "reach"),
        (lambda p: thalweg.slice(p, torch.zeros(67)), "zero or not finite"),
        (lambda p: thalweg.slice(p, torch.ones(5)), "wrong form"),
        (lambda p: thalweg.plane(p, [torch.ones(67)]), "two directions"),
        (lambda p: thalweg.path(p, torch.ones(67), torch.ones(67)), "the same"),
        (lambda p: thalweg.path(p, torch.ones(67), {}), "of another model"),
        (lambda p: thalweg.path(p, torch.ones(67), torch.zeros(67), low=0.5), "both ends"),
        (lambda p: thalweg.slice(None), "nothing to look at"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(net())
