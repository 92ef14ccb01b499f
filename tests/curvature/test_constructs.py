"""Every construct is measured right or refused in clear words; none is silently wrong."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.constructs import REFUSED, RIGHT
from thalweg.curvature.hessian import choose_hessian
from thalweg.errors import ThalwegError
from thalweg.problem.intact import random_state_kept
from thalweg.problem.problem import Problem
from thalweg.rng import gaussian, generator

STEP = 1e-6
# The oracle itself, central differences in float64, is good to about 1e-9.
TOLERANCE = {"exact": 1e-7, "differences": 1e-7}


class Oracle:
    """Loss and reverse-mode gradient of a model of its own, written to in place: nothing of thalweg's."""

    def __init__(self, model, loss, data):
        model = getattr(model, "_orig_mod", model).eval()
        self.parameters = [p for p in model.parameters() if p.requires_grad and p.numel() > 0]
        self.model, self.loss, self.data = model, loss, data
        self.buffers = [(b, b.clone()) for b in model.buffers()]

    @torch.no_grad()
    def move(self, direction):
        pieces = direction.split([p.numel() for p in self.parameters])
        for p, piece in zip(self.parameters, pieces, strict=True):
            p += piece.view_as(p)

    def value(self):
        for now, before in self.buffers:
            now.copy_(before)
        x, y = self.data
        with random_state_kept():
            if not isinstance(self.loss, nn.Module):
                return self.loss(self.model, self.data)
            total = self.loss(self.model(x), y)
            return total / y.numel() if self.loss.reduction == "sum" else total

    def trained(self):
        """Return which coordinates training moves (n,): not the padding of embeddings."""
        padding = {id(m.weight): m.padding_idx for m in self.model.modules() if hasattr(m, "padding_idx")}
        masks = [torch.ones_like(p) for p in self.parameters]
        for p, mask in zip(self.parameters, masks, strict=True):
            if padding.get(id(p)) is not None:
                mask[padding[id(p)]] = 0.0
        return torch.cat([mask.reshape(-1) for mask in masks]).detach()

    def gradient(self):
        with sdpa_kernel(SDPBackend.MATH):
            parts = torch.autograd.grad(self.value(), self.parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, parts, strict=True)]
        return torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in parts])

    def differences(self, function, direction):
        """Return the central difference of ``function`` along ``direction``, at the weights as they are."""
        self.move(STEP * direction)
        ahead = function()
        self.move(-2 * STEP * direction)
        behind = function()
        self.move(STEP * direction)
        return (ahead - behind) / (2 * STEP)


@functools.cache
def measured(name, dtype):
    """Measure a construct; return the choice of products and the relative errors of gradient and product."""
    build = RIGHT[name] if name in RIGHT else REFUSED[name][0]
    oracle = Oracle(*build())
    model, loss, data = build() if dtype == torch.float64 else cast(dtype, *build())
    objective = Problem(model, loss, data).measured().train
    theta = objective.theta
    choice = choose_hessian(objective, theta, seed=0)
    v = oracle.trained() * gaussian(theta.numel(), generator(0, "oracle"), like=theta.double())
    slope = float(oracle.differences(lambda: float(oracle.value().detach()), v))
    product = oracle.differences(oracle.gradient, v)
    gradient = objective.gradient(theta).double()
    of_gradient = abs(float(gradient @ v) - slope) / float(gradient.norm())
    missed = choice.operator.matvec(v.to(dtype)).double() - product
    return choice, of_gradient, float(missed.norm()) / max(float(product.norm()), 1e-12)


def cast(dtype, model, loss, data):
    parts = tuple(part.to(dtype) if part.is_floating_point() else part for part in data)
    return model.to(dtype), loss.to(dtype) if isinstance(loss, nn.Module) else loss, parts


@pytest.mark.parametrize("name", RIGHT)
def test_it_is_measured_right(name):
    choice, of_gradient, of_product = measured(name, torch.float64)
    assert of_gradient <= 1e-6
    assert of_product <= TOLERANCE[choice.name]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", RIGHT)
def test_in_single_precision_it_is_as_right_as_it_says(name):
    choice, of_gradient, of_product = measured(name, torch.float32)
    assert of_gradient <= 1e-3
    assert of_product <= 10 * choice.noise + TOLERANCE[choice.name]


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_clear_words(name):
    complex_ones = name == "complex parameters"  # they have no cast to single precision
    for dtype in (torch.float64,) if complex_ones else (torch.float64, torch.float32):
        with pytest.raises(ThalwegError, match=REFUSED[name][1]):
            measured(name, dtype)


def test_none_is_silently_wrong():
    outcomes = {}
    for name in (*RIGHT, *REFUSED):
        try:
            choice, of_gradient, of_product = measured(name, torch.float64)
        except ThalwegError:
            outcomes[name] = "refused"
            continue
        right = of_gradient <= 1e-6 and of_product <= TOLERANCE[choice.name]
        outcomes[name] = choice.name if right else "silently wrong"
    assert len(outcomes) >= 60
    assert [name for name, outcome in outcomes.items() if outcome == "silently wrong"] == []
    assert {name for name, outcome in outcomes.items() if outcome == "refused"} == REFUSED.keys()
    # Without a check, these are wrong and say nothing: autograd returns a product for each of them.
    assert {"weight norm", "custom function, detached context"} <= {
        name for name, outcome in outcomes.items() if outcome == "differences"
    }
