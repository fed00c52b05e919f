"""Codes and the bytes that hold them, and the float32 weights that they stand for.

Everywhere: the lowest bits of a byte come first, codes are unsigned, and w = (code - zero point) * scale.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from qmoe_node.layer import Projection

WIDTHS = (2, 3, 4, 8)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The value of each FP4 code: one sign bit, two of exponent, one of mantissa."""


def default_zero_point(bits: int) -> int:
    """The zero point of unsigned codes without explicit ones: the middle of their range."""
    return 1 << (bits - 1)


def packed_length(count: int, bits: int) -> int:
    """How many bytes `count` codes of `bits` bits take: a row ends with a whole byte."""
    return -(-count * bits // 8)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of each row: uint8 [..., bytes] -> uint8 [..., count]."""
    if bits == 8:
        return packed[..., :count]
    if bits == 3:
        stream = np.unpackbits(packed, axis=-1, count=3 * count, bitorder="little")
        triples = stream.reshape(*packed.shape[:-1], count, 3)
        return triples[..., 0] | triples[..., 1] << 1 | triples[..., 2] << 2
    in_byte = 8 // bits
    codes = np.empty((*packed.shape, in_byte), np.uint8)
    for position in range(in_byte):
        codes[..., position] = packed >> (bits * position) & (1 << bits) - 1
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * in_byte)[..., :count]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """The bytes of each row of codes, the last byte filled up with zero bits: uint8 [..., count] -> [..., bytes]."""
    codes = np.asarray(codes, np.uint8)
    if bits == 8:
        return codes.copy()
    if bits != 3 and codes.size and not codes.shape[-1] % (8 // bits):
        for width in (bits,) if bits == 4 else (bits, 2 * bits):  # neighbours meet in the lower byte of a pair
            pairs = np.ascontiguousarray(codes).view("<u2")
            codes = (pairs | pairs >> np.uint16(8 - width)).astype(np.uint8)
        return codes
    if bits != 3:
        in_byte = 8 // bits
        packed = np.zeros((*codes.shape[:-1], packed_length(codes.shape[-1], bits)), np.uint8)
        for position in range(in_byte):
            digits = codes[..., position::in_byte]
            packed[..., : digits.shape[-1]] |= digits << (bits * position)
        return packed
    digits = codes[..., None] >> np.arange(bits, dtype=np.uint8) & 1
    stream = digits.reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return np.packbits(stream, axis=-1, bitorder="little")


def zero_points(packed: np.ndarray, bits: int, rows: int, blocks: int) -> np.ndarray:
    """Zero points as codes, uint8 [E, rows, blocks], from either packing.

    Row-wise ones, [E, bytes], are packed along the rows; block-wise ones, [E, rows, bytes], along a row's blocks.
    """
    if packed.ndim == 2:
        return unpack(packed, bits, rows)[..., None]
    return unpack(packed, bits, blocks)


def interleave(codes: np.ndarray, bits: int) -> np.ndarray:
    """The prepacked layout of 2 and 4 bit codes: uint8 [..., rows, columns] -> [..., rows, bytes].

    16 / bits rows alternate in pieces of 64 columns, and the columns of a piece are permuted.
    """
    *lead, rows, columns = codes.shape
    group = 16 // bits
    pieces = codes.reshape(*lead, rows // group, group, columns // 64, 64).swapaxes(-3, -2)
    stream = np.empty_like(pieces)
    stream[..., piece_positions(bits)] = pieces
    return pack(stream.reshape(*lead, rows, columns), bits)


def deinterleave(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The codes in their order, uint8 [..., rows, columns], of the prepacked layout: the inverse of `interleave`."""
    *lead, rows, _ = packed.shape
    group = 16 // bits
    stream = unpack(packed, bits, columns).reshape(*lead, rows // group, columns // 64, group, 64)
    return stream[..., piece_positions(bits)].swapaxes(-3, -2).reshape(*lead, rows, columns)


def piece_positions(bits: int) -> np.ndarray:
    """Where column j of a piece of 64 stands in the prepacked layout."""
    j = np.arange(64)
    return (j // 32) * 32 + (j % 8) * 4 + (j % 32) // 8 if bits == 4 else (j % 8) * 8 + j // 8


def codes_of(projection: Projection, packed: np.ndarray) -> np.ndarray:
    """Integer codes in their order, uint8 [..., rows, columns], from the bytes of whole groups of rows."""
    if projection.layout == "interleaved":
        return deinterleave(packed, projection.bits, projection.columns)
    return unpack(packed, projection.bits, projection.columns)


def dequantize(
    packed: np.ndarray,
    scales: np.ndarray | None,
    zeros: np.ndarray | None,
    bits: int,
    columns: int,
    block_size: int,
    *,
    codes: np.ndarray | None = None,
) -> np.ndarray:
    """float32 [rows, columns] from `packed` uint8 [rows, bytes], or from unpacked `codes` uint8 [rows, columns].

    `scales` and `zeros` (codes; None for the default) are [rows, blocks], where a block is `block_size` columns and
    the last one may be short; a row-wise scale is one block of all columns. Without `scales` nothing is scaled.
    """
    default = default_zero_point(bits)
    subtracted = default if zeros is None else 0
    if codes is not None or bits == 3:
        weights = (unpack(packed, bits, columns) if codes is None else codes).astype(np.float32)
        if subtracted:
            weights -= subtracted
    else:
        # One table entry holds all the weights of a byte, so that one look-up writes them at once.
        table = _byte_table(bits, subtracted)
        entries = table.view(f"V{table.shape[1] * 4}")[:, 0]
        found: np.ndarray = entries[np.ascontiguousarray(packed)]
        weights = found.view(np.float32).reshape(packed.shape[0], packed.shape[1] * table.shape[1])
        weights = weights[:, :columns]
    if zeros is not None:
        for part, blocks in by_block(weights, block_size):
            part -= zeros[:, blocks, None].astype(np.float32)
    return weights if scales is None else scale(weights, scales, block_size)


@lru_cache(maxsize=16)
def _byte_table(bits: int, subtracted: int) -> np.ndarray:
    codes = unpack(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits)
    return np.ascontiguousarray(codes.astype(np.float32) - subtracted)


def by_block(weights: np.ndarray, block_size: int) -> list[tuple[np.ndarray, slice]]:
    """Views [rows, blocks, columns of one] of weights [rows, columns], each with the blocks that it holds.

    The short last block is on its own.
    """
    rows, columns = weights.shape
    whole = columns // block_size if block_size else 0
    parts = [(weights[:, : whole * block_size].reshape(rows, whole, block_size), slice(0, whole))] if whole else []
    if columns > whole * block_size:
        parts.append((weights[:, None, whole * block_size :], slice(whole, whole + 1)))
    return parts


def scale(weights: np.ndarray, scales: np.ndarray, block_size: int) -> np.ndarray:
    """weights [rows, columns] * scales [rows, blocks], in place."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for part, blocks in by_block(weights, block_size):
            part *= scales[:, blocks, None].astype(np.float32)
    return weights


def scale_squares(weights: np.ndarray, scales: np.ndarray, block_size: int, first_row: int) -> np.ndarray:
    """weights [rows, columns], of which the first is `first_row`, * scales of squares [all row blocks, column blocks].

    In place.
    """
    row_blocks = (first_row + np.arange(len(weights))) // block_size
    return scale(weights, scales[row_blocks], block_size)
