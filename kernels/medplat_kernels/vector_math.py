"""Arithmetic on one LLVM vector, emitted with explicit instructions: what numba can't be told.

Every function takes an llvmlite builder and values of type `VECTOR`, LANES float32, and returns
the value it computes. No fast-math flag is set anywhere: it would fold away the rounding trick of
`_exp2_portable`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core.registry import cpu_target

TARGET, _, FEATURES = cpu_target.target_context.codegen().magic_tuple()
_WIDE = "+avx512f" in FEATURES and "+avx512dq" in FEATURES
LANES: int = 16 if _WIDE else 8 if "+avx2" in FEATURES else 4

FLOAT, INT, SHORT = ir.FloatType(), ir.IntType(32), ir.IntType(16)
VECTOR, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)


def constant(number: float) -> ir.Constant:
    """A number in every lane, rounded to float32."""
    return ir.Constant(VECTOR, [float(np.float32(number))] * LANES)


def integers(number: int) -> ir.Constant:
    """An integer in every lane."""
    return ir.Constant(INTS, [number] * LANES)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """A call of an LLVM intrinsic by name, declared on first use."""
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(result, [arg.type for arg in args]), name
    )
    return builder.call(function, args)


def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """X y + z; `fmuladd` is one rounding where the CPU has the instruction, two elsewhere."""
    return call(b, f"llvm.fmuladd.v{LANES}f32", VECTOR, x, y, z)


def polynomial(b: ir.IRBuilder, x: ir.Value, *coefficients: float) -> ir.Value:
    """Horner's rule; the constant term comes first."""
    value: ir.Value = constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = fma(b, value, x, constant(coefficient))
    return value


def _power_of_part(b: ir.IRBuilder, part: ir.Value) -> ir.Value:
    """2^part for part in [-1/2, 1/2]: minimax with 2^0 exact, relative error 9e-8.

    A decay near 1 is taken to a high power, so it must not be off in one direction.
    """
    return polynomial(
        b, part, 1.0, 0.69314698, 0.24022242, 0.055507337, 0.0096715126, 0.0013264727
    )  # fmt: skip


def _exp2_avx512(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """2^x: one instruction takes the integer part off, another scales by it."""
    every = ir.Constant(SHORT, 0xFFFF)
    nearest, mxcsr = INT(0x08), INT(4)
    part = call(b, "llvm.x86.avx512.mask.reduce.ps.512", VECTOR, x, nearest, x, every, mxcsr)
    power, whole = _power_of_part(b, part), b.fsub(x, part)
    scale = "llvm.x86.avx512.mask.scalef.ps.512"
    return call(b, scale, VECTOR, power, whole, power, every, mxcsr)


def _exp2_portable(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """2^x for x in [-126, 126], clamped outside.

    Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits and is added to the
    exponent of 2^(x - integer).
    """
    x = b.select(b.fcmp_ordered(">", x, constant(-126.0)), x, constant(-126.0))
    x = b.select(b.fcmp_ordered("<", x, constant(126.0)), x, constant(126.0))
    magic = constant(12582912.0)
    rounded = b.fadd(x, magic)
    power = _power_of_part(b, b.fsub(x, b.fsub(rounded, magic)))
    exponent = b.shl(b.bitcast(rounded, INTS), integers(23))
    return b.bitcast(b.add(b.bitcast(power, INTS), exponent), VECTOR)


exp2 = _exp2_avx512 if _WIDE else _exp2_portable


def _reciprocal_avx512(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """1 / x for finite x: 14 bits by instruction, doubled by a step of Newton's."""
    every = ir.Constant(SHORT, 0xFFFF)
    guess = call(b, "llvm.x86.avx512.rcp14.ps.512", VECTOR, x, x, every)
    error = fma(b, b.fneg(x), guess, constant(1.0))
    return fma(b, error, guess, guess)


def _reciprocal_portable(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.fdiv(constant(1.0), x)


reciprocal = _reciprocal_avx512 if _WIDE else _reciprocal_portable


def softplus(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x| <= 1.

    Relative error 3e-7 for x >= -1; below it grows with |x|, 1e-6 at -20, as that of e^x.

    log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3, an odd series in s.
    """
    size = b.bitcast(b.and_(b.bitcast(x, INTS), integers(0x7FFFFFFF)), VECTOR)
    e = exp2(b, b.fmul(size, constant(-1.4426950408889634)))
    s = b.fmul(e, reciprocal(b, b.fadd(e, constant(2.0))))
    series = polynomial(b, b.fmul(s, s), 2.0, 0.66666315, 0.40024910, 0.27960603, 0.28178335)
    positive = b.select(b.fcmp_unordered("<", x, constant(0.0)), constant(0.0), x)
    return fma(b, s, series, positive)


def sigmoid(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """1 / (1 + e^-x), relative error as that of `softplus`."""
    power = b.fmul(x, constant(-1.4426950408889634))
    power = b.select(b.fcmp_ordered(">", power, constant(126.0)), constant(126.0), power)
    return reciprocal(b, b.fadd(exp2(b, power), constant(1.0)))


def crossed(step: int, second: bool) -> ir.Constant:
    """Shuffle that exchanges, between two vectors, the lanes that differ in the bit `step`.

    Gives the first or the second vector of a butterfly of the transpose.
    """
    lanes = []
    for lane in range(LANES):
        own = bool(lane & step) == second
        source = lane if own else lane ^ step
        from_second = own == second
        lanes.append(source + LANES * from_second)
    return ir.Constant(INTS, lanes)


def transposed(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """LANES x LANES transpose in log2(LANES) rounds of butterflies."""
    rows, step = list(rows), 1
    while step < LANES:
        for i in range(LANES):
            if not i & step:
                x, y = rows[i], rows[i | step]
                rows[i] = b.shuffle_vector(x, y, crossed(step, second=False))
                rows[i | step] = b.shuffle_vector(x, y, crossed(step, second=True))
        step *= 2
    return rows
