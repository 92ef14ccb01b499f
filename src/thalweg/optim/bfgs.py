"""BFGS with the dense inverse: for problems of some thousand parameters."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from thalweg.optim.descent import LineSearch, LineSearchDescent
from thalweg.optim.whole import Parameters

__all__ = ["BFGS", "bfgs_update"]


def bfgs_update(inverse: Tensor, step: Tensor, difference: Tensor) -> Tensor:
    """Return the BFGS update of an inverse Hessian (n, n), exactly symmetric if that is.

    [nocedal2006] 6.17, multiplied out; with H the inverse, s the step, y the difference of gradients and
    sᵀy > 0:

        H + usᵀ + suᵀ,   u = (1 + yᵀHy/sᵀy)/2·s/sᵀy − Hy/sᵀy,

    which maps y to s and stays positive definite. Cost: O(n²).
    """
    curvature = step @ difference
    image = inverse @ difference
    u = ((1 + difference @ image / curvature) / 2 * step - image) / curvature
    half = torch.outer(u, step)
    return inverse + (half + half.T)


class BFGS(LineSearchDescent):
    """BFGS with a line search and the dense inverse Hessian (MATLAB's ``trainbfg``, scipy's ``BFGS``).

    Starts from H = I, unscaled as in scipy: the scale sᵀy/yᵀy of the first step ([nocedal2006] 6.20) is too
    small for all other directions where that step met the largest curvature, and small networks took half as
    many steps again with it. A step along which the curvature is not positive teaches nothing, and H stays.
    Unlike `torch.optim.LBFGS` a step is one outer iteration, groups are allowed, and no pair is dropped.

    Closure: standard, and the same function within a step (one batch, fixed dropout masks).
    Cost of a step: one gradient where it begins (none with ``full_batch``) and one a trial of the line
    search, mostly one; O(n²) arithmetic. Memory: the matrix, n² numbers.

    Args:
        params: parameters or groups, 3,000 numbers at most; a learning rate has no meaning here.
        line_search: "strong_wolfe", or "backtracking" with the limits of MATLAB's ``srchbac``.
        c1: constant of the sufficient decrease.
        c2: constant of the curvature condition; for backtracking, of its growth.
        tolerance_grad: norm of the gradient at which no step is taken.
        full_batch: the closure computes the same loss at every step; the evaluation that ended a step then
            begins the next one, for 2 more vectors.

    Raises:
        InputError: for settings out of their range or too many parameters; by ``step`` for a closure of
            another kind.
    """

    most_parameters: ClassVar[int | None] = 3_000

    def __init__(
        self,
        params: Parameters,
        *,
        line_search: LineSearch = "strong_wolfe",
        c1: float = 1e-4,
        c2: float = 0.9,
        tolerance_grad: float = 1e-6,
        full_batch: bool = False,
    ) -> None:
        super().__init__(
            params,
            line_search=line_search,
            c1=c1,
            c2=c2,
            tolerance_grad=tolerance_grad,
            full_batch=full_batch,
        )

    def inverse(self) -> Tensor | None:
        """Return the estimate H (n, n) of the inverse Hessian, None before the first update."""
        rows = self._rows()
        return None if rows is None else torch.cat(rows)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return −H·gradient."""
        rows = self._rows()
        return -gradient if rows is None else -torch.cat([r @ gradient for r in rows])

    def first_trial(self, slope: float, norm: float) -> float:
        """Return the unit step, as soon as there is an estimate of the Hessian."""
        return super().first_trial(slope, norm) if self._rows() is None else 1.0

    def learn(self, moved: Tensor, direction: Tensor, before: Tensor, after: Tensor) -> None:
        """Update H by the step."""
        difference = after - before
        curvature = moved @ difference
        if not curvature > torch.finfo(moved.dtype).eps * moved.norm() * difference.norm():
            return
        inverse = self.inverse()
        if inverse is None:
            inverse = torch.eye(len(moved), dtype=moved.dtype, device=moved.device)
        self._hold(bfgs_update(inverse, moved, difference))

    def forget(self) -> None:
        """Begin again from H = I."""
        self._hold(None)

    def _rows(self) -> list[Tensor] | None:
        """Return the rows of H parameter by parameter, None where H is not known for these parameters."""
        rows = [self.state[p].get("inverse") for p in self.parameters()]
        size = self.size
        if not rows or any(
            r is None or r.shape[1] != size for r in rows
        ):  # no step yet, or a group was added
            return None
        return rows

    def _hold(self, inverse: Tensor | None) -> None:
        """Keep the rows of H with the parameters that they belong to, so that ``state_dict`` holds them."""
        parameters = self.parameters()
        if inverse is None:
            for parameter in parameters:
                self.state[parameter].pop("inverse", None)
            return
        for parameter, rows in zip(parameters, inverse.split([p.numel() for p in parameters]), strict=True):
            self.state[parameter]["inverse"] = rows
