"""Classifier and regressor as scikit-learn knows them, and what they promise beyond."""

import pickle
import warnings
from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from thalweg.errors import InputError
from thalweg.kernels import NTKClassifier, NTKRegressor, cntk, ntk


@parametrize_with_checks([NTKClassifier(), NTKRegressor()])
def test_scikit_learn_accepts_them(estimator, check):
    state = np.random.get_state()  # some of its checks shuffle with the global generator
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(estimator)
    finally:
        np.random.set_state(state)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16, y, train_size=300, random_state=0, stratify=y)


def test_digits_are_read_and_leave_one_out_foretells_how_well(digits):
    train, test, y_train, y_test = digits
    model = NTKClassifier().fit(train, y_train)
    seen = model.score(test, y_test)
    assert seen > 0.95
    error = np.sqrt(seen * (1 - seen) * (1 / len(train) + 1 / len(test)))
    assert abs(model.loo_score_ - seen) < 3 * error


def test_leave_one_out_is_the_accuracy_of_refitting_without_each(digits):
    train, _, y_train, _ = digits
    train, y_train = train[:40], y_train[:40]
    whole = NTKClassifier(ridge=0.01).fit(train, y_train)
    absolute = whole.ridge_ * np.trace(ntk(train, depth=3))  # the trace changes when an example is left out
    right = 0
    for i in range(40):
        rest = np.delete(np.arange(40), i)
        assert set(y_train[rest]) == set(y_train)
        ridge = absolute / 40 / (np.trace(ntk(train[rest], depth=3)) / 39)
        right += (
            NTKClassifier(ridge=ridge).fit(train[rest], y_train[rest]).predict(train[[i]])[0] == y_train[i]
        )
    assert whole.loo_score_ == right / 40


def test_without_a_ridge_it_interpolates(digits):
    train, _, y_train, _ = digits
    model = NTKClassifier(ridge=0.0).fit(train, y_train)
    outputs = model.decision_function(train)
    assert np.allclose(outputs, np.eye(10)[y_train] - 0.1, atol=1e-6)


def test_images_go_in_as_images(digits):
    train, test, y_train, y_test = digits
    model = NTKClassifier("cntk", depth=3, kernel_params={"readout": "flatten"})
    model.fit(train[:60].reshape(-1, 1, 8, 8), y_train[:60])
    assert model.score(test[:50].reshape(-1, 1, 8, 8), y_test[:50]) > 0.7
    with pytest.raises(InputError, match=r"channels, height, width"):
        NTKClassifier("cntk").fit(train[:60], y_train[:60])
    with pytest.raises(InputError, match=r"expected: \(m, 1, 8, 8\)"):
        model.predict(test[:4].reshape(-1, 1, 4, 16))


def test_a_function_is_a_kernel(digits):
    train, test, y_train, _ = digits
    named = NTKClassifier("ntk", depth=2).fit(train, y_train)
    given = NTKClassifier(ntk, kernel_params={"depth": 2}).fit(train, y_train)
    fixed = NTKClassifier(partial(ntk, depth=2)).fit(train, y_train)
    assert np.array_equal(named.decision_function(test[:5]), given.decision_function(test[:5]))
    assert np.array_equal(named.decision_function(test[:5]), fixed.decision_function(test[:5]))


def test_names_and_numbers_of_classes():
    x = np.random.default_rng(0).normal(size=(40, 3))
    two = NTKClassifier().fit(x, np.where(x[:, 0] > 0, "up", "down"))
    assert two.decision_function(x).shape == (40,)
    assert set(two.predict(x)) == {"up", "down"}
    assert np.array_equal(two.decision_function(x) > 0, two.predict(x) == "up")
    with pytest.raises(InputError, match="two classes"):
        NTKClassifier().fit(x, np.zeros(40, dtype=int))


def test_depth_and_ridge_can_be_searched_for(digits):
    train, _, y_train, _ = digits
    pipe = make_pipeline(StandardScaler(), NTKClassifier())
    search = GridSearchCV(pipe, {"ntkclassifier__depth": [2, 3], "ntkclassifier__ridge": ["loo", 1e-3]}, cv=2)
    assert search.fit(train[:100], y_train[:100]).best_score_ > 0.8


def test_it_survives_pickling(digits):
    train, test, y_train, _ = digits
    model = NTKClassifier().fit(train[:50], y_train[:50])
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(test), model.predict(test))


class TestRegressor:
    def test_several_outputs_are_what_each_alone_is_with_the_same_ridge(self):
        x = np.random.default_rng(0).normal(size=(50, 3))
        y = np.stack([x[:, 0] ** 2, 100 + x[:, 1]], axis=1)
        both = NTKRegressor(ridge=1e-3).fit(x, y).predict(x[:7])
        assert both.shape == (7, 2)
        for k in range(2):
            assert np.allclose(both[:, k], NTKRegressor(ridge=1e-3).fit(x, y[:, k]).predict(x[:7]))

    def test_real_data_and_the_leave_one_out_score(self):
        x, y = load_diabetes(return_X_y=True)
        x = StandardScaler().fit_transform(x)
        scores = cross_val_score(NTKRegressor(depth=2), x, y, cv=KFold(10, shuffle=True, random_state=0))
        assert scores.mean() > 0.4
        loo = NTKRegressor(depth=2).fit(x, y).loo_score_
        assert loo == pytest.approx(scores.mean(), abs=3 * scores.std(ddof=1) / np.sqrt(10))

    def test_the_posterior_is_that_of_a_gaussian_process(self):
        rng = np.random.default_rng(0)
        x, new = rng.normal(size=(25, 2)), rng.normal(size=(40, 2))
        y = np.sin(x[:, 0]) + 0.1 * rng.normal(size=25)
        model = NTKRegressor(RBF(1.5), ridge=0.01).fit(x, y)
        centred = y - y.mean()
        kernel = RBF(1.5)(x) + 0.01 * np.eye(25)
        amplitude = centred @ np.linalg.solve(kernel, centred) / 25
        peer = GaussianProcessRegressor(
            ConstantKernel(amplitude, "fixed") * RBF(1.5, "fixed"), alpha=0.01 * amplitude, optimizer=None
        ).fit(x, centred)
        mean, std = peer.predict(new, return_std=True)
        assert np.allclose(model.predict(new), mean + y.mean(), atol=1e-8)
        assert np.allclose(model.predict_variance(new), std**2, atol=1e-8)

    def test_the_variance_is_honest_on_functions_drawn_from_the_prior(self):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(120, 3))
        kernel = RBF(1.0) + ConstantKernel(1.0)
        draw = np.linalg.cholesky(kernel(x) + 1e-8 * np.eye(120)) @ rng.normal(size=(120, 100))
        scores = []
        for k in range(100):
            model = NTKRegressor(kernel, ridge=1e-6).fit(x[:60], draw[:60, k])
            std = np.sqrt(model.predict_variance(x[60:]))
            scores.append(np.mean(((draw[60:, k] - model.predict(x[60:])) / std) ** 2))
        assert np.mean(scores) == pytest.approx(60 / 58, abs=4 * np.std(scores) / np.sqrt(100))

    def test_constant_targets(self):
        x = np.random.default_rng(0).normal(size=(10, 2))
        model = NTKRegressor().fit(x, np.full(10, 3.0))
        assert np.array_equal(model.predict(x), np.full(10, 3.0))
        assert np.array_equal(model.predict_variance(x), np.zeros(10))


class TestRefusals:
    def test_names_that_are_none(self):
        x, y = np.ones((4, 2)) * np.arange(1, 5)[:, None], np.arange(4) % 2
        with pytest.raises(InputError, match="no such kernel"):
            NTKClassifier("rbf").fit(x, y)
        with pytest.raises(InputError, match="the ridge"):
            NTKClassifier(ridge="test").fit(x, y)
        with pytest.raises(InputError, match="the ridge"):
            NTKClassifier(ridge=-1.0).fit(x, y)

    def test_features_that_are_all_zero(self):
        with pytest.raises(Exception, match="the kernel is zero"):
            NTKClassifier().fit(np.zeros((4, 2)), np.arange(4) % 2)

    def test_what_is_done_to_the_callers_array_changes_no_prediction(self, digits):
        train, test, y_train, _ = digits
        mine = train.copy()
        model = NTKClassifier().fit(mine, y_train)
        before = model.predict(test)
        mine[:] = 0
        assert np.array_equal(model.predict(test), before)


def test_the_convolutional_kernel_is_what_it_says(digits):
    x = digits[0][:6].reshape(-1, 1, 8, 8)
    model = NTKRegressor("cntk", depth=2, kernel_params={"readout": "flatten"}, ridge=0.1).fit(
        x, np.arange(6.0)
    )
    kernel = cntk(x, depth=2, readout="flatten")
    y = np.arange(6.0) - 2.5
    expected = kernel @ np.linalg.solve(kernel + 0.1 * np.trace(kernel) / 6 * np.eye(6), y) + 2.5
    assert np.allclose(model.predict(x), expected)
