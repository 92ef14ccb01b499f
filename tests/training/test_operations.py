"""What has been written down runs as the function ran, without the function."""

import pytest
import torch
from torch.func import grad_and_value, vmap

from thalweg.rng import generator
from thalweg.training.operations import written_down


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "operations"))


def run_elsewhere(function, *shapes):
    """Write a function down on one set of inputs; return what it and the written one give on another."""
    here, there = ([drawn(*shape, seed=seed) for shape in shapes] for seed in (0, 1))
    with torch.no_grad():
        run = written_down(lambda: function(*here), here)
        return run, run(*[t.clone() for t in there]), function(*there)


def in_place(x):
    y = x * 2
    y.view(-1)[1:].add_(1)  # a view that is another place, of a view that is the same
    return (y + y.view(3, 4),)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x.sum(), x),
        lambda x: x.split([1, 3], dim=1),
        lambda x: (torch.topk(x, 2).values, x.t().contiguous()),
        lambda x: (torch.cat([x, x.expand(3, 4)]), torch.einsum("ij,kj->ik", x, x)),
        lambda x: (torch.view_as_complex(x.view(3, 2, 2)).conj().resolve_conj().real,),
        in_place,
    ],
    ids=["input returned", "split", "several results", "list", "conjugate", "in place"],
)
def test_the_written_operations_give_the_same_numbers_on_other_inputs(function):
    _, found, expected = run_elsewhere(function, (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_of_stacked_copies_can_be_written_down():
    loss = lambda w, x: torch.tanh(x @ w).square().mean()  # noqa: E731
    _, found, expected = run_elsewhere(lambda w, x: vmap(grad_and_value(loss))(w, x), (5, 4, 2), (5, 7, 4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_views_that_change_nothing_are_left_out():
    run, found, expected = run_elsewhere(lambda x: (x.view(3, 4).expand(3, 4).t() + 1,), (3, 4))
    called = [str(node.target) for node in run.graph.nodes if node.op == "call_function"]
    assert called == ["aten.t.default", "aten.add.Tensor"]
    assert torch.equal(found[0], expected[0])


def test_what_is_no_input_is_held_by_reference():
    held, x = drawn(4), drawn(3, 4)
    run = written_down(lambda: (x + held,), [x])
    held.zero_()
    assert torch.equal(run(x)[0], x)


def test_a_number_that_python_reads_is_refused():
    x = drawn(3)
    with pytest.raises(TypeError, match="what python does with it stays unseen"):
        written_down(lambda: (x * (1 if x[0] > 0 else 2),), [x])


def test_a_shape_that_changes_in_place_is_refused():
    x = drawn(3, 4)
    with pytest.raises(TypeError, match="changes the shape of a tensor in place"):
        written_down(lambda: (x.expand(3, 4).unsqueeze_(1) + 1,), [x])
    assert x.shape == (3, 4)
