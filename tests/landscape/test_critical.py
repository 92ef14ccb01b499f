"""Critical points against closed forms."""

import math

import pytest
import torch

import thalweg
from thalweg.landscape.critical import critical_points
from thalweg.problem.function_objective import FunctionObjective


def found(function, domain):
    start = torch.zeros(len(domain), dtype=torch.float64)
    return critical_points(FunctionObjective(function, start), domain)


def test_x_cos_pi_x_has_its_global_minimum_near_1_1_and_a_local_one_near_minus_0_3():
    problem = thalweg.Problem.builtin("x-cos-pi-x")
    points = critical_points(problem.measured().train, problem.domain)
    assert [(p.kind, p.lowest) for p in points] == [("minimum", False), ("maximum", False), ("minimum", True)]
    # The roots of cos πx = πx sin πx, by fixed point iteration elsewhere.
    assert [p.point[0] for p in points] == pytest.approx(
        [-0.2738526868, 0.2738526868, 1.0904082219], abs=1e-9
    )
    for p in points:
        x = p.point[0]
        assert math.cos(math.pi * x) == pytest.approx(math.pi * x * math.sin(math.pi * x), abs=1e-12)


def test_a_minimum_above_the_border_of_the_domain_is_not_the_global_one():
    points = found(lambda x: (x**2 + 10 * torch.relu(-x - 1) * (x + 1)).sum(), ((-3.0, 1.0),))
    assert [(p.kind, p.lowest) for p in points] == [("maximum", False), ("minimum", False)]


def test_the_cube_is_flat_at_zero_without_a_minimum():
    (point,) = found(lambda x: (x**3).sum(), ((-2.0, 2.0),))
    assert point.kind == "inflection"
    assert abs(point.point[0]) < 1e-9


def test_a_fourth_power_is_a_minimum_though_its_curvature_vanishes():
    (point,) = found(lambda x: (x**4).sum(), ((-1.0, 1.3),))
    assert point.kind == "minimum"
    assert point.lowest


def test_tanh_has_no_critical_point():
    assert found(lambda x: torch.tanh(x).sum(), ((-2.0, 5.0),)) == ()


def test_a_double_well_in_two_dimensions_has_two_minima_and_a_saddle_between():
    points = found(lambda x: (x[0] ** 2 - 1) ** 2 + 0.5 * (x[1] - 0.2) ** 2, ((-2.0, 2.1), (-1.0, 1.0)))
    kinds = {tuple(round(c, 8) + 0.0 for c in p.point): p.kind for p in points}
    assert kinds == {(-1.0, 0.2): "minimum", (0.0, 0.2): "saddle", (1.0, 0.2): "minimum"}
    middle = next(p for p in points if p.kind == "saddle")
    assert middle.eigenvalues == pytest.approx([-4.0, 1.0])


def test_a_monkey_saddle_is_seen_by_the_values_around_it():
    points = found(lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2, ((-1.0, 1.0), (-1.0, 1.0)))
    assert [p.kind for p in points] == ["saddle"]
    assert points[0].point == pytest.approx((0.0, 0.0), abs=1e-4)


def test_a_function_that_vmap_cannot_run_gives_the_same_points():
    plain = found(lambda x: (x * torch.cos(math.pi * x)).sum(), ((-1.0, 2.0),))
    branching = found(
        lambda x: x.sum() * torch.cos(math.pi * x.sum()) if float(x.detach().sum()) < 9 else x.sum(),
        ((-1.0, 2.0),),
    )
    assert [p.point[0] for p in branching] == pytest.approx([p.point[0] for p in plain])
    assert [p.kind for p in branching] == [p.kind for p in plain]
