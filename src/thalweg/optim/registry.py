"""All optimisers by name: PyTorch's, Thalweg's, MATLAB's names for them, and any other library's."""

from __future__ import annotations

import difflib
import inspect

from thalweg.errors import InputError
from thalweg.optim.factory import ClosureKind, Factory, load_class
from thalweg.optim.matlab import MATLAB

__all__ = ["COMMON", "closure_of", "get", "names"]

COMMON = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "lamb", "lbfgs")  # what people choose among


def _torch(name: str, summary: str, target: str, lr: float, source: str, **more: object) -> Factory:
    settings = {key: value for key, value in more.items() if key not in {"whole", "evaluates"}}
    return Factory(
        name,
        summary,
        f"torch.optim:{target}",
        source,
        lr=lr,
        settings=settings,
        whole=bool(more.get("whole")),
        evaluates=bool(more.get("evaluates")),
    )


_TORCH = (
    _torch("sgd", "gradient descent, stochastic by its batches", "SGD", 0.01, "Robbins and Monro 1951"),
    _torch(
        "momentum",
        "gradient descent with heavy-ball momentum 0.9, which lengthens steps up to tenfold",
        "SGD",
        0.01,
        "Polyak 1964",
        momentum=0.9,
    ),
    _torch(
        "nesterov",
        "gradient descent with Nesterov's momentum 0.9, as PyTorch writes it",
        "SGD",
        0.01,
        "Sutskever et al. 2013",
        momentum=0.9,
        nesterov=True,
    ),
    _torch(
        "adagrad",
        "each weight's steps divided by the root of the sum of its squared gradients",
        "Adagrad",
        0.01,
        "Duchi, Hazan and Singer 2011",
    ),
    _torch(
        "rmsprop",
        "the same with a moving mean (α 0.99, ε outside the root)",
        "RMSprop",
        0.01,
        "Tieleman and Hinton 2012",
    ),
    _torch("adam", "momentum divided by the root of the mean square", "Adam", 1e-3, "Kingma and Ba 2015"),
    _torch(
        "adamw",
        "Adam with weight decay of its own (0.01)",
        "AdamW",
        1e-3,
        "Loshchilov and Hutter 2019",
    ),
    _torch(
        "rprop",
        "steps by the sign of the gradient alone (iRprop−)",
        "Rprop",
        0.01,
        "Riedmiller and Braun 1993; Igel and Hüsken 2003",
        whole=True,
    ),
    _torch(
        "lbfgs",
        "limited-memory BFGS with a strong Wolfe search; up to 20 iterations a step",
        "LBFGS",
        1.0,
        "Nocedal and Wright 2006, algorithm 7.5",
        whole=True,
        evaluates=True,
        line_search_fn="strong_wolfe",
        tolerance_change=0.0,  # at 1e-9 it stands still long before the gradient is small
    ),
)
_OWN = (
    Factory(
        "ema-momentum",
        "gradient descent along the moving average of the gradient (0.9)",
        "thalweg.optim.ema_momentum:ema_momentum",
        "Polyak 1964",
        lr=0.01,
        settings={"beta": 0.9},
    ),
    Factory(
        "lamb",
        "Adam's direction, each layer's step as long as lr times the norm of its weights",
        "thalweg.optim.lamb:LAMB",
        "You et al. 2020, algorithm 2",
        lr=1e-3,
    ),
    Factory(
        "lars",
        "momentum, each layer's rate scaled by the norms of its weights and gradient",
        "thalweg.optim.lars:LARS",
        "You, Gitman and Ginsburg 2017",
        lr=0.1,
    ),
    Factory(
        "bold-driver",
        "gradient descent whose rate grows while the loss falls; steps that raise it are undone",
        "thalweg.optim.bold_driver:BoldDriver",
        "Vogl et al. 1988",
        evaluates=True,
        lr=0.01,
        whole=True,
    ),
    Factory(
        "rprop-plus",
        "steps by the sign of the gradient, taken back where it changes",
        "thalweg.optim.rprop_plus:RpropPlus",
        "Riedmiller and Braun 1993",
        evaluates=True,
        lr=0.01,
        whole=True,
    ),
    Factory(
        "one-step-secant",
        "BFGS that remembers one step only, with a line search",
        "thalweg.optim.one_step_secant:OneStepSecant",
        "Battiti 1992",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "scaled-conjugate-gradient",
        "conjugate gradients whose step comes from a curvature, without line search",
        "thalweg.optim.scaled_conjugate_gradient:ScaledConjugateGradient",
        "Møller 1993",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "conjugate-gradient",
        "nonlinear conjugate gradients with a line search",
        "thalweg.optim.nonlinear_conjugate_gradient:NonlinearConjugateGradient",
        "Nocedal and Wright 2006, chapter 5",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "bfgs",
        "quasi-Newton with a dense inverse Hessian, for a few thousand weights",
        "thalweg.optim.bfgs:BFGS",
        "Nocedal and Wright 2006, algorithm 6.1",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "levenberg-marquardt",
        "damped Gauss–Newton for mean squared error and small nets",
        "thalweg.optim.levenberg_marquardt:LevenbergMarquardt",
        "Marquardt 1963; Hagan and Menhaj 1994",
        closure="residual",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "gauss-newton",
        "damped generalised Gauss–Newton for cross-entropy and small nets",
        "thalweg.optim.gauss_newton:GaussNewton",
        "Schraudolph 2002",
        closure="prediction",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "dogleg",
        "Powell's dogleg in a trust region, for mean squared error and small nets",
        "thalweg.optim.dogleg:Dogleg",
        "Powell 1970",
        closure="residual",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "trust-region",
        "Newton steps by truncated conjugate gradients in a trust region",
        "thalweg.optim.trust_region_newton_cg:TrustRegionNewtonCG",
        "Steihaug 1983",
        closure="loss",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "modified-newton",
        "Newton with the eigenvalues of a dense Hessian made positive",
        "thalweg.optim.modified_newton:ModifiedNewton",
        "Nocedal and Wright 2006, section 3.4",
        closure="loss",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "saddle-free-newton",
        "Newton steps with |curvature| in a Krylov space, which saddles repel",
        "thalweg.optim.saddle_free_newton:SaddleFreeNewton",
        "Dauphin et al. 2014",
        closure="loss",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "cubic-newton",
        "adaptive cubic regularisation in a Krylov space",
        "thalweg.optim.cubic_newton:CubicNewton",
        "Cartis, Gould and Toint 2011",
        closure="loss",
        evaluates=True,
        whole=True,
    ),
    Factory(
        "perturbed-gradient-descent",
        "gradient descent, with a random push where the gradient is small",
        "thalweg.optim.perturbed_gradient_descent:PerturbedGradientDescent",
        "Jin et al. 2017",
        evaluates=True,
        lr=0.01,
        whole=True,
    ),
    Factory(
        "sam",
        "momentum on the gradient at the worst place nearby (sharpness-aware)",
        "thalweg.optim.sam:sam",
        "Foret et al. 2021",
        evaluates=True,
        lr=0.01,
    ),
    Factory(
        "asam",
        "the same, the neighbourhood scaled by the weights",
        "thalweg.optim.sam:asam",
        "Kwon et al. 2021",
        evaluates=True,
        lr=0.01,
    ),
    Factory(
        "entropy-sgd",
        "gradient descent on local entropy, by 20 noisy steps nearby for each one",
        "thalweg.optim.entropy_sgd:EntropySGD",
        "Chaudhari et al. 2017",
        evaluates=True,
        lr=1.0,
    ),
)
_FACTORIES = {factory.name: factory for factory in (*_TORCH, *_OWN, *MATLAB)}


def get(name: str) -> Factory:
    """Return what makes the optimiser ``name``: ``get("adam")(model.parameters(), lr=0.01)``.

    Args:
        name: one of `names`, or "package.module:Class" for one of any other library, which is imported.

    Raises:
        InputError: for an unknown name, or a class that cannot be imported.
    """
    if name in _FACTORIES:
        return _FACTORIES[name]
    place, colon, kind = name.partition(":")
    if colon and kind.isidentifier() and place and place != "matlab":
        return _foreign(name)
    close = difflib.get_close_matches(name.lower().replace("_", "-"), _FACTORIES, n=1, cutoff=0.5)
    raise InputError(
        f"there is no optimiser {name!r}",
        expected="one of " + ", ".join(_FACTORIES) + ", or package.module:Class",
        hint=f"{close[0]!r}" if close else None,
    )


def names() -> dict[str, str]:
    """Return what can be asked for by name, with a line on each."""
    return {name: factory.summary for name, factory in _FACTORIES.items()}


def closure_of(optimizer: object) -> ClosureKind:
    """Return the kind of closure that an optimiser takes, by its class; "standard" for classes not known."""
    kinds = {factory.target: factory.closure for factory in _FACTORIES.values()}
    found = (kinds.get(f"{cls.__module__}:{cls.__name__}") for cls in type(optimizer).__mro__)
    return next((kind for kind in found if kind is not None), "standard")


def _foreign(target: str) -> Factory:
    """Describe a class of another library by what it says of itself."""
    made = load_class(target)
    default = inspect.signature(made).parameters.get("lr")
    lr = default.default if default is not None and isinstance(default.default, float | int) else None
    summary = (inspect.getdoc(made) or target).strip().splitlines()[0]
    evaluates = _wants_closure(made)
    return Factory(target, summary, target, target.partition(":")[0], evaluates=evaluates, lr=lr)


def _wants_closure(made: object) -> bool:
    step = getattr(made, "step", None)
    closure = inspect.signature(step).parameters.get("closure") if step is not None else None
    return closure is not None and closure.default is inspect.Parameter.empty
