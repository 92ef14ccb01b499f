"""Where the gradient is zero: is there a direction in which the loss curves down?"""

from __future__ import annotations

from torch import Tensor

from thalweg.curvature.spectrum import find_extremes
from thalweg.optim.products import LossHessian

__all__ = ["way_down"]

# A random start finds a negative end that stands out within this many products; at a minimum all are spent.
MOST_PRODUCTS = 32
# Where a net fits its data and has directions to spare, the curvature in these is the remaining error times a
# second derivative, of either sign. Down to this part of the largest curvature it counts as flat; otherwise
# a training that has converged would crawl along such directions for ever.
FLAT = 1e-5


def way_down(hessian: LossHessian, *, seed: int) -> tuple[float, Tensor] | None:
    """Return the lowest curvature found and its unit direction (n,), pointing down the gradient.

    None where nothing was found below −10⁻⁵ of the largest curvature, or below the rounding of the products.
    That does not prove a minimum: it says that a Lanczos run from a random start ([kuczynski1992]) found no
    way down.

    Raises:
        NumericalError: where a product holds NaN or infinity.

    Cost: at most 32 products, 64 gradient-equivalents.
    """
    found = find_extremes(hessian, seed=seed, max_products=MOST_PRODUCTS, open_gap=1.0)
    lowest = found.lambda_min
    if not lowest.value < -max(found.floor, FLAT * found.scale):
        return None
    uphill = float(lowest.vector @ hessian.gradient) > 0
    return lowest.value, -lowest.vector if uphill else lowest.vector
