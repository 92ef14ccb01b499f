"""The nuclear norm: certified where exact, held to independent solutions where penalised."""

import numpy as np
import pytest

from tests.completion.lowrank import low_rank
from thalweg.completion import NuclearNormCompletion, Observations
from thalweg.completion.exact import least_nuclear_norm
from thalweg.errors import InputError


def nuclear(W):
    return float(np.linalg.svd(W, compute_uv=False).sum())


def soft_impute(entries, penalty, sweeps=4000):
    """The dense proximal gradient method of Mazumder et al., to convergence."""
    at = (entries.rows, entries.columns)
    Z = np.zeros(entries.shape)
    for _ in range(sweeps):
        filled = Z.copy()
        filled[at] = entries.values
        u, s, vt = np.linalg.svd(filled, full_matrices=False)
        Z = u * np.maximum(s - penalty, 0) @ vt
    return Z


def test_the_bound_of_the_dual_problem_certifies_the_exact_norm():
    for seed in range(3):
        _, entries = low_rank((15, 12), 2, 0.5, seed)
        found = least_nuclear_norm(entries)
        assert np.array_equal(found.matrix[entries.rows, entries.columns], entries.values)
        assert found.norm == pytest.approx(nuclear(found.matrix))
        assert 0 <= found.gap < 1e-5
        assert found.bound <= found.norm


def test_few_iterations_leave_an_honest_gap():
    _, entries = low_rank((15, 12), 2, 0.5)
    rough, exact = least_nuclear_norm(entries, max_iterations=15), least_nuclear_norm(entries)
    assert rough.gap > 10 * exact.gap
    assert rough.bound <= exact.norm * (1 + 1e-9)
    assert rough.norm >= exact.norm * (1 - 1e-6)


def test_known_solutions_in_closed_form():
    # [[1, x], [?, 1]] with the rest at 1: rank 1 fits, and nothing has less norm than 2.
    ones = Observations.from_triplets([0, 0, 1], [0, 1, 0], [1.0, 1.0, 1.0], (2, 2))
    found = least_nuclear_norm(ones)
    assert found.matrix == pytest.approx(np.ones((2, 2)), abs=1e-5)
    # Two entries of a diagonal: ‖W‖_* ≥ |trace| = 3, which any W with |w₁₂w₂₁| = 2 of one sign attains.
    diagonal = Observations.from_triplets([0, 1], [0, 1], [1.0, 2.0], (2, 2))
    assert least_nuclear_norm(diagonal).norm == pytest.approx(3, abs=1e-5)


def test_plenty_of_entries_are_recovered_and_few_are_not():
    truth, plenty = low_rank((30, 30), 1, 0.6)
    assert least_nuclear_norm(plenty).matrix == pytest.approx(truth, abs=1e-5)
    truth, few = low_rank((30, 30), 3, 0.3)
    found = least_nuclear_norm(few)
    assert found.norm < nuclear(truth)
    assert np.mean((found.matrix - truth) ** 2) > 0.01


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_penalised_solution_is_that_of_soft_impute(share):
    _, entries = low_rank((14, 11), 2, 0.6, noise=0.3)
    model = NuclearNormCompletion(share, rank_cap=None, center=None).fit(entries)
    unit = entries.rms()
    largest = np.linalg.norm(entries.sparse().toarray(), 2)
    oracle = soft_impute(entries, share * largest)
    assert model.completed() == pytest.approx(oracle, abs=5e-3 * unit)
    # Its own certificate: the residual's largest singular value is the penalty.
    rest = np.zeros(entries.shape)
    at = (entries.rows, entries.columns)
    rest[at] = entries.values - model.completed()[at]
    assert np.linalg.norm(rest, 2) == pytest.approx(share * largest, rel=1e-2)


def test_the_chosen_penalty_is_better_than_the_ends_of_the_path():
    truth, entries = low_rank((40, 30), 2, 0.5, noise=0.5)
    errors = {
        penalty: np.mean((NuclearNormCompletion(penalty, center=None).fit(entries).completed() - truth) ** 2)
        for penalty in ("auto", 0.7, 0.01)
    }
    assert errors["auto"] < 0.9 * min(errors[0.7], errors[0.01])


def test_a_matrix_too_large_for_the_exact_method_is_refused_with_the_other():
    entries = Observations.from_triplets([0, 2999], [0, 2999], [1.0, 2.0])
    with pytest.raises(InputError, match=r"too large.*penalty=\"auto\""):
        NuclearNormCompletion(0).fit(entries)


@pytest.mark.parametrize("wrong", [{"penalty": -1}, {"penalty": 1.5}, {"tol": 0}, {"rank_cap": 0}], ids=str)
def test_settings_that_cannot_be_used_are_named(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} cannot be used"):
        NuclearNormCompletion(**wrong).fit(np.eye(3))
