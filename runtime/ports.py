"""Which ports of a node are in use, in the operator's order, and what the values there are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runtime.graph import Graph, NodeState, PortRef
from runtime.node import Node

MOST_ASKED = 1024
"""A larger number of outputs is taken for a mistake."""
UNKNOWN_INPUT, UNKNOWN_OUTPUT = "input", "output"
"""The ports of a node of unknown type are input.0, input.1, ... and output.0, output.1, ..."""


def index_of(port: str) -> int:
    """The n of `inputs.n`; -1 for a port that is not one of several."""
    base, _, index = port.rpartition(".")
    return int(index) if base and index.isdigit() else -1


def belongs(port: str, declared: str) -> bool:
    """Whether `port` is the declared port or, of a variadic one, one of its ports."""
    return port == declared or (index_of(port) >= 0 and port.rpartition(".")[0] == declared)


def inputs_in_use(node_type: type[Node] | None, connected: Mapping[str, Any]) -> Iterator[str]:
    """The input ports by position, up to the last connected one; those between may be unconnected."""
    if node_type is None:
        count = max((index_of(port) for port in connected), default=-1) + 1
        yield from (f"{UNKNOWN_INPUT}.{index}" for index in range(count))
        return
    last = len(node_type.inputs) - 1
    while last >= 0 and not any(belongs(port, node_type.inputs[last].name) for port in connected):
        last -= 1
    for port in node_type.inputs[: last + 1]:
        if port.variadic:
            indices = [index_of(name) for name in connected if belongs(name, port.name)]
            yield from (f"{port.name}.{index}" for index in range(max(indices, default=-1) + 1))
        else:
            yield port.name


def outputs_in_use(graph: Graph, state: NodeState, node_type: type[Node] | None) -> tuple[str, ...]:
    """The output ports by position: those that are wired or have a name of their own, and all that are required."""
    wired = {source.port for source, _ in graph.wires_of(state.id) if source.node == state.id}
    named = len(state.parameters.get("specified_outputs_name") or ())
    if node_type is None:
        count = max([named, *(index_of(port) + 1 for port in wired)])
        return tuple(f"{UNKNOWN_OUTPUT}.{index}" for index in range(count))
    ports: list[str] = []
    for port in node_type.outputs:
        if port.variadic:
            indices = [index_of(name) + 1 for name in wired if belongs(name, port.name)]
            count = max([port.minimum, named - len(ports), _asked_for(state), *indices])
            ports += [f"{port.name}.{index}" for index in range(count)]
        else:
            ports.append(port.name)
    while len(ports) > max(1, named) and ports[-1] not in wired:
        declared = node_type.output_port(ports[-1])
        if declared is not None and not declared.optional:
            break
        ports.pop()
    return tuple(ports)


def _asked_for(state: NodeState) -> int:
    """How many outputs a node's parameters ask for (Split's num_outputs); 0 if they do not say."""
    number = state.parameters.get("num_outputs")
    return number if isinstance(number, int) and not isinstance(number, bool) and 0 < number <= MOST_ASKED else 0


def own_name(state: NodeState, index: int) -> str:
    """The name that a node gives its output number `index`, or an empty string."""
    names = state.parameters.get("specified_outputs_name") or ()
    return str(names[index]) if index < len(names) else ""


def value_names(graph: Graph) -> Iterator[tuple[str, PortRef]]:
    """The name, or names, of every value of a graph that a subgraph can capture, with its source."""
    for id, state in graph.nodes.items():
        if state.type in ("Input", "Initializer", "Capture"):
            yield str(state.parameters.get("name") or id), PortRef(id, "value")
            continue
        if state.type == "Output":
            continue
        for index, port in enumerate(outputs_in_use(graph, state, graph.node_type(id))):
            source = PortRef(id, port)
            yield own_name(state, index) or str(source), source
            for target in graph.targets(source):
                if graph.nodes[target.node].type == "Output":
                    yield str(graph.nodes[target.node].parameters.get("name") or target.node), source
