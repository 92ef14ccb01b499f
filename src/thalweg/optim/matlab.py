"""MATLAB's ``train*`` functions by their names, with the defaults and stop conditions of its manual.

Each trains on all the examples at once and on the mean squared error, as they do there; an epoch is a step.
The defaults are those that the manual of the Deep Learning Toolbox prints. Line searches are Thalweg's own
(strong Wolfe), not MATLAB's srchcha and srchbac, so that numbers of epochs agree only roughly.
"""

from __future__ import annotations

from typing import Any

from thalweg.optim.factory import ClosureKind, Factory
from thalweg.optim.stop_rule import StopRule

__all__ = ["MATLAB", "StopRule"]


def _train(
    name: str,
    summary: str,
    target: str,
    min_grad: float,
    *,
    lr: float | None = None,
    evaluates: bool = True,
    closure: ClosureKind = "standard",
    **settings: Any,
) -> Factory:
    return Factory(
        f"matlab:{name}",
        summary,
        target,
        f"Deep Learning Toolbox, {name}",
        closure=closure,
        evaluates=evaluates,
        lr=lr,
        whole=True,
        settings=settings,
        stop=StopRule(min_grad=min_grad),
    )


_OURS = "thalweg.optim"

MATLAB = (
    _train("traingd", "gradient descent", "torch.optim:SGD", 1e-5, lr=0.01, evaluates=False),
    _train(
        "traingdm",
        "gradient descent with momentum 0.9, the gradient weighed by 0.1",
        f"{_OURS}.ema_momentum:ema_momentum",
        1e-5,
        lr=0.01,
        evaluates=False,
        beta=0.9,
    ),
    _train(
        "traingda",
        "gradient descent with an adaptive learning rate",
        f"{_OURS}.bold_driver:BoldDriver",
        1e-5,
        lr=0.01,
        momentum=0.0,
    ),
    _train(
        "traingdx",
        "gradient descent with momentum and an adaptive learning rate",
        f"{_OURS}.bold_driver:BoldDriver",
        1e-5,
        lr=0.01,
        momentum=0.9,
    ),
    _train(
        "trainrp",
        "resilient backpropagation",
        "torch.optim:Rprop",
        1e-5,
        lr=0.07,
        evaluates=False,
        etas=(0.5, 1.2),
        step_sizes=(1e-6, 50.0),
    ),
    _train(
        "traincgf",
        "conjugate gradients of Fletcher and Reeves",
        f"{_OURS}.nonlinear_conjugate_gradient:NonlinearConjugateGradient",
        1e-10,
        formula="FR",
    ),
    _train(
        "traincgp",
        "conjugate gradients of Polak and Ribière",
        f"{_OURS}.nonlinear_conjugate_gradient:NonlinearConjugateGradient",
        1e-10,
        formula="PR+",
    ),
    _train(
        "traincgb",
        "conjugate gradients with Powell–Beale restarts",
        f"{_OURS}.nonlinear_conjugate_gradient:NonlinearConjugateGradient",
        1e-10,
        formula="PR+",
        restart_overlap=0.2,
    ),
    _train(
        "trainscg",
        "scaled conjugate gradients",
        f"{_OURS}.scaled_conjugate_gradient:ScaledConjugateGradient",
        1e-6,
    ),
    _train("trainbfg", "quasi-Newton of Broyden, Fletcher, Goldfarb and Shanno", f"{_OURS}.bfgs:BFGS", 1e-6),
    _train("trainoss", "one-step secant method of Battiti", f"{_OURS}.one_step_secant:OneStepSecant", 1e-10),
    _train(
        "trainlm",
        "Levenberg–Marquardt",
        f"{_OURS}.levenberg_marquardt:LevenbergMarquardt",
        1e-7,
        closure="residual",
        damping="marquardt",
        mu=1e-3,
        mu_max=1e10,
    ),
)
