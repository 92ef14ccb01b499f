"""Batch sizes: the two laws, the noise scale against closed forms, and a whole small study."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import Problem, batch_size
from thalweg.errors import InputError
from thalweg.problem.batches import Batch
from thalweg.problem.builtin.initialise import initialised
from thalweg.problem.parameters import ParameterSpace
from thalweg.rng import generator
from thalweg.studies.batch_fits import fit_critical_batch, fit_update_time
from thalweg.studies.batch_noise import noise_scale

from .nets import problem

SIZES = (1, 4, 16, 64, 256)


def test_the_parallel_limit_is_found_again_and_its_interval_covers_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        truth = np.array([1e-3 + 2e-5 * b for b in SIZES])
        rounds = truth * (1 + 0.05 * rng.normal(size=(7, len(SIZES))))
        found = fit_update_time(SIZES, rounds.tolist())
        covered += found.lower <= 50 <= found.upper
        assert 35 < found.limit < 70
    assert covered / 200 > 0.9


def test_the_critical_batch_is_found_again():
    rng = np.random.default_rng(1)
    law = np.array([30 * (1 + 20 / b) for b in SIZES])
    found = fit_critical_batch(SIZES, (law * np.exp(0.1 * rng.normal(size=(3, 5)))).tolist(), 0.5)
    assert 14 < found.value < 28
    assert found.lower <= found.value <= found.upper
    assert 25 < found.fewest_updates < 36
    exact = fit_critical_batch(SIZES, [law.tolist()], 0.5)
    assert exact.value == pytest.approx(20, rel=1e-4)
    assert exact.misfit == pytest.approx(1, abs=1e-3)


def test_sizes_that_do_not_reach_the_target_are_left_out_and_two_are_too_few():
    steps = [630.0, 180.0, 67.5, math.inf, math.inf]
    assert fit_critical_batch(SIZES, [steps], 0.5).value == pytest.approx(20, rel=1e-3)
    assert fit_critical_batch(SIZES, [[630.0, 180.0, math.inf, math.inf, math.inf]], 0.5) is None


@pytest.mark.parametrize(
    "steps", [[10.0, 10, 9, 10, 10], [1e6 / size for size in SIZES]], ids=["flat", "1/B"]
)
def test_a_critical_batch_that_the_sizes_cannot_show_is_not_named(steps):
    assert fit_critical_batch(SIZES, [steps], 0.5) is None


def regression(n=200):
    """Least squares: gradients and Hessian are known in closed form."""
    rng = generator(0, "regression")
    x = torch.randn(n, 3, generator=rng) * torch.tensor([1.0, 2.0, 0.5])
    y = (x @ torch.tensor([1.0, -1.0, 2.0]) + torch.randn(n, generator=rng))[:, None]
    model = initialised(lambda: nn.Linear(3, 1, bias=False), generator(1, "model")).double()
    return Problem(model, nn.MSELoss(), (x.double(), y.double())), x.double(), y.double()


def test_the_noise_scale_of_least_squares_is_the_closed_form():
    own, x, y = regression()
    theta = ParameterSpace.of(own.model).read(own.model)
    each = 2 * (x @ theta[:, None] - y) * x
    mean, hessian = each.mean(0), 2 * x.T @ x / len(x)
    covariance = torch.cov(each.T)
    squared = mean @ mean - covariance.trace() / len(x)
    bent = (hessian @ covariance).trace()
    found = noise_scale(own, theta, Batch((x, y), len(x)), seed=0)
    assert found.simple == pytest.approx(float(covariance.trace() / squared), rel=1e-6)
    # of 16 random signs: the trace of a 3×3 matrix to a third
    assert found.curved == pytest.approx(float(bent / (mean @ hessian @ mean - bent / len(x))), rel=0.4)


def test_the_de_biased_signal_is_right_on_average():
    rng = np.random.default_rng(2)
    signal, estimates = np.array([0.3, 0.0]), []
    for _ in range(3000):
        each = signal + rng.normal(size=(20, 2))
        mean = each.mean(axis=0)
        trace = ((each - mean) ** 2).sum() / 19
        estimates.append(mean @ mean - trace / 20)
    assert np.mean(estimates) == pytest.approx(0.09, abs=3 * np.std(estimates) / 3000**0.5)


@pytest.fixture(scope="module")
def found():
    return batch_size(problem(), (4, 16, 120), seeds=3, rates=3, epochs=4, updates=30)


def test_a_study_answers_all_its_questions(found):
    assert [r.size for r in found.sizes] == [4, 16, 96]  # of 120 a fifth is for choosing
    assert found.time.limit > 0
    assert len(found.pairs) == 3
    assert all(len(r.loss) == 4 and all(len(v) == 3 for v in r.loss) for r in found.sizes)
    assert {(r.name, r.size) for r in found.rescues} == {(n, s) for n in ("lamb", "lars") for s in (96,)}
    text = str(found)
    for word in ("time", "sharpness", "4 epochs", "30 updates", "LAMB and LARS"):
        assert word in text


def test_equal_epochs_and_equal_updates_are_the_same_training_where_they_coincide(found):
    # 4 epochs of batches of 16 are 24 updates, of all examples 4: more updates are never worse here
    large = found.sizes[-1]
    assert np.median(large.train[3]) < np.median(large.train[2])


def test_the_record_becomes_json_and_a_page(found, tmp_path):
    found.save(tmp_path / "b.json")
    found.save(tmp_path / "b.html")
    assert json.loads((tmp_path / "b.json").read_text())["schema"] == "thalweg/batch-sizes@1"
    assert (tmp_path / "b.html").read_text().count("<svg") >= 4


def test_a_second_start_in_the_same_folder_runs_nothing_anew(tmp_path):
    settings = {"seeds": 2, "rates": 2, "epochs": 1, "updates": 4, "folder": tmp_path / "study"}
    first = batch_size(problem(), (16, 120), **settings)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "study" / "trials").iterdir()}
    second = batch_size(problem(), (16, 120), **settings)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "study" / "trials").iterdir()} == files
    # what is NaN equals nothing, so as text
    assert str(first.sizes) == str(second.sizes)
    assert first.time == second.time


def test_methods_that_are_not_for_batches_are_refused():
    with pytest.raises(InputError, match="batches of any size"):
        batch_size(problem(), optimizer="lbfgs")
    with pytest.raises(InputError, match="batch sizes cannot be used"):
        batch_size(problem(), (0, 4))
