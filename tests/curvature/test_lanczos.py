"""Lanczos against dense eigenvalues: laws, edge sizes, repeated and zero eigenvalues, breakdown."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import symmetric
from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Dense
from thalweg.curvature.spectrum import find_extremes
from thalweg.errors import InputError, NumericalError
from thalweg.rng import gaussian, generator


def run(matrix, steps, seed=0, restart=False):
    rng = generator(seed, "test")
    n = matrix.shape[0]
    fresh = (lambda: gaussian(n, rng, like=matrix)) if restart else None
    return tridiagonalise(Dense(matrix), gaussian(n, rng, like=matrix), max_steps=steps, fresh=fresh)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.integers(1, 14), st.integers(0, 5))
def test_the_defining_identity_holds_at_every_rank(eigenvalues, steps, seed):
    matrix = symmetric(eigenvalues, seed)
    k = run(matrix, steps, seed)
    q = k.basis.double()
    t = torch.diag(torch.tensor(k.alpha))
    off = torch.tensor(k.beta)
    t = t + torch.diag(off, 1) + torch.diag(off, -1)
    rest = matrix @ q.T - q.T @ t
    size = max(1e-300, float(matrix.norm()))
    assert torch.allclose(q @ q.T, torch.eye(k.num_steps, dtype=torch.float64), atol=1e-12)
    if k.num_steps > 1:  # A Q − Q T = β q eᵀ: only the last column may be non-zero, and β is its norm
        assert float(rest[:, :-1].norm()) <= 1e-13 * size * len(eigenvalues)
    assert abs(float(rest[:, -1].norm()) - k.remainder) <= 1e-13 * size * len(eigenvalues)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 20, 60])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_every_eigenvalue_is_found_when_the_steps_reach_the_dimension(n, offset):
    eigenvalues = np.linspace(-1, 3, n)
    k = run(symmetric(eigenvalues), max(1, n + offset), restart=True)
    assert k.num_steps == min(n, max(1, n + offset))
    if k.complete:
        assert np.allclose(np.sort(k.ritz().values), np.sort(eigenvalues), atol=1e-12)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [0.0] * 7,
        [2.0] * 7,
        [-1.0] * 3 + [2.0] * 4,
        [0.0] * 5 + [1.0, -1e-3],
        [1e-12] * 4 + [1.0],
        [5.0] + [0.0] * 30,
    ],
)
def test_repeated_and_zero_eigenvalues_are_found_with_their_multiplicity(eigenvalues):
    k = run(symmetric(eigenvalues), len(eigenvalues), restart=True)
    assert k.complete
    assert np.allclose(np.sort(k.ritz().values), np.sort(eigenvalues), atol=1e-12)


def test_an_invariant_space_ends_the_run_where_no_restart_is_wanted():
    k = run(symmetric([1.0] * 4 + [2.0] * 4), 8)
    assert k.num_steps == 2
    assert k.remainder == 0


def test_nan_is_an_error_that_names_the_product():
    class Broken(Dense):
        calls = 0

        def matvec(self, vector):
            self.calls += 1
            return super().matvec(vector) * (float("nan") if self.calls == 3 else 1.0)

    with pytest.raises(NumericalError, match="number 3 holds NaN"):
        tridiagonalise(Broken(symmetric(np.arange(9.0))), torch.ones(9).double(), max_steps=9)


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(InputError, match="not square"):
        Dense(torch.zeros(2, 3))


def test_the_noise_of_an_asymmetric_operator_is_seen_and_that_of_a_symmetric_one_is_rounding():
    matrix = symmetric(np.linspace(-1, 1, 200))
    rng = torch.Generator().manual_seed(1)
    skew = torch.randn(200, 200, generator=rng, dtype=torch.float64)
    assert run(matrix, 40).noise < 1e-14
    assert run(matrix + 1e-3 * skew, 40).noise > 1e-4


FAMILIES = {
    "even": lambda n: np.linspace(-1, 2, n),
    "graded": lambda n: np.geomspace(1, 1e-8, n),
    "one tiny negative": lambda n: np.r_[-0.02, np.linspace(0.1, 5, n - 1)],
    "outliers over a bulk": lambda n: np.r_[np.linspace(5, 100, 5), 0.01 * np.sin(np.arange(n - 5.0))],
    "cluster at the bottom": lambda n: np.r_[np.full(n // 2, 1e-3), np.linspace(0.1, 4, n - n // 2)],
    "all negative": lambda n: -np.linspace(0.5, 3, n),
    "symmetric about zero": lambda n: np.r_[np.linspace(-2, -1, n // 2), np.linspace(1, 2, n - n // 2)],
    "low rank": lambda n: np.r_[3.0, -2.0, 1.0, np.zeros(n - 3)],
    "huge": lambda n: 1e12 * np.linspace(-1, 2, n),
    "tiny": lambda n: 1e-12 * np.linspace(-1, 2, n),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [6, 50, 300])
def test_the_stated_bound_holds_an_eigenvalue_and_the_ends_are_the_ends(family, dtype, n):
    truth = np.sort(FAMILIES[family](n))
    for seed in range(3):
        matrix = symmetric(truth, seed, dtype)
        found = find_extremes(Dense(matrix), seed=seed)
        exact = torch.linalg.eigvalsh(matrix.double()).numpy()
        for end, true_end in ((found.lambda_min, exact[0]), (found.lambda_max, exact[-1])):
            assert np.abs(exact - end.value).min() <= end.bound + 1e-14 * np.abs(exact).max()
            assert abs(end.value - true_end) <= max(end.bound, found.certificate.gap) * (1 + 1e-9)
        assert found.num_hvps <= 80


def test_one_run_finds_both_ends_of_a_hessian_like_spectrum_to_a_thousandth():
    rng = np.random.default_rng(0)
    bulk = np.clip(0.005 * rng.standard_t(3, 1989), -0.015, 0.15)
    truth = np.r_[np.arange(1.0, 11.0), -0.05, bulk]
    found = find_extremes(Dense(symmetric(truth)), seed=0)
    assert found.lambda_max.value == pytest.approx(10.0, rel=1e-3)
    assert found.lambda_min.value == pytest.approx(-0.05, rel=1e-3)
    assert found.num_hvps <= 80
