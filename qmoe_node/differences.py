"""How far the experts of two mixtures are apart, be they quantized (QMoE) or in floats (MoE), an expert at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qmoe_node.activations import activate
from qmoe_node.attributes import PROJECTIONS, read_settings
from qmoe_node.checks import FLOAT_TYPES, layer_of
from qmoe_node.kernel import route_tokens
from qmoe_node.kernel_weights import expert_weights, tiles
from qmoe_node.layer import Projection, Settings
from qmoe_node.routing import normalize, route, softmax
from runtime.errors import Finding, GraphError
from runtime.mixture_differences import ExpertComparison, ExpertDifference, Given
from runtime.routing import Routing
from runtime.types import ElementType

PIECE = 1 << 24
"""How many numbers a projection gives at once, at most, unless it is those of a few tokens."""
FEWEST = 256
BLOCK = 32
"""Columns of a block where no weight has a scale for a block of them."""
TINY = np.finfo(np.float64).tiny


def expert_differences(first: Given, second: Given, own: Given) -> ExpertComparison:
    """Compares two mixtures; see `runtime.mixture_differences`. GraphError if they have not the same experts.

    All that is checked at once. An expert is read when its difference is asked for, a tile of rows at a time.
    """
    mine, its = _mixture(*first), _mixture(*second)
    _check_alike(mine, its)
    blocks = {name: _block_size(p, its.projections[name]) for name, p in mine.projections.items()}
    experts = (_difference(mine, its, mine.routing, blocks, expert) for expert in range(mine.experts))
    return ExpertComparison(mine.routing, _mixture(*own).routing, blocks, experts)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """A mixture's weights in floats, whatever they are stored as."""

    arrays: Mapping[str, np.ndarray]
    settings: Settings
    experts: int
    projections: Mapping[str, Projection]
    is_float: bool
    routing: Routing

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        given = self.arrays["input"]
        return np.asarray(given.reshape(-1, given.shape[-1])[rows].astype(np.float32))

    def weights(self, name: str, expert: int, start: int, stop: int) -> np.ndarray:
        """Some rows of an expert's weights, float32 [stop - start, columns]."""
        projection = self.projections[name]
        if self.is_float:
            stored = self.arrays[projection.port("experts_weights")]
            return np.asarray(stored[expert, start:stop].astype(np.float32))
        return expert_weights(projection, self.arrays, expert, start, stop)

    def project(self, name: str, expert: int, tokens: np.ndarray) -> np.ndarray:
        """W x + b, float32 [t, rows]."""
        projection = self.projections[name]
        result = np.empty((len(tokens), projection.rows), np.float32)
        for start, stop in tiles(projection):
            np.matmul(tokens, self.weights(name, expert, start, stop).T, out=result[:, start:stop])
        bias = self.arrays.get(projection.port("experts_bias"))
        if bias is not None:
            result += bias[expert].astype(np.float32)
        return result


def _mixture(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> _Mixture:
    """GraphError if the arrays make no mixture."""
    weights = arrays.get("fc1_experts_weights")
    if weights is not None and ElementType.of(weights.dtype) in FLOAT_TYPES:
        return _float_mixture(arrays, attributes)
    layer = layer_of(arrays, attributes)
    chosen = route_tokens(layer, arrays)
    routing = Routing(chosen.indices, chosen.weights, layer.experts)
    return _Mixture(arrays, layer.settings, layer.experts, {p.name: p for p in layer.projections}, False, routing)


def _float_mixture(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> _Mixture:
    settings = read_settings(attributes, lambda *told, **more: None)
    projections = {}
    for name in PROJECTIONS:
        stored = arrays.get(f"{name}_experts_weights")
        if stored is None:
            continue
        if stored.ndim != 3:
            text = f"expected weights [experts, rows, columns]; {list(stored.shape)} came."
            raise GraphError(Finding(text, "", f"{name}_experts_weights", code="shape"))
        _, rows, columns = stored.shape
        projections[name] = Projection(name, rows, columns, 8 * stored.itemsize, columns, 1, "floats")
    experts = len(arrays["fc1_experts_weights"])
    return _Mixture(arrays, settings, experts, projections, True, _float_routing(arrays["router_probs"], settings))


def _float_routing(logits: np.ndarray, settings: Settings) -> Routing:
    """As MoE's kernel has it, which prefers the last of equal logits where QMoE takes the first."""
    if settings.use_sparse_mixer:
        chosen = route(logits, settings.k, use_sparse_mixer=True)
        return Routing(chosen.indices, chosen.weights, logits.shape[1])
    numbers = logits.astype(np.float32)
    last = logits.shape[1] - 1
    experts = last - np.argsort(-numbers[:, ::-1], axis=1, kind="stable")[:, : settings.k]
    weights = np.take_along_axis(softmax(numbers), experts, axis=1) if len(numbers) else np.zeros(experts.shape)
    weights = normalize(weights) if settings.normalize_routing_weights else weights
    return Routing(experts, weights.astype(np.float32), logits.shape[1])


def _check_alike(mine: _Mixture, its: _Mixture) -> None:
    def refuse(what: str, a: object, b: object) -> GraphError:
        text = f"its experts cannot be compared: {what} are {a} in the first graph and {b} in the second."
        return GraphError(Finding(text, code="twin"))

    if mine.experts != its.experts:
        raise refuse("the experts", mine.experts, its.experts)
    if mine.projections.keys() != its.projections.keys():
        raise refuse("the projections", ", ".join(mine.projections), ", ".join(its.projections))
    for name, projection in mine.projections.items():
        sizes = [[p.rows, p.columns] for p in (projection, its.projections[name])]
        if sizes[0] != sizes[1]:
            raise refuse(f"{name}'s rows and columns", *sizes)
    lengths = [len(mixture.routing.experts) for mixture in (mine, its)]
    if lengths[0] != lengths[1]:
        raise refuse("the tokens", *lengths)


def _block_size(first: Projection, second: Projection) -> int:
    """The columns of a block: as the finer of two layouts has it that share scales within a row."""
    sizes = [p.block_size for p in (first, second) if 0 < p.block_size < p.columns]
    return min(sizes) if sizes else min(BLOCK, max(1, first.columns))


# -- one expert -------------------------------------------------------------------------------------------------------


def _difference(
    mine: _Mixture, its: _Mixture, routing: Routing, blocks: Mapping[str, int], expert: int
) -> ExpertDifference:
    rows, ranks = np.nonzero(routing.experts == expert)
    shares = routing.weights[rows, ranks]
    with np.errstate(all="ignore"):  # what is not finite stays so
        run = _run(mine, its, blocks, expert, rows, shares)
        errors: dict[str, float] = {}
        of_weights: dict[str, np.ndarray] = {}
        of_outputs: dict[str, np.ndarray] = {}
        for name, size in blocks.items():
            apart, own, made = _weights(mine, its, name, size, expert, run.moments[name])
            errors[name] = _ratio(float(apart.sum()), float(own.sum()))
            of_weights[name] = np.array([_ratio(a, b) for a, b in zip(apart.tolist(), own.tolist(), strict=True)])
            of_outputs[name] = np.sqrt(made / max(run.energies[name], TINY))
    error = _ratio(run.noise, run.signal) if len(rows) else None
    return ExpertDifference(expert, errors, error, run.noise, of_weights, of_outputs)


def _ratio(apart: float, size: float) -> float:
    """The root of a ratio of squares; infinite where something came of nothing."""
    return math.sqrt(apart / size) if size else math.inf if apart else 0.0


@dataclass(slots=True)
class _Run:
    """What an expert made of its tokens, both times.

    `moments` are the sums of w² z zᵀ within each block of a projection's inputs z, float64 [blocks, size, size];
    `energies` those of w² ||W z + b||². `signal` and `noise` are sums of squares of the expert's weighted outputs and
    of their differences.
    """

    moments: dict[str, np.ndarray]
    energies: dict[str, float]
    signal: float = 0.0
    noise: float = 0.0


def _run(
    mine: _Mixture,
    its: _Mixture,
    blocks: Mapping[str, int],
    expert: int,
    rows: np.ndarray,
    shares: np.ndarray,
) -> _Run:
    projections = mine.projections
    counts = {name: -(-p.columns // blocks[name]) for name, p in projections.items()}
    run = _Run(
        {name: np.zeros((counts[name], size, size)) for name, size in blocks.items()}, dict.fromkeys(blocks, 0.0)
    )

    def account(name: str, values: np.ndarray, result: np.ndarray, weights: np.ndarray) -> None:
        parts = _by_block(values * weights.astype(np.float32), blocks[name])
        run.moments[name] += parts.transpose(0, 2, 1) @ parts
        run.energies[name] += _energy(result, weights)

    height = max(FEWEST, PIECE // max(1, *(max(p.rows, p.columns) for p in projections.values())))
    for start in range(0, len(rows), height):
        part, weights = rows[start : start + height], shares[start : start + height, None].astype(np.float64)
        outputs = []
        for mixture in (mine, its):
            tokens = mixture.tokens(part)
            given = {name: tokens for name in ("fc1", "fc3") if name in projections}
            results = {name: mixture.project(name, expert, tokens) for name in given}
            given["fc2"] = activate(mixture.settings, results["fc1"], results.get("fc3"))
            results["fc2"] = mixture.project("fc2", expert, given["fc2"])
            if mixture is mine:
                for name, values in given.items():
                    account(name, values, results[name], weights)
            outputs.append(results["fc2"])
        run.signal += _energy(outputs[0], weights)
        run.noise += _energy(outputs[1] - outputs[0], weights)
    return run


def _weights(
    mine: _Mixture, its: _Mixture, name: str, size: int, expert: int, moments: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By block, float64 [blocks]: ||W' - W||², ||W||², and the sum of w² ||(W' - W) z||² as the moments give it."""
    projection = mine.projections[name]
    narrow = moments.astype(np.float32)
    apart, own, made = (np.zeros(len(moments)) for _ in range(3))
    for start, stop in tiles(projection):
        wanted = mine.weights(name, expert, start, stop)
        delta = _by_block(its.weights(name, expert, start, stop) - wanted, size)
        own += _squares(_by_block(wanted, size))
        apart += _squares(delta)
        made += np.einsum("brc,brc->br", delta @ narrow, delta).sum(axis=1, dtype=np.float64)
    return apart, own, np.maximum(made, 0.0)


def _by_block(weights: np.ndarray, size: int) -> np.ndarray:
    """[blocks, rows, size] of [rows, columns], with zeros after the last column."""
    rows, columns = weights.shape
    missing = -columns % size
    if missing:
        weights = np.pad(weights, ((0, 0), (0, missing)))
    return np.ascontiguousarray(weights.reshape(rows, -1, size).transpose(1, 0, 2))


def _squares(blocks: np.ndarray) -> np.ndarray:
    """The sum of squares of each block, float64: rows in float32, their sums in float64."""
    return np.asarray(np.einsum("brc,brc->br", blocks, blocks).sum(axis=1, dtype=np.float64))


def _energy(values: np.ndarray, weights: np.ndarray) -> float:
    """The sum of w² ||v||² over the rows v of `values`, with a weight w [rows, 1] each."""
    squares = np.einsum("tr,tr->t", values, values).astype(np.float64)
    return float(np.dot(squares, np.square(weights[:, 0])))
