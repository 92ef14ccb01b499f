"""How long a step is against the tensor it moves."""

import numpy as np
import pytest
import torch

from thalweg.optim.trust_ratio import PIECE, norms, trust_ratio


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_a_norm_is_that_of_numpy_at_every_number_of_pieces(size):
    tensor = torch.tensor(np.random.default_rng(size).normal(size=size))
    assert norms([tensor]).tolist() == pytest.approx([np.linalg.norm(tensor.numpy())], rel=1e-14)


def test_norms_of_many_tensors_belong_to_their_tensors():
    rng = np.random.default_rng(0)
    tensors = [torch.tensor(rng.normal(size=n) * n) for n in (1, 2 * PIECE + 1, 0, PIECE, 7)]
    assert norms(tensors).tolist() == pytest.approx([np.linalg.norm(t.numpy()) for t in tensors], rel=1e-14)


def test_the_norm_of_a_long_float32_tensor_is_right_where_torch_sums_too_coarsely():
    tensor = torch.tensor(np.random.default_rng(0).normal(size=2**23).astype(np.float32))
    truth = float(tensor.double().norm())
    assert float(norms([tensor])) == pytest.approx(truth, rel=1e-6)
    assert abs(float(tensor.norm()) / truth - 1) > 1e-5  # else the pieces can go


def test_half_precision_does_not_overflow():
    assert norms([torch.full((300,), 300.0, dtype=torch.float16)]).item() == pytest.approx(5196.15, rel=1e-6)


def test_a_tensor_that_is_not_contiguous_has_its_norm():
    tensor = torch.arange(float(2 * PIECE)).reshape(2, PIECE).T
    assert float(norms([tensor])) == pytest.approx(float(tensor.double().norm()), rel=1e-6)


def test_the_ratio_is_one_where_either_is_zero():
    size, update = torch.tensor([6.0, 0.0, 6.0, 0.0]), torch.tensor([2.0, 2.0, 0.0, 0.0])
    assert trust_ratio(size, update).tolist() == [3.0, 1.0, 1.0, 1.0]
