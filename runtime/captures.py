"""Values that subgraphs read from the graph around them: wires that are not drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from runtime.attributes import Typed
from runtime.graph import Graph, NodeState
from runtime.ports import value_names

MAXIMUM_DEPTH = 32
"""How deep subgraphs may be nested."""


def bodies_of(state: NodeState) -> Iterator[Graph]:
    """The graphs among a node's parameters."""
    for value in state.parameters.values():
        plain = value.value if isinstance(value, Typed) else value
        for item in plain if isinstance(plain, list | tuple) else (plain,):
            if isinstance(item, Graph):
                yield item


def captured_names(body: Graph, depth: int = 0) -> set[str]:
    """The names of all outer values that a subgraph, or one inside it, reads."""
    if depth > MAXIMUM_DEPTH:
        return set()
    names = {str(s.parameters.get("name", "")) for s in body.nodes.values() if s.type == "Capture"}
    inner: set[str] = set()
    for state in body.nodes.values():
        for nested in bodies_of(state):
            inner |= captured_names(nested, depth + 1)
    if inner:
        inner -= {name for name, _ in value_names(body)}
    return names | inner


def read_through_captures(graph: Graph) -> Mapping[str, set[str]]:
    """By id of a node with subgraphs: the nodes of the graph whose values these read."""
    nested = {id: bodies for id, state in graph.nodes.items() if (bodies := list(bodies_of(state)))}
    if not nested:
        return {}
    makers = {name: source.node for name, source in value_names(graph)}
    return {
        id: {makers[name] for body in bodies for name in captured_names(body) if name in makers}
        for id, bodies in nested.items()
    }
