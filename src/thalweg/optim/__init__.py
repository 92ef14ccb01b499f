"""Ways down: optimisers that PyTorch lacks, and one registry that also hands out PyTorch's own.

The names below are loaded when they are first used.
"""

from __future__ import annotations

from thalweg.first_use import on_first_use

_HOMES = {
    "BFGS": "bfgs",
    "BoldDriver": "bold_driver",
    "CubicNewton": "cubic_newton",
    "Dogleg": "dogleg",
    "EntropySGD": "entropy_sgd",
    "Factory": "factory",
    "GaussNewton": "gauss_newton",
    "LAMB": "lamb",
    "LARS": "lars",
    "LevenbergMarquardt": "levenberg_marquardt",
    "ModifiedNewton": "modified_newton",
    "NonlinearConjugateGradient": "nonlinear_conjugate_gradient",
    "OneStepSecant": "one_step_secant",
    "PerturbedGradientDescent": "perturbed_gradient_descent",
    "RpropPlus": "rprop_plus",
    "SaddleFreeNewton": "saddle_free_newton",
    "ScaledConjugateGradient": "scaled_conjugate_gradient",
    "SharpnessAware": "sharpness_aware",
    "StopRule": "stop_rule",
    "TrustRegionNewtonCG": "trust_region_newton_cg",
    "get": "registry",
    "names": "registry",
}

__all__ = list(_HOMES)


__getattr__ = on_first_use("thalweg.optim", _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
