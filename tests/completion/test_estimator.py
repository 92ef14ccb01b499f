"""Both estimators: laws that hold whatever the data, sizes where good code breaks, scikit-learn's
conventions."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.completion.lowrank import low_rank, with_blanks
from tests.selection import some
from thalweg.completion import (
    DeepMatrixFactorization,
    EntryKFold,
    NuclearNormCompletion,
    Observations,
    observed,
    observed_pairs,
)
from thalweg.errors import InputError

MODELS = [
    DeepMatrixFactorization(2, 8, max_iter=3000),
    DeepMatrixFactorization(3, 8, max_iter=3000),
    NuclearNormCompletion(0),
    NuclearNormCompletion("auto", rank_cap=8),
]
each_model = pytest.mark.parametrize("model", MODELS, ids=["depth 2", "depth 3", "exact", "penalty"])


def error(model, truth):
    return float(np.sqrt(np.mean((model.completed() - truth) ** 2)))


@each_model
@pytest.mark.parametrize("factor", some([3e-7, 2.0**-60, 4.0, 1e9], now=1))
def test_a_multiple_of_the_data_gives_that_multiple_of_the_completion(model, factor):
    _, entries = low_rank((20, 15), 1, 0.8)
    exactly = np.frexp(factor)[0] == 0.5  # then nothing is rounded, and every step is the same
    model = clone(model)
    if "early_stopping" in model.get_params() and not exactly:
        # Which step is the best can turn on a rounding error, and where entries are few that can be seen.
        model.set_params(early_stopping=False)
    once = clone(model).fit(entries).completed()
    scaled = clone(model).fit(entries.with_values(factor * entries.values)).completed() / factor
    if exactly:
        assert np.array_equal(scaled, once)
    assert scaled == pytest.approx(once, abs=2e-2)


def test_the_exact_norm_commutes_with_permutations_and_with_transposing():
    _, entries = low_rank((14, 11), 2, 0.6)
    rng = np.random.default_rng(1)
    p, q = rng.permutation(14), rng.permutation(11)
    dense = with_blanks(entries)
    plain = NuclearNormCompletion(0, center=None).fit(dense).completed()
    moved = NuclearNormCompletion(0, center=None).fit(dense[p][:, q]).completed()
    turned = NuclearNormCompletion(0, center=None).fit(dense.T).completed()
    assert moved == pytest.approx(plain[p][:, q], abs=1e-4)
    assert pytest.approx(plain, abs=1e-4) == turned.T


def test_depth_commutes_with_permutations_where_the_entries_decide():
    truth, entries = low_rank((30, 24), 2, 0.7)
    rng = np.random.default_rng(1)
    p, q = rng.permutation(30), rng.permutation(24)
    model = DeepMatrixFactorization(3, 8, center=None, tol=1e-9)
    moved = model.fit(with_blanks(entries)[p][:, q])
    assert error(moved, truth[p][:, q]) < 1e-3


@each_model
def test_the_same_seed_gives_the_same_bits_and_pickling_keeps_them(model):
    _, entries = low_rank((20, 15), 2, 0.7)
    first, again = (clone(model).fit(entries).completed() for _ in range(2))
    assert np.array_equal(first, again)
    kept = pickle.loads(pickle.dumps(clone(model).fit(entries)))
    assert np.array_equal(kept.completed(), first)


def test_every_form_of_the_same_entries_gives_the_same_completion():
    _, entries = low_rank((12, 9), 1, 0.7)
    entries = entries.with_values(np.round(entries.values * 3))  # with zeros that were observed
    assert (entries.values == 0).any()
    dense = with_blanks(entries)
    shuffled = np.random.default_rng(0).permutation(len(entries))
    forms = [
        dense,
        pd.DataFrame(dense, columns=[f"c{j}" for j in range(9)]),
        entries.sparse(),
        sparse.coo_matrix(
            (entries.values[shuffled], (entries.rows[shuffled], entries.columns[shuffled])), (12, 9)
        ),
        (entries.rows[shuffled], entries.columns[shuffled], entries.values[shuffled]),
    ]
    expected = NuclearNormCompletion(0).fit(entries).completed()
    for form in forms:
        assert np.array_equal(NuclearNormCompletion(0).fit(form).completed(), expected)
    pairs, values = observed_pairs(dense)
    assert np.array_equal(NuclearNormCompletion(0).fit(pairs, values.astype(int)).completed(), expected)


def test_observed_entries_stay_and_stored_zeros_are_observed():
    matrix = sparse.csr_array(
        (np.array([0.0, 2.0, 3.0, 5.0]), (np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])))
    )
    assert len(observed(matrix)) == 4
    filled = DeepMatrixFactorization().fit_transform(matrix)
    assert filled[0, 0] == 0
    assert filled[2, 0] == 5


@each_model
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_a_row_a_column_and_a_single_entry_are_completed(model, shape):
    dense = np.full(shape, np.nan)
    dense.flat[0] = 2.0
    if dense.size > 2:
        dense.flat[1:3] = [3.0, 1.0]
    filled = (
        clone(model)
        .set_params(**({"penalty": 0.1} if "penalty" in model.get_params() else {}))
        .fit_transform(dense)
    )
    assert np.isfinite(filled).all()
    known = ~np.isnan(dense)
    assert np.array_equal(filled[known], dense[known])


@each_model
@pytest.mark.parametrize("value", [0.0, -3.5, 1e-200])
def test_a_constant_matrix_is_rank_0_after_centring(model, value):
    dense = np.full((6, 5), value)
    dense[1, 2] = dense[4, 4] = np.nan
    fitted = clone(model).fit(dense)
    assert fitted.rank_ == 0
    assert fitted.completed() == pytest.approx(np.full((6, 5), value), rel=1e-12, abs=0)


def test_the_zero_matrix_without_centring_is_zero():
    for model in (DeepMatrixFactorization(center=None), NuclearNormCompletion(center=None)):
        assert not model.fit(np.zeros((4, 3))).completed().any()


@each_model
def test_everything_observed_comes_back_as_it_was(model):
    truth, _ = low_rank((12, 10), 2)
    assert np.array_equal(clone(model).fit_transform(truth), truth)


@each_model
def test_nothing_observed_is_refused(model):
    for empty in (np.full((3, 4), np.nan), sparse.csr_array((3, 4))):
        with pytest.raises(InputError, match="nothing is observed"):
            clone(model).fit(empty)


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinite_values_are_named_with_their_place(bad):
    dense = np.arange(12.0).reshape(3, 4)
    dense[1, 2] = bad
    with pytest.raises(InputError, match=r"infinite.*row 1, column 2"):
        DeepMatrixFactorization().fit(dense)
    with pytest.raises(InputError, match=r"not a finite number.*row 0, column 1"):
        DeepMatrixFactorization().fit(([0, 0], [0, 1], [1.0, float("nan")]))


def test_duplicates_are_refused_or_averaged_as_asked():
    rows, columns, values = [0, 1, 0], [0, 0, 0], [1.0, 5.0, 3.0]
    with pytest.raises(InputError, match=r"more than once.*row 0, column 0; 1 of 3"):
        DeepMatrixFactorization().fit((rows, columns, values))
    twice = sparse.coo_matrix((values, (rows, columns)), (2, 2))
    with pytest.raises(InputError, match="more than once"):
        NuclearNormCompletion().fit(twice)
    mean = Observations.from_triplets(rows, columns, values, duplicates="mean")
    assert mean.values.tolist() == [2.0, 5.0]
    assert DeepMatrixFactorization(duplicates="mean").fit_transform(twice)[0, 0] == 2.0


def test_positions_that_cannot_be_are_refused():
    for rows, message in (([-1, 0], "outside"), ([0.5, 1], "not integers"), ([0], "do not belong together")):
        with pytest.raises(InputError, match=message):
            Observations.from_triplets(rows, [0, 1], [1.0, 2.0], (2, 2))
    with pytest.raises(InputError, match=r"expected: rows 0 … 1"):
        Observations.from_triplets([2], [0], [1.0], (2, 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 1},
        {"depth": 2.5},
        {"rank_cap": 0},
        {"init": "zero"},
        {"optimizer": "sgd"},
        {"learning_rate": -1},
        {"tol": -1},
        {"validation_fraction": 0},
        {"center": "median"},
        {"clip": (5, 1)},
        {"init_scale": 0},
        {"polish": True, "early_stopping": False},
        {"max_iter": 0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_named(wrong):
    _, entries = low_rank((6, 5), 1)
    with pytest.raises(InputError, match=f"{next(iter(wrong))} cannot be used"):
        DeepMatrixFactorization(**wrong).fit(entries)


def test_unknown_rows_and_columns_get_what_centring_says():
    _, entries = low_rank((12, 10), 1, 0.7)
    model = DeepMatrixFactorization().fit(entries.with_values(entries.values + 4))
    unknown = model.predict(np.array([[99, 99], [-1, 3], [3, 99]]))
    assert unknown[0] == pytest.approx(model.centre_.overall)
    assert unknown[1] == pytest.approx(model.centre_.overall + model.centre_.column[3])
    assert unknown[2] == pytest.approx(model.centre_.overall + model.centre_.row[3])
    with pytest.raises(InputError, match="not positions"):
        model.predict(np.ones((3, 2)))


def test_a_row_and_a_column_without_entries_are_filled_by_the_rest():
    truth, _ = low_rank((12, 10), 1)
    dense = truth + 3
    dense[4], dense[:, 7] = np.nan, np.nan
    model = DeepMatrixFactorization(3).fit(dense)
    assert (model.graph_.empty_rows, model.graph_.empty_columns) == (1, 1)
    assert np.abs(model.completed()[4] - (model.centre_.overall + model.centre_.column)).max() < 1e-2


def test_new_rows_are_placed_among_the_fitted_ones():
    truth, _ = low_rank((60, 20), 2, seed=3)
    model = DeepMatrixFactorization(3, 8, center=None).fit(truth[:50])
    fresh = truth[50:].copy()
    hidden = np.random.default_rng(0).random(fresh.shape) < 0.4
    fresh[hidden] = np.nan
    filled = model.transform(fresh)
    assert np.array_equal(filled[~hidden], truth[50:][~hidden])
    assert np.sqrt(np.mean((filled - truth[50:])[hidden] ** 2)) < 0.1
    blank = model.transform(np.full((1, 20), np.nan))
    assert not blank.any()


def test_early_stopping_is_what_keeps_noise_out():
    truth, entries = low_rank((60, 50), 2, 0.5, noise=0.7)
    stopped = DeepMatrixFactorization(2, 16, center=None).fit(entries)
    run_on = DeepMatrixFactorization(2, 16, center=None, early_stopping=False, max_iter=3000).fit(entries)
    assert error(stopped, truth) < 0.8 * error(run_on, truth)
    assert math.isfinite(stopped.validation_rmse_)
    assert math.isnan(run_on.validation_rmse_)
    assert "held out" in stopped.stop_reason_


def test_polish_finishes_exactly_and_is_dropped_where_it_does_not_help():
    truth, entries = low_rank((40, 40), 2, 0.4)
    model = DeepMatrixFactorization(3, 10, center=None, polish=True).fit(entries)
    assert model.polished_
    assert error(model, truth) < 1e-8
    rng = np.random.default_rng(0)
    nothing = Observations.from_dense(rng.standard_normal((30, 30)))
    noisy = DeepMatrixFactorization(3, 10, center=None, polish=True).fit(nothing)
    plain = DeepMatrixFactorization(3, 10, center=None).fit(nothing)
    assert noisy.polished_ or np.array_equal(noisy.completed(), plain.completed())


@pytest.mark.slow  # compiles everything once more
def test_float32_gives_nearly_the_same():
    truth, entries = low_rank((40, 40), 2, 0.5)
    model = DeepMatrixFactorization(3, 10, center=None, dtype="float32").fit(entries)
    assert error(model, truth) < 5e-3


def test_grid_search_over_entries_picks_depth_3_where_noise_is_absent():
    _, entries = low_rank((40, 40), 2, 0.45)
    grid = {"depth": [2, 3]}
    search = GridSearchCV(DeepMatrixFactorization(2, 10, center=None), grid, cv=EntryKFold(3))
    search.fit(*observed_pairs(entries))
    assert search.best_params_ == {"depth": 3}
    assert search.best_score_ > -0.1
    assert search.score(*observed_pairs(entries)) > -1e-2


def test_unfitted_models_say_so():
    with pytest.raises(NotFittedError):
        DeepMatrixFactorization().completed()


def test_frames_keep_their_column_names():
    frame = pd.DataFrame({"a": [1.0, 2, np.nan], "b": [2.0, np.nan, 6]})
    model = DeepMatrixFactorization().set_output(transform="pandas").fit(frame)
    assert list(model.transform(frame).columns) == ["a", "b"]


class Transforming(DeepMatrixFactorization):
    """Without predict and score: they take positions of entries, not the matrices that the checks hand
    them."""

    predict = property()
    score = property()


class TransformingNuclear(NuclearNormCompletion):
    """Likewise."""

    predict = property()
    score = property()


@parametrize_with_checks(
    [Transforming(2, 4, max_iter=200), TransformingNuclear(0.1, max_iter=200)],
    expected_failed_checks=lambda estimator: {
        "check_estimators_empty_data_messages": "columns without rows are refused in our own words",
        "check_dtype_object": "what is no number is an InputError, not a TypeError",
    },
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator, check):
    state = np.random.get_state()
    try:
        check(estimator)
    finally:
        np.random.set_state(state)  # the checks draw from it; that we do not, they cannot say
