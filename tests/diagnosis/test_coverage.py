"""Are the intervals honest? 500 repetitions against a population that is known in closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.diagnosis.agreement import agreement
from thalweg.diagnosis.gathering import loss_gap
from thalweg.diagnosis.gradient import measure_gradient
from thalweg.estimates import weighted_mean
from thalweg.problem.problem import Problem

pytestmark = pytest.mark.slow

REPETITIONS = 500
HONEST = 0.93, 0.97
DIMENSION = 12


class LinearFit(nn.Module):
    """½(xᵀw − y)² with x ~ N(0, I), y = xᵀw* + σε: gradient w − w*, Hessian I, loss ½(‖w−w*‖² + σ²)."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.Parameter(weights)

    def forward(self, x):
        return x @ self.w


def draw(num, seed, away, sigma=1.0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(num, DIMENSION, generator=rng, dtype=torch.float64)
    y = sigma * torch.randn(num, generator=rng, dtype=torch.float64)
    return x, y


def problem(seed, away, train=512, heldout=512):
    weights = torch.full((DIMENSION,), away / math.sqrt(DIMENSION), dtype=torch.float64)

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]) ** 2

    return Problem(LinearFit(weights), loss, draw(train, 2 * seed, away), draw(heldout, 2 * seed + 1, away))


def covered(intervals, truth):
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("away", [0.05, 0.2, 1.0, 5.0])
def test_the_interval_of_the_gradient_norm_covers(away):
    intervals = []
    for seed in range(REPETITIONS):
        risk = problem(seed, away).measured().train
        intervals.append(measure_gradient(risk, risk.theta, seed=0).interval)
    assert HONEST[0] <= covered(intervals, away) <= HONEST[1]


def test_the_interval_of_a_silent_gradient_covers_zero():
    intervals = []
    for seed in range(REPETITIONS):
        risk = problem(seed, 0.0).measured().train
        intervals.append(measure_gradient(risk, risk.theta, seed=0).interval)
    assert HONEST[0] <= covered(intervals, 0.0)


def test_the_interval_of_the_noise_scale_covers():
    rng = np.random.default_rng(0)
    spectrum = 1 / np.arange(1, 60)
    mean = rng.normal(size=len(spectrum))
    mean *= 0.8 * np.sqrt(spectrum.sum() / 32) * 3 / np.linalg.norm(mean)
    truth = spectrum.sum() / (mean @ mean)
    intervals = []
    for seed in range(REPETITIONS):
        g = mean + np.random.default_rng(seed).normal(size=(32, len(spectrum))) * np.sqrt(spectrum)
        intervals.append(agreement(g @ g.T, np.ones(32), seed=0).ratio_interval)
    assert None not in intervals
    assert 0.93 <= covered(intervals, truth) <= 0.99


def test_the_interval_of_the_curvature_on_held_out_data_covers():
    """The direction is found on the training sample; the population's curvature along it is 1."""
    intervals = []
    for seed in range(REPETITIONS):
        measured = problem(seed, 0.3).measured()
        theta = measured.train.theta
        x = next(iter(measured.train.sample.batches)).data[0]
        lowest = torch.linalg.eigh(x.T @ x / len(x)).eigenvectors[:, 0]
        found = weighted_mean(*measured.train.batch_curvatures(theta, lowest))
        assert found.value < 0.9  # where it was found it looks lower
        intervals.append(weighted_mean(*measured.heldout.batch_curvatures(theta, lowest)).interval())
    assert HONEST[0] <= covered(intervals, 1.0) <= HONEST[1]


@pytest.mark.parametrize("away", [0.0, 1.0])
def test_the_interval_of_the_loss_gap_covers(away):
    """Population loss minus training loss; the training set is given, so only the held-out part is random."""
    hits = 0
    for seed in range(REPETITIONS):
        measured = problem(seed, away, train=64, heldout=256).measured()
        theta = measured.train.theta
        loss = weighted_mean(*measured.train.batch_values(theta))
        heldout = weighted_mean(*measured.heldout.batch_values(theta))
        low, high = loss_gap(loss, heldout, complete=True).interval()
        truth = 0.5 * (away**2 + 1) - loss.value
        hits += low <= truth <= high
    assert HONEST[0] <= hits / REPETITIONS <= HONEST[1]
