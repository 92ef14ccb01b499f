"""Generalised Gauss–Newton for cross-entropy: the curvature of the loss, without that of the model."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from thalweg.errors import InputError
from thalweg.optim.closures import Closure, predictions
from thalweg.optim.damped import DampedGaussNewton, Evaluation, Quadratic, small_side, triangle
from thalweg.optim.whole import Parameters

__all__ = ["GaussNewton"]


@final
class GaussNewton(DampedGaussNewton):
    """Minimise the mean cross-entropy of N examples in C classes by damped generalised Gauss–Newton steps.

    A step solves (JᵀSJ + μI) h = −g, with J the Jacobian of the logits and S = (diag(p) − ppᵀ)/N for each
    example, p the probabilities ([schraudolph2002], section 3): positive semidefinite, and finite however
    sure the net is. (The square root of the cross-entropy as a residual is not: its derivative divides by
    it.) μ is raised until the loss falls. S = BBᵀ with B = (diag(√p) − p√pᵀ)/√N, and BᵀJ is factored by QR
    on the smaller side of J, so that the condition is not squared.

    Closure: prediction. It returns (logits, targets): logits (N, C) or (N, C, …), targets (N) or (N, …) class
    numbers. For two classes and one logit z, return logits (0, z). It must return the same at the same point:
    eval mode where there is dropout or batch normalisation. One step may see one batch and the next another.

    Cost of a step in gradient-equivalents: min(NC, 2n) for J, ⅓ for each damping tried (usually one or two),
    1 to see that the new point has a gradient.

    Args:
        params: parameters or groups.
        damping: how μ is led: "nielsen", relative to the largest diagonal entry of JᵀJ/4N (S is at most
            ¼/N on its diagonal) and guided by the gain; "marquardt", absolute, in factors of ten.
        mu: the first damping.
        mu_max: the largest to try before a step is given up; in the units of ``mu``.
        min_grad: no step is taken where ‖g‖ is at most this.

    Raises:
        InputError: for arguments out of range; by `step`, for a closure of another kind, for targets that are
            not class numbers and for a Jacobian too large to factor.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        damping: str = "nielsen",
        mu: float = 1e-3,
        mu_max: float = 1e10,
        min_grad: float = 1e-7,
    ) -> None:
        super().__init__(params, {"damping": damping, "mu": mu, "mu_max": mu_max, "min_grad": min_grad})

    def forward(self, closure: Closure | None) -> Evaluation:
        """Run a prediction closure."""
        outputs, targets = predictions(closure)
        _require_classes(outputs, targets)
        targets = targets.flatten()
        with torch.enable_grad():
            logits = outputs.movedim(1, -1).flatten(0, -2)  # (N, C)
        loss = cross_entropy(logits.detach().double(), targets)
        with torch.enable_grad():
            return Evaluation(float(loss), logits.flatten(), one_hot(targets, logits.shape[-1]))

    def quadratic(self, here: Evaluation, matrix: Tensor) -> Quadratic:
        """Return the loss with S held and the logits linear in the parameters."""
        assert here.targets is not None
        num, classes = here.targets.shape
        p = here.outputs.detach().to(matrix.dtype).view(num, classes).softmax(dim=1)
        slopes = (p - here.targets).flatten() / num  # of the loss in the logits
        core, basis = small_side(matrix)
        weighted = _centred(core.view(num, classes, -1), p) / math.sqrt(num)  # BᵀJ
        factor, slope = triangle(weighted), core.T @ slopes
        # As if every p were ½: where the net is sure, rightly or not, S vanishes and is no measure for μ.
        largest = float(matrix.square().sum(dim=0).max()) / (4 * num)

        def step(mu: float) -> tuple[Tensor, float]:
            y = _damped_minimiser(factor, slope, mu)
            predicted = -float(slope.double() @ y.double()) - float((factor @ y).double().square().sum()) / 2
            return (y if basis is None else basis @ y), predicted

        return Quadratic(matrix.T @ slopes, largest, step)


def _centred(jacobian: Tensor, p: Tensor) -> Tensor:
    """Return √p ∘ (J − pᵀJ) of each example, as rows: Bᵀ J."""
    mean = torch.einsum("nc,nck->nk", p, jacobian)
    return (p.sqrt()[..., None] * (jacobian - mean[:, None])).flatten(0, 1)


def _damped_minimiser(factor: Tensor, slope: Tensor, mu: float) -> Tensor:
    """Return y with (RᵀR + μI) y = −slope.

    By the seminormal equations: the factor is that of [R; √μ·I], never of the sum ([bjorck1987]).
    """
    root = math.sqrt(mu) * torch.eye(slope.numel(), dtype=factor.dtype, device=factor.device)
    damped = triangle(torch.cat([factor, root]))
    half = torch.linalg.solve_triangular(damped.T, -slope[:, None], upper=False)
    y: Tensor = torch.linalg.solve_triangular(damped, half, upper=True)
    return y[:, 0]


def _require_classes(outputs: Tensor, targets: Tensor) -> None:
    shape = (outputs.shape[0], *outputs.shape[2:]) if outputs.ndim >= 2 else None
    if shape is None or targets.is_floating_point() or tuple(targets.shape) != shape:
        raise InputError(
            "the targets do not fit the logits",
            expected="logits (N, C, …) and class numbers (N, …)",
            got=f"logits {tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}",
            hint="for one logit z of two classes, logits (0, z)",
        )
    if int(targets.min()) < 0 or int(targets.max()) >= outputs.shape[1]:
        raise InputError(
            "a target is not the number of a class",
            expected=f"0 to {outputs.shape[1] - 1}",
            got=f"{int(targets.min())} to {int(targets.max())}",
            hint="leave padded positions out of what the closure returns",
        )
