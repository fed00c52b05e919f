"""Where the mixtures of experts in a graph send their tokens: read from a run's probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.graph import Graph, PortRef
from runtime.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """A node's choice: `experts` int64 [tokens, k], best first, their mixing `weights` [tokens, k], out of `count`."""

    experts: np.ndarray
    weights: np.ndarray
    count: int

    def tokens_per_expert(self) -> np.ndarray:
        """How many tokens chose each expert, int64 [count]."""
        return np.bincount(self.experts.ravel(), minlength=self.count)


def mixtures(graph: Graph) -> list[str]:
    """The nodes whose type tells where it sends its tokens (it has a function `routing`)."""
    return [id for id in graph.nodes if hasattr(graph.node_type(id), "routing")]


def given_to(graph: Graph, node: str) -> list[PortRef]:
    """What a node is given that is no tensor of the document: what `routing_of` needs probed."""
    return [source for source in graph.inputs_of(node).values() if graph.nodes[source.node].type != "Initializer"]


def routing_of(graph: Graph, node: str, probes: Mapping[str, Any]) -> Routing:
    """Where one of `mixtures` sent its tokens in a run with probes at all that is `given_to` it."""
    arrays: dict[str, np.ndarray] = {}
    for port, source in graph.inputs_of(node).items():
        tensor = graph.nodes[source.node].parameters.get("tensor")
        arrays[port] = tensor.array() if isinstance(tensor, Tensor) else probes[str(PortRef(*source))]
    node_type: Any = graph.node_type(node)
    chosen = node_type.routing(arrays, node_type.to_attributes(graph.nodes[node].parameters))
    return Routing(chosen["experts"], chosen["weights"], arrays["router_probs"].shape[1])
