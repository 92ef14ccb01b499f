"""LARS against Algorithm 1 of the paper, written anew in numpy."""

import numpy as np
import pytest
import torch

from thalweg.errors import InputError
from thalweg.optim.lars import LARS

SHAPES = [(4, 3), (5,), (2, 3, 2), (1, 1), ()]


def draws(seed, count=6, shapes=SHAPES):
    """Return weights and ``count`` gradients of each."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=s) for s in shapes]
    return weights, [[rng.normal(size=s) * 10.0 ** rng.integers(-3, 3) for s in shapes] for _ in range(count)]


def walk(optimiser, parameters, gradients):
    """Take a step along each of the gradients."""
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype)
        optimiser.step()


def tensors(arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]


def algorithm_1(weights, gradients, lr, *, momentum=0.9, decay=0.0, trust=1e-3, least=2):
    """The paper's pseudocode, a line a line."""
    end = []
    for index, start in enumerate(weights):
        w, v = np.array(start), 0.0
        for row in gradients:
            g = row[index]
            below = np.linalg.norm(g) + decay * np.linalg.norm(w)
            size = trust * np.linalg.norm(w)
            rate = size / below if size > 0 and below > 0 and np.ndim(w) >= least else 1.0
            v = momentum * v + lr * rate * (g + decay * w)
            w = w - v
        end.append(w)
    return end


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"weight_decay": 5e-4}, {"decay": 5e-4}),
        ({"momentum": 0.0, "trust": 0.02}, {"momentum": 0.0, "trust": 0.02}),
        ({"adapt_ndim_min": 0, "weight_decay": 0.1}, {"least": 0, "decay": 0.1}),
    ],
    ids=str,
)
def test_it_is_algorithm_1(ours, theirs, foreach):
    weights, gradients = draws(0)
    parameters = tensors(weights)
    walk(LARS(parameters, lr=2.0, foreach=foreach, **ours), parameters, gradients)
    for parameter, truth in zip(parameters, algorithm_1(weights, gradients, 2.0, **theirs), strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_first_step_is_a_share_of_the_weights_whatever_the_gradient(scale):
    weights, gradients = draws(1, count=1, shapes=[(6, 7)])
    parameters = tensors(weights)
    walk(LARS(parameters, lr=3.0), parameters, [[scale * g for g in gradients[0]]])
    moved = float((parameters[0].detach() - torch.tensor(weights[0])).norm())
    assert moved == pytest.approx(3.0 * 1e-3 * np.linalg.norm(weights[0]), rel=1e-12)


def test_what_is_not_adapted_is_torchs_momentum():
    weights, gradients = draws(2, shapes=[(5,), (3, 2)])
    ours, theirs = tensors(weights), tensors(weights)
    walk(LARS(ours, lr=0.1, weight_decay=0.01, adapt_ndim_min=3), ours, gradients)
    walk(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01), theirs, gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_decay_alone_moves_by_its_share():
    """λ·wd·w with λ = trust/wd, although the gradient is zero."""
    parameter = torch.full((2, 2), 4.0, dtype=torch.float64, requires_grad=True)
    walk(LARS([parameter], lr=1.0, weight_decay=0.1), [parameter], [[np.zeros((2, 2))]])
    torch.testing.assert_close(
        parameter.detach(), torch.full_like(parameter, 4.0 - 0.004), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_many_at_once_and_one_by_one_agree_bit_for_bit(dtype, decay):
    weights, gradients = draws(3, shapes=[*SHAPES, (300, 500), (0, 3), (64,)])
    ends = []
    for foreach in (False, True):
        parameters = tensors(weights, dtype)
        walk(LARS(parameters, lr=2.0, weight_decay=decay, foreach=foreach), parameters, gradients)
        ends.append(parameters)
    assert all(torch.equal(one, many) for one, many in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": -1.0}, "lr is out of its range"),
        ({"momentum": 1.0}, "momentum is out of its range"),
        ({"weight_decay": -0.1}, "weight_decay is out of its range"),
        ({"trust": 0.0}, "trust is out of its range"),
        ({"adapt_ndim_min": 1.5}, "adapt_ndim_min is out of its range"),
    ],
)
def test_bad_settings_are_refused_by_name(setting, message):
    with pytest.raises(InputError, match=message):
        LARS([torch.ones(2, requires_grad=True)], **setting)
