"""Nodes of a graph with given values at their inputs: what they make of these, apart from what came before them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from runtime.captures import read_through_captures
from runtime.graph import Graph, NodeState, PortRef
from runtime.nodes.terminals import Initializer, Input, Output
from runtime.types import ElementType


def computed_from_inputs(graph: Graph) -> frozenset[str]:
    """The nodes whose values depend on the graph's inputs: all others have the same in every run."""
    readers: dict[str, set[str]] = {}
    for reader, sources in read_through_captures(graph).items():
        for source in sources:
            readers.setdefault(source, set()).add(reader)
    stack = [id for id, state in graph.nodes.items() if state.type == Input.type_name() or is_overridable(state)]
    found = set(stack)
    while stack:
        id = stack.pop()
        fresh = {target.node for source, target in graph.wires_of(id) if source.node == id} | readers.get(id, set())
        stack.extend(fresh - found)
        found |= fresh
    return frozenset(found)


def is_overridable(state: NodeState) -> bool:
    """Whether a node is a tensor that may also be given as an input."""
    return state.type == Initializer.type_name() and bool(state.parameters.get("overridable"))


@dataclass(frozen=True, slots=True)
class Segment:
    """What is run to see a node alone: `nodes` (and the node itself), given values at `sources`."""

    nodes: frozenset[str]
    sources: frozenset[PortRef]


def segment(
    graph: Graph, node: str, is_given: Callable[[PortRef], bool], captured: Mapping[str, Collection[str]]
) -> Segment | None:
    """The part of a graph behind the nearest wires whose values are given.

    `captured` is `read_through_captures` of the graph. None where a part of it reads values through a subgraph, which
    no wire brings.
    """
    nodes, sources, stack = {node}, set[PortRef](), [node]
    while stack:
        id = stack.pop()
        if captured.get(id):
            return None
        for source in graph.inputs_of(id).values():
            if is_given(source):
                sources.add(source)
            elif source.node not in nodes:
                nodes.add(source.node)
                stack.append(source.node)
    return Segment(frozenset(nodes), frozenset(sources))


@dataclass(frozen=True, slots=True)
class Isolated:
    """A graph of nodes that do not feed each other, the values of its `inputs`, and its outputs' names by port."""

    graph: Graph
    inputs: Mapping[str, np.ndarray] = field(repr=False)
    outputs: Mapping[PortRef, str]


def isolate(
    graph: Graph, segments: Collection[Segment], values: Mapping[PortRef, np.ndarray], wanted: Collection[PortRef]
) -> Isolated:
    """The nodes of all segments in one graph: wires from a port of `values` are cut, and bring these values."""
    nodes = frozenset[str]().union(*(part.nodes for part in segments))
    names: dict[PortRef, str] = {}
    states = [state for id, state in graph.nodes.items() if id in nodes]
    wires: list[tuple[PortRef, PortRef]] = []
    inputs: dict[str, np.ndarray] = {}

    def fresh(word: str, number: int) -> str:
        name = f"{word}_{number}"
        while name in graph.nodes:
            name += "_"
        return name

    for target, source in graph.wires.items():
        if target.node not in nodes or graph.nodes[target.node].type == Output.type_name():
            continue
        if source in values:
            if source not in names:
                id = names[source] = fresh("given", len(names))
                inputs[id] = values[source]
                kind = {"type": f"tensor({ElementType.of(values[source].dtype)})", "shape": list(values[source].shape)}
                states.append(NodeState(id, Input.type_name(), kind))
            source = PortRef(names[source], "value")
        wires.append((source, target))
    outputs: dict[PortRef, str] = {}
    for port in dict.fromkeys(wanted):
        id = outputs[port] = fresh("found", len(outputs))
        states.append(NodeState(id, Output.type_name()))
        wires.append((port, PortRef(id, "value")))
    sections = {name: graph.section(name) for name in ("opsets", "functions")}
    return Isolated(Graph.build(states, wires, sections), inputs, outputs)
