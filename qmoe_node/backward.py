"""The backward pass in NumPy: expert by expert on grouped tokens, float32 inside, one rounding at the end.

Nothing is kept from the forward pass but its inputs. Weights are dequantized tile by tile, and so are their gradients
only ever held tile by tile: each is reduced to the gradients of the tile's scales at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from qmoe_node.activations import activate, activate_gradient
from qmoe_node.compiled_tiles import tiles_of
from qmoe_node.kept import First, take
from qmoe_node.kernel import Share, by_expert, first_of, quiet, route_tokens, threads_for
from qmoe_node.kernel_weights import tiles
from qmoe_node.layer import FLOAT_LAYOUTS, Layer, Projection
from qmoe_node.parallel import in_order
from qmoe_node.routing import route_gradient
from qmoe_node.tiles import Tiles
from runtime.backends.control import checkpoint

Arrays = Mapping[str, np.ndarray]

TOKEN_PORTS = ("input", "router_probs", "router_weights")


def backward(layer: Layer, inputs: Arrays, upstream: np.ndarray, wrt: Collection[str]) -> dict[str, np.ndarray]:
    """The gradients of the inputs in `wrt` from that of the output, `upstream`: each with its input's shape and type.

    For weights they are those of the dequantized weights, float32 [experts, rows, columns], as if the codes were free
    to move; scales that are floats of 8 bits get theirs in float32.
    """
    tokens = inputs["input"].reshape(-1, layer.hidden).astype(np.float32)
    outgoing = upstream.reshape(-1, layer.hidden).astype(np.float32)
    routing = route_tokens(layer, inputs)
    kept = take(layer, inputs, tokens, routing)
    sums = _Sums(layer, inputs, wrt)
    moved = np.zeros(tokens.shape if "input" in wrt else (0, layer.hidden), np.float32)
    shares = np.zeros(routing.weights.shape, np.float32)

    def work(share: Share) -> tuple[np.ndarray, np.ndarray | None]:
        expert, rows, choices = share
        with quiet():
            mixing, x = routing.weights[rows, choices, None], tokens[rows]
            first = kept.pop(expert, None) or first_of(layer, inputs, expert, x)
            return _through_expert(layer, inputs, expert, mixing, x, first, outgoing[rows], sums, "input" in wrt)

    every = list(by_expert(routing))
    with quiet():
        for (_, rows, choices), (own, into) in in_order(work, every, threads_for(layer, every)):
            checkpoint()
            shares[rows, choices] = own
            if into is not None:
                moved[rows] += into
        routed = route_gradient(
            inputs["router_probs"],
            routing,
            shares,
            normalize_routing_weights=layer.settings.normalize_routing_weights,
            use_sparse_mixer=layer.settings.use_sparse_mixer,
            router_weights=inputs.get("router_weights"),
        )
        found = {"input": moved, "router_probs": routed.router_probs, "router_weights": routed.router_weights}
        results = {port: array for port, array in (found | sums.results()).items() if port in wrt and array is not None}
        return {port: _as_port(port, results[port], inputs[port]) for port in wrt}


def _through_expert(
    layer: Layer,
    inputs: Arrays,
    expert: int,
    weights: np.ndarray,
    x: np.ndarray,
    given: First,
    dy: np.ndarray,
    sums: _Sums,
    needed: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The gradients of an expert's mixing weights [t], and, if it is `needed`, of its tokens x [t, hidden].

    `weights` [t, 1] are the mixing weights, `given` is what fc1 and fc3 gave, `dy` [t, hidden] is the gradient of the
    layer's output. What the expert's own tensors get goes into `sums`.
    """
    first, third = given
    z = activate(layer.settings, first, third)
    sums.bias(layer.fc2, expert, weights * dy)
    # W^T dy without the mixing weight, from which the weight's own gradient, dy . (W z + b), follows.
    back = _pull(layer.fc2, inputs, expert, weights * z, dy, sums, True)
    own = (back * z).sum(axis=-1)
    bias = inputs.get("fc2_experts_bias")
    if bias is not None:
        own += dy @ bias[expert].astype(np.float32)
    into: np.ndarray | None = None
    gradients = activate_gradient(layer.settings, first, third, weights * back)
    for projection, g in zip((layer.fc1, layer.fc3), gradients, strict=True):
        if projection is not None and g is not None:
            sums.bias(projection, expert, g)
            part = _pull(projection, inputs, expert, x, g, sums, needed)
            if needed:
                into = part if into is None else into + part
    return own, into


def _as_port(port: str, gradient: np.ndarray, given: np.ndarray) -> np.ndarray:
    if port.endswith("experts_weights"):
        return gradient
    narrow = given.dtype.itemsize == 1
    return gradient.reshape(given.shape).astype(np.float32 if narrow else given.dtype, copy=False)


def _pull(
    projection: Projection, inputs: Arrays, expert: int, x: np.ndarray, g: np.ndarray, sums: _Sums, needed: bool
) -> np.ndarray:
    """W^T g, float32 [t, columns], if it is `needed`, where g [t, rows] is the gradient of W x.

    On the way the gradient of W, g^T x, goes into `sums`.
    """
    result = np.zeros((len(x), projection.columns), np.float32)
    part = np.empty_like(result)
    followed = sums.follows(projection)
    if not (needed or followed):
        return result
    at_once = 1 + followed  # weights, and their gradient
    unpacked = tiles_of(projection, inputs, expert, at_once)
    arranged = unpacked.arranged(x) if followed else x
    transposed = np.ascontiguousarray(g.T) if followed else g.T
    room = np.empty((unpacked.height, projection.columns), np.float32)
    for start, stop in tiles(projection, at_once):
        if followed:
            gradient = np.matmul(transposed[start:stop], arranged, out=room[: stop - start])
            sums.weights(projection, expert, start, gradient, unpacked)
        if needed:
            result += np.matmul(g[:, start:stop], unpacked.weights(start, stop), out=part)
    return unpacked.restored(result) if needed else result


class _Sums:
    """The gradients of the layer's own tensors, as far as they are wanted."""

    def __init__(self, layer: Layer, inputs: Arrays, wrt: Collection[str]) -> None:
        self._inputs = inputs
        self._biases: dict[str, np.ndarray] = {}
        self._weights: dict[str, np.ndarray] = {}
        self._scales: dict[str, np.ndarray] = {}
        self._globals: dict[str, np.ndarray] = {}
        for projection in layer.projections:
            for what, (sums, shape) in {
                "experts_bias": (self._biases, (layer.experts, projection.rows)),
                "experts_weights": (self._weights, (layer.experts, projection.rows, projection.columns)),
                "scales": (self._scales, self._scale_shape(projection)),
                "global_scale": (self._globals, (layer.experts,)),
            }.items():
                port = projection.port(what)
                if port in wrt:
                    sums[port] = np.zeros(shape, np.float32)

    def _scale_shape(self, projection: Projection) -> tuple[int, ...]:
        scales = self._inputs.get(projection.port("scales"))
        if scales is None:
            return ()
        return scales.shape if projection.layout == "float8" else (*scales.shape[:2], projection.blocks)

    def follows(self, projection: Projection) -> bool:
        """Whether the gradient of this projection's weights matters."""
        return (
            projection.port("experts_weights") in self._weights
            or projection.port("scales") in self._scales
            or (projection.port("global_scale") in self._globals and projection.layout in FLOAT_LAYOUTS)
        )

    def bias(self, projection: Projection, expert: int, g: np.ndarray) -> None:
        """Takes the gradients of an expert's outputs, [t, rows]."""
        sums = self._biases.get(projection.port("experts_bias"))
        if sums is not None:
            sums[expert] = g.sum(axis=0, dtype=np.float64)

    def weights(
        self,
        projection: Projection,
        expert: int,
        start: int,
        gradient: np.ndarray,
        unpacked: Tiles,
    ) -> None:
        """Takes the gradient of a tile of weights, and overwrites it."""
        stop = start + len(gradient)
        free = self._weights.get(projection.port("experts_weights"))
        if free is not None:
            free[expert, start:stop] = unpacked.restored(gradient)
        scaled = self._scales.get(projection.port("scales"))
        overall = self._globals.get(projection.port("global_scale"))
        if scaled is None and overall is None:
            return
        self._reduce(projection, expert, start, unpacked.scale_sums(start, gradient), scaled, overall)

    def _reduce(
        self,
        projection: Projection,
        expert: int,
        start: int,
        by_row: np.ndarray,
        scaled: np.ndarray | None,
        overall: np.ndarray | None,
    ) -> None:
        """Takes the gradients of all scaling factors, [rows, blocks], and shares them out between the tensors."""
        rows = slice(start, start + len(by_row))
        scales = self._inputs.get(projection.port("scales"))
        if projection.layout == "float8" and scales is not None:
            if scaled is not None:
                np.add.at(scaled[expert], np.arange(rows.start, rows.stop) // projection.block_size, by_row)
            return
        if overall is not None and projection.layout in FLOAT_LAYOUTS:
            own = by_row if scales is None else by_row * scales[expert, rows].astype(np.float32)
            overall[expert] += own.sum(dtype=np.float64)
        if scaled is not None:
            factors = self._inputs.get(projection.port("global_scale"))
            used = factors is not None and projection.layout in FLOAT_LAYOUTS
            scaled[expert, rows] = by_row * factors[expert] if factors is not None and used else by_row

    def results(self) -> dict[str, np.ndarray]:
        """The gradients by port."""
        return self._biases | self._weights | self._scales | self._globals
