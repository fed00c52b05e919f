"""One expert's weights as the layer's inputs hold them, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from qmoe_node.layer import FLOAT_LAYOUTS, Projection
from qmoe_node.packing import E2M1, codes_of, dequantize, scale, scale_squares, unpack, zero_points

TILE_ELEMENTS = 1 << 20
"""How many weights a tile has at most, unless its rows are longer: as float32 (4 MiB) it stays in the cache."""
TILE_ROWS = 16
"""Tiles start at a multiple of this, so that no layout is cut within a byte or a group of rows."""

Arrays = Mapping[str, np.ndarray]


def tiles(projection: Projection, at_once: int = 1) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of the tiles in which a projection's weights are dequantized.

    `at_once` is how many matrices of a tile's size are worked with at a time: they share the cache.
    """
    height = tile_height(projection, at_once)
    for start in range(0, projection.rows, height):
        yield start, min(start + height, projection.rows)


def tile_height(projection: Projection, at_once: int = 1) -> int:
    """How many rows a tile has, but for the last one."""
    return max(TILE_ROWS, TILE_ELEMENTS // at_once // max(1, projection.columns) // TILE_ROWS * TILE_ROWS)


def expert_weights(
    projection: Projection, inputs: Arrays, expert: int, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """Rows `start` to `stop` of one expert's weights, float32 [stop - start, columns].

    `start` is a multiple of `TILE_ROWS`, and so is `stop` unless it is the last row.
    """
    stop = projection.rows if stop is None else stop
    values = expert_values(projection, inputs, expert, start, stop)
    return scale_values(projection, inputs, expert, values, start)


def expert_values(projection: Projection, inputs: Arrays, expert: int, start: int, stop: int) -> np.ndarray:
    """The same before scaling: codes less zero points, or the numbers that 4 and 8 bit floats stand for."""
    packed = inputs[projection.port("experts_weights")][expert]
    if projection.layout == "float8":
        return np.asarray(packed[start:stop].astype(np.float32))
    if projection.layout == "columns":
        by_column = packed.reshape(projection.columns, -1)[:, start // 2 : stop // 2]
        return np.ascontiguousarray(E2M1[unpack(by_column, 4, stop - start).T])
    if projection.layout == "float4":
        return np.asarray(E2M1[unpack(packed.reshape(projection.rows, -1)[start:stop], 4, projection.columns)])
    rows = packed[start:stop]
    zeros = expert_zero_points(projection, inputs, expert)
    return dequantize(
        rows,
        None,
        None if zeros is None else zeros[start:stop],
        projection.bits,
        projection.columns,
        projection.block_size,
        codes=codes_of(projection, rows) if projection.layout == "interleaved" else None,
    )


def scale_values(projection: Projection, inputs: Arrays, expert: int, values: np.ndarray, start: int) -> np.ndarray:
    """What `expert_values` gave for the rows from `start` on, scaled in place."""
    scales = inputs.get(projection.port("scales"))
    global_scales = inputs.get(projection.port("global_scale"))
    with np.errstate(invalid="ignore", over="ignore"):
        if projection.layout == "float8" and scales is not None:
            return scale_squares(values, scales[expert], projection.block_size, start)
        if scales is not None:
            rows = scales[expert, start : start + len(values)].reshape(len(values), projection.blocks)
            scale(values, rows, projection.block_size)
        if global_scales is not None and projection.layout in FLOAT_LAYOUTS:
            values *= global_scales[expert]
    return values


def expert_zero_points(projection: Projection, inputs: Arrays, expert: int) -> np.ndarray | None:
    """One expert's zero points as codes, uint8 [rows, blocks]; None where they have their default."""
    packed = inputs.get(projection.port("zero_points"))
    if packed is None:
        return None
    codes = zero_points(packed[expert : expert + 1], projection.bits, projection.rows, projection.blocks)
    return np.asarray(codes[0])
