"""The objective weighs what it should: examples, tokens, class weights, uneven last batches."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests.models import classification, mlp, seeded
from thalweg.errors import InputError, ModelError, NumericalError
from thalweg.problem import empirical_risk
from thalweg.problem.batches import draw_sample
from thalweg.problem.problem import Problem


def full_gradient(model, loss):
    grads = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return torch.cat([g.reshape(-1) for g in grads if g is not None])


FORMS = {
    "tensors": lambda x, y: (x, y),
    "a dataset": lambda x, y: TensorDataset(x, y),
    "a loader with an uneven last batch": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=8),
    "a shuffling loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True),
    "a list of uneven batches": lambda x, y: [(x[:3], y[:3]), (x[3:20], y[3:20]), (x[20:], y[20:])],
    "a generator": lambda x, y: ((x[i : i + 6], y[i : i + 6]) for i in range(0, len(x), 6)),
    "dicts": lambda x, y: [{"input": x[:30], "labels": y[:30]}, {"input": x[30:], "labels": y[30:]}],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_form_of_data_gives_the_full_data_loss_and_gradient(form, reduction):
    x, y = classification(37)
    model = mlp()
    problem = Problem(model, nn.CrossEntropyLoss(reduction=reduction), FORMS[form](x, y))
    objective = problem.measured().train
    expected = nn.functional.cross_entropy(model(x), y)
    assert objective.examples == 37
    assert objective.value(objective.theta) == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(objective.gradient(objective.theta), full_gradient(model, expected), atol=1e-13)


def test_class_weights_are_the_denominator_of_their_batches():
    x, y = classification(37)
    weight = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    model = mlp()
    loss = nn.CrossEntropyLoss(weight=weight)
    objective = Problem(model, loss, [(x[:9], y[:9]), (x[9:], y[9:])]).measured().train
    expected = loss(model(x), y)
    assert objective.value(objective.theta) == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(objective.gradient(objective.theta), full_gradient(model, expected), atol=1e-13)


class Tagger(nn.Module):
    """A language model in small: returns an object with logits (batch, length, classes), as libraries do."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, input_ids, attention_mask):
        hidden = torch.tanh(self.embedding(input_ids)) * attention_mask[..., None]
        return {"logits": self.head(hidden)}


def token_batches(seed=0):
    """Padded batches of several lengths, their labels −100 on the padding."""
    rng = torch.Generator().manual_seed(seed)
    batches = []
    for size, length in ((4, 7), (4, 3), (2, 9), (1, 5)):
        ids = torch.randint(1, 11, (size, length), generator=rng)
        real = torch.randint(1, length + 1, (size,), generator=rng)
        mask = (torch.arange(length)[None] < real[:, None]).long()
        labels = torch.where(mask.bool(), ids, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def token_loss(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])["logits"]
    kept = batch["labels"] != -100
    total = nn.functional.cross_entropy(logits[kept], batch["labels"][kept], reduction="sum")
    return total, kept.sum()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), token_loss], ids=["criterion", "(sum, count)"])
def test_the_token_weighted_gradient_equals_that_of_all_tokens_at_once(loss):
    model = seeded(Tagger).double()
    batches = token_batches()
    objective = Problem(model, loss, batches).measured().train
    sums = [token_loss(model, batch) for batch in batches]
    expected = sum(total for total, _ in sums) / sum(int(count) for _, count in sums)
    unweighted = sum(total / count for total, count in sums) / len(sums)
    assert abs((unweighted - expected).item()) > 1e-3  # the test could tell
    assert objective.value(objective.theta) == pytest.approx(expected.item(), abs=1e-12)
    gradient = full_gradient(model, expected)
    assert float((objective.gradient(objective.theta) - gradient).norm()) <= 1e-6 * float(gradient.norm())


def test_a_mean_over_tokens_without_its_count_is_used_as_given_and_said_aloud():
    def loss(model, batch):
        total, count = token_loss(model, batch)
        return total / count

    measured = Problem(seeded(Tagger).double(), loss, token_batches()).measured()
    assert measured.train.examples == 11


def test_a_loss_that_couples_examples_is_never_cut_anew():
    def spread(model, batch):
        return model(batch[0]).var(0).sum()

    x, y = classification(40)
    measured = Problem(mlp(), spread, [(x[:20], y[:20]), (x[20:], y[20:])]).measured()
    expected = (spread(mlp(), (x[:20],)) + spread(mlp(), (x[20:],))) / 2
    assert measured.train.value(measured.train.theta) == pytest.approx(expected.item(), rel=1e-12)
    assert "not their weighted mean" in measured.notes[0]


def test_batch_statistics_add_up_to_the_whole():
    x, y = classification(37)
    objective = Problem(mlp(), nn.CrossEntropyLoss(), (x, y)).measured().train
    theta = objective.theta
    values, counts = objective.batch_values(theta)
    assert sum(counts) == 37
    assert sum(v * c for v, c in zip(values, counts, strict=True)) / 37 == pytest.approx(
        objective.value(theta)
    )
    gradient = sum(g * c for g, c in objective.batch_gradients(theta)) / 37
    assert torch.allclose(gradient, objective.gradient(theta), atol=1e-13)
    curvatures, counts = objective.batch_curvatures(theta, theta)
    whole = float(objective.hvp(theta, theta) @ theta)
    assert sum(q * c for q, c in zip(curvatures, counts, strict=True)) / sum(counts) == pytest.approx(whole)


def test_frozen_parameters_are_left_out_and_tied_ones_count_once():
    model = mlp((4, 5, 3))
    model[0].weight.requires_grad_(False)
    assert (
        Problem(model, nn.CrossEntropyLoss(), classification()).measured().train.theta.numel() == 5 + 15 + 3
    )

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = seeded(Tied).double()
    x, y = classification(classes=4)
    objective = Problem(model, nn.CrossEntropyLoss(), (x, y)).measured().train
    assert objective.theta.numel() == 16 + 4 + 4
    expected = full_gradient(model, nn.functional.cross_entropy(model(x), y))
    assert torch.allclose(objective.gradient(objective.theta), expected, atol=1e-13)


def test_non_contiguous_parameters_are_measured_and_keep_their_layout():
    model = mlp((4, 5, 3))
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
    assert not model[0].weight.is_contiguous()
    x, y = classification()
    objective = Problem(model, nn.CrossEntropyLoss(), (x, y)).measured().train
    expected = full_gradient(model, nn.functional.cross_entropy(model(x), y))
    assert torch.allclose(objective.gradient(objective.theta), expected, atol=1e-13)
    assert not model[0].weight.is_contiguous()


@pytest.mark.parametrize("num", [1, 2, 31, 32, 33])
def test_any_number_of_examples_can_be_measured(num):
    x, y = classification(num)
    objective = Problem(mlp(), nn.CrossEntropyLoss(), (x, y)).measured().train
    assert len(list(objective.batch_gradients(objective.theta))) == min(num, 32)


def test_batches_are_cut_to_fit_the_memory_and_the_sums_stay(monkeypatch):
    x, y = classification(100)
    whole = Problem(mlp(), nn.CrossEntropyLoss(), (x, y)).measured().train
    monkeypatch.setattr(empirical_risk, "memory_share", lambda device: 8_000)
    cut = Problem(mlp(), nn.CrossEntropyLoss(), (x, y)).measured().train
    assert len(whole.chunks) == 1
    assert len(cut.chunks) > 2
    theta = whole.theta
    assert cut.value(theta) == pytest.approx(whole.value(theta), rel=1e-12)
    assert torch.allclose(cut.gradient(theta), whole.gradient(theta), atol=1e-14)
    assert torch.allclose(cut.hvp(theta, theta), whole.hvp(theta, theta), atol=1e-13)


def test_half_precision_weights_are_measured_in_float32_coordinates():
    model = mlp(dtype=torch.bfloat16)
    x, y = classification(40, dtype=torch.bfloat16)
    objective = Problem(model, nn.CrossEntropyLoss(), (x, y)).measured().train
    assert objective.theta.dtype == torch.float32
    assert objective.roundoff == torch.finfo(torch.bfloat16).eps
    assert model[0].weight.dtype == torch.bfloat16
    precise = Problem(mlp().float(), nn.CrossEntropyLoss(), (x.float(), y)).measured().train
    change = objective.gradient(objective.theta) - precise.gradient(objective.theta)
    assert float(change.norm()) < 0.1 * float(precise.gradient(objective.theta).norm())


def test_a_large_data_set_is_sampled_at_random_and_repeatably():
    x, y = classification(500)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    first = draw_sample(loader, limit=100, seed=0, role="training")
    again = draw_sample(loader, limit=100, seed=0, role="training")
    other = draw_sample(loader, limit=100, seed=1, role="training")
    rows = [torch.cat([b.data[0] for b in s.batches]) for s in (first, again, other)]
    assert first.examples == 100
    assert not first.complete
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert len(torch.unique(rows[0], dim=0)) == 100


def test_a_stream_of_batches_is_read_as_far_as_needed():
    class Stream(IterableDataset):
        def __iter__(self):
            for i in range(1000):
                yield torch.full((4,), float(i), dtype=torch.float64), i % 3

    sample = draw_sample(DataLoader(Stream(), batch_size=10), limit=50, seed=0, role="training")
    assert sample.examples == 50
    assert not sample.complete


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError


BAD_DATA = {
    "an empty list": ([], "empty"),
    "an empty loader": (DataLoader(Empty(), batch_size=4), "empty"),
    "a loader that drops everything": (
        DataLoader(TensorDataset(*classification(3)), batch_size=8, drop_last=True),
        None,
    ),
    "a number": (3, "cannot be read"),
    "a string": ("data", "cannot be read"),
    "mismatched tensors": ((torch.zeros(3, 4), torch.zeros(4).long()), "do not match"),
    "batches without tensors": ([("a", "b")], "no tensor with a batch dimension"),
    "a batch without targets": ([torch.zeros(3, 4).double()], "wrong form for a criterion"),
    "a dict without labels": ([{"x": torch.zeros(3, 4).double()}], "no targets"),
    "inputs of the wrong width": ((torch.zeros(3, 9).double(), torch.zeros(3).long()), "failed on a batch"),
    "targets of the wrong dtype": ((torch.zeros(3, 4).double(), torch.zeros(3).int()), "failed on a batch"),
    "only ignored targets": ((torch.zeros(3, 4).double(), torch.full((3,), -100)), "contributes nothing"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_gets_one_clear_error(kind):
    data, message = BAD_DATA[kind]
    if message is None:  # what the loader would drop is all there is: it is measured, nothing is lost
        assert Problem(mlp(), nn.CrossEntropyLoss(), data).measured().train.examples == 3
        return
    with pytest.raises(InputError, match=message):
        Problem(mlp(), nn.CrossEntropyLoss(), data).measured()


def test_bad_models_and_losses_get_one_clear_error():
    x, y = classification()
    with pytest.raises(InputError, match=r"expected: a torch\.nn\.Module"):
        Problem(mlp().state_dict(), nn.CrossEntropyLoss(), (x, y))
    with pytest.raises(InputError, match="cannot be called"):
        Problem(mlp(), "cross-entropy", (x, y))
    with pytest.raises(InputError, match="does not take two arguments"):
        Problem(mlp(), lambda x: x, (x, y))
    with pytest.raises(InputError, match="no trainable parameters"):
        Problem(mlp().requires_grad_(False), nn.CrossEntropyLoss(), (x, y)).measured()
    with pytest.raises(InputError, match=r"wrong form.*shape \(\d+, 3\)"):
        Problem(mlp(), lambda m, b: m(b[0]), (x, y)).measured()
    with pytest.raises(ModelError, match="differentiated"):
        Problem(mlp(), lambda m, b: m(b[0]).detach().mean(), (x, y)).measured().train.gradient(
            torch.zeros(67, dtype=torch.float64)
        )
    with pytest.raises(ModelError, match="complex"):
        Problem(
            seeded(lambda: nn.Linear(4, 3, dtype=torch.complex64)), nn.CrossEntropyLoss(), (x, y)
        ).measured()
    broken = mlp()
    with torch.no_grad():
        broken[2].weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"NaN or infinity: 2\.weight"):
        Problem(broken, nn.CrossEntropyLoss(), (x, y)).measured()
