"""Real nets against scipy's ARPACK in float64: both ends, one run, at most 80 products."""

import copy

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.curvature.spectrum_record import spectrum
from thalweg.problem.problem import Problem


def float64_ends(problem):
    """λmin and λmax of the same loss on the same data by ARPACK on float64 double backward."""
    model = copy.deepcopy(problem.model).double().eval()
    train = problem.measured().train.sample
    batch = tuple(
        torch.cat([b.data[i].double() if i == 0 else b.data[i] for b in train.batches]) for i in range(2)
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):  # the fast kernel has no second derivative
        mean = problem.loss(model, batch).mean
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean, parameters, create_graph=True)])

    def matvec(v):
        products = torch.autograd.grad(flat @ torch.as_tensor(v.ravel()), parameters, retain_graph=True)
        return torch.cat([p.reshape(-1) for p in products]).numpy()

    n = flat.numel()
    start = np.random.default_rng(0).normal(size=n)
    operator = LinearOperator((n, n), matvec, dtype=np.float64)
    return eigsh(operator, k=2, which="BE", tol=1e-8, ncv=50, return_eigenvectors=False, v0=start)


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn", "digits-saddle", "digits-transformer"])
def test_both_ends_agree_with_float64_to_a_thousandth_or_within_the_bound(name):
    problem = Problem.builtin(name)
    found = spectrum(problem)
    low, high = np.sort(float64_ends(problem))
    for end, true_end in ((found.extremes.lambda_min, low), (found.extremes.lambda_max, high)):
        assert abs(end.value - true_end) <= max(1e-3 * abs(true_end), end.bound)
    assert found.cost.num_hvps <= 80
    assert found.backend == "exact"
