"""Nonlinear conjugate gradients: the formulas on a run, n steps on a quadratic, scipy's counts, restarts."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der

from tests.optim.descending import (
    descend,
    quadratic,
    quadratic_loss,
    rosenbrock,
    rosenbrock_start,
    spied,
)
from thalweg.errors import InputError
from thalweg.optim.nonlinear_conjugate_gradient import NonlinearConjugateGradient, conjugacy

FORMULAS = {
    "FR": lambda d, g, new: (new @ new) / (g @ g),
    "PR+": lambda d, g, new: max(0.0, new @ (new - g) / (g @ g)),
    "HS": lambda d, g, new: new @ (new - g) / (d @ (new - g)),
    "DY": lambda d, g, new: (new @ new) / (d @ (new - g)),
}
ACCURATE = {"c1": 1e-9, "c2": 1e-8}


@pytest.mark.parametrize("formula", FORMULAS)
def test_every_step_of_a_run_goes_along_the_formula(formula):
    seen = []

    def make(parameters):
        optimizer = NonlinearConjugateGradient(parameters, formula=formula)
        seen.extend([spied(optimizer)])
        return optimizer

    descend(make, rosenbrock, rosenbrock_start(10), 40)
    conjugate = since = 0
    for k, (gradient, direction) in enumerate(seen[0]):
        before, last = seen[0][k - 1]
        beta = FORMULAS[formula](last, before, gradient) if since % 10 else 0.0  # anew every n steps
        wanted = -gradient + beta * last
        since = since + 1 if beta else 1
        conjugate += beta != 0
        assert np.abs(direction - wanted).max() <= 1e-12 * np.abs(wanted).max()
    assert conjugate > 20


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("n", range(1, 21))
def test_a_quadratic_is_finished_in_n_steps(formula, n):
    matrix, b, start = quadratic(np.linspace(1, 10, n), seed=n)
    run = descend(
        lambda p: NonlinearConjugateGradient(p, formula=formula, **ACCURATE),
        quadratic_loss(matrix, b),
        start,
        n,
    )
    assert np.linalg.norm(run.gradients[-1]) <= 1e-7 * np.linalg.norm(run.gradients[0])
    if 1 < n < 7:  # with more eigenvalues as close as these the last steps have nothing left to do
        assert np.linalg.norm(run.gradients[-2]) > 1e-4 * np.linalg.norm(run.gradients[0]), "not before"


@pytest.mark.parametrize("different", [1, 2, 3])
def test_repeated_eigenvalues_need_as_many_steps_as_there_are_different_ones(different):
    eigenvalues = np.resize([1.0, 4.0, 9.0][:different], 12)
    matrix, b, start = quadratic(eigenvalues)
    run = descend(
        lambda p: NonlinearConjugateGradient(p, **ACCURATE), quadratic_loss(matrix, b), start, different
    )
    assert np.linalg.norm(run.gradients[-1]) <= 1e-7 * np.linalg.norm(run.gradients[0])


@pytest.mark.parametrize("formula", FORMULAS)
def test_rosenbrock_takes_as_many_steps_as_scipy(formula):
    scipys = minimize(rosen, rosenbrock_start(2), jac=rosen_der, method="CG")
    run = descend(
        lambda p: NonlinearConjugateGradient(p, formula=formula, tolerance_grad=1e-5, full_batch=True),
        rosenbrock,
        rosenbrock_start(2),
        200,
    )
    assert len(run.taken) == pytest.approx(36, rel=0.2)
    assert len(run.taken) == pytest.approx(scipys.nit, rel=0.2)
    assert run.evaluations == pytest.approx(78, rel=0.3)
    assert run.steps[-1].loss < 1e-10


def test_polak_ribiere_is_never_negative():
    g, new = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.1])
    assert conjugacy("PR+", -g, g, new) == 0
    assert conjugacy("HS", -g, g, new) < 0


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_denominator_of_zero_restarts(formula):
    zero = torch.zeros(3)
    assert conjugacy(formula, zero, zero, torch.ones(3)) == 0


def test_gradients_that_are_alike_restart():
    """With Powell's test a step of −gradient follows wherever successive gradients overlap by 0.2."""

    def run(overlap):
        return descend(
            lambda p: NonlinearConjugateGradient(p, restart_overlap=overlap, formula="FR"),
            rosenbrock,
            rosenbrock_start(10),
            60,
        )

    with_test, without = run(0.2), run(None)
    restarts = 0
    for k in range(1, 60):
        g, new = with_test.gradients[k - 1], with_test.gradients[k]
        if abs(g @ new) >= 0.2 * (new @ new):
            assert with_test.steps[k].details["steepest"] == 1
            restarts += 1
    assert restarts > 3
    assert sum(s.details["steepest"] for s in with_test.steps) > sum(
        s.details["steepest"] for s in without.steps
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"formula": "PR"}, "no formula 'PR'; expected: FR or PR"),
        ({"restart_overlap": 0.0}, "must be positive"),
        ({"restart_overlap": float("nan")}, "must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        NonlinearConjugateGradient([torch.nn.Parameter(torch.ones(2))], **setting)
