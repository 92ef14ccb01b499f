"""Whole diagnoses: the built-in points, users' own models, budgets, the record."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import thalweg
from tests.models import classification, mlp, seeded
from tests.problem.test_objective import Tagger, token_batches
from tests.selection import some
from thalweg.diagnosis.diagnosis import Diagnosis, diagnose
from thalweg.diagnosis.verdict import Verdict
from thalweg.errors import InputError, NumericalError
from thalweg.problem.problem import Problem

KNOWN = {
    "digits-mlp": "minimum",
    "digits-saddle": "saddle",
    "digits-deep-sigmoid": "plateau",
    "digits-started": "descending",
    "digits-hot": "bouncing",
    "saddle": "saddle",
    "cube": "degenerate",
    "x-cos-pi-x": "maximum",
    "empirical-risk": "minimum",
    "tanh": "plateau",
    "rosenbrock": "descending",
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_built_in_points_get_their_verdict(name):
    assert diagnose(Problem.builtin(name)).verdict.value == KNOWN[name]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", KNOWN)
def test_the_built_in_points_get_their_verdict_for_other_seeds(name, seed):
    assert diagnose(Problem.builtin(name, seed), seed=seed).verdict.value == KNOWN[name]


def quadratic(eigenvalues, start=None, seed=0):
    from tests.models import symmetric

    matrix = symmetric(eigenvalues, seed)
    n = len(eigenvalues)
    start = torch.zeros(n, dtype=torch.float64) if start is None else start
    return Problem.from_function(lambda t: 0.5 * t @ matrix @ t + 1.0, start)


@pytest.mark.parametrize("n", [1, 2, 3, 30, 200])
def test_planted_quadratics_are_named_by_their_eigenvalues(n):
    up = np.linspace(0.1, 3.0, n)
    assert diagnose(quadratic(up)).verdict is Verdict.MINIMUM
    assert diagnose(quadratic(-up)).verdict is Verdict.MAXIMUM
    if n > 1:
        mixed = np.r_[-0.5, up[1:]]
        assert diagnose(quadratic(mixed)).verdict is Verdict.SADDLE
        away = torch.full((n,), 0.3, dtype=torch.float64)
        assert diagnose(quadratic(up, away)).verdict is Verdict.DESCENDING


def test_higher_order_points_are_degenerate_and_constants_are_undetermined():
    for function in (
        lambda t: t[0] ** 3 - 3 * t[0] * t[1] ** 2,  # the monkey saddle
        lambda t: (t**4).sum(),
        lambda t: t[0] * t[1] * t[2],  # a deep linear net at its origin
    ):
        assert diagnose(Problem.from_function(function, [0.0, 0.0, 0.0])).verdict is Verdict.DEGENERATE
    constant = diagnose(Problem.from_function(lambda t: 0 * t.sum() + 2, [0.0, 0.0]))
    assert constant.verdict is Verdict.UNDETERMINED


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_a_start_of_any_shape_is_taken(shape):
    start = torch.full(shape, 0.5, dtype=torch.float64)
    problem = Problem.from_function(lambda t: (t**2).sum(), start, lr=0.1)
    assert diagnose(problem).verdict is Verdict.DESCENDING


def test_a_matrix_factorisation_at_zero_is_a_saddle_of_known_curvature():
    rng = torch.Generator().manual_seed(0)
    m = torch.randn(4, 3, generator=rng, dtype=torch.float64)

    def loss(theta):
        u, v = theta[:8].view(4, 2), theta[8:].view(2, 3)
        return 0.5 * ((u @ v - m) ** 2).sum()

    found = diagnose(Problem.from_function(loss, torch.zeros(14, dtype=torch.float64)))
    assert found.verdict is Verdict.SADDLE
    top = float(torch.linalg.svdvals(m)[0])
    assert found.evidence.curvature.lambda_min.value == pytest.approx(-top, rel=1e-6)


def test_a_dead_network_is_a_plateau_that_names_its_layers():
    model = mlp((4, 8, 8, 3), nn.ReLU)
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
        model[4].bias.copy_(torch.tensor([0.3, 0.3, 0.4]).double().log())
    y = torch.tensor([0] * 12 + [1] * 12 + [2] * 16)  # the prior that the bias predicts
    x, _ = classification(40)
    found = diagnose(Problem(model, nn.CrossEntropyLoss(), (x, y)))
    assert found.verdict is Verdict.PLATEAU
    assert "0" in found.summary
    assert "2" in found.summary


def test_a_token_model_with_dict_batches_is_diagnosed():
    model = seeded(Tagger).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    problem = Problem(
        model, nn.CrossEntropyLoss(), token_batches(0) * 3, token_batches(1), optimizer=optimizer
    )
    found = diagnose(problem)
    assert found.verdict is Verdict.DESCENDING
    assert found.evidence.heldout_loss is not None


@pytest.mark.parametrize("budget", some([60, 30, 120], now=1))
def test_a_smaller_budget_weakens_the_claim_honestly(budget):
    problem = Problem.builtin("digits-saddle")
    found = diagnose(problem, budget=budget)
    full = diagnose(problem)
    assert found.cost.gradient_equivalents <= budget + 1
    assert (
        found.evidence.curvature.certificate.relative_gap >= full.evidence.curvature.certificate.relative_gap
    )
    assert found.verdict in {Verdict.SADDLE, Verdict.UNDETERMINED}


@pytest.mark.parametrize("budget", some([30, 80, 45, 60, 120, 200], now=2))
@pytest.mark.parametrize("batch_size", [None, 32])
def test_a_budget_is_the_most_that_is_spent(budget, batch_size):
    x, y = classification(200)
    model = mlp((4, 16, 3))
    data = (x, y) if batch_size is None else DataLoader(TensorDataset(x, y), batch_size=batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = diagnose(Problem(model, nn.CrossEntropyLoss(), data, optimizer=optimizer), budget=budget)
    assert found.cost.gradient_equivalents <= budget + 1


def test_what_cannot_be_diagnosed_says_so():
    with pytest.raises(InputError, match="nothing to diagnose"):
        diagnose(mlp())
    with pytest.raises(InputError, match="budget is too small"):
        diagnose(Problem.builtin("cube"), budget=3)
    with pytest.raises(InputError, match="budget is too small"):
        diagnose(Problem.builtin("cube"), budget=float("nan"))
    with pytest.raises(NumericalError, match=r"training loss is -inf"):
        diagnose(Problem.from_function(lambda t: torch.log(t).sum(), [0.0]))
    with pytest.raises(NumericalError):
        diagnose(Problem.from_function(lambda t: t.norm(), [0.0, 0.0]))


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(Problem.builtin("digits-started"))


class TestTheRecord:
    def test_its_json_has_the_promised_fields(self, diagnosis):
        record = json.loads(diagnosis.to_json())
        assert record["schema"] == "thalweg/diagnosis@1"
        assert record["verdict"] == "descending"
        evidence = record["evidence"]
        for name in ("loss", "heldout_loss", "gap", "heldout_curvature"):
            assert evidence[name].keys() >= {"value", "stderr"}
        assert evidence["gradient"].keys() >= {"norm", "significant", "noise_scale"}
        for name in ("lambda_max", "lambda_min"):
            assert evidence["curvature"][name].keys() >= {"value", "bound", "residual"}
        assert evidence["curvature"].keys() >= {"floor", "certificate", "num_hvps", "backend"}
        assert record["moves"]
        assert all(move.keys() >= {"name", "predicted", "measured", "stderr"} for move in record["moves"])
        assert record["cost"].keys() >= {"gradient_equivalents", "num_hvps", "seconds"}
        assert record["provenance"]["seed"] == 0
        assert "summary" in record

    def test_it_prints_on_one_line_and_tells_on_many(self, diagnosis):
        assert "\n" not in repr(diagnosis)
        assert "descending" in repr(diagnosis)
        text = str(diagnosis)
        assert text.startswith("digits-started · ")
        for word in (
            "DESCENDING",
            "gradient",
            "curvature",
            "generalisation",
            "What would move it",
            "What to do",
        ):
            assert word in text

    def test_it_saves_as_json_html_and_text_and_as_nothing_else(self, diagnosis, tmp_path):
        for suffix in (".json", ".html", ".txt"):
            diagnosis.save(tmp_path / f"report{suffix}")
            assert (tmp_path / f"report{suffix}").stat().st_size > 500
        assert json.loads((tmp_path / "report.json").read_text()) == diagnosis.to_dict()
        with pytest.raises(InputError, match="cannot be saved"):
            diagnosis.save(tmp_path / "report.pdf")
        with pytest.raises(InputError, match="cannot write"):
            diagnosis.save(tmp_path / "nowhere" / "report.json")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json", "report.txt"]

    def test_hostile_names_stay_text_in_the_page(self, tmp_path):
        name = '<script>alert(1)</script>" onload="x'
        found = diagnose(Problem.from_function(lambda t: (t**2).sum(), [1.0], name=name))
        page = found._repr_html_()
        assert "<script" not in page
        assert "&lt;script&gt;" in page

    def test_moves_are_ranked_by_what_they_gained(self, diagnosis):
        gains = [move.measured for move in diagnosis.moves if move.measured is not None]
        assert gains == sorted(gains)

    def test_the_public_names_are_what_they_are(self):
        assert set(dir(thalweg)) == set(thalweg.__all__)
        for name in thalweg.__all__:
            assert getattr(thalweg, name) is not None
        with pytest.raises(AttributeError):
            thalweg.nonsense  # noqa: B018
