"""The Jacobian against torch.func, by rows, by columns and one row at a time."""

import pytest
import torch
from torch import nn

from tests.models import mlp, seeded
from thalweg.errors import InputError
from thalweg.optim import jacobian as module
from thalweg.optim.jacobian import jacobian


class Odd(torch.autograd.Function):
    """x³ with a backward that can be neither batched nor differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.tensor(
            [3 * a**2 * g for a, g in zip(x.tolist(), gradient.tolist(), strict=True)]
        ).double()


def dense(model, x):
    """∂ model(x) / ∂ parameters (m, n), by torch.func."""
    parameters = dict(model.named_parameters())

    def outputs(values):
        return torch.func.functional_call(model, values, (x,)).reshape(-1)

    parts = torch.func.jacrev(outputs)(parameters)
    return torch.cat([part.flatten(1) for part in parts.values()], dim=1).detach()


@pytest.mark.parametrize("num", [1, 2, 9, 200])
def test_it_is_the_jacobian_of_torch_func_by_rows_and_by_columns(num):
    model = mlp((2, 3, 1))  # 13 parameters: columns are taken from 27 outputs
    x = torch.linspace(-2, 2, 2 * num, dtype=torch.float64).view(num, 2)
    found = jacobian(model(x).reshape(-1), list(model.parameters()))
    torch.testing.assert_close(found.matrix, dense(model, x), rtol=1e-13, atol=1e-14)
    by_columns = num == 200
    assert (found.num_gradients, found.num_products) == ((0, 13) if by_columns else (num, 0))


@pytest.mark.parametrize("chunk", [1, 26, 40, 10**6])
@pytest.mark.parametrize("num", [3, 40])
def test_batches_of_any_size_give_the_same(chunk, num, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    model = mlp((2, 3, 1))
    x = torch.linspace(-2, 2, 2 * num, dtype=torch.float64).view(num, 2)
    found = jacobian(model(x).reshape(-1), list(model.parameters())).matrix
    torch.testing.assert_close(found, dense(model, x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("num", [1, 2, 30])
def test_what_cannot_be_batched_or_differentiated_twice_is_done_row_by_row(num):
    x = torch.linspace(-1, 1, num, dtype=torch.float64)
    w = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)
    outputs = Odd.apply(w[0] * x + w[1])
    for batched in (module._by_rows, module._by_columns):
        with pytest.raises(RuntimeError):
            batched(outputs, [w])
    found = jacobian(outputs, [w])
    slope = 3 * (0.7 * x - 0.3) ** 2
    torch.testing.assert_close(found.matrix, torch.stack([slope * x, slope], dim=1))
    assert found.num_gradients == num


@pytest.mark.parametrize("recurrent", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("times", [3, 45])
def test_recurrent_nets_have_a_jacobian(recurrent, times):
    """By rows and by columns, against one backward pass for each row."""
    net = seeded(lambda: recurrent(1, 2, batch_first=True)).double()
    x = torch.linspace(-1, 1, times, dtype=torch.float64).view(1, -1, 1)
    outputs = net(x)[0].reshape(-1)
    parameters = list(net.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in outputs
    ]
    found = jacobian(outputs, parameters)
    torch.testing.assert_close(found.matrix, torch.stack(rows), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("num", [1, 20])
def test_a_parameter_that_has_no_part_in_it_has_columns_of_zeros(num):
    used, unused = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = jacobian(used[0] * torch.arange(1.0, num + 1, dtype=torch.float64), [unused, used]).matrix
    expected = torch.zeros(num, 4, dtype=torch.float64)
    expected[:, 2] = torch.arange(1.0, num + 1)
    assert torch.equal(found, expected)


def test_nothing_is_written_to_the_model():
    model = mlp((2, 3, 1))
    jacobian(model(torch.ones(40, 2, dtype=torch.float64)).reshape(-1), list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_a_sparse_gradient_is_refused():
    table = nn.Embedding.from_pretrained(torch.ones(3, 2), freeze=False, sparse=True)
    with pytest.raises(InputError, match="sparse=False"):
        jacobian(table(torch.tensor([0, 2])).reshape(-1), [table.weight])
