"""One expert's weights in standard ONNX operators. Codes become numbers by looking up each byte in a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from qmoe_node.layer import FLOAT_LAYOUTS, Projection
from qmoe_node.packing import E2M1, default_zero_point, piece_positions, unpack
from qmoe_node.standard import as_float
from runtime.types import ElementType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.tape import Tape

WIDER = {ElementType.FLOAT8E4M3FN: ElementType.FLOAT16, ElementType.FLOAT8E8M0: ElementType.FLOAT}
"""The smallest types that hold their values and that all operators read."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An input of the node: its value, and its element type and number of dimensions if they are known.

    `is_bytes` says that the value holds the bytes of these elements as uint8.
    """

    value: ir.Value
    element: ElementType | None
    rank: int | None = None
    is_bytes: bool = False


def readable(tape: Tape, operand: Operand) -> Operand:
    """The operand in a type that Gather takes."""
    if operand.element not in WIDER or operand.is_bytes:
        return operand
    wider = WIDER[operand.element]
    return replace(operand, value=tape.op("Cast", [operand.value], to=int(wider)), element=wider)


def expert_weights(tape: Tape, projection: Projection, expert: ir.Value, operands: Mapping[str, Operand]) -> ir.Value:
    """One expert's weights, float32 [rows, columns]."""
    return scale_values(tape, projection, expert, operands, expert_values(tape, projection, expert, operands))


def expert_values(tape: Tape, projection: Projection, expert: ir.Value, operands: Mapping[str, Operand]) -> ir.Value:
    """The same before scaling: codes less zero points, or the numbers that 4 and 8 bit floats stand for."""
    stored = operands[projection.port("experts_weights")]
    if projection.layout == "float8":
        return of_expert(tape, stored, expert)
    packed = tape.op("Gather", [stored.value, expert], axis=0)
    if projection.layout == "columns":
        numbers = reshape(tape, _look_up(tape, packed, _float4_table()), projection.columns, projection.rows)
        return tape.op("Transpose", [numbers], perm=[1, 0])
    if projection.layout == "float4":
        return reshape(tape, _look_up(tape, packed, _float4_table()), projection.rows, projection.columns)
    zeros = operands.get(projection.port("zero_points"))
    codes = _codes(tape, packed, projection, 0 if zeros is not None else default_zero_point(projection.bits))
    if zeros is None:
        return codes
    return _times(tape, "Sub", codes, _zero_points(tape, projection, zeros, expert), projection)


def scale_values(
    tape: Tape, projection: Projection, expert: ir.Value, operands: Mapping[str, Operand], values: ir.Value
) -> ir.Value:
    """What `expert_values` gave, scaled."""
    scales = operands.get(projection.port("scales"))
    global_scale = operands.get(projection.port("global_scale"))
    if projection.layout == "float8" and scales is not None:
        squares = of_expert(tape, scales, expert)
        squares = spread(tape, squares, projection.rows, projection.block_size, 0)
        return tape.op("Mul", [values, spread(tape, squares, projection.columns, projection.block_size, 1)])
    if scales is not None:
        block_scales = reshape(tape, of_expert(tape, scales, expert), projection.rows, projection.blocks)
        values = _times(tape, "Mul", values, block_scales, projection)
    if global_scale is not None and projection.layout in FLOAT_LAYOUTS:
        values = tape.op("Mul", [values, of_expert(tape, global_scale, expert)])
    return values


def block_sums(tape: Tape, projection: Projection, values: ir.Value) -> ir.Value:
    """Sums over the blocks of each row, float32 [rows, blocks], of values [rows, columns]."""
    rows, columns, blocks, size = projection.rows, projection.columns, projection.blocks, projection.block_size
    if blocks > 1:
        values = reshape(tape, _filled(tape, values, 1, columns, blocks * size), rows, blocks, size)
    keep = 0 if blocks > 1 else 1
    return tape.op("ReduceSum", [values, tape.literal([-1], np.int64)], keepdims=keep)


def square_sums(tape: Tape, projection: Projection, sums: ir.Value) -> ir.Value:
    """Sums over the squares of 8-bit floats, [row blocks, column blocks], of `block_sums`."""
    rows, blocks, size = projection.rows, projection.blocks, projection.block_size
    count = -(-rows // size)
    sums = reshape(tape, _filled(tape, sums, 0, rows, count * size), count, size, blocks)
    return tape.op("ReduceSum", [sums, tape.literal([1], np.int64)], keepdims=0)


def _filled(tape: Tape, values: ir.Value, axis: int, count: int, wanted: int) -> ir.Value:
    """A matrix with zeros after the last of `count` rows or columns, so that there are as many as `wanted`."""
    if count == wanted:
        return values
    ends = [0, 0, 0, 0]
    ends[2 + axis] = wanted - count
    return tape.op("Pad", [values, tape.literal(ends, np.int64)])


def _codes(tape: Tape, packed: ir.Value, projection: Projection, subtracted: int) -> ir.Value:
    """Codes less `subtracted`, float32 [rows, columns]."""
    rows, columns, bits = projection.rows, projection.columns, projection.bits
    if projection.layout != "interleaved":
        return _unpacked(tape, packed, bits, (rows, columns), subtracted)
    group = 16 // bits
    pieces = _unpacked(tape, packed, bits, (rows // group, columns // 64, group, 64), subtracted)
    pieces = tape.op("Gather", [pieces, tape.literal(piece_positions(bits), np.int64)], axis=3)
    pieces = tape.op("Transpose", [pieces], perm=[0, 2, 1, 3])
    return reshape(tape, pieces, rows, columns)


def _zero_points(tape: Tape, projection: Projection, zeros: Operand, expert: ir.Value) -> ir.Value:
    """One expert's zero points, float32 [rows, blocks], from either packing."""
    rows, blocks, bits = projection.rows, projection.blocks, projection.bits
    packed = tape.op("Gather", [zeros.value, expert], axis=0)
    lead, count = ((rows,), blocks) if zeros.rank == 3 else ((), rows)
    digits = 3 if bits == 3 else 1
    if bits == 8:
        codes = as_float(tape, packed, ElementType.UINT8)
    else:
        codes = _look_up(tape, packed, _code_table(1 if bits == 3 else bits))
    codes = reshape(tape, codes, *lead, -1)
    bounds = [tape.literal([bound], np.int64) for bound in (0, count * digits, -1)]
    codes = tape.op("Slice", [codes, *bounds])
    if bits == 3:
        codes = _joined(tape, reshape(tape, codes, *lead, count, 3))
    return reshape(tape, codes, rows, blocks)


def _unpacked(tape: Tape, packed: ir.Value, bits: int, shape: tuple[int, ...], subtracted: int = 0) -> ir.Value:
    """Codes less `subtracted` in that shape, float32, from bytes that hold just as many."""
    if bits == 8:
        codes = as_float(tape, packed, ElementType.UINT8)
        codes = reshape(tape, codes, *shape)
        return tape.op("Sub", [codes, tape.literal(subtracted, np.float32)]) if subtracted else codes
    if bits != 3:
        return reshape(tape, _look_up(tape, packed, _code_table(bits) - np.float32(subtracted)), *shape)
    digits = reshape(tape, _look_up(tape, packed, _code_table(1)), *shape, 3)
    codes = _joined(tape, digits)
    return tape.op("Sub", [codes, tape.literal(subtracted, np.float32)]) if subtracted else codes


def _joined(tape: Tape, digits: ir.Value) -> ir.Value:
    """3-bit codes from their binary digits, which are the last axis."""
    values = tape.op("Mul", [digits, tape.literal([1, 2, 4], np.float32)])
    return tape.op("ReduceSum", [values, tape.literal([-1], np.int64)], keepdims=0)


@lru_cache(maxsize=8)
def _code_table(bits: int) -> np.ndarray:
    """The codes in each byte, float32 [256, 8 / bits]."""
    return unpack(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits).astype(np.float32)


@lru_cache(maxsize=1)
def _float4_table() -> np.ndarray:
    """The two FP4 values in each byte, float32 [256, 2]."""
    return np.asarray(E2M1[unpack(np.arange(256, dtype=np.uint8)[:, None], 4, 2)])


def _look_up(tape: Tape, codes: ir.Value, table: np.ndarray) -> ir.Value:
    """The table's entry for every byte."""
    indices = tape.op("Cast", [codes], to=int(ElementType.INT32))
    return tape.op("Gather", [tape.literal(table, np.float32), indices], axis=0)


def look_up_codes(tape: Tape, packed: ir.Value, bits: int) -> ir.Value:
    """The codes of 2, 4 or 8 bits in bytes, float32, in one axis more than the bytes have; for 8 bits in as many."""
    if bits == 8:
        return as_float(tape, packed, ElementType.UINT8)
    return _look_up(tape, packed, _code_table(bits))


def of_expert(tape: Tape, operand: Operand, expert: ir.Value) -> ir.Value:
    """One expert's part of an operand, float32."""
    own = tape.op("Gather", [operand.value, expert], axis=0)
    if operand.is_bytes:
        assert operand.element is not None
        with np.errstate(invalid="ignore"):
            table = np.arange(256, dtype=np.uint8).view(operand.element.dtype).astype(np.float32)
        return _look_up(tape, own, table)
    return as_float(tape, own, operand.element)


def _times(tape: Tape, operator: str, weights: ir.Value, values: ir.Value, projection: Projection) -> ir.Value:
    """`operator` on weights [rows, columns] and values [rows, blocks] of their blocks."""
    rows, columns, blocks, size = projection.rows, projection.columns, projection.blocks, projection.block_size
    if blocks == 1:
        return tape.op(operator, [weights, values])
    if columns % size:
        return tape.op(operator, [weights, spread(tape, values, columns, size, 1)])
    result = tape.op(operator, [reshape(tape, weights, rows, blocks, size), reshape(tape, values, rows, blocks, 1)])
    return reshape(tape, result, rows, columns)


def spread(tape: Tape, values: ir.Value, count: int, block_size: int, axis: int) -> ir.Value:
    """Values of blocks along an axis, repeated for each of `count` members."""
    return tape.op("Gather", [values, tape.literal(np.arange(count) // block_size, np.int64)], axis=axis)


def reshape(tape: Tape, value: ir.Value, *shape: int) -> ir.Value:
    """The value in that shape."""
    return tape.op("Reshape", [value, tape.literal(shape, np.int64)])
