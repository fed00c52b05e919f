"""Codes and bytes: exact inverses of each other, in the documented bit order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmoe_node import packing


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 40), st.integers(1, 3), st.integers(0, 10_000))
def test_unpack_is_the_inverse_of_pack(bits, count, rows, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count), dtype=np.uint8)
    packed = packing.pack(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8)) == (rows, packing.packed_length(count, bits))
    np.testing.assert_array_equal(packing.unpack(packed, bits, count), codes)


def test_the_lowest_bits_come_first():
    assert packing.unpack(np.array([0x21], np.uint8), 4, 2).tolist() == [1, 2]
    assert packing.unpack(np.array([0b11100100], np.uint8), 2, 4).tolist() == [0, 1, 2, 3]
    assert packing.unpack(np.array([0b11010001, 0b1], np.uint8), 3, 3).tolist() == [1, 2, 7]


@pytest.mark.parametrize("bits", [2, 4])
def test_deinterleave_is_the_inverse_of_interleave(bits):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (2, 16, 128), dtype=np.uint8)
    np.testing.assert_array_equal(packing.deinterleave(packing.interleave(codes, bits), bits, 128), codes)


def test_zero_points_of_either_packing():
    by_row = packing.zero_points(np.array([[0x21, 0x03]], np.uint8), 4, rows=3, blocks=1)
    assert by_row.tolist() == [[[1], [2], [3]]]
    by_block = packing.zero_points(np.array([[[0x21, 0xF3], [0x54, 0xF6]]], np.uint8), 4, rows=2, blocks=3)
    assert by_block.tolist() == [[[1, 2, 3], [4, 5, 6]]]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 9), st.sampled_from([4, 16]), st.booleans(), st.integers(0, 9999))
def test_dequantize_follows_the_formula(bits, eighths, block_size, explicit, seed):
    rng = np.random.default_rng(seed)
    columns = eighths * 8
    codes = rng.integers(0, 1 << bits, (3, columns), dtype=np.uint8)
    blocks = -(-columns // block_size)
    scales = rng.standard_normal((3, blocks)).astype(np.float32)
    zeros = rng.integers(0, 1 << bits, (3, blocks), dtype=np.uint8)
    weights = packing.dequantize(
        packing.pack(codes, bits), scales, zeros if explicit else None, bits, columns, block_size
    )
    assert weights.dtype == np.float32
    for row in range(3):
        for column in range(columns):
            zero = int(zeros[row, column // block_size]) if explicit else 1 << (bits - 1)
            expected = np.float32(int(codes[row, column]) - zero) * scales[row, column // block_size]
            assert weights[row, column] == expected
