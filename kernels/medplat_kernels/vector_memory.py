"""The way of vectors from and to memory of any dtype: rows, single elements, transposed blocks.

`kind`, one of `KINDS`, says how an element is stored; values are float32, rounded to the nearest
(ties to even) where they are stored as less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core.typing.templates import signature

from . import vector_math as vm
from .vector_math import FEATURES, FLOAT, INT, INTS, LANES, SHORT, TARGET, VECTOR
from .vectors import Vectors, emitted, get, pack, pointer_to, put, rows_of, splat

# Without an instruction that converts it, float16 is left out: LLVM would call a function that is
# not there.
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
_ELEMENT: dict[int, tuple[Any, Any]] = {
    FLOAT32: (FLOAT, VECTOR),
    BFLOAT16: (SHORT, ir.VectorType(SHORT, LANES)),
}
if "+f16c" in FEATURES or TARGET.startswith(("aarch64", "arm64")):
    KINDS[torch.float16] = FLOAT16
    _ELEMENT[FLOAT16] = (ir.HalfType(), ir.VectorType(ir.HalfType(), LANES))


def _prefetch(b: ir.IRBuilder, pointer: ir.Value, write: bool) -> None:
    """Asks for a cache line that is needed soon; an address out of bounds is harmless."""
    byte = ir.IntType(8).as_pointer()
    result, name = ir.VoidType(), "llvm.prefetch.p0"
    function = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(result, [byte, INT, INT, INT]), name
    )
    b.call(function, [b.bitcast(pointer, byte), INT(int(write)), INT(2), INT(1)])


def _get(b: ir.IRBuilder, address: ir.Value, index: ir.Value, kind: int) -> ir.Value:
    """LANES consecutive elements as float32."""
    element, vector = _ELEMENT[kind]
    pointer = b.bitcast(pointer_to(b, address, index, element), vector.as_pointer())
    value = b.load(pointer)
    value.align = 4 if kind == FLOAT32 else 2
    if kind == FLOAT32:
        return value
    if kind == FLOAT16:
        return b.fpext(value, VECTOR)
    return b.bitcast(b.shl(b.zext(value, INTS), vm.integers(16)), VECTOR)


def _put(b: ir.IRBuilder, address: ir.Value, index: ir.Value, value: ir.Value, kind: int) -> None:
    """Stores LANES numbers, rounded to the nearest, ties to even."""
    element, vector = _ELEMENT[kind]
    if kind == FLOAT16:
        value = b.fptrunc(value, vector)
    elif kind == BFLOAT16:
        value = b.trunc(_bfloat16_bits(b, value), vector)
    pointer = b.bitcast(pointer_to(b, address, index, element), vector.as_pointer())
    b.store(value, pointer, align=4 if kind == FLOAT32 else 2)


def _bfloat16_bits(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    bits = b.bitcast(value, INTS)
    odd = b.and_(b.lshr(bits, vm.integers(16)), vm.integers(1))
    rounded = b.lshr(b.add(bits, b.add(odd, vm.integers(0x7FFF))), vm.integers(16))
    return b.select(b.fcmp_unordered("uno", value, value), vm.integers(0x7FC0), rounded)


def _by_kind(
    b: ir.IRBuilder, kind: ir.Value, emit: Callable[[int], list[ir.Value]]
) -> list[ir.Value]:
    """Code for each kind of memory behind one switch; gives the values of the kind that ran."""
    cases = [b.append_basic_block() for _ in _ELEMENT]
    done = b.append_basic_block()
    switch = b.switch(kind, cases[FLOAT32])
    results = []
    for number, case in enumerate(cases):
        if number != FLOAT32:
            switch.add_case(number, case)
        b.position_at_end(case)
        results.append((emit(number), b.block))
        b.branch(done)
    b.position_at_end(done)
    values = []
    for column in range(len(results[0][0])):
        values.append(b.phi(results[0][0][column].type))
        for found, block in results:
            values[-1].add_incoming(found[column], block)
    return values


def _element(b: ir.IRBuilder, address: ir.Value, index: ir.Value, kind: int) -> ir.Value:
    value = b.load(pointer_to(b, address, index, _ELEMENT[kind][0]))
    if kind == FLOAT16:
        return b.fpext(value, FLOAT)
    if kind == BFLOAT16:
        return b.bitcast(b.shl(b.zext(value, INT), INT(16)), FLOAT)
    return value


def _put_element(
    b: ir.IRBuilder, address: ir.Value, index: ir.Value, value: ir.Value, kind: int
) -> None:
    element = _ELEMENT[kind][0]
    if kind == FLOAT16:
        value = b.fptrunc(value, element)
    elif kind == BFLOAT16:
        bits = b.extract_element(_bfloat16_bits(b, splat(b, value)), INT(0))
        value = b.trunc(bits, element)
    b.store(value, pointer_to(b, address, index, element))


@emitted
def ask(typingctx: Any, address: Any, index: Any) -> Any:
    """Asks for the cache line of float32 number `index`, which is needed soon."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index = args
        _prefetch(b, pointer_to(b, address, index, FLOAT), write=False)
        return context.get_dummy_value()

    return signature(types.void, types.intp, types.intp), lower


@emitted
def load_element(typingctx: Any, address: Any, index: Any, kind: Any) -> Any:
    """Element `index` as float32; `kind` is one of KINDS."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, kind = args
        return _by_kind(b, kind, lambda stored: [_element(b, address, index, stored)])[0]

    return signature(types.float32, types.intp, types.intp, types.intp), lower


@emitted
def store_element(typingctx: Any, address: Any, index: Any, value: Any, kind: Any) -> Any:
    """The inverse of `load_element`."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, value, kind = args

        def emit(stored: int) -> list[ir.Value]:
            _put_element(b, address, index, value, stored)
            return []

        _by_kind(b, kind, emit)
        return context.get_dummy_value()

    return signature(types.void, types.intp, types.intp, types.float32, types.intp), lower


@emitted
def load_row(typingctx: Any, address: Any, index: Any, kind: Any) -> Any:
    """One vector from LANES consecutive elements; `kind` is one of KINDS."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, kind = args
        return pack(b, _by_kind(b, kind, lambda stored: [_get(b, address, index, stored)]))

    return signature(Vectors(1), types.intp, types.intp, types.intp), lower


@emitted
def store_row(typingctx: Any, address: Any, index: Any, value: Any, kind: Any) -> Any:
    """The inverse of `load_row`."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, value, kind = args

        def emit(stored: int) -> list[ir.Value]:
            _put(b, address, index, rows_of(b, value)[0], stored)
            return []

        _by_kind(b, kind, emit)
        return context.get_dummy_value()

    return signature(types.void, types.intp, types.intp, value, types.intp), lower


@emitted
def gather(typingctx: Any, address: Any, index: Any, stride: Any, lanes: Any, kind: Any) -> Any:
    """One vector of the elements at `index + j * stride`, j < `lanes`; zero in the other lanes."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, stride, lanes, kind = args
        at, there = _lane_places(b, index, stride, lanes)

        def emit(stored: int) -> list[ir.Value]:
            vector = vm.constant(0.0)
            for lane in range(LANES):
                value = _element(b, address, at[lane], stored)
                vector = b.insert_element(
                    vector, b.select(there[lane], value, FLOAT(0.0)), INT(lane)
                )
            return [vector]

        return pack(b, _by_kind(b, kind, emit))

    return signature(Vectors(1), *[types.intp] * 5), lower


@emitted
def scatter(
    typingctx: Any, address: Any, index: Any, stride: Any, lanes: Any, value: Any, kind: Any
) -> Any:
    """The inverse of `gather`; the other lanes are not stored."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, stride, lanes, value, kind = args
        at, there = _lane_places(b, index, stride, lanes)
        vector = rows_of(b, value)[0]

        def emit(stored: int) -> list[ir.Value]:
            for lane in range(LANES):
                with b.if_then(there[lane], likely=True):
                    number = b.extract_element(vector, INT(lane))
                    _put_element(b, address, at[lane], number, stored)
            return []

        _by_kind(b, kind, emit)
        return context.get_dummy_value()

    return signature(types.void, *[types.intp] * 4, value, types.intp), lower


def _lane_places(
    b: ir.IRBuilder, index: ir.Value, stride: ir.Value, lanes: ir.Value
) -> tuple[list[ir.Value], list[ir.Value]]:
    """Index of each lane's element, that of the first for a lane that is not there."""
    number = index.type
    there = [b.icmp_signed("<", number(lane), lanes) for lane in range(LANES)]
    offsets = [b.mul(stride, number(lane)) for lane in range(LANES)]
    at = [
        b.add(index, b.select(exists, offset, number(0)))
        for exists, offset in zip(there, offsets, strict=True)
    ]
    return at, there


@emitted
def read_block(
    typingctx: Any, address: Any, index: Any, stride: Any, lanes: Any, kind: Any, ahead: Any,
    tile: Any, at: Any, step: Any,
) -> Any:  # fmt: skip
    """Reads LANES x LANES elements, transposed, and asks for those `ahead` elements further on.

    Row j < `lanes` of the source is LANES elements from `index + j * stride`; missing rows are
    zero. Row i of the target, float32, starts at `at + i * step` of `tile`.
    """

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, stride, lanes, kind, ahead, tile, at, step = args
        number = index.type
        there = [b.icmp_signed("<", number(row), lanes) for row in range(LANES)]

        def emit(stored: int) -> list[ir.Value]:
            rows = []
            for row in range(LANES):
                offset = b.select(there[row], b.mul(stride, number(row)), number(0))
                rows.append(_get(b, address, b.add(index, offset), stored))
                further = b.add(b.add(index, offset), ahead)
                _prefetch(b, pointer_to(b, address, further, _ELEMENT[stored][0]), write=False)
            return rows

        found = zip(there, _by_kind(b, kind, emit), strict=True)
        rows = [b.select(row_is_there, row, vm.constant(0.0)) for row_is_there, row in found]
        for row, value in enumerate(vm.transposed(b, rows)):
            put(b, tile, b.add(at, b.mul(step, number(row))), value)
        return context.get_dummy_value()

    return signature(types.void, *[types.intp] * 9), lower


@emitted
def write_block(
    typingctx: Any, tile: Any, at: Any, step: Any,
    address: Any, index: Any, stride: Any, lanes: Any, kind: Any, ahead: Any,
) -> Any:  # fmt: skip
    """The inverse of `read_block`; rows from `lanes` on are left as they are."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        tile, at, step, address, index, stride, lanes, kind, ahead = args
        number = index.type
        rows = [get(b, tile, b.add(at, b.mul(step, number(row)))) for row in range(LANES)]
        rows = vm.transposed(b, rows)

        def emit(stored: int) -> list[ir.Value]:
            for row, value in enumerate(rows):
                with b.if_then(b.icmp_signed("<", number(row), lanes), likely=True):
                    offset = b.add(index, b.mul(stride, number(row)))
                    _put(b, address, offset, value, stored)
                    further = pointer_to(b, address, b.add(offset, ahead), _ELEMENT[stored][0])
                    _prefetch(b, further, write=True)
            return []

        _by_kind(b, kind, emit)
        return context.get_dummy_value()

    return signature(types.void, *[types.intp] * 9), lower
