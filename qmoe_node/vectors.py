"""Vector instructions for packed weights, as numba intrinsics: what a compiler does not find by itself in plain loops.

A chunk is `lanes` bytes of a row of codes. The codes in the same bits of all its bytes become one vector of floats, so
no code moves past its neighbour, and the scale of the block, which is the same for all of them, is one number in a
register. Addresses are integers and rows lie without gaps: whoever calls has checked shapes and types.

`bits` (2, 4, 8), `lanes` (4, 8, 16), `has_zeros` (0, 1) and counts of rows and tokens are constants of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
CONTRACT = ("contract",)
"""A product and a sum may be rounded together."""

Value = Any
Builder = Any


def _constant(number: int) -> Value:
    return ir.Constant(I64, number)


def _all(element: Any, number: float, lanes: int) -> Value:
    return ir.Constant(ir.VectorType(element, lanes), [number] * lanes)


def _splat(builder: Builder, scalar: Value, lanes: int) -> Value:
    vector = ir.VectorType(scalar.type, lanes)
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, nothing, _all(I32, 0, lanes))


def _pointer(builder: Builder, base: Value, offset: Value, element: Any) -> Value:
    return builder.inttoptr(builder.add(base, offset), element.as_pointer())


def _load(builder: Builder, base: Value, offset: Value, element: Any, align: int) -> Value:
    loaded = builder.load(_pointer(builder, base, offset, element))
    loaded.align = align
    return loaded


def _floats(builder: Builder, base: Value, index: Value, lanes: int) -> Value:
    """`lanes` floats from an index on."""
    return _load(builder, base, builder.mul(index, _constant(4)), ir.VectorType(F32, lanes), 4)


def _fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """a b + c."""
    return builder.fadd(builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)


def _total(builder: Builder, vector: Value) -> Value:
    """The sum of a vector's elements, in any order."""
    lanes = vector.type.count
    name = f"llvm.vector.reduce.fadd.v{lanes}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(F32, [F32, vector.type]), name)
    return builder.call(function, [ir.Constant(F32, 0.0), vector], fastmath=("reassoc",))


def _less_zero(builder: Builder, bits: int, place: int, chunk: Value, zero: Value) -> Value:
    """The codes in one place of a chunk's bytes, as floats, less their zero point."""
    lanes = chunk.type.count
    codes = builder.lshr(chunk, _all(I8, bits * place, lanes)) if place else chunk
    if place < 8 // bits - 1:
        codes = builder.and_(codes, _all(I8, (1 << bits) - 1, lanes))
    wide = builder.zext(codes, ir.VectorType(I32, lanes))
    return builder.fsub(builder.sitofp(wide, ir.VectorType(F32, lanes)), zero)


@contextmanager
def _chunks(builder: Builder, block: Value, width: Value, lanes: int) -> Iterator[Value]:
    """A loop over the chunks of a block; gives the first byte's place in the row."""
    first = builder.mul(block, width)
    step = _constant(lanes)
    with cgutils.for_range_slice(builder, first, builder.add(first, width), step, inc=True) as (place, _):
        yield place


def _zero_point(builder: Builder, zeros: Value, index: Value, default: Value, has_zeros: bool, lanes: int) -> Value:
    """The zero point of a block, in every lane."""
    if not has_zeros:
        return default
    return _splat(builder, builder.uitofp(_load(builder, zeros, index, I8, 1), F32), lanes)


def _scale(builder: Builder, scales: Value, index: Value, lanes: int) -> Value:
    return _splat(builder, _load(builder, scales, builder.mul(index, _constant(4)), F32, 4), lanes)


def _with_constants(count: int, arguments: Sequence[Any], generate: Callable[..., None]) -> Any:
    """The typing of an intrinsic whose first `count` arguments are constants, which `generate` gets as numbers."""

    def typing(*given: Any) -> Any:
        constants = given[:count]
        if not all(isinstance(one, types.IntegerLiteral) for one in constants):
            return None
        numbers = [one.literal_value for one in constants]

        def code(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
            # numba leaves the stack as it finds it. Vectors for which there is no register would lie across lines of
            # the cache, or across two pages, as chance has it: then loops take twice as long. A function that becomes
            # part of another loses what is said of its stack.
            builder.function.attributes.alignstack = STACK
            builder.function.attributes.add("noinline")
            generate(builder, *numbers, *values[count:])
            return context.get_dummy_value()

        return types.void(*constants, *arguments), code

    return typing


ADDRESS, SIZE = types.int64, types.int64
STACK = 64
"""Bytes: those of the longest vector."""


@intrinsic
def _multiply(  # type: ignore[no-untyped-def]
    typing, bits, lanes, rows, tokens, has_zeros, codes, scales, zeros, default_zero, blocks, width, x, y, y_row
):
    """y[t, r] = sum over columns of weights[r] x[t], for few rows r and tokens t: each sum stays in a register.

    `codes`, `scales`, `zeros` are the addresses of the first row's, `x` and `y` those of the first token's, and `y_row`
    the bytes from one token's results to the next one's. `width` is the number of bytes in a block.
    """

    def generate(
        b: Builder,
        bits: int,
        lanes: int,
        rows: int,
        tokens: int,
        has_zeros: int,
        *values: Value,
    ) -> None:
        codes, scales, zeros, default_zero, blocks, width, x, y, y_row = values
        vector = ir.VectorType(F32, lanes)
        sums = [[cgutils.alloca_once(b, vector) for _ in range(tokens)] for _ in range(rows)]
        for own in sums:
            for one in own:
                b.store(_all(F32, 0.0, lanes), one)
        default = _splat(b, default_zero, lanes)
        row_bytes = b.mul(blocks, width)
        columns = b.mul(row_bytes, _constant(8 // bits))
        with cgutils.for_range(b, blocks) as block:
            indices = [b.add(b.mul(_constant(r), blocks), block.index) for r in range(rows)]
            factors = [_scale(b, scales, index, lanes) for index in indices]
            offsets = [_zero_point(b, zeros, index, default, bool(has_zeros), lanes) for index in indices]
            with _chunks(b, block.index, width, lanes) as first:
                chunks = [
                    _load(b, codes, b.add(b.mul(_constant(r), row_bytes), first), ir.VectorType(I8, lanes), 1)
                    for r in range(rows)
                ]
                for place in range(8 // bits):
                    column = b.add(b.mul(_constant(place), row_bytes), first)
                    given = [_floats(b, x, b.add(b.mul(_constant(t), columns), column), lanes) for t in range(tokens)]
                    for r in range(rows):
                        weights = b.fmul(_less_zero(b, bits, place, chunks[r], offsets[r]), factors[r])
                        for t in range(tokens):
                            b.store(_fma(b, weights, given[t], b.load(sums[r][t])), sums[r][t])
        for r in range(rows):
            for t in range(tokens):
                place = b.add(b.mul(_constant(t), y_row), _constant(4 * r))
                b.store(_total(b, b.load(sums[r][t])), _pointer(b, y, place, F32))

    own = (ADDRESS, ADDRESS, ADDRESS, types.float32, SIZE, SIZE, ADDRESS, ADDRESS, SIZE)
    return _with_constants(5, own, generate)(bits, lanes, rows, tokens, has_zeros)


@intrinsic
def _dequantize(  # type: ignore[no-untyped-def]
    typing, bits, lanes, has_zeros, codes, scales, zeros, default_zero, blocks, width, out
):
    """(code - zero) * scale for one row, in the order of places: addresses as in `_multiply`."""

    def generate(b: Builder, bits: int, lanes: int, has_zeros: int, *values: Value) -> None:
        codes, scales, zeros, default_zero, blocks, width, out = values
        default = _splat(b, default_zero, lanes)
        row_bytes = b.mul(blocks, width)
        with cgutils.for_range(b, blocks) as block:
            factor = _scale(b, scales, block.index, lanes)
            offset = _zero_point(b, zeros, block.index, default, bool(has_zeros), lanes)
            with _chunks(b, block.index, width, lanes) as first:
                chunk = _load(b, codes, first, ir.VectorType(I8, lanes), 1)
                for place in range(8 // bits):
                    column = b.add(b.mul(_constant(place), row_bytes), first)
                    target = _pointer(b, out, b.mul(column, _constant(4)), ir.VectorType(F32, lanes))
                    stored = b.store(b.fmul(_less_zero(b, bits, place, chunk, offset), factor), target)
                    stored.align = 4

    own = (ADDRESS, ADDRESS, ADDRESS, types.float32, SIZE, SIZE, ADDRESS)
    return _with_constants(3, own, generate)(bits, lanes, has_zeros)


@intrinsic
def _sum_blocks(  # type: ignore[no-untyped-def]
    typing, bits, lanes, has_zeros, codes, zeros, default_zero, blocks, width, given, out
):
    """Sums over each block of one row of (code - zero) * given: addresses as in `_multiply`."""

    def generate(b: Builder, bits: int, lanes: int, has_zeros: int, *values: Value) -> None:
        codes, zeros, default_zero, blocks, width, given, out = values
        total = cgutils.alloca_once(b, ir.VectorType(F32, lanes))
        default = _splat(b, default_zero, lanes)
        row_bytes = b.mul(blocks, width)
        with cgutils.for_range(b, blocks) as block:
            b.store(_all(F32, 0.0, lanes), total)
            offset = _zero_point(b, zeros, block.index, default, bool(has_zeros), lanes)
            with _chunks(b, block.index, width, lanes) as first:
                chunk = _load(b, codes, first, ir.VectorType(I8, lanes), 1)
                for place in range(8 // bits):
                    column = b.add(b.mul(_constant(place), row_bytes), first)
                    own = _less_zero(b, bits, place, chunk, offset)
                    b.store(_fma(b, own, _floats(b, given, column, lanes), b.load(total)), total)
            place = b.mul(block.index, _constant(4))
            b.store(_total(b, b.load(total)), _pointer(b, out, place, F32))

    own = (ADDRESS, ADDRESS, types.float32, SIZE, SIZE, ADDRESS, ADDRESS)
    return _with_constants(3, own, generate)(bits, lanes, has_zeros)


# Typed as what they are for type checkers, which do not see that `typing` is numba's own.
multiply: Any = _multiply
dequantize: Any = _dequantize
sum_blocks: Any = _sum_blocks
