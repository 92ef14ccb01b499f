"""A million parameters and 512 examples: what a verdict costs, and what a small budget still says."""

import pytest
import torch
from torch import nn

from tests.models import seeded
from thalweg.diagnosis.diagnosis import diagnose
from thalweg.problem.builtin.digits import digits
from thalweg.problem.builtin.training import train
from thalweg.problem.problem import Problem
from thalweg.rng import generator

pytestmark = pytest.mark.slow


NETS = {
    "started": lambda: nn.Sequential(
        nn.Linear(64, 900), nn.Tanh(), nn.Linear(900, 1030), nn.Tanh(), nn.Linear(1030, 10)
    ),
    "zero": lambda: nn.Sequential(nn.Linear(64, 13_300), nn.Tanh(), nn.Linear(13_300, 10)),
}


def problem(state):
    """The net after three steps ("started"), or with zero weights and the class frequencies as answer."""
    data = digits(0)
    x, y = data.train[0][:512], data.train[1][:512]
    model = seeded(NETS[state])
    if state == "zero":
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
            model[-1].bias.copy_(torch.bincount(y, minlength=10).float().log())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if state == "started":
        train(model, nn.CrossEntropyLoss(), optimizer, (x, y), steps=3, batch_size=64, rng=generator(0, "t"))
    assert sum(p.numel() for p in model.parameters()) > 990_000
    return Problem(model, nn.CrossEntropyLoss(), (x, y), data.heldout, optimizer=optimizer)


# With zero weights no gradient reaches anything, but the two layers together could begin to fit.
RIGHT = {"started": "descending", "zero": "saddle"}


@pytest.mark.parametrize("state", RIGHT)
@pytest.mark.parametrize("budget", [None, 30])
def test_a_verdict_costs_at_most_a_hundred_products_and_says_what_it_spent(state, budget):
    found = diagnose(problem(state), budget=budget)
    assert found.verdict.value in {RIGHT[state], "undetermined" if budget else RIGHT[state]}
    assert found.cost.num_hvps <= 100
    if budget:
        assert found.cost.gradient_equivalents <= budget + 1
    assert f"{found.cost.num_hvps} Hessian–vector products" in " ".join(str(found).split())
