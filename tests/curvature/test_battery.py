"""What a spectrum claims, held to the truth over LAPACK's families of matrices, all sizes and both dtypes."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from tests.curvature.families import DENSE, NAMES, Case, Rotated, build, rotated
from tests.selection import some
from thalweg.curvature.lanczos import tridiagonalise
from thalweg.curvature.operators import Dense
from thalweg.curvature.spectrum import find_extremes
from thalweg.errors import InputError, NumericalError
from thalweg.rng import gaussian, generator

SMALL, LARGE = (1, 2, 3, 5, 20), (79, 120, 2000)
DTYPES = (torch.float32, torch.float64)


def judge(case: Case, seed):
    """Return the ratios of error to claim: an eigenvalue near each end, none outside, all of them found."""
    found = find_extremes(case.operator, seed=seed)
    low, high, truth = found.lambda_min, found.lambda_max, case.truth
    near = max(_ratio(np.abs(truth - end.value).min(), end.bound + case.doubt) for end in (low, high))
    beyond = max(low.value - truth[0], truth[-1] - high.value, 0.0)
    outside = _ratio(beyond, found.certificate.gap + found.floor + case.doubt)
    everything = 0.0
    if found.complete:
        everything = _ratio(np.abs(np.sort(found.nodes) - truth).max(), found.floor + case.doubt)
    assert found.num_hvps <= 80
    return near, outside, everything


def _ratio(error, allowed):
    return error / allowed if allowed > 0 else (0.0 if error == 0 else np.inf)


def battery(sizes, seeds):
    ratios = [
        judge(build(name, size, dtype, seed), seed)
        for name in NAMES
        for size in sizes
        if not (name in DENSE and size > 500)
        for dtype in DTYPES
        for seed in seeds
    ]
    near, outside, everything = np.array(ratios).T
    assert near.max() <= 1, "no eigenvalue within the bound"
    assert everything.max() <= 1, "a complete run that did not find all eigenvalues with their multiplicity"
    # The certificate may fail in one of a hundred runs; the bounds never.
    assert (outside > 1).sum() <= binom.ppf(0.9999, len(ratios), 0.01)
    return ratios


def test_there_are_as_many_families_as_promised():
    assert len(NAMES) >= 40


def test_every_claim_holds_for_every_family_at_small_sizes():
    assert len(battery(SMALL, seeds=(0,))) == 10 * len(NAMES)


@pytest.mark.parametrize("size", some([79, 120], now=1))
def test_every_claim_holds_for_every_family_where_lanczos_cannot_finish(size):
    assert len(battery([size], seeds=(1,))) >= 50  # each run is judged in `battery`


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(13))
def test_every_claim_holds_in_ten_thousand_runs(seed):
    assert len(battery((*SMALL, *LARGE), seeds=(100 + seed,))) >= 780


def test_a_bound_that_is_too_small_would_be_seen():
    case = build("random symmetric", 20, torch.float64)
    wrong = Case(case.operator, case.truth + 1e-3)
    assert judge(wrong, 0)[0] > 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["evenly, signs", "outliers over a bulk", "repeated 30 times", "glued W21+"])
def test_scaling_by_a_power_of_two_scales_the_answer_bit_for_bit(name, dtype):
    case = build(name, 60, dtype)
    here = find_extremes(case.operator, seed=0)
    for power in (-60, 60):
        there = find_extremes(_Changed(case.operator, scale=2.0**power), seed=0)
        assert there.num_hvps == here.num_hvps
        for end, scaled in ((here.lambda_min, there.lambda_min), (here.lambda_max, there.lambda_max)):
            assert scaled.value == end.value * 2.0**power
            assert scaled.bound == pytest.approx(end.bound * 2.0**power, rel=1e-6)


class _Changed:
    """cA + σI, with its coordinates in another order."""

    def __init__(self, operator, scale=1.0, shift=0.0, order=None):
        self.inner, self.scale, self.shift = operator, scale, shift
        self.order = torch.arange(operator.size) if order is None else order
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def matvec(self, vector):
        inner = torch.empty_like(vector)
        inner[self.order] = vector
        return (self.scale * self.inner.matvec(inner))[self.order] + self.shift * vector


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["evenly, signs", "outliers over a bulk", "mode 3, cond 100", "Laplacian", "W-"]
)
def test_the_ends_follow_a_shift_a_change_of_sign_and_a_new_order_of_the_coordinates(name, dtype):
    case = build(name, 60, dtype)
    ends = find_extremes(case.operator, seed=0)
    low, high = ends.lambda_min, ends.lambda_max
    order = torch.randperm(60, generator=generator(0, "order"))
    for changed, expected in (
        (_Changed(case.operator, shift=2.0), (low.value + 2, high.value + 2)),
        (_Changed(case.operator, scale=-1.0), (-high.value, -low.value)),
        (_Changed(case.operator, order=order), (low.value, high.value)),
    ):
        found = find_extremes(changed, seed=0)
        for end, value in zip((found.lambda_min, found.lambda_max), expected, strict=True):
            reach = found.certificate.gap + ends.certificate.gap + found.floor + ends.floor
            assert abs(end.value - value) <= reach + low.bound + high.bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_run(dtype):
    def numbers(seed):
        found = find_extremes(build("outliers over a bulk", 200, dtype).operator, seed=seed)
        return found.lambda_min.value, found.lambda_max.value, found.trace, found.certificate, *found.nodes

    assert numbers(3) == numbers(3)
    assert numbers(3)[0] != numbers(4)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_basis_is_orthonormal_to_rounding_in_every_family(name, dtype):
    case = build(name, 120, dtype)
    start = gaussian(case.operator.size, generator(0, "start"), like=torch.empty(0, dtype=dtype))
    basis = tridiagonalise(case.operator, start, max_steps=60).basis.double()
    off = basis @ basis.T - torch.eye(len(basis), dtype=torch.float64)
    assert float(torch.linalg.matrix_norm(off, 2)) <= 30 * torch.finfo(dtype).eps


def test_a_long_float32_basis_with_a_few_heavy_coordinates_stays_orthonormal():
    """Sums of float32 terms lost half of the digits here; see PIECE."""
    n = 300_000
    values = np.r_[np.arange(1.0, 11.0), 0.01 * np.sin(np.arange(n - 10.0))]
    operator = Rotated(values, torch.float32, np.random.default_rng(0))
    krylov = tridiagonalise(operator, gaussian(n, generator(0, "s"), like=operator.values), max_steps=16)
    basis = krylov.basis.double()
    assert float((basis @ basis.T - torch.eye(16)).abs().max()) <= 4e-7
    assert krylov.noise <= 4e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_multiplicity_is_counted_once_it_has_been_met_again(dtype):
    """Copies found after a breakdown are eigenvalues of their own: k Ritz values, k distinct-counted ones."""
    case = rotated(np.repeat([3.0, -1.0, 0.5], 40), dtype, np.random.default_rng(0))
    rng = generator(0, "multiplicity")

    def fresh():
        return gaussian(120, rng, like=case.operator.values)

    krylov = tridiagonalise(case.operator, fresh(), max_steps=60, fresh=fresh)
    assert krylov.first_block == 3
    counts = [int((np.abs(krylov.ritz().values - value) < 1e-4).sum()) for value in (3.0, -1.0, 0.5)]
    assert sum(counts) == 60
    assert max(counts) <= 40
    assert min(counts) >= 19


class _BreaksAt(Dense):
    def __init__(self, matrix, number):
        super().__init__(matrix)
        self.left = number

    def matvec(self, vector):
        self.left -= 1
        return super().matvec(vector) * (float("nan") if self.left == 0 else 1.0)


@pytest.mark.parametrize("number", [1, 2, 5, 10, 11, 12])
def test_nan_names_the_product_that_brought_it_also_when_the_ends_are_checked(number):
    matrix = torch.diag(torch.arange(10.0, dtype=torch.float64))
    with pytest.raises(NumericalError, match=f"number {number} holds NaN"):
        find_extremes(_BreaksAt(matrix, number), seed=0)


def test_an_empty_operator_is_refused():
    with pytest.raises(InputError, match="empty"):
        find_extremes(Dense(torch.zeros(0, 0)), seed=0)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e-30), (torch.float64, 1e-150), (torch.float64, 1e150)]
)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 20, 100])
def test_squares_that_would_overflow_or_vanish_do_no_harm(dtype, scale, n):
    case = rotated(np.linspace(-1, 2, n) * scale, dtype, np.random.default_rng(n))
    near, outside, everything = judge(case, 0)
    assert max(near, outside, everything) <= 1
    found = find_extremes(case.operator, seed=0)
    assert found.lambda_min.value == pytest.approx(case.truth[0], rel=1e-3)
    assert found.lambda_max.value == pytest.approx(case.truth[-1], rel=1e-3)
    assert np.isfinite(found.trace.stderr)


def test_a_known_noise_of_the_products_raises_the_floor_and_the_bound():
    case = build("outliers over a bulk", 60, torch.float64)
    clean, noisy = (find_extremes(case.operator, seed=0, noise=noise) for noise in (0.0, 1e-3))
    assert clean.floor < 1e-10
    assert noisy.floor >= 1e-3 * noisy.scale
    assert noisy.lambda_min.bound >= noisy.floor
