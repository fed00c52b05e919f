"""What a document's ports and values are in ONNX: positions of ports, names of values, operators and their domains."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

from runtime.captures import bodies_of
from runtime.errors import GraphError
from runtime.graph import Graph, NodeState, PortRef
from runtime.node import Node
from runtime.ports import UNKNOWN_INPUT, UNKNOWN_OUTPUT, belongs, index_of

NAMES = "specified_outputs_name"


def is_terminal(state: NodeState) -> bool:
    """Whether a node is an input, output, initializer or capture, and no operator."""
    return state.type in ("Input", "Output", "Initializer", "Capture")


def operator_of(state: NodeState) -> tuple[str, str]:
    """The domain and the operator that a node's type names."""
    operator = state.extra.get("operator")  # for operators with a dot in their own name
    if isinstance(operator, str) and state.type.endswith(operator):
        return state.type[: -len(operator)].rstrip("."), operator
    domain, _, operator = state.type.rpartition(".")
    return domain, operator


def id_from_name(name: str) -> str:
    """The id that a node, input or output of this name gets on import, if no other has it."""
    id = re.sub(r"[^A-Za-z0-9_\-]+", "_", name)
    if not re.match(r"[A-Za-z_]", id):
        id = f"_{id}"
    return id[:120]


def has_common(node_type: type[Node] | None, name: str) -> bool:
    """Whether a node's parameter of that name is the common one, and no attribute of the operator."""
    declared = node_type.parameter(name) if node_type is not None else None
    return declared is None or declared.attribute is None


def input_ports(sources: Iterable[str], node_type: type[Node] | None, place: str) -> list[str]:
    """A node's input ports by position, up to the last connected one. GraphError for a port that it does not have."""
    connected = set(sources)
    ports: list[str] = []
    if node_type is None:
        last = max((index_of(port) for port in connected if belongs(port, UNKNOWN_INPUT)), default=-1)
        ports = [f"{UNKNOWN_INPUT}.{index}" for index in range(last + 1)]
    else:
        for port in node_type.inputs:
            if port.variadic:
                last = max((index_of(name) for name in connected if belongs(name, port.name)), default=-1)
                ports += [f"{port.name}.{index}" for index in range(last + 1)]
            else:
                ports.append(port.name)
    unknown = connected.difference(ports)
    if unknown:
        raise GraphError.at(place, min(unknown), "The node has no such input.", "Cut the wire.", "port")
    while ports and ports[-1] not in connected:
        ports.pop()
    return ports


def output_ports(graph: Graph, id: str, node_type: type[Node] | None) -> list[str]:
    """A node's output ports by position, an empty text for one that is not made.

    Made are the ports that are wired or have an own name, and all that are not optional.
    """
    state = graph.nodes[id]
    wired = {source.port for source, target in graph.wires_of(id) if source.node == id}
    named = list(state.parameters.get(NAMES) or ()) if has_common(node_type, NAMES) else []
    ports: list[str] = []
    needed = set(wired)
    if node_type is None:
        function = _function_of(graph, state)
        count = max([len(named), *(index_of(port) + 1 for port in wired if belongs(port, UNKNOWN_OUTPUT))])
        if function is not None:
            count = max(count, _outputs_of(function))
        ports = [f"{UNKNOWN_OUTPUT}.{index}" for index in range(count)]
        if function is not None:
            needed.update(ports)
    else:
        for port in node_type.outputs:
            if port.variadic:
                count = max([port.minimum, len(named) - len(ports), _implied_outputs(state, node_type)])
                count = max([count, *(index_of(name) + 1 for name in wired if belongs(name, port.name))])
                several = [f"{port.name}.{index}" for index in range(count)]
                ports += several
                needed.update(several)
            else:
                ports.append(port.name)
                if not port.optional:
                    needed.add(port.name)
    needed.update(port for port, name in zip(ports, named, strict=False) if name)
    while ports and ports[-1] not in needed:
        ports.pop()
    return [port if port in needed else "" for port in ports]


def _implied_outputs(state: NodeState, node_type: type[Node]) -> int:
    """How many outputs a node's subgraphs or parameters imply."""
    if node_type.domain:
        return 0
    bodies = [_outputs_of(body) for body in bodies_of(state)]
    match node_type.operator:
        case "If" | "Scan":
            return max(bodies, default=0)
        case "Loop":
            return max(bodies, default=1) - 1
        case "Split":
            count = state.parameters.get("num_outputs", 0)
            return count if isinstance(count, int) else 0
    return 0


def _outputs_of(graph: Graph) -> int:
    return sum(state.type == "Output" for state in graph.nodes.values())


def _function_of(graph: Graph, state: NodeState) -> Graph | None:
    functions = graph.section("functions")
    if not functions:
        return None
    domain, name = operator_of(state)
    overload = str(state.extra.get("overload") or "")
    body = functions.get(f"{domain}::{name}::{overload}" if overload else f"{domain}::{name}")
    return body if isinstance(body, Graph) else None


def value_names(graph: Graph, ports: Mapping[str, list[str]], outer: Mapping[str, Any]) -> dict[PortRef, str]:
    """The name in ONNX of every value that a graph makes, by its port.

    `ports` are the output ports of its operators by position; `outer` holds the names of the graphs around it, which
    names that nobody specified keep clear of. GraphError if two values have one name.
    """
    names: dict[PortRef, str] = {}
    makers: dict[str, PortRef] = {}
    unspecified: list[tuple[PortRef, str]] = []

    def give(port: PortRef, name: str) -> None:
        other = makers.setdefault(name, port)
        if other != port:
            own = "name" if graph.nodes[port.node].type in ("Input", "Initializer") else NAMES
            message = f"The name {name!r} is taken by {other}: the values of a graph have names of their own."
            raise GraphError.at(port.node, own, message, "Choose another.", "duplicate-name")
        names[port] = name

    for id, state in graph.nodes.items():
        if state.type in ("Input", "Initializer"):
            own = str(state.parameters.get("name") or "")
            if own:
                give(PortRef(id, "value"), own)
            else:
                unspecified.append((PortRef(id, "value"), id))
        elif id in ports:
            specified = state.parameters.get(NAMES) or ()
            for index, port in enumerate(ports[id]):
                if not port:
                    continue
                name = str(specified[index] or "") if index < len(specified) else ""
                if name:
                    give(PortRef(id, port), name)
                else:
                    given_out = _given_out_as(graph, PortRef(id, port))
                    unspecified.append((PortRef(id, port), given_out or f"{id}.{port}"))
    for value, wanted in unspecified:
        give(value, free_name(wanted, outer, makers) if outer else wanted)
    return names


def free_name(wanted: str, *taken: Container[str]) -> str:
    """The wanted name, with a number at its end if it is taken."""
    name, number = wanted, 1
    while any(name in names for names in taken):
        number += 1
        name = f"{wanted}_{number}"
    return name


def _given_out_as(graph: Graph, port: PortRef) -> str:
    """The name of the graph's output that a value feeds, if it feeds exactly one."""
    outputs = [target.node for target in graph.targets(port) if graph.nodes[target.node].type == "Output"]
    if len(outputs) != 1:
        return ""
    return str(graph.nodes[outputs[0]].parameters.get("name") or outputs[0])
