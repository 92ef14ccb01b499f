"""The fully connected kernel: published conventions, closed forms, other programs and finite networks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad

from thalweg.errors import InputError
from thalweg.kernels import ntk

X = np.array([[1, 0, 0], [0.6, 0.8, 0], [-0.5, 0.5, 2]])
# Hidden layers: off-diagonals (1,2), (1,3), (2,3) of Θ and of Σ.
GOLDEN = {
    1: ([1.100447226586, 0.23195165357, 0.777488723246], [0.677547567767, 0.444082147389, 0.725987639745]),
    2: ([1.544416300677, 1.043676214913, 1.553362862786], [0.733433785826, 0.912128940126, 1.078174578587]),
    5: ([2.699593387439, 3.454480047622, 3.888756170375], [0.833216623967, 1.516021941531, 1.571955820974]),
}


def examples(n, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def plain(x, z, depth, scales, activation="relu"):
    """The recursion entry by entry, with the expectations of two normal variables as formulas."""
    out = np.empty((2, len(x), len(z)))
    for i, a in enumerate(x):
        for j, b in enumerate(z):
            s = np.array([a @ b, a @ a, b @ b])
            theta = scales[0] * s[0]
            for h in range(1, depth):
                if activation == "relu":
                    rho = np.clip(s[0] / np.sqrt(s[1] * s[2]), -1, 1)
                    angle = np.arccos(rho)
                    slope = 1 - angle / np.pi
                    s[0] = np.sqrt(s[1] * s[2]) * (rho * slope + np.sin(angle) / np.pi)
                else:
                    gain = 1 / (2 / np.pi * np.arcsin(2 / 3))
                    widths = np.sqrt((1 + 2 * s[1]) * (1 + 2 * s[2]))
                    slope = gain * 4 / np.pi / np.sqrt(widths**2 - 4 * s[0] ** 2)
                    s = gain * 2 / np.pi * np.arcsin(2 * s / [widths, 1 + 2 * s[1], 1 + 2 * s[2]])
                theta = theta * slope + scales[h] * s[0]
            out[:, i, j] = theta, s[0]
    return out


def test_the_golden_values():
    for layers, (theta, sigma) in GOLDEN.items():
        for kind, values in (("ntk", theta), ("nngp", sigma)):
            kernel = ntk(X, depth=layers + 1, kind=kind)
            assert np.allclose(kernel[[0, 0, 1], [1, 2, 2]], values, rtol=1e-11, atol=0)
            size = np.array([1, 1, 4.5]) * (layers + 1 if kind == "ntk" else 1)
            assert np.allclose(np.diag(kernel), size, rtol=1e-15, atol=0)


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 257])
def test_every_entry_is_that_of_the_plain_recursion(n, activation):
    x, z = examples(n), examples(5, seed=1)
    z[1] = 0
    z[2] = -z[3]
    scales = [0.5, 0.0, 2.0, 1.0]
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(plain(x, z, 4, scales, activation))
    for kind, truth in zip(("ntk", "nngp"), expected, strict=True):
        kernel = ntk(x, z, depth=4, kind=kind, trained=scales, activation=activation)
        assert kernel.shape == (n, 5)
        assert np.allclose(kernel, truth, rtol=1e-12, atol=1e-14)
    assert np.allclose(ntk(x, z, depth=1), x @ z.T, rtol=1e-13, atol=1e-14)


def test_the_erf_layer_is_the_expectation_it_claims_to_be():
    from scipy.special import erf

    x = np.array([[0.7, 0.2], [-0.3, 1.1]])
    cov = x @ x.T
    inverse, norm = np.linalg.inv(cov), 2 * np.pi * np.sqrt(np.linalg.det(cov))

    def mean(f):
        def integrand(v, u):
            w = np.array([u, v])
            return f(u) * f(v) * np.exp(-w @ inverse @ w / 2) / norm

        return dblquad(integrand, -9, 9, -9, 9, epsabs=1e-9)[0]

    gain = 1 / (2 / np.pi * np.arcsin(2 / 3))
    sigma = gain * mean(erf)
    slope = gain * mean(lambda u: 2 / np.sqrt(np.pi) * np.exp(-u * u))
    assert ntk(x, depth=2, kind="nngp", activation="erf")[0, 1] == pytest.approx(sigma, rel=1e-7)
    assert ntk(x, depth=2, activation="erf")[0, 1] == pytest.approx(cov[0, 1] * slope + sigma, rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from(["relu", "erf"]),
    st.sampled_from(["ntk", "nngp"]),
    st.integers(0, 99),
)
def test_symmetry_homogeneity_and_positive_semidefiniteness(depth, d, activation, kind, seed):
    x = examples(6, d, seed)
    kernel = ntk(x, depth=depth, activation=activation, kind=kind)
    assert np.array_equal(kernel, kernel.T)
    assert np.allclose(kernel, ntk(x, x.copy(), depth=depth, activation=activation, kind=kind), rtol=1e-12)
    assert np.linalg.eigvalsh(kernel)[0] >= -1e-13 * np.trace(kernel)
    if activation == "relu":
        factors = np.array([1e-150, 1e-3, 0.5, 1, 3, 1e150])
        scaled = ntk(factors[:, None] * x, depth=depth, kind=kind)
        assert np.allclose(scaled, np.outer(factors, factors) * kernel, rtol=1e-12, atol=0)
        layers = depth if kind == "ntk" else 1
        assert np.allclose(np.diag(kernel), layers * (x**2).sum(axis=1), rtol=1e-14)


def test_equal_examples_have_the_same_rows_as_each_other():
    x = np.repeat(examples(20, 300), 2, axis=0)
    kernel = ntk(x, depth=6)
    assert np.allclose(kernel[::2, 1::2].diagonal(), kernel.diagonal()[::2], rtol=1e-13)


def test_float32_is_rounded_from_float64():
    x = examples(40).astype(np.float32)
    kernel = ntk(x, depth=6)
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, ntk(x.astype(np.float64), depth=6).astype(np.float32))
    assert ntk(x, depth=6, dtype=np.float64).dtype == np.float64


def test_blocks_and_threads_change_nothing():
    x, z = examples(300, 7), examples(270, 7, seed=1)
    whole = ntk(x, z, depth=3, threads=2)
    assert np.allclose(ntk(x[250:], z[100:], depth=3, threads=1), whole[250:, 100:], rtol=1e-13)
    symmetric = ntk(x, depth=3)
    assert np.array_equal(symmetric, symmetric.T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros(3)}, r"shape of x .* try: x\[None\]"),
        ({"x": np.zeros((3, 0))}, "shape of x"),
        ({"x": np.full((2, 2), np.inf)}, "NaN or infinity, first in example 0"),
        ({"x": np.zeros((1, 2), complex)}, "no real numbers"),
        ({"z": np.zeros((2, 3))}, "differ in shape"),
        ({"depth": 0}, "depth of 1 or more"),
        ({"depth": 2.5}, "depth of 1 or more"),
        ({"kind": "gp"}, "kind of kernel"),
        ({"activation": "tanh"}, "activation is unknown"),
        ({"trained": "paper"}, "trained does not fit"),
        ({"trained": [1, -1]}, "trained does not fit"),
        ({"trained": [1]}, "trained does not fit"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        ntk(**{"x": np.ones((2, 2)), "depth": 2, **arguments})
