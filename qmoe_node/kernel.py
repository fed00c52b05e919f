"""The forward pass in NumPy: tokens grouped by expert, float32 inside, one rounding at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qmoe_node.activations import activate
from qmoe_node.kernel_weights import tiles
from qmoe_node.layer import Layer, Projection
from qmoe_node.parallel import available_threads, in_order
from qmoe_node.routing import Routing, route
from qmoe_node.tiles import Tiles
from runtime.backends.control import checkpoint

WORTH_THREADS = 1 << 22
"""Weights of all experts that are used, from which on experts are computed on several threads."""

Arrays = Mapping[str, np.ndarray]
Share = tuple[int, np.ndarray, np.ndarray]
"""An expert, its tokens, and which of their choices it is."""


def forward(layer: Layer, inputs: Arrays) -> np.ndarray:
    """The layer's output, with the shape and type of `inputs["input"]`, from inputs that fit the layer.

    Products and sums are in float32; narrower inputs, scales and biases are widened first.
    """
    given = inputs["input"]
    tokens = given.reshape(-1, layer.hidden).astype(np.float32)
    routing = route_tokens(layer, inputs)
    mixed = np.zeros(tokens.shape, np.float32)

    def work(share: Share) -> np.ndarray:
        expert, rows, choices = share
        with quiet():
            return routing.weights[rows, choices, None] * run_expert(layer, inputs, expert, tokens[rows])

    shares = list(by_expert(routing))
    with quiet():
        for (_, rows, _), part in in_order(work, shares, threads_for(layer, shares)):
            checkpoint()
            mixed[rows] += part
        return mixed.astype(given.dtype).reshape(given.shape)


def quiet() -> np.errstate:
    """Numbers that are not finite are results like others."""
    return np.errstate(invalid="ignore", over="ignore", under="ignore")


def threads_for(layer: Layer, shares: Sequence[Share]) -> int:
    """How many threads are worth while for these experts."""
    weights = len(shares) * sum(projection.rows * projection.columns for projection in layer.projections)
    return min(available_threads(), len(shares)) if weights >= WORTH_THREADS else 1


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


def by_expert(routing: Routing) -> Iterator[Share]:
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
    unpacked = Tiles(projection, inputs, expert)
    # Weights on the left: with few tokens up to twice as fast as tokens on the left.
    transposed = np.ascontiguousarray(unpacked.arranged(tokens).T)
    products = np.empty((projection.rows, len(tokens)), np.float32)
    for start, stop in tiles(projection):
        np.matmul(unpacked.weights(start, stop), transposed, out=products[start:stop])
    result = np.ascontiguousarray(products.T)
    bias = inputs.get(projection.port("experts_bias"))
    if bias is not None:
        result += bias[expert].astype(np.float32)
    return result
