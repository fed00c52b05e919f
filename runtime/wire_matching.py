"""Which wires of two graphs stand for each other, once their nodes are matched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.graph import Graph, PortRef
from runtime.matching import Matching
from runtime.nodes.terminals import Initializer, Input, Output
from runtime.ports import outputs_in_use


@dataclass(frozen=True, slots=True)
class Rival:
    """A wire of the first graph for which there are two in the second.

    `usual` comes from the counterpart of its node; `other` ends where it ends, but comes from a node that the first
    graph has not, which may undo what is different in the counterpart, or prepare what is different behind the wire.
    Only the values tell which of the two it is.
    """

    first: PortRef
    usual: PortRef
    other: PortRef


@dataclass(frozen=True, slots=True)
class WireMatching:
    """The first graph's wires by the second one's, each called by the output where it starts; inputs are left out."""

    pairs: dict[PortRef, PortRef]
    rivals: tuple[Rival, ...]


def match_wires(first: Graph, second: Graph, matching: Matching) -> WireMatching:
    """Pairs what comes from the same outputs of matched nodes, then what goes to the same inputs of matched nodes."""
    pairs: dict[PortRef, PortRef] = {}
    for mine, its in matching.nodes.items():
        if second.nodes[its].type not in (Input.type_name(), Output.type_name()):
            known = set(_outputs(first, mine))
            pairs |= {PortRef(its, port): PortRef(mine, port) for port in _outputs(second, its) if port in known}
    back = {mine: its for its, mine in pairs.items()}
    rivals: dict[PortRef, Rival] = {}
    counterparts = set(matching.nodes.values())
    for source, other in _at_the_same_inputs(first, second, matching):
        if other in pairs:
            continue
        if source not in back:
            pairs[other], back[source] = source, other
        elif back[source].node in counterparts:
            rivals.setdefault(source, Rival(source, back[source], other))
    return WireMatching(pairs, tuple(rivals.values()))


def _outputs(graph: Graph, id: str) -> tuple[str, ...]:
    if graph.nodes[id].type == Initializer.type_name():
        return ("value",)
    return outputs_in_use(graph, graph.nodes[id], graph.node_type(id))


def _at_the_same_inputs(first: Graph, second: Graph, matching: Matching) -> Iterator[tuple[PortRef, PortRef]]:
    """What ends at the same port of two matched nodes, unless it is an input in one graph or a tensor in both."""
    for mine, its in matching.nodes.items():
        sources = first.inputs_of(mine)
        for port, other in second.inputs_of(its).items():
            if port not in sources:
                continue
            kinds = {first.nodes[sources[port].node].type, second.nodes[other.node].type}
            if Input.type_name() not in kinds and kinds != {Initializer.type_name()}:
                yield sources[port], other
