"""Nonlinear conjugate gradients: the gradient plus a part of the last direction, by four formulas."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

from thalweg.errors import InputError
from thalweg.optim.descent import LineSearch, LineSearchDescent
from thalweg.optim.whole import Parameters

__all__ = ["Formula", "NonlinearConjugateGradient", "conjugacy"]

Formula = Literal["FR", "PR+", "HS", "DY"]


def conjugacy(formula: Formula, direction: Tensor, before: Tensor, after: Tensor) -> float:
    """Return β of d' = −g' + β·d, with g = ``before`` and g' = ``after`` a step along d; all (n,).

    FR [fletcher1964]; PR+ [polak1969], never negative [gilbert1992]; HS [hestenes1952]; DY [dai1999];
    [nocedal2006] 5.41, 5.45, 5.46, 5.49. 0 where the denominator vanishes.
    """
    difference = after - before
    top = after @ (after if formula in {"FR", "DY"} else difference)
    bottom = before @ before if formula in {"FR", "PR+"} else direction @ difference
    beta = float(top / bottom)
    if not math.isfinite(beta):
        return 0.0
    return max(0.0, beta) if formula == "PR+" else beta


class NonlinearConjugateGradient(LineSearchDescent):
    """Conjugate gradients with a line search (MATLAB's ``traincgp``, ``traincgf``, ``traincgb``).

    Starts anew from the gradient every n steps, where the direction does not point down, and, if
    ``restart_overlap`` is given, where successive gradients are far from orthogonal. On a quadratic all
    formulas are the same and end after as many steps as there are different eigenvalues, given an accurate
    line search (a small ``c2``).

    Closure: standard, and the same function within a step (one batch, fixed dropout masks).
    Cost of a step: one gradient where it begins (none with ``full_batch``) and one a trial of the line
    search, mostly two or three. Memory: 1 vector.

    Args:
        params: parameters or groups; a learning rate has no meaning here.
        formula: of β: "PR+" (``traincgp``), which restarts itself when it makes no way; "FR"
            (``traincgf``); "HS"; "DY".
        restart_overlap: start anew where |g'ᵀg| ≥ restart_overlap·‖g'‖² ([powell1977]; 0.2 is Powell's, and
            with it the method is ``traincgb`` as MATLAB's manual describes it). None: never for this reason.
        line_search: "strong_wolfe", or "backtracking" with the limits of MATLAB's ``srchbac``.
        c1: constant of the sufficient decrease.
        c2: constant of the curvature condition, below 0.5 for FR to descend; for backtracking, of its growth.
        tolerance_grad: norm of the gradient at which no step is taken.
        full_batch: the closure computes the same loss at every step; the evaluation that ended a step then
            begins the next one, for 2 more vectors.

    Raises:
        InputError: for settings out of their range; by ``step`` for a closure of another kind.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        formula: Formula = "PR+",
        restart_overlap: float | None = None,
        line_search: LineSearch = "strong_wolfe",
        c1: float = 1e-4,
        c2: float = 0.1,
        tolerance_grad: float = 1e-10,
        full_batch: bool = False,
    ) -> None:
        if formula not in get_args(Formula):
            raise InputError(f"there is no formula {formula!r}", expected=" or ".join(get_args(Formula)))
        if restart_overlap is not None and not restart_overlap > 0:
            raise InputError("restart_overlap must be positive", got=f"{restart_overlap}", hint="0.2")
        super().__init__(
            params,
            line_search=line_search,
            c1=c1,
            c2=c2,
            tolerance_grad=tolerance_grad,
            full_batch=full_batch,
            settings={"formula": formula, "restart_overlap": restart_overlap},
            steps_since_restart=0,
            beta=0.0,
        )

    def direction(self, gradient: Tensor) -> Tensor:
        """Return −gradient + β·(last direction)."""
        last = self.kept("direction")
        return -gradient if last is None else -gradient + self.numbers["beta"] * last

    def learn(self, moved: Tensor, direction: Tensor, before: Tensor, after: Tensor) -> None:
        """Keep the direction and β, unless it is time to start anew."""
        self.numbers["steps_since_restart"] += 1
        overlap = self.numbers["restart_overlap"]
        alike = overlap is not None and bool((after @ before).abs() >= overlap * (after @ after))
        beta = conjugacy(self.numbers["formula"], direction, before, after)
        if alike or beta == 0 or self.numbers["steps_since_restart"] >= self.size:
            self.forget()
        else:
            self.numbers["beta"] = beta
            self.keep(direction=direction)

    def forget(self) -> None:
        """Forget the last direction."""
        self.numbers["steps_since_restart"], self.numbers["beta"] = 0, 0.0
        self.keep(direction=None)
