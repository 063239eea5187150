"""Vectors for numba: the widest float32 vector of the CPU as a value that kernels compute with.

A kernel here is ordinary Python that numba compiles; `load(x, i, 1) * load(y, i, 1)` multiplies
LANES numbers at once. A value of type `Vectors(rows)` is `rows` such vectors side by side, and
arithmetic between one vector and several repeats the one. Memory is named by its address (an
integer, a tensor's `data_ptr()`) and an index counted in elements.

numba's own vectorizer decides for itself what to vectorize, and can't transpose in registers: the
explicit form runs two to three times faster. No fast-math flag is set anywhere: it would fold away
the rounding trick of `_exp2_portable`.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from . import vector_math as vm
from .vector_math import FLOAT, INT, VECTOR
from .vector_math import LANES as LANES

F = TypeVar("F", bound=Callable[..., Any])
Emit = Callable[..., Any]
_OPTIONS = {"boundscheck": False, "error_model": "numpy"}


def _sources(function: Callable[..., Any]) -> str:
    """Digest of the files that compiled code depends on; numba's cache looks at one file only."""
    siblings = Path(function.__code__.co_filename).parent.glob("*numba*.py")
    paths = (*Path(__file__).parent.glob("vector*.py"), *siblings)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:12]


def device(function: F) -> F:
    """Compiles a function that kernels call."""
    compiled: F = njit(**_OPTIONS)(function)
    return compiled


def kernel(function: F) -> F:
    """Compiles a function that Python calls, without the GIL, once per machine.

    The vector width and the digest of the sources become part of its name, and so of the key of
    numba's on-disk cache, which knows nothing of either.
    """
    function.__qualname__ += f"_{LANES}_{_sources(function)}"
    compiled: F = njit(cache=True, nogil=True, **_OPTIONS)(function)
    return compiled


class Vectors(types.Type):  # type: ignore[misc]
    """numba's type of `rows` vectors of LANES float32 each."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        super().__init__(name=f"Vectors({rows}x{LANES})")


@register_model(Vectors)
class _VectorsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vectors) -> None:
        super().__init__(manager, kind, ir.ArrayType(VECTOR, kind.rows))


def rows_of(builder: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    """The single vectors of a value of type Vectors."""
    return [builder.extract_value(value, row) for row in range(value.type.count)]


def pack(builder: ir.IRBuilder, rows: list[ir.Value]) -> ir.Value:
    """The inverse of `rows_of`."""
    value = ir.Constant(ir.ArrayType(VECTOR, len(rows)), ir.Undefined)
    for row, vector in enumerate(rows):
        value = builder.insert_value(value, vector, row)
    return value


def _each(emit: Emit) -> Emit:
    """Lowers a function of Vectors row by row; arguments of one row are repeated."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        columns = [rows_of(builder, value) for value in args]
        count = max(map(len, columns))
        rows = [[column[row % len(column)] for column in columns] for row in range(count)]
        return pack(builder, [emit(builder, *row) for row in rows])

    return lower


def _widest(*kinds: Any) -> Vectors | None:
    if not all(isinstance(kind, Vectors) for kind in kinds):
        return None
    counts = {kind.rows for kind in kinds} - {1}
    return Vectors(max(counts, default=1)) if len(counts) < 2 else None


def _register(symbol: Callable[..., Any], emit: Emit) -> None:
    """Makes an operator of Python work between Vectors."""

    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            result = _widest(*args)
            return signature(result, *args) if result else None

    infer_global(symbol)(Template)
    lower_builtin(symbol, Vectors, Vectors)(_each(emit))


_register(operator.add, lambda b, x, y: b.fadd(x, y))
_register(operator.sub, lambda b, x, y: b.fsub(x, y))
_register(operator.mul, lambda b, x, y: b.fmul(x, y))
_register(operator.truediv, lambda b, x, y: b.fdiv(x, y))


def emitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's decorator; a literal argument is seen as one."""
    compiled: Callable[..., Any] = intrinsic(prefer_literal=True)(function)
    return compiled


def _unary(emit: Emit) -> Callable[[Any], Any]:
    def typed(typingctx: Any, x: Any) -> Any:
        return signature(x, x), _each(emit)

    function: Callable[[Any], Any] = intrinsic(typed)
    return function


exp2 = _unary(vm.exp2)
softplus = _unary(vm.softplus)
sigmoid = _unary(vm.sigmoid)


@emitted
def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """X y + z."""
    return signature(_widest(x, y, z), x, y, z), _each(vm.fma)


@emitted
def largest(typingctx: Any, x: Any, y: Any) -> Any:
    """The larger of each pair of lanes; y where one is not a number."""

    def emit(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        return b.select(b.fcmp_ordered(">", x, y), x, y)

    return signature(_widest(x, y), x, y), _each(emit)


def pointer_to(b: ir.IRBuilder, address: ir.Value, index: ir.Value, element: ir.Type) -> ir.Value:
    """Pointer to an element of an array."""
    return b.gep(b.inttoptr(address, element.as_pointer()), [index])


def splat(b: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """A float32 in every lane."""
    none = ir.Constant(VECTOR, ir.Undefined)
    return b.shuffle_vector(b.insert_element(none, scalar, INT(0)), none, vm.integers(0))


def get(b: ir.IRBuilder, address: ir.Value, index: ir.Value) -> ir.Value:
    """LANES consecutive float32."""
    pointer = b.bitcast(pointer_to(b, address, index, FLOAT), VECTOR.as_pointer())
    value = b.load(pointer)
    value.align = 4
    return value


def put(b: ir.IRBuilder, address: ir.Value, index: ir.Value, value: ir.Value) -> None:
    """Stores LANES consecutive float32."""
    pointer = b.bitcast(pointer_to(b, address, index, FLOAT), VECTOR.as_pointer())
    b.store(value, pointer, align=4)


@emitted
def load(typingctx: Any, address: Any, index: Any, rows: Any) -> Any:
    """`rows` vectors of float32 that follow one another from element `index` of `address`."""
    count = rows.literal_value

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        at = [b.add(args[1], args[1].type(row * LANES)) for row in range(count)]
        return pack(b, [get(b, args[0], index) for index in at])

    return signature(Vectors(count), types.intp, types.intp, rows), lower


@emitted
def store(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    """The inverse of `load`."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        for row, vector in enumerate(rows_of(b, args[2])):
            put(b, args[0], b.add(args[1], args[1].type(row * LANES)), vector)
        return context.get_dummy_value()

    return signature(types.void, types.intp, types.intp, value), lower


@emitted
def spread(typingctx: Any, address: Any, index: Any, rows: Any) -> Any:
    """`rows` consecutive float32, each filling a vector of its own."""
    count = rows.literal_value

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        at = [b.add(args[1], args[1].type(row)) for row in range(count)]
        found = [b.load(pointer_to(b, args[0], index, FLOAT)) for index in at]
        return pack(b, [splat(b, scalar) for scalar in found])

    return signature(Vectors(count), types.intp, types.intp, rows), lower


@emitted
def fill(typingctx: Any, number: Any, rows: Any) -> Any:
    """`rows` vectors of a number, in every lane."""
    count = rows.literal_value

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return pack(b, [splat(b, args[0])] * count)

    return signature(Vectors(count), types.float32, rows), lower


@emitted
def dot(typingctx: Any, x: Any, y: Any, start: Any) -> Any:
    """One vector: start plus the sum over the rows of x y."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        total = rows_of(b, args[2])[0]
        for one, other in zip(rows_of(b, args[0]), rows_of(b, args[1]), strict=True):
            total = vm.fma(b, one, other, total)
        return pack(b, [total])

    return signature(start, x, y, start), lower


@emitted
def lane_sums(typingctx: Any, address: Any, index: Any, stride: Any) -> Any:
    """One vector whose lane i is the sum of LANES float32 from `index + i * stride`."""

    def lower(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address, index, stride = args
        at = [b.add(index, b.mul(stride, stride.type(row))) for row in range(LANES)]
        rows, step = [get(b, address, row) for row in at], 1
        while len(rows) > 1:
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [
                b.fadd(
                    b.shuffle_vector(x, y, vm.crossed(step, second=False)),
                    b.shuffle_vector(x, y, vm.crossed(step, second=True)),
                )
                for x, y in pairs
            ]
            step *= 2
        return pack(b, rows)

    return signature(Vectors(1), types.intp, types.intp, types.intp), lower
