"""The forward pass in NumPy: tokens grouped by expert, float32 inside, one rounding at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from qmoe_node.activations import activate
from qmoe_node.layer import FLOAT_LAYOUTS, Layer, Projection
from qmoe_node.packing import E2M1, codes_of, dequantize, scale, scale_squares, unpack, zero_points
from qmoe_node.routing import Routing, route
from runtime.backends.control import checkpoint

TILE_ELEMENTS = 1 << 20
"""How many weights are held as float32 at once, at most (4 MiB), however large the layer."""
TILE_ROWS = 16
"""Tiles start at a multiple of this, so that no layout is cut within a byte or a group of rows."""

Arrays = Mapping[str, np.ndarray]


def forward(layer: Layer, inputs: Arrays) -> np.ndarray:
    """The layer's output, with the shape and type of `inputs["input"]`, from inputs that fit the layer.

    Products and sums are in float32; narrower inputs, scales and biases are widened first.
    """
    given = inputs["input"]
    tokens = given.reshape(-1, layer.hidden).astype(np.float32)
    routing = route_tokens(layer, inputs)
    mixed = np.zeros(tokens.shape, np.float32)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for expert, rows, choices in by_expert(routing):
            checkpoint()
            weights = routing.weights[rows, choices, None]
            mixed[rows] += weights * run_expert(layer, inputs, expert, tokens[rows])
        return mixed.astype(given.dtype).reshape(given.shape)


def route_tokens(layer: Layer, inputs: Arrays) -> Routing:
    """The routing of the layer's tokens."""
    settings = layer.settings
    return route(
        inputs["router_probs"],
        settings.k,
        normalize_routing_weights=settings.normalize_routing_weights,
        use_sparse_mixer=settings.use_sparse_mixer,
        router_weights=inputs.get("router_weights"),
    )


def by_expert(routing: Routing) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(expert, its tokens, which of their choices it is) for every expert that has tokens; a token appears once."""
    k = routing.indices.shape[1]
    flat = routing.indices.ravel()
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    for expert, slots in zip(experts, np.split(order, starts[1:]), strict=False):
        yield int(expert), slots // k, slots % k


def run_expert(layer: Layer, inputs: Arrays, expert: int, tokens: np.ndarray) -> np.ndarray:
    """One expert's output, float32 [t, hidden], on `tokens` float32 [t, hidden], before mixing."""
    first = project(layer.fc1, inputs, expert, tokens)
    third = None if layer.fc3 is None else project(layer.fc3, inputs, expert, tokens)
    return project(layer.fc2, inputs, expert, activate(layer.settings, first, third))


def project(projection: Projection, inputs: Arrays, expert: int, tokens: np.ndarray) -> np.ndarray:
    """W x + b of one expert: float32 [t, rows] from `tokens` float32 [t, columns]."""
    result = np.empty((len(tokens), projection.rows), np.float32)
    for start, stop in tiles(projection):
        np.matmul(tokens, expert_weights(projection, inputs, expert, start, stop).T, out=result[:, start:stop])
    bias = inputs.get(projection.port("experts_bias"))
    if bias is not None:
        result += bias[expert].astype(np.float32)
    return result


def tiles(projection: Projection) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of the tiles in which a projection's weights are dequantized."""
    height = max(TILE_ROWS, TILE_ELEMENTS // max(1, projection.columns) // TILE_ROWS * TILE_ROWS)
    for start in range(0, projection.rows, height):
        yield start, min(start + height, projection.rows)


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
