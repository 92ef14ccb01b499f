# mypy: allow-untyped-decorators, allow-subclassing-any
"""Vectors of 64 bytes inside numba's functions: sixteen float32 or eight float64 at once.

LLVM's own vectoriser stops at 32 bytes and at every loop whose arrays might overlap. Here a kernel says
what is a vector; on machines with shorter registers LLVM splits it. A load or store touches
``lanes_of(array)`` elements from an index on and checks no bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, overload, register_model

__all__ = [
    "BYTES",
    "Lanes",
    "constant",
    "fma",
    "lanes_of",
    "load",
    "operation",
    "spread",
    "sqrt",
    "store",
    "total",
]

BYTES = 64

intrinsic: Any = numba.extending.intrinsic  # numba types it by its Python function, which it is not called as


class Lanes(types.Type):
    """The numba type of a vector of ``count`` floats."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.count = 8 * BYTES // dtype.bitwidth
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        element = dmm.lookup(fe_type.dtype).get_value_type()
        vector = ir.VectorType(element, fe_type.count)
        super().__init__(dmm, fe_type, vector)  # type: ignore[no-untyped-call]


def constant(vector: Any, value: float) -> Any:
    """Return the LLVM constant of type ``vector`` whose lanes all hold ``value``."""
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def operation(builder: Any, name: str, *args: Any) -> Any:
    """Emit LLVM's operation ``name`` on vectors of one type: "fma", "sqrt", "fabs"."""
    vector = args[0].type
    bits = 32 if isinstance(vector.element, ir.FloatType) else 64
    signature = ir.FunctionType(vector, [vector] * len(args))
    name = f"llvm.{name}.v{vector.count}f{bits}"
    function = cgutils.get_or_insert_function(builder.module, signature, name)  # type: ignore[no-untyped-call]
    return builder.call(function, args)


def _address(context: Any, builder: Any, signature: Any, args: Any, lanes: Lanes) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    index = context.cast(builder, args[1], signature.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [index]), context.get_value_type(lanes).as_pointer())


@intrinsic
def lanes_of(typingctx: Any, array: Any) -> Any:
    """How many elements of the array make a vector."""
    count = Lanes(array.dtype).count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, count)

    return types.intp(array), codegen


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Read a vector from a contiguous array, from ``index`` on."""
    lanes = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = _address(context, builder, signature, args, lanes)
        return builder.load(where, align=array.dtype.bitwidth // 8)

    return lanes(array, index), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to a contiguous array, from ``index`` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = _address(context, builder, signature, args, signature.args[2])
        builder.store(args[2], where, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def spread(typingctx: Any, value: Any) -> Any:
    """Make a vector whose lanes all hold ``value``."""
    lanes = Lanes(value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = context.get_value_type(lanes)
        nothing = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(nothing, args[0], ir.Constant(ir.IntType(32), 0))
        pattern = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), [0] * lanes.count)
        return builder.shuffle_vector(first, nothing, pattern)

    return lanes(value), codegen


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a·b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return operation(builder, "fma", *args)

    return a(a, b, c), codegen


@intrinsic
def sqrt(typingctx: Any, a: Any) -> Any:
    """Return the square roots."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return operation(builder, "sqrt", *args)

    return a(a), codegen


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """Return the sum of the lanes, in float64 and in their order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = ir.Constant(ir.DoubleType(), 0.0)
        for i in range(a.count):
            lane = builder.extract_element(args[0], ir.Constant(ir.IntType(32), i))
            if a.dtype.bitwidth == 32:
                lane = builder.fpext(lane, ir.DoubleType())
            found = builder.fadd(found, lane)
        return found

    return types.float64(a), codegen


def _arithmetic(symbol: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def emit(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return a(a, b), codegen

    @overload(symbol, strict=False)  # the implementation has no annotations
    def _typed(a: Any, b: Any) -> Any:
        if isinstance(a, Lanes) and a == b:
            return lambda a, b: emit(a, b)
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.iadd, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_symbol, _instruction)
