"""Calls of a document's functions: what a node calls, and what its ports are called there.

A call's ports are known by their places, input.0 and so on: a document can hold calls of functions that it lacks.
"""

from __future__ import annotations

from runtime.function_checks import function_key
from runtime.graph import Graph, NodeState, PortRef
from runtime.ports import UNKNOWN_INPUT, UNKNOWN_OUTPUT, belongs, index_of


def function_of(graph: Graph, state: NodeState) -> Graph | None:
    """The function that a node calls, if it calls one of the document's."""
    body = graph.section("functions").get(function_key(state))
    return body if isinstance(body, Graph) else None


def names_of_ports(body: Graph, *, outputs: bool) -> list[str]:
    """What a function calls its inputs, or its outputs, in their order."""
    kind = "Output" if outputs else "Input"
    return [str(state.parameters.get("name") or id) for id, state in body.nodes.items() if state.type == kind]


def port_title(graph: Graph, ref: PortRef, *, is_output: bool) -> str:
    """What a port is called for people: by its function's own name where the node calls one, else as it is."""
    if not belongs(ref.port, UNKNOWN_OUTPUT if is_output else UNKNOWN_INPUT) or graph.node_type(ref.node) is not None:
        return ref.port
    body = function_of(graph, graph.nodes[ref.node])
    names = names_of_ports(body, outputs=is_output) if body is not None else []
    index = index_of(ref.port)
    return names[index] if 0 <= index < len(names) else ref.port
