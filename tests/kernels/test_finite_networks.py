"""Random finite networks meet the infinite one: the mean over draws, extrapolated in the width, as a z-score.

The mean kernel of width w is K + a/w + O(1/w²). K is fitted by least squares from several widths; its
standard error follows from those of the means.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, pad

from thalweg.kernels import cntk, ntk
from thalweg.rng import generator

ERF_GAIN = 1 / (2 / np.pi * np.arcsin(2 / 3))


def fully_connected(x, depth, width, rng, activation="relu"):
    """Return the outputs (n,) of a random network and its weights, in the paper's parametrisation."""
    gain, function = (2, torch.relu) if activation == "relu" else (ERF_GAIN, torch.erf)
    sizes = [x.shape[1], *[width] * (depth - 1), 1]
    weights = [torch.randn(b, a, generator=rng, requires_grad=True) for a, b in pairwise(sizes)]
    for h, weight in enumerate(weights):
        x = x @ weight.T
        if h < depth - 1:
            x = (gain / width) ** 0.5 * function(x)
    return x[:, 0], weights


def convolutional(x, depth, width, rng, readout="gap", circular=False, filter_size=3, stride=1):
    r = filter_size // 2
    sizes = [x.shape[1], *[width] * (depth - 1)]
    weights = [
        torch.randn(b, a, filter_size, filter_size, generator=rng, requires_grad=True)
        for a, b in pairwise(sizes)
    ]
    for weight in weights:
        x = pad(x, (r, r, r, r), mode="circular") if circular else pad(x, (r, r, r, r))
        x = (2 / (width * filter_size**2)) ** 0.5 * torch.relu(conv2d(x, weight, stride=stride))
    if readout == "gap":
        x = x.mean((2, 3))
    x = x.flatten(1)
    weights.append(torch.randn(x.shape[1], generator=rng, requires_grad=True))
    return x @ weights[-1], weights


def layer_kernels(network, x, z, depth, width, draws, seed, **form):
    """Return what each layer adds to the kernel, and the product of the outputs (draws, depth + 1)."""
    rng = generator(seed, "draws", width)
    found = []
    for _ in range(draws):
        outputs, weights = network(torch.stack((x, z)), depth, width, rng, **form)
        gradients = [torch.autograd.grad(out, weights, retain_graph=True) for out in outputs]
        layers = [float((a * b).sum()) for a, b in zip(*gradients, strict=True)]
        found.append([*layers, float(outputs.detach().prod())])
    return np.array(found)


def extrapolated(network, x, z, depth, widths, draws, seed=0, **form):
    """Return K and its standard error, for each layer and the outputs (depth + 1,)."""
    means, errors = [], []
    for width in widths:
        values = layer_kernels(network, x, z, depth, width, draws, seed, **form)
        means.append(values.mean(axis=0))
        errors.append(values.std(axis=0, ddof=1) / np.sqrt(draws))
    fit = []
    for mean, error in zip(np.array(means).T, np.array(errors).T, strict=True):
        design = np.stack((np.ones(len(widths)), 1 / np.array(widths)), axis=1) / error[:, None]
        covariance = np.linalg.inv(design.T @ design)
        fit.append(((covariance @ design.T @ (mean / error))[0], np.sqrt(covariance[0, 0])))
    return np.array(fit).T


def z_scores(network, kernel, x, z, depth, widths, draws, options=(), **form):
    exact = [
        kernel(x[None], z[None], depth=depth, trained=row, **dict(options))[0, 0] for row in np.eye(depth)
    ]
    exact.append(kernel(x[None], z[None], depth=depth, kind="nngp", **dict(options))[0, 0])
    mean, error = extrapolated(network, torch.tensor(x), torch.tensor(z), depth, widths, draws, **form)
    return (mean - exact) / error, np.array(exact) / error


@pytest.fixture(autouse=True)
def _double():
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(old)


def pair(*shape):
    rng = np.random.default_rng(3)
    x = rng.normal(size=shape)
    return x, 0.6 * x + 0.8 * rng.normal(size=shape)


FULLY_CONNECTED = {"relu": {}, "erf": {"activation": "erf"}}
CONVOLUTIONAL = {
    "gap": ({}, {}),
    "flatten": ({"readout": "flatten"}, {"readout": "flatten"}),
    "circular": ({"padding": "circular"}, {"circular": True}),
    "stride and large filters": ({"stride": 2, "filter_size": 5}, {"stride": 2, "filter_size": 5}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FULLY_CONNECTED)
def test_every_layer_of_wide_fully_connected_networks(case):
    form = FULLY_CONNECTED[case]
    z, digits = z_scores(fully_connected, ntk, *pair(5), 4, (16, 32, 64), 300, form, **form)
    assert np.abs(z).max() < 4
    assert (digits[:-1] > 7).all()  # known well enough that the test can fail


@pytest.mark.slow
@pytest.mark.parametrize("case", CONVOLUTIONAL)
def test_every_layer_of_wide_convolutional_networks(case):
    options, form = CONVOLUTIONAL[case]
    z, digits = z_scores(convolutional, cntk, *pair(2, 5, 5), 3, (8, 16, 32), 200, options, **form)
    assert np.abs(z).max() < 4
    assert (digits[:-1] > 6).all()


def test_a_kernel_with_another_padding_is_told_apart():
    _, form = CONVOLUTIONAL["circular"]
    z, _ = z_scores(convolutional, cntk, *pair(2, 5, 5), 3, (8, 16, 32), 200, {}, **form)
    assert np.abs(z).max() > 6


@pytest.mark.slow
@pytest.mark.parametrize("case", CONVOLUTIONAL)
def test_every_layer_of_wider_and_deeper_convolutional_networks(case):
    options, form = CONVOLUTIONAL[case]
    z, digits = z_scores(convolutional, cntk, *pair(3, 6, 6), 4, (32, 64, 128), 1000, options, **form)
    assert np.abs(z).max() < 4
    assert (digits[:-1] > 15).all()
