"""Operators on quantized numbers, written with simpler ones: gradients of activations, scales and float zero points.

Packed integers have no gradient. Rounding is flat: nothing flows back through QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.gradients.expressions import Expr
from runtime.gradients.products import transposed
from runtime.gradients.walk import Call
from runtime.types import ElementType


def unpacked(packed: Expr, bits: int) -> Expr:
    """The codes in bytes, along the last dimension, lowest bits first; uint8."""
    op = packed.op
    if bits == 8:
        return packed
    radix = op.constant(np.asarray(1 << bits, np.uint8))
    parts = [
        op.Mod(op.BitShift(packed, op.constant(np.asarray(shift, np.uint8)), direction="RIGHT"), radix)
        for shift in range(0, 8, bits)
    ]
    stacked = op.Concat(*(op.Unsqueeze(part, [-1]) for part in parts), axis=-1)
    lead = op.Slice(op.Shape(packed), [0], [-1])
    codes: Expr = op.Reshape(stacked, op.Concat(lead, [-1], axis=0))
    return codes


def repeated(x: Expr, axis: int, times: int, size: Expr) -> Expr:
    """Every element `times` times along an axis, as far as `size` (int64 [1])."""
    op, rank = x.op, x.rank
    wide = op.Expand(op.Unsqueeze(x, [axis + 1]), [1] * (axis + 1) + [times] + [1] * (rank - axis - 1))
    shape = op.Shape(x)
    parts = [op.Slice(shape, [0], [axis]), op.constant(np.asarray([-1])), op.Slice(shape, [axis + 1], [rank])]
    merged = op.Reshape(wide, op.Concat(*parts, axis=0))
    result: Expr = op.Slice(merged, [0], size, [axis])
    return result


def size_of(x: Expr, axis: int) -> Expr:
    """The size of a dimension, int64 [1]."""
    result: Expr = x.op.Slice(x.op.Shape(x), [axis], [axis + 1])
    return result


def _dequantize(n: Call) -> Expr:
    """(x - zero point) * scale: one scale for all, one for each index of an axis, or one for each block along it."""
    op, scale = n.op, n.b
    zero = n.c.cast(scale.element) if n.has(2) else None
    block = n.get("block_size", 0)
    if scale.rank:
        axis = n.get("axis", 1 if n.a.rank > 1 else 0) % n.a.rank

        def spread(x: Expr) -> Expr:
            if block:
                return repeated(x, axis, block, size_of(n.a, axis))
            result: Expr = op.Reshape(x, [-1] + [1] * (n.a.rank - axis - 1))
            return result

        scale, zero = spread(scale), zero and spread(zero)
    x = n.a.cast(n.b.element)
    y = (x if zero is None else x - zero) * scale
    wanted = n.get("output_dtype", 0)
    return y.cast(ElementType(wanted)) if wanted else y


def _matmul_n_bits(n: Call) -> Expr:
    """A times the transpose of W [N, K], + bias. W: blocks of codes along K, less zero points, times scales."""
    op, scales = n.op, n.c
    columns, rows, bits, size = n.get("K"), n.get("N"), n.get("bits", 4), n.get("block_size")
    if bits not in (2, 4, 8):
        raise n.error(f"there is none for codes of {bits} bits.")
    if n.get("weight_prepacked", 0):
        raise n.error("there is none for weights that are packed for one kind of device.", "Pack them plainly.")
    blocks = -(-columns // size)
    codes = op.Reshape(unpacked(n.b, bits), [rows, blocks, size]).cast(scales.element)
    scale = op.Reshape(scales, [rows, blocks, 1])
    zero = op.operand(float(1 << (bits - 1)), scales)
    if n.has(3):
        if n[3].element == ElementType.UINT8:
            packed = op.Reshape(n[3], [rows, -(-blocks * bits // 8)])
            zero = op.Slice(unpacked(packed, bits), [0], [blocks], [1]).cast(scales.element)
        else:
            zero = n[3].cast(scales.element)
        zero = op.Reshape(zero, [rows, blocks, 1])
    if n.has(4):
        group = n[4]
        codes = op.Slice(op.Reshape(codes, [rows, blocks * size]), [0], [columns], [1])
        scale, zero = (op.Gather(op.Reshape(x, [rows, blocks]), group, axis=1) if x.rank else x for x in (scale, zero))
        weights = (codes - zero) * scale
    else:
        weights = op.Slice(op.Reshape((codes - zero) * scale, [rows, blocks * size]), [0], [columns], [1])
    product = n.a @ transposed(weights.cast(n.a.element))
    return product + n[5] if n.has(5) else product


def _gather_block_quantized(n: Call) -> Expr:
    """Rows of codes are gathered, and their scales; a scale is for a block along another axis, or the same one."""
    op, data, indices, scales = n.op, n.a, n.b, n.c
    axis, along = n.get("gather_axis", 0) % data.rank, n.get("quantize_axis", 1) % data.rank
    block, bits = n.get("block_size", 128), n.get("bits", 4)
    if data.element not in (ElementType.UINT8, ElementType.INT4, ElementType.UINT4):
        raise n.error(f"there is none for data of type {data.element}.")
    packed = data.element == ElementType.UINT8
    if not packed:
        data = op.Cast(data, to=int(ElementType.INT8))
    after = along + indices.rank - 1 if along > axis else along

    def gathered(x: Expr) -> Expr:
        found: Expr = op.Gather(x, indices, axis=axis)
        return found

    codes = gathered(data)
    if packed:
        codes = unpacked(codes, bits)

    def spread(x: Expr) -> Expr:
        if axis == along:
            return gathered(repeated(x, along, block, size_of(data, along)))
        return repeated(gathered(x), after, block, size_of(codes, after))

    values = codes.cast(scales.element)
    if n.has(3):
        zero = unpacked(n[3], bits) if packed else n[3]
        if packed and bits < 8:  # zero points are packed along the blocks, whose last byte may not be full
            zero = op.Slice(zero, [0], size_of(scales, zero.rank - 1), [-1])
        values = values - spread(zero.cast(scales.element))
    elif packed:
        values = values - float(1 << (bits - 1))
    return values * spread(scales)


FP4 = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4])
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
"""The sixteen values of two kinds of codes of four bits; the first ones follow once more with a minus."""


def _matmul_bnb4(n: Call) -> Expr:
    """A times the transpose of W [N, K]: values by code, the higher half of a byte first, times a scale a block."""
    op, scales = n.op, n.c
    columns, rows, size = n.get("K"), n.get("N"), n.get("block_size")
    values = np.concatenate([FP4, -FP4]) if n.get("quant_type", 1) == 0 else NF4
    parts = op.Split(op.Reshape(unpacked(op.Reshape(n.b, [-1]), 4), [-1, 2]), [1, 1], axis=1, outputs=2)
    codes = op.Reshape(op.Concat(parts[1], parts[0], axis=1), [-1])
    codes = op.Slice(codes, [0], [rows * columns], [0]).cast(ElementType.INT64)
    numbers = op.Gather(op.constant(values.astype(scales.element.dtype)), codes, axis=0)
    scale = repeated(scales, 0, size, op.constant(np.asarray([rows * columns])))
    weights = op.Reshape(numbers * scale, [rows, columns]).cast(n.a.element)
    return n.a @ (transposed(weights) if n.get("transB", 1) else weights)


FORMS: dict[str, Callable[[Call], Expr]] = {
    "DequantizeLinear": _dequantize,
    "com.microsoft.DequantizeLinear": _dequantize,
    "com.microsoft.GatherBlockQuantized": _gather_block_quantized,
    "com.microsoft.MatMulBnb4": _matmul_bnb4,
    "com.microsoft.MatMulNBits": _matmul_n_bits,
}
"""By operator: what it is in simpler operators."""

FLAT = frozenset(
    """ConvInteger DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear
    com.microsoft.IsAllFinite com.microsoft.MatMulInteger16
    com.microsoft.MulInteger com.microsoft.MurmurHash3 com.microsoft.QLinearAdd com.microsoft.QLinearMul
    com.microsoft.QuantizeLinear com.microsoft.Range com.microsoft.ReduceSumInteger com.microsoft.Unique""".split()
)
"""Operators that round, or compute integers: their results do not change with small changes of what they are given."""
