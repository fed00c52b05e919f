"""What a run tells of the experts of a mixture: their loads, who works with whom, their tokens; and float twins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import Finding, GraphError
from runtime.graph import Graph, PortRef
from runtime.routing import Routing
from runtime.tensors import Tensor

STARVED = 0.1
"""An expert with less than this part of the mean load is starved."""
PIECE = 1 << 14
"""Tokens that are counted at once."""
FLOAT_TWIN = "com.microsoft.MoE"


@dataclass(frozen=True, slots=True)
class Loads:
    """How many tokens each expert got, int64 [experts], of `tokens` tokens that chose `k` each."""

    counts: np.ndarray
    tokens: int
    k: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Each expert's part of all choices; they add up to 1 if there are any."""
        total = max(1, int(self.counts.sum()))
        return tuple((self.counts / total).tolist())

    @property
    def imbalance(self) -> float:
        """The largest load by the mean load: 1 is even. 0 without tokens."""
        mean = float(self.counts.mean()) if self.counts.size else 0.0
        return float(self.counts.max() / mean) if mean else 0.0

    @property
    def entropy(self) -> float:
        """Of the shares, by that of even ones: 1 is even, 0 is one expert for all."""
        shares = [share for share in self.shares if share > 0]
        most = math.log(len(self.counts)) if len(self.counts) > 1 else 1.0
        return -sum(share * math.log(share) for share in shares) / most if shares else 0.0

    @property
    def starved(self) -> tuple[int, ...]:
        """The experts with less than STARVED of the mean load."""
        mean = float(self.counts.mean()) if self.counts.size else 0.0
        return tuple(np.flatnonzero(self.counts < STARVED * mean).tolist())


def loads_of(routing: Routing) -> Loads:
    """The loads of a run."""
    tokens, k = routing.experts.shape
    return Loads(routing.tokens_per_expert(), tokens, k)


def weight_map(routing: Routing, first: int = 0, last: int | None = None) -> np.ndarray:
    """Mixing weights, float32 [tokens, experts], of the tokens from `first` to before `last`; 0 where not chosen."""
    chosen, weights = routing.experts[first:last], routing.weights[first:last]
    result = np.zeros((len(chosen), routing.count), np.float32)
    np.put_along_axis(result, chosen, weights.astype(np.float32), axis=1)
    return result


def together(routing: Routing) -> np.ndarray:
    """How many tokens chose both of two experts, int64 [experts, experts]; on the diagonal, how many chose one."""
    result = np.zeros((routing.count, routing.count), np.int64)
    for first in range(0, len(routing.experts), PIECE):
        part = routing.experts[first : first + PIECE]
        chosen = np.zeros((len(part), routing.count), np.float32)
        np.put_along_axis(chosen, part, np.float32(1), axis=1)
        result += np.rint(chosen.T @ chosen).astype(np.int64)
    return result


def without_diagonal(pairs: np.ndarray) -> np.ndarray:
    """Counts of pairs, 0 for an expert with itself."""
    result = pairs.copy()
    np.fill_diagonal(result, 0)
    return result


def tokens_of(routing: Routing, expert: int) -> np.ndarray:
    """The tokens of an expert, [(token, rank, weight)], the largest weight first; rank 0 is a token's first choice."""
    rows, ranks = np.nonzero(routing.experts == expert)
    weights = routing.weights[rows, ranks].astype(np.float64)
    order = np.lexsort((rows, -weights))
    return np.array(
        list(zip(rows[order].tolist(), ranks[order].tolist(), weights[order].tolist(), strict=True)),
        [("token", np.int64), ("rank", np.int64), ("weight", np.float64)],
    )


def expert_count(graph: Graph, node: str) -> int:
    """How many experts a mixture has, as far as the document's weights tell; 0 if they do not."""
    counts = [len(a) for port, a in _tensors(graph, node).items() if port.endswith("experts_weights") and a.ndim]
    return counts[0] if counts else 0


def scale_ranges(graph: Graph, node: str, expert: int) -> dict[str, tuple[float, float]]:
    """The smallest and the largest scale of an expert's weights, by port; only of scales that the document holds."""
    ranges = {}
    for port, array in _tensors(graph, node).items():
        if port.endswith("_scales") and array.ndim > 1 and expert < len(array) and array[expert].size:
            scales = array[expert].astype(np.float32)
            ranges[port] = (float(scales.min()), float(scales.max()))
    return ranges


# -- float twins ------------------------------------------------------------------------------------------------------


def find_twin(graph: Graph, node: str, other: Graph) -> str:
    """The node of `other` with the float weights of a quantized mixture: of the same id, else the first that fits.

    GraphError says why there is none.
    """
    ids = sorted((id for id in other.nodes if other.nodes[id].type == FLOAT_TWIN), key=lambda id: id != node)
    reasons = []
    for id in ids:
        reason = _why_no_twin(graph, node, other, id)
        if not reason:
            return id
        reasons.append(f"{id} is none: {reason}")
    text = "; ".join(reasons) or f"there is no {FLOAT_TWIN} node"
    raise GraphError(Finding(f"No float twin of {node}: {text}.", code="twin"))


def twin_errors(graph: Graph, node: str, other: Graph, twin: str) -> Iterator[dict[str, float]]:
    """For each expert of a mixture, the relative error of its weights by projection. GraphError if it has none."""
    node_type: Any = graph.node_type(node)
    if not hasattr(node_type, "weight_errors"):
        raise GraphError(Finding("Its weights are not quantized.", node, code="twin"))
    inputs = graph.inputs_of(node)
    types = {port: graph.checker.type_of(PortRef(*source)) for port, source in inputs.items()}
    attributes = node_type.to_attributes(graph.nodes[node].parameters)
    floats = {port: array for port, array in _tensors(other, twin).items() if port.endswith("experts_weights")}
    errors: Iterator[dict[str, float]] = node_type.weight_errors(types, _tensors(graph, node), attributes, floats)
    return errors


def _why_no_twin(graph: Graph, node: str, other: Graph, twin: str) -> str:
    mine, its = graph.nodes[node].parameters, other.nodes[twin].parameters
    for name, default in (("swiglu_fusion", 0), ("activation_type", "relu")):
        if mine.get(name, default) != its.get(name, default):
            return f"its {name} is {its.get(name, default)}"
    try:
        twin_errors(graph, node, other, twin)
    except GraphError as error:
        return "; ".join(str(finding).rstrip(".") for finding in error.findings)
    return ""


def _tensors(graph: Graph, node: str) -> dict[str, np.ndarray]:
    found = {}
    for port, source in graph.inputs_of(node).items():
        tensor = graph.nodes[source.node].parameters.get("tensor")
        if isinstance(tensor, Tensor):
            found[port] = tensor.array()
    return found
