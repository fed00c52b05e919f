"""The forward pass in NumPy: tokens grouped by expert, float32 inside, one rounding at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qmoe_node.activations import activate
from qmoe_node.compiled_tiles import FEWEST_ROWS, CompiledTiles, can_compile, compiled_loops, tiles_of
from qmoe_node.kept import First, keep
from qmoe_node.layer import Layer, Projection
from qmoe_node.parallel import available_threads, in_order
from qmoe_node.routing import Routing, route
from runtime.backends.control import allowed_threads, checkpoint

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
    kept = keep(layer, inputs, tokens, routing)
    mixed = np.zeros(tokens.shape, np.float32)

    def work(share: Share) -> np.ndarray:
        expert, rows, _ = share
        with quiet():
            first = first_of(layer, inputs, expert, tokens[rows])
            if kept is not None:
                kept.firsts[expert] = first
            return project(layer.fc2, inputs, expert, activate(layer.settings, *first))

    shares = list(by_expert(routing))
    threads = threads_for(layer, shares)
    with quiet():
        spread = _spread_rows(layer, inputs, shares, tokens, threads)
        outputs = in_order(work, shares, threads) if spread is None else iter(zip(shares, spread, strict=True))
        for (_, rows, choices), part in outputs:
            checkpoint()
            mixed[rows] += routing.weights[rows, choices, None] * part
        return mixed.astype(given.dtype).reshape(given.shape)


def _spread_rows(
    layer: Layer, inputs: Arrays, shares: Sequence[Share], tokens: np.ndarray, threads: int
) -> list[np.ndarray] | None:
    """The outputs of experts too few to keep threads busy, whose rows are spread over these instead.

    float32 [t, hidden] each, before mixing; None where experts are enough, or have more tokens than pay.
    """
    if len(shares) >= 2 * threads or threads < 2 or not all(can_compile(own) for own in layer.projections):
        return None
    if compiled_loops() is None:
        return None
    experts = [expert for expert, _, _ in shares]
    unpacked = {
        projection.name: [CompiledTiles(projection, inputs, expert) for expert in experts]
        for projection in layer.projections
    }
    if any(len(rows) > own.few for each in unpacked.values() for (_, rows, _), own in zip(shares, each, strict=True)):
        return None

    def spread(projection: Projection, given: Sequence[np.ndarray]) -> list[np.ndarray]:
        own = unpacked[projection.name]
        arranged = [tiles.arranged(x) for tiles, x in zip(own, given, strict=True)]
        results = [np.empty((len(x), projection.rows), np.float32) for x in given]
        height = -(-projection.rows // (threads * FEWEST_ROWS)) * FEWEST_ROWS
        starts = range(0, projection.rows - FEWEST_ROWS + 1, height)

        def work(piece: tuple[int, int]) -> None:
            i, start = piece
            stop = projection.rows if start == starts[-1] else start + height
            own[i].project_rows(arranged[i], start, stop, results[i])

        for _ in in_order(work, ((i, start) for i in range(len(own)) for start in starts), threads):
            checkpoint()
        return [with_bias(projection, inputs, *each) for each in zip(experts, results, strict=True)]

    given = [tokens[rows] for _, rows, _ in shares]
    first = spread(layer.fc1, given)
    third = [None] * len(first) if layer.fc3 is None else spread(layer.fc3, given)
    return spread(layer.fc2, [activate(layer.settings, *each) for each in zip(first, third, strict=True)])


def quiet() -> np.errstate:
    """Numbers that are not finite are results like others."""
    return np.errstate(invalid="ignore", over="ignore", under="ignore")


def threads_for(layer: Layer, shares: Sequence[Share]) -> int:
    """How many threads are worth while for these experts; 0 if products had better be left to themselves."""
    weights = len(shares) * sum(projection.rows * projection.columns for projection in layer.projections)
    return allowed_threads() or available_threads() if weights >= WORTH_THREADS else 0


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


def first_of(layer: Layer, inputs: Arrays, expert: int, tokens: np.ndarray) -> First:
    """What one expert's first projections give of `tokens`, float32 [t, hidden]."""
    first = project(layer.fc1, inputs, expert, tokens)
    return first, None if layer.fc3 is None else project(layer.fc3, inputs, expert, tokens)


def project(projection: Projection, inputs: Arrays, expert: int, tokens: np.ndarray) -> np.ndarray:
    """W x + b of one expert: float32 [t, rows] from `tokens` float32 [t, columns]."""
    return with_bias(projection, inputs, expert, tiles_of(projection, inputs, expert).project(tokens))


def with_bias(projection: Projection, inputs: Arrays, expert: int, result: np.ndarray) -> np.ndarray:
    """W x of one expert, float32 [t, rows], with the bias added in place if there is one."""
    bias = inputs.get(projection.port("experts_bias"))
    if bias is not None:
        result += bias[expert].astype(np.float32)
    return result
