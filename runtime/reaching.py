"""The part of a graph that one node needs: what is run to see its values and no others."""

from __future__ import annotations

from runtime.captures import read_through_captures
from runtime.errors import GraphError
from runtime.graph import Graph, NodeState, PortRef
from runtime.ports import outputs_in_use


def needed_by(graph: Graph, node: str) -> set[str]:
    """The node and all that feed it, by wires or by values that subgraphs capture. GraphError if there is none."""
    if node not in graph.nodes:
        raise GraphError.at(node, "", "There is no such node to run to.", code="no-node")
    captured = read_through_captures(graph)
    needed, stack = {node}, [node]
    while stack:
        id = stack.pop()
        fresh = {source.node for source in graph.inputs_of(id).values()} | set(captured.get(id, ()))
        stack.extend(fresh - needed)
        needed |= fresh
    return needed


def only_for(graph: Graph, node: str) -> tuple[Graph, frozenset[str]]:
    """A graph of what a node needs, whose outputs are the node's, and the ids of the outputs that were added for that.

    The node's outputs are those that are wired, or else its first. GraphError if there is no such node.
    """
    needed = needed_by(graph, node)
    states = [state for id, state in graph.nodes.items() if id in needed]
    wires = [(source, target) for target, source in graph.wires.items() if target.node in needed]
    added: list[str] = []
    if graph.nodes[node].type != "Output":
        sources = [source for source in dict.fromkeys(graph.wires.values()) if source.node == node]
        for source in sources or _first_output(graph, node):
            id = graph.new_id("until")
            added.append(id)
            states.append(NodeState(id, "Output"))
            wires.append((source, PortRef(id, "value")))
    sections = {name: graph.section(name) for name in ("info", "opsets", "functions", "extra")}
    return Graph.build(states, wires, sections), frozenset(added)


def _first_output(graph: Graph, node: str) -> list[PortRef]:
    return [PortRef(node, port) for port in outputs_in_use(graph, graph.nodes[node], graph.node_type(node))[:1]]
