"""Nonlinear regressions of the NIST Statistical Reference Datasets, with their certified values.

A wrong digit in the data would move the fit away from the certified values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Regression:
    """A curve f(b, x), observations (y, x), two starts, certified b and sum of squares."""

    name: str
    curve: Callable
    observations: str
    starts: tuple[tuple[float, ...], tuple[float, ...]]
    certified: tuple[float, ...]
    sum_of_squares: float

    def residuals(self, b):
        return self.curve(b, self.x) - self.y

    @property
    def y(self):
        return self._columns()[:, 0]

    @property
    def x(self):
        return self._columns()[:, 1]

    def _columns(self):
        return torch.tensor([float(v) for v in self.observations.split()], dtype=torch.float64).view(-1, 2)


MISRA1A = Regression(
    "Misra1a",
    lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
    """10.07 77.6  14.73 114.9  17.94 141.1  23.93 190.8  29.61 239.9  35.18 289.0  40.02 332.8
    44.82 378.4  50.76 434.8  55.05 477.3  61.01 536.8  66.40 593.1  75.47 689.1  81.78 760.0""",
    ((500, 1e-4), (250, 5e-4)),
    (2.3894212918e02, 5.5015643181e-04),
    1.2455138894e-01,
)
BOXBOD = Regression(
    "BoxBOD",
    lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
    "109 1  149 2  149 3  191 5  213 7  224 10",
    ((1, 1), (100, 0.75)),
    (2.1380940889e02, 5.4723748542e-01),
    1.1680088766e03,
)
MGH09 = Regression(
    "MGH09",
    lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    """1.957e-1 4  1.947e-1 2  1.735e-1 1  1.600e-1 0.5  8.44e-2 0.25  6.27e-2 0.167  4.56e-2 0.125
    3.42e-2 0.1  3.23e-2 0.0833  2.35e-2 0.0714  2.46e-2 0.0625""",
    ((25, 39, 41.5, 39), (0.25, 0.39, 0.415, 0.39)),
    (1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01),
    3.0750560385e-04,
)
MGH10 = Regression(
    "MGH10",
    lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])),
    """3.478e4 50  2.861e4 55  2.365e4 60  1.963e4 65  1.637e4 70  1.372e4 75  1.154e4 80  9.744e3 85
    8.261e3 90  7.030e3 95  6.005e3 100  5.147e3 105  4.427e3 110  3.820e3 115  3.307e3 120  2.872e3 125""",
    ((2, 400000, 25000), (0.02, 4000, 250)),
    (5.6096364710e-03, 6.1813463463e03, 3.4522363462e02),
    8.7945855171e01,
)
RAT42 = Regression(
    "Rat42",
    lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)),
    "8.93 9  10.80 14  18.59 21  22.33 28  39.35 42  56.11 57  61.73 63  64.62 70  67.08 79",
    ((100, 1, 0.1), (75, 2.5, 0.07)),
    (7.2462237576e01, 2.6180768402e00, 6.7359200066e-02),
    8.0565229338e00,
)
RAT43 = Regression(
    "Rat43",
    lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    """16.08 1  33.83 2  65.80 3  97.20 4  191.55 5  326.20 6  386.87 7  520.53 8  590.03 9  651.92 10
    724.93 11  699.56 12  689.96 13  637.56 14  717.41 15""",
    ((100, 10, 1, 1), (700, 5, 0.75, 1.3)),
    (6.9964151270e02, 5.2771253025e00, 7.5962938329e-01, 1.2792483859e00),
    8.7864049080e03,
)
THURBER = Regression(
    "Thurber",
    lambda b, x: (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3),
    """80.574 -3.067  84.248 -2.981  87.264 -2.921  87.195 -2.912  89.076 -2.840  89.608 -2.797
    89.868 -2.702  90.101 -2.699  92.405 -2.633  95.854 -2.481  100.696 -2.363  101.060 -2.322
    401.672 -1.501  390.724 -1.460  567.534 -1.274  635.316 -1.212  733.054 -1.100  759.087 -1.046
    894.206 -0.915  990.785 -0.714  1090.109 -0.566  1080.914 -0.545  1122.643 -0.400  1178.351 -0.309
    1260.531 -0.109  1273.514 -0.103  1288.339 0.010  1327.543 0.119  1353.863 0.377  1414.509 0.790
    1425.208 0.963  1421.384 1.006  1442.962 1.115  1464.350 1.572  1468.705 1.841  1447.894 2.047
    1457.628 2.200""",
    ((1000, 1000, 400, 40, 0.7, 0.3, 0.03), (1300, 1500, 500, 75, 1, 0.4, 0.05)),
    (
        1.2881396800e03,
        1.4910792535e03,
        5.8323836877e02,
        7.5416644291e01,
        9.6629502864e-01,
        3.9797285797e-01,
        4.9727297349e-02,
    ),
    5.6427082397e03,
)
REGRESSIONS = (MISRA1A, BOXBOD, MGH09, MGH10, RAT42, RAT43, THURBER)
