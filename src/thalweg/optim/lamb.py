"""LAMB: Adam's direction, with a step as long as a share of the weights it moves."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from thalweg.optim.layer_wise import Bite, LayerWise, Scratch
from thalweg.optim.per_parameter import require
from thalweg.optim.trust_ratio import norms, trust_ratio
from thalweg.optim.whole import Parameters

__all__ = ["LAMB"]


@final
class LAMB(LayerWise):
    r"""Layer-wise adaptive moments for large batches ([you2020], Algorithm 2).

    ::

        m = β₁m + (1−β₁)g        v = β₂v + (1−β₂)g²        (both from 0)
        u = m̂/(√v̂ + eps) + weight_decay·w                  m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)
        w = w − lr · φ(‖w‖)/‖u‖ · u                        the ratio is 1 where φ(‖w‖) or ‖u‖ is 0

    With φ = identity every adapted tensor moves by exactly lr·‖w‖ in a step, whatever its gradient. The
    gradient is not clipped here, nor its norm taken over all tensors: `torch.nn.utils.clip_grad_norm_` does
    that before the step.

    Closure: standard, and optional. Cost: 1 gradient-equivalent a step. Memory: two numbers a parameter.

    Args:
        params: parameters or groups of them; real.
        lr: how far an adapted tensor moves in a step, as a share of its norm.
        betas: β₁ and β₂.
        eps: added to √v̂.
        weight_decay: inside the adapted step, decoupled from the moments.
        bias_correction: False leaves m and v as they are in place of m̂ and v̂, as in early versions of the
            paper.
        phi_clip: φ(z) = min(max(z, low), high); None: the identity.
        trust_clip: the largest ratio allowed, 1 in LAMBC ([fong2020]); None: none.
        adapt_ndim_min: tensors of fewer dimensions (with 2: biases, scales of norms) keep a ratio of 1.
        maximize: go up.
        foreach: one call for many tensors, more memory; None: on a GPU.

    Raises:
        InputError: for settings out of their range, complex parameters, sparse gradients.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        phi_clip: tuple[float, float] | None = None,
        trust_clip: float | None = None,
        adapt_ndim_min: int = 2,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "phi_clip": phi_clip,
            "trust_clip": trust_clip,
            "adapt_ndim_min": adapt_ndim_min,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, settings)  # type: ignore[arg-type]

    def check(self, group: dict[str, Any]) -> None:
        """Raise InputError where the settings of a group make no sense."""
        super().check(group)
        betas, phi_clip, trust_clip = group["betas"], group["phi_clip"], group["trust_clip"]
        sound = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        require(sound, "betas", expected="two numbers from 0 to below 1", got=betas)
        require(group["eps"] > 0, "eps", expected="above 0", got=group["eps"])
        ordered = phi_clip is None or (len(phi_clip) == 2 and 0 <= phi_clip[0] <= phi_clip[1])
        require(ordered, "phi_clip", expected="0 ≤ low ≤ high, or None", got=phi_clip)
        require(
            trust_clip is None or trust_clip > 0, "trust_clip", expected="above 0, or None", got=trust_clip
        )

    def update(self, group: dict[str, Any], bite: Bite, scratch: Scratch) -> None:
        """Move the tensors of one bite."""
        moves = self._directions(group, bite, scratch)
        if not bite.adapted:
            torch._foreach_add_(bite.parameters, moves, alpha=-float(group["lr"]))
            return
        sizes, lengths = norms([*bite.parameters, *moves]).chunk(2)
        if group["phi_clip"] is not None:
            sizes = sizes.clamp(*group["phi_clip"])
        ratios = trust_ratio(sizes, lengths)
        if group["trust_clip"] is not None:
            ratios = ratios.clamp(max=group["trust_clip"])
        # the ratios stay tensors: as numbers they would make a GPU wait
        scales = (ratios * float(group["lr"])).unbind()
        torch._foreach_addcmul_(bite.parameters, moves, scales, value=-1)

    def _directions(self, group: dict[str, Any], bite: Bite, scratch: Scratch) -> list[Tensor]:
        """Take the gradients into the moments and return u."""
        states = [self._state(p) for p in bite.parameters]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        low, high = group["betas"]
        torch._foreach_lerp_(first, bite.gradients, 1 - low)
        torch._foreach_mul_(second, high)
        torch._foreach_addcmul_(second, bite.gradients, bite.gradients, value=1 - high)
        # m̂/(√v̂ + eps) = (c/(1−β₁ᵗ)) · m/(√v + c·eps) with c = √(1−β₂ᵗ), all in one piece of memory
        counts = [state["step"] if group["bias_correction"] else None for state in states]
        roots = [1.0 if t is None else (1 - high**t) ** 0.5 for t in counts]
        shares = [c if t is None else c / (1 - low**t) for c, t in zip(roots, counts, strict=True)]
        moves = scratch.like(first)
        torch._foreach_copy_(moves, second)
        torch._foreach_sqrt_(moves)
        torch._foreach_add_(moves, [c * group["eps"] for c in roots])
        torch._foreach_reciprocal_(moves)
        torch._foreach_mul_(moves, first)
        torch._foreach_mul_(moves, shares)
        if group["weight_decay"] != 0:
            torch._foreach_add_(moves, bite.parameters, alpha=float(group["weight_decay"]))
        return moves

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        """Return a parameter's state with the step begun."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        return state
