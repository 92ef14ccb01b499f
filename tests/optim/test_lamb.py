"""LAMB against Algorithm 2 of the paper, written anew in numpy."""

import numpy as np
import pytest
import torch

from thalweg.errors import InputError
from thalweg.optim.lamb import LAMB

SHAPES = [(4, 3), (5,), (2, 3, 2), (1, 1), ()]


def draws(seed, count=6, shapes=SHAPES):
    """Return weights and ``count`` gradients of each."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=s) for s in shapes]
    return weights, [[rng.normal(size=s) * 10.0 ** rng.integers(-3, 3) for s in shapes] for _ in range(count)]


def walk(optimiser, parameters, gradients):
    """Take a step along each of the gradients; return the points after each."""
    points = []
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype)
        optimiser.step()
        points.append([p.detach().clone() for p in parameters])
    return points


def tensors(arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]


def algorithm_2(
    weights,
    gradients,
    lr,
    *,
    betas=(0.9, 0.999),
    eps=1e-6,
    decay=0.01,
    corrected=True,
    phi=None,
    clip=None,
    least=2,
):
    """The paper's pseudocode, a line a line."""
    end = []
    for index, start in enumerate(weights):
        w, m, v = np.array(start), 0.0, 0.0
        for t, row in enumerate(gradients, 1):
            g = row[index]
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g**2
            m_hat, v_hat = (m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)) if corrected else (m, v)
            u = m_hat / (np.sqrt(v_hat) + eps) + decay * w
            size = np.linalg.norm(w) if phi is None else np.clip(np.linalg.norm(w), *phi)
            length = np.linalg.norm(u)
            ratio = size / length if size > 0 and length > 0 else 1.0
            ratio = min(ratio, np.inf if clip is None else clip)
            w = w - lr * (ratio if np.ndim(w) >= least else 1.0) * u
        end.append(w)
    return end


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"weight_decay": 0.0}, {"decay": 0.0}),
        ({"betas": (0.5, 0.7), "eps": 1e-3}, {"betas": (0.5, 0.7), "eps": 1e-3}),
        ({"betas": (0.0, 0.0)}, {"betas": (0.0, 0.0)}),
        ({"bias_correction": False}, {"corrected": False}),
        ({"phi_clip": (0.5, 2.0)}, {"phi": (0.5, 2.0)}),
        ({"trust_clip": 1.0}, {"clip": 1.0}),
        ({"adapt_ndim_min": 0}, {"least": 0}),
    ],
    ids=str,
)
def test_it_is_algorithm_2(ours, theirs, foreach):
    weights, gradients = draws(0)
    parameters = tensors(weights)
    walk(LAMB(parameters, lr=0.01, foreach=foreach, **ours), parameters, gradients)
    for parameter, truth in zip(parameters, algorithm_2(weights, gradients, 0.01, **theirs), strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), truth, rtol=1e-12, atol=1e-14)


def test_the_oracle_sees_a_rate_applied_after_the_ratio():
    """The mistake of a published LAMB: lr/(1−β₁ᵗ) behind the ratio. A check that cannot see it is none."""
    weights, gradients = draws(0, count=1, shapes=[(4, 3)])
    right = algorithm_2(weights, gradients, 0.01)[0] - weights[0]
    wrong = algorithm_2(weights, gradients, 0.01 / (1 - 0.9))[0] - weights[0]
    assert np.linalg.norm(wrong) == pytest.approx(10 * np.linalg.norm(right))


@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_every_adapted_tensor_moves_by_lr_times_its_norm(decay, scale):
    weights, gradients = draws(1, count=5)
    parameters = tensors([scale * w for w in weights])
    optimiser = LAMB(parameters, lr=0.01, weight_decay=decay, adapt_ndim_min=0)
    before = [p.detach().clone() for p in parameters]
    for after in walk(optimiser, parameters, gradients):
        for old, new in zip(before, after, strict=True):
            assert float((new - old).norm()) == pytest.approx(0.01 * float(old.norm()), rel=1e-12)
        before = after


def test_biases_and_scales_of_norms_move_as_in_adamw():
    weights, gradients = draws(2, shapes=[(5,)])
    ours, theirs = tensors(weights), tensors(weights)
    walk(LAMB(ours, lr=0.01, weight_decay=0.0), ours, gradients)
    walk(torch.optim.Adam(theirs, lr=0.01, eps=1e-6), theirs, gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)


def test_a_tensor_of_zeros_leaves_them():
    parameter = torch.zeros(2, 2, requires_grad=True)
    walk(LAMB([parameter], lr=0.1), [parameter], [[np.ones((2, 2))]])
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), -0.1), rtol=1e-5, atol=0.0)


def test_no_gradient_and_no_decay_is_no_step():
    parameter = torch.ones(2, 2, requires_grad=True)
    walk(LAMB([parameter], weight_decay=0.0), [parameter], [[np.zeros((2, 2))]])
    assert torch.equal(parameter, torch.ones(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_at_once_and_one_by_one_agree_bit_for_bit(dtype):
    weights, gradients = draws(3, shapes=[*SHAPES, (300, 500), (0, 3), (64,)])
    ends = []
    for foreach in (False, True):
        parameters = tensors(weights, dtype)
        optimiser = LAMB(parameters, lr=0.02, foreach=foreach)
        for parameter, gradient in zip(
            parameters[1:], gradients[0][1:], strict=True
        ):  # the first joins later
            parameter.grad = torch.as_tensor(gradient, dtype=dtype)
        optimiser.step()
        ends.append(walk(optimiser, parameters, gradients)[-1])
    assert all(torch.equal(one, many) for one, many in zip(*ends, strict=True))


def test_weights_in_another_memory_order_move_alike():
    weights, gradients = draws(4, shapes=[(2, 3, 4, 5)])
    plain = tensors(weights)
    last = [plain[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()]
    walk(LAMB(plain), plain, gradients)
    walk(LAMB(last), last, gradients)
    torch.testing.assert_close(last, plain, rtol=1e-12, atol=0.0)
    assert last[0].is_contiguous(memory_format=torch.channels_last)


def test_half_precision_moves_by_its_share_to_its_precision():
    parameter = torch.full((64, 64), 2.0, dtype=torch.bfloat16, requires_grad=True)
    walk(LAMB([parameter], lr=0.25), [parameter], [[np.full((64, 64), 3.0)]])
    assert parameter.dtype == torch.bfloat16
    assert float((parameter.detach().double() - 2.0).norm()) == pytest.approx(0.25 * 128, rel=0.01)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": -1.0}, "lr is out of its range"),
        ({"lr": float("nan")}, "lr is out of its range"),
        ({"betas": (0.9, 1.0)}, "betas is out of its range"),
        ({"betas": (0.9,)}, "betas is out of its range"),
        ({"eps": 0.0}, "eps is out of its range"),
        ({"weight_decay": -0.1}, "weight_decay is out of its range"),
        ({"phi_clip": (2.0, 1.0)}, "phi_clip is out of its range"),
        ({"trust_clip": 0.0}, "trust_clip is out of its range"),
        ({"adapt_ndim_min": -1}, "adapt_ndim_min is out of its range"),
    ],
)
def test_bad_settings_are_refused_by_name(setting, message):
    with pytest.raises(InputError, match=message):
        LAMB([torch.ones(2, requires_grad=True)], **setting)
