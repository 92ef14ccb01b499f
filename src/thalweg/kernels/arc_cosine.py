# mypy: allow-untyped-decorators
"""The arc-cosine kernels of degree 0 and 1 ([cho2009], equations 3–6) on vectors, with one square root.

On [0, 1] arccos(a) = √(1−a)·P(a) with P smooth ([abramowitz1964], 4.4.46), and
√(1−a²) − a·arccos(a) = √(1−a)·R(a) with R(a) = √(1+a) − a·P(a), smooth as well. So

    arccos(ρ) = √(1−|ρ|)·P(|ρ|), or π minus it below zero
    ρ(π − arccos ρ) + √(1−ρ²) = π·max(ρ, 0) + √(1−|ρ|)·R(|ρ|)

P and R are minimax polynomials, weighted by √(1−a): of 8 and 7 terms for float32 (errors below 1.3e-8 and
2.1e-8), of 19 and 18 for float64 (below 1.4e-17).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from thalweg.kernels.lanes import constant, intrinsic, operation

__all__ = ["EQUAL", "P_COEFFICIENTS", "R_COEFFICIENTS", "arc_cosine", "count_above"]

# Correlations closer to 1 than this many roundings are 1: the sums behind ρ and behind the variances round
# differently, and at 1 the angle would turn an error ε into √(2ε). So x with itself is exact, and so is every
# pair of equal patches.
EQUAL = 16

P_COEFFICIENTS = {
    32: (
        *(1.5707963143048118, -0.21459989048485317, 0.08899922423735943, -0.050312477678347914),
        *(0.031334396833794624, -0.017807099007079264, 0.007243836095920157, -0.0014409463666012778),
    ),
    64: (
        *(1.5707963267948966, -0.21460183660254104, 0.08904862254668863, -0.05079281447070058),
        *(0.03368128528420958, -0.024374308102434367, 0.018672106449520616, -0.014884903178815473),
        *(0.012209830544328927, -0.010198906059739072, 0.00854036675321709, -0.006975610281057583),
        *(0.005330036419779046, -0.0036143514202557608, 0.002051141839787681, -0.0009129650107353474),
        *(0.00029387555506688956, -6.017973110906835e-05, 5.84504298875714e-06),
    ),
}
R_COEFFICIENTS = {
    32: (
        *(0.9999999792381334, -1.070793823886323, 0.08955303535273293, -0.026189498473767087),
        *(0.010433488505025108, -0.0037411364054578283, 0.0007382560934890007),
    ),
    64: (
        *(1.0, -1.0707963267948917, 0.08960183660195786, -0.026548622520404252),
        *(0.011730313862579668, -0.00633752707429919, 0.0038664274297078322, -0.0025584875335897374),
        *(0.001792165958557593, -0.0013027995145893795, 0.0009581550976550574, -0.0006852740274161425),
        *(0.00045087771841642, -0.0002553754287747221, 0.00011564259762032756, -3.8312215888624755e-05),
        *(8.125576379620523e-06, -8.197330210091054e-07),
    ),
}
_PI = 3.141592653589793


def _polynomial(builder: Any, a: Any, coefficients: tuple[float, ...]) -> Any:
    """Evaluate it by Estrin's scheme, whose chains of dependent operations are short."""
    terms, power = [constant(a.type, c) for c in coefficients], a
    while len(terms) > 1:
        last = [terms[-1]] if len(terms) % 2 else []
        pairs = zip(terms[::2], terms[1::2], strict=False)
        terms = [operation(builder, "fma", odd, power, even) for even, odd in pairs] + last
        if len(terms) > 1:
            power = builder.fmul(power, power)
    return terms[0]


@intrinsic
def arc_cosine(typingctx: Any, rho: Any) -> Any:
    """Return π − arccos ρ and ρ(π − arccos ρ) + √(1−ρ²), both π at ρ = 1.

    |ρ| may pass 1 by rounding; from ``EQUAL`` roundings below 1 on it counts as 1.
    """
    both = types.UniTuple(rho, 2)  # type: ignore[no-untyped-call]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (r,) = args
        vector = r.type
        bits, rounding = (32, 2.0**-23) if isinstance(vector.element, ir.FloatType) else (64, 2.0**-52)
        zero, pi = constant(vector, 0.0), constant(vector, _PI)
        a = operation(builder, "fabs", r)
        rest = builder.fsub(constant(vector, 1.0), a)
        apart = builder.fcmp_ordered(">", rest, constant(vector, EQUAL * rounding))
        root = builder.select(apart, operation(builder, "sqrt", rest), zero)
        angle = builder.fmul(root, _polynomial(builder, a, P_COEFFICIENTS[bits]))
        residue = builder.fmul(root, _polynomial(builder, a, R_COEFFICIENTS[bits]))
        below = builder.fcmp_ordered("<", r, zero)
        degree_0 = builder.select(below, angle, builder.fsub(pi, angle))
        # min(ρ, 1) would cost an operation more; a ρ of 1 + ε is off by ε
        degree_1 = operation(builder, "fma", builder.select(below, zero, r), pi, residue)
        return context.make_tuple(builder, both, (degree_0, degree_1))

    return both(rho), codegen


@intrinsic
def count_above(typingctx: Any, rho: Any, limit: Any) -> Any:
    """Return how many lanes exceed the scalar ``limit``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = args[0].type
        limits = ir.Constant(vector, ir.Undefined)
        for i in range(rho.count):
            limits = builder.insert_element(limits, args[1], ir.Constant(ir.IntType(32), i))
        above = builder.fcmp_ordered(">", args[0], limits)
        bits = builder.bitcast(above, ir.IntType(rho.count))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.int64(rho, limit), codegen
