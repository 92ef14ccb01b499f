"""Models, losses, optimisers and data that break the obvious implementation; each has its right answer."""

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.models import classification, mlp, seeded
from thalweg.curvature.hessian import ExactHessian
from thalweg.diagnosis.agreement import sign_flip
from thalweg.diagnosis.continuation import continue_training, stream
from thalweg.diagnosis.diagnosis import diagnose
from thalweg.errors import InputError, ModelError
from thalweg.problem.batches import draw_sample
from thalweg.problem.checkpoint import apply_checkpoint, read_checkpoint
from thalweg.problem.problem import Problem


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
def test_kept_graphs_are_given_back():
    model = mlp((200, 500, 3), dtype=torch.float32)
    problem = Problem(model, nn.CrossEntropyLoss(), classification(300, 200, dtype=torch.float32))
    objective = problem.measured().train
    theta = objective.theta

    def build(times):
        for _ in range(times):
            ExactHessian(objective, theta).matvec(theta)
        gc.collect()
        return resident_bytes()

    build(5)
    assert build(30) - build(1) < 20e6  # a kept graph is about 4 MB; 30 of them would be 120


class Checkpointing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        def block(h):
            return nn.functional.dropout(torch.tanh(self.a(h)), 0.5, self.training)

        return self.b(checkpoint(block, x, use_reentrant=False))


def test_gradient_checkpointing_runs_again_on_the_same_weights():
    model = seeded(Checkpointing).double()
    x, y = classification()
    objective = Problem(model, nn.CrossEntropyLoss(), (x, y)).measured().train
    there = objective.theta + 0.5
    elsewhere = seeded(Checkpointing).double().eval()
    objective.space.write(elsewhere, there)
    loss = nn.functional.cross_entropy(elsewhere(x), y)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(elsewhere.parameters()))])
    assert torch.allclose(objective.gradient(there), expected, atol=1e-13)


def test_products_of_checkpointed_models_run_again_on_the_same_weights_and_in_the_same_mode():
    x, y = classification()
    objective = Problem(seeded(Checkpointing).double(), nn.CrossEntropyLoss(), (x, y)).measured().train
    there = objective.theta + 0.5
    moved, plain = seeded(Checkpointing).double().train(), objective.space
    plain.write(moved, there)
    here = Problem(moved, nn.CrossEntropyLoss(), (x, y)).measured().train
    v = torch.linspace(-1, 1, there.numel(), dtype=there.dtype)
    step = 1e-6 * v
    expected = (here.gradient(there + step) - here.gradient(there - step)) / 2e-6
    for risk in (objective, here):
        assert torch.allclose(risk.hvp(there, v), expected, atol=1e-8)
        assert torch.allclose(ExactHessian(risk, there).matvec(v), expected, atol=1e-8)


def test_parameters_captured_outside_the_model_are_refused():
    model = mlp()
    captured = list(model.parameters())

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + sum((p**2).sum() for p in captured)

    with pytest.raises(ModelError, match="does not take from the model"):
        Problem(model, loss, classification()).measured()


def test_a_loss_over_a_model_named_outside_is_still_right():
    model = mlp()
    x, y = classification()

    def loss(_, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    objective = Problem(model, loss, (x, y)).measured().train
    there = objective.theta * 1.1
    other = mlp()
    objective.space.write(other, there)
    assert objective.value(there) == pytest.approx(nn.functional.cross_entropy(other(x), y).item())


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_coupled_examples_are_noticed_at_every_scale(scale):
    def contrast(model, batch):
        h = model(batch[0])
        return scale * nn.functional.cross_entropy(h @ h.T, torch.arange(len(h)))

    x, y = classification(40)
    measured = Problem(mlp(), contrast, [(x[:20], y[:20]), (x[20:], y[20:])]).measured()
    assert not measured.train.sample.joinable


def test_a_summed_loss_over_several_chunks_steps_with_the_whole_sum():
    x, y = classification(5000)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    problem = Problem(model, nn.CrossEntropyLoss(reduction="sum"), (x, y), optimizer=optimizer)
    objective = problem.measured(limit=5000).train
    assert len(objective.chunks) > 1
    theta, stepping = objective.theta, problem.stepping()
    there, _ = continue_training(objective, theta, stepping, stream(objective, stepping, 0, "x"), steps=1)
    assert torch.allclose(there, theta - 1e-6 * 5000 * objective.gradient(theta), atol=1e-12)


def test_lbfgs_with_a_line_search_does_what_it_does_for_the_user():
    x, y = classification()
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=5)
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer)
    objective, theta = problem.measured().train, problem.measured().train.theta
    stepping = problem.stepping()
    there, _ = continue_training(objective, theta, stepping, stream(objective, stepping, 0, "x"), steps=2)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert torch.allclose(objective.theta, there, atol=1e-8)


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        closure()
        super().step()


def test_an_optimiser_whose_step_needs_a_closure_gets_one():
    model = mlp()
    problem = Problem(
        model, nn.CrossEntropyLoss(), classification(), optimizer=NeedsClosure(model.parameters(), lr=0.1)
    )
    assert diagnose(problem).evidence.continuation.as_configured.value < 0


class WithoutClosure(torch.optim.SGD):
    def step(self):
        super().step()


def test_an_optimiser_whose_step_takes_no_closure_is_run_without():
    model = mlp()
    problem = Problem(
        model, nn.CrossEntropyLoss(), classification(), optimizer=WithoutClosure(model.parameters(), lr=0.1)
    )
    assert diagnose(problem).evidence.continuation.as_configured.value < 0


@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, lambda p, lr: torch.optim.SGD(p, lr, momentum=1.0)])
def test_an_optimiser_that_cannot_be_run_leaves_a_verdict(kind):
    model = mlp()
    problem = Problem(
        model, nn.CrossEntropyLoss(), classification(), optimizer=kind(list(model.parameters()), lr=0.01)
    )
    assert diagnose(problem).verdict.value == "descending"


def two_groups(model):
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": weights, "lr": 1e-3}, {"params": biases, "weight_decay": 0.0}], lr=1e-2
    )


def test_a_checkpoints_state_goes_to_the_groups_of_the_problems_own_optimiser():
    model = mlp()
    x, y = classification()
    optimizer = two_groups(model)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    state = optimizer.state_dict()
    fresh = Problem(model, nn.CrossEntropyLoss(), (x, y), optimizer=two_groups(model))
    fresh.adopt_optimizer_state(state)
    used = Problem(model, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer)
    paths = []
    for problem in (fresh, used):
        objective, stepping = problem.measured().train, problem.stepping()
        batches = stream(objective, stepping, 0, "x")
        paths.append(continue_training(objective, objective.theta, stepping, batches, steps=3)[0])
    assert torch.equal(*paths)
    alone = Problem(model, nn.CrossEntropyLoss(), (x, y))
    alone.adopt_optimizer_state(state)
    assert alone.stepping() is None  # which parameter is in which group, the file does not say
    other = Problem(
        model, nn.CrossEntropyLoss(), (x, y), optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    other.adopt_optimizer_state(state)
    with pytest.raises(InputError, match="not that of the problem's optimizer"):
        other.stepping()


def test_a_remedy_that_does_not_apply_is_left_out():
    model = mlp((4, 8, 8, 3), nn.Sigmoid)
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.zero_()
    x, y = classification(9)
    ones = DataLoader(TensorDataset(x, y))  # batches of one, which batch norm cannot train on
    found = diagnose(Problem(model, nn.CrossEntropyLoss(), ones))
    assert found.verdict.value in {"plateau", "descending", "undetermined", "minimum"}


@pytest.mark.parametrize("k", [2, 3, 5, 7, 11, 12, 20])
def test_few_batches_cannot_be_more_significant_than_their_number_allows(k):
    import numpy as np

    rng = np.random.default_rng(k)
    for seed in range(20):
        g = 3.0 + rng.normal(size=(k, 10))
        p = sign_flip(g @ g.T, rng.uniform(1, 3, size=k), seed)
        assert p >= min(2.0 / 2**k, 1 / 2001) * (1 - 1e-12)
        if k <= 11:
            assert p == pytest.approx(2.0 / 2**k)


def test_a_list_of_sorted_batches_is_sampled_at_random():
    batches = [(torch.zeros(50, 2), torch.full((50,), c)) for c in range(3) for _ in range(40)]
    sample = draw_sample(batches, limit=2000, seed=0, role="training")
    counts = torch.bincount(torch.cat([b.data[1] for b in sample.batches]), minlength=3)
    assert not sample.complete
    assert int(counts.min()) > 300


def test_a_dataset_that_draws_from_the_global_state_repeats_with_the_seed():
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return torch.randn(4, dtype=torch.float64) + i, i % 3

    def drawn(seed):
        loader = DataLoader(Augmented(), batch_size=5)
        return draw_sample(loader, limit=100, seed=seed, role="training").batches[0].data[0]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_forward_pass_sets_on_a_module_is_put_back():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.utils.weight_norm(nn.Linear(4, 3))
            self.register_buffer("mask", None)
            self.calls = 0

        def forward(self, x):
            self.mask = torch.ones(1, dtype=x.dtype)
            self.calls += 1
            return self.linear(x) * self.mask

    model = seeded(Lazy).double()
    weight, value = model.linear.weight, model.linear.weight.detach().clone()
    diagnose(Problem(model, nn.CrossEntropyLoss(), classification()))
    assert model.mask is None
    assert model.calls == 0
    assert model.linear.weight is weight
    assert torch.equal(model.linear.weight, value)


def test_tied_weights_saved_once_are_loaded(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    trained, fresh = seeded(Tied, 1), seeded(Tied, 2)
    save_model(trained, tmp_path / "tied.safetensors")
    problem = Problem(fresh, nn.CrossEntropyLoss(), (torch.arange(7), torch.arange(7)))
    apply_checkpoint(problem, read_checkpoint(tmp_path / "tied.safetensors"))
    assert torch.equal(fresh.embedding.weight, trained.embedding.weight)
    assert fresh.head.weight is fresh.embedding.weight


def test_two_unlabelled_batches_in_a_list_are_two_batches():
    x, _ = classification(10)
    problem = Problem(mlp((4, 2, 4)), lambda m, b: ((m(b) - b) ** 2).mean(), [x[:5], x[5:]])
    assert problem.measured().train.examples == 10


def test_a_generator_serves_several_seeds():
    x, y = classification(20)
    problem = Problem(mlp(), nn.CrossEntropyLoss(), ((x[i : i + 5], y[i : i + 5]) for i in range(0, 20, 5)))
    assert problem.measured(seed=0).train.examples == problem.measured(seed=1).train.examples == 20


def test_an_embedding_with_sparse_gradients_is_diagnosed():
    rng = torch.Generator().manual_seed(0)
    data = torch.randint(0, 9, (50, 3), generator=rng), torch.randint(0, 2, (50,), generator=rng)

    def build(sparse):
        return nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 2))

    sparse, dense = (
        diagnose(Problem(seeded(lambda s=s: build(s)).double(), nn.CrossEntropyLoss(), data))
        for s in (True, False)
    )
    assert sparse.verdict is dense.verdict
    assert sparse.evidence.loss.value == dense.evidence.loss.value
