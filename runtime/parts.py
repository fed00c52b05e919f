"""A graph some of whose nodes run elsewhere: what runs here before, between and after them.

A document says which: `layout.parts` gives for each such node the number of the part that it belongs to, and a part is
what one worker holds.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.backends.inputs import Acceptor
from runtime.captures import read_through_captures
from runtime.errors import Finding, GraphError, Severity
from runtime.graph import Graph, NodeState, PortRef
from runtime.guard import input_names
from runtime.isolation import is_overridable
from runtime.nodes.terminals import Initializer, Input, Output
from runtime.onnx_names import is_terminal
from runtime.session import Session
from runtime.types import TensorType, ValueType

PARTS = "parts"

Call = tuple[str, Mapping[str, Any]]
"""A node that runs elsewhere, and the values of its inputs by name."""
Steps = Generator[Sequence[Call], Sequence[Mapping[str, Any]], dict[str, Any]]
"""A run that stops at calls, goes on when it is sent what they gave, and returns the outputs."""


def parts_of(graph: Graph) -> dict[str, int]:
    """The part of each node that belongs to one; empty if the graph is not spread. GraphError if it says nonsense."""
    stored = graph.section("layout").get(PARTS)
    if stored is None:
        return {}
    if not isinstance(stored, Mapping) or not all(
        type(part) is int and 0 <= part < 1 << 16 for part in stored.values()
    ):
        raise GraphError(Finding("layout.parts gives for node ids the numbers of parts, from 0 on.", code="parts"))
    found = {str(id): part for id, part in stored.items() if id in graph.nodes}
    for id in found:
        if is_terminal(graph.nodes[id]):
            text = f"layout.parts says that a worker has it; it is an {graph.nodes[id].type}, and no operator."
            raise GraphError.at(id, "", text, "Take it out of layout.parts.", "parts")
    return found


def alone(graph: Graph, node: str) -> Graph:
    """One node with its initializers; its other inputs are inputs of the graph, called after its ports, and its outputs
    are outputs."""
    states, wires = [graph.nodes[node]], []
    for port, source in graph.inputs_of(node).items():
        target = PortRef(node, port)
        if _is_initializer(graph.nodes[source.node]):
            states.append(graph.nodes[source.node])
            wires.append((source, target))
        else:
            states.append(_given(_other(graph, port), port, graph.checker.type_of(source)))
            wires.append((PortRef(states[-1].id, "value"), target))
    for port in dict.fromkeys(s.port for s in graph.wires.values() if s.node == node):
        id = _other(graph, f"{port}_out")
        states.append(NodeState(id, Output.type_name(), {"name": port}))
        wires.append((PortRef(node, port), PortRef(id, "value")))
    states = list({state.id: state for state in states}.values())
    return Graph.build(states, wires, {name: graph.section(name) for name in ("opsets", "functions")})


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs here in one go: a graph, the ports whose values it reads by the name of its input, and those that it
    gives by the name of its output; and the nodes that run elsewhere after it."""

    graph: Graph
    reads: Mapping[str, PortRef]
    gives: Mapping[str, PortRef]
    elsewhere: tuple[str, ...]


def stages(graph: Graph, elsewhere: Collection[str]) -> list[Stage]:
    """A graph cut at the nodes that run elsewhere. GraphError where a subgraph reads a value across a cut."""
    captured = read_through_captures(graph)
    level: dict[str, int] = {}
    for id in graph.order():
        sources = {source.node for source in graph.inputs_of(id).values()} | set(captured.get(id, ()))
        level[id] = max((level[source] + (source in elsewhere) for source in sources), default=0)
    for id, sources in captured.items():
        for source in sources:
            if not _is_terminal(graph.nodes[source]) and (level[source] != level[id] or source in elsewhere):
                text = f"a subgraph reads {source} from outside, across the place where the graph is cut."
                raise GraphError.at(id, "", text, "Wire the value into the node.", "parts")
    last = max(level.values(), default=0)
    return [_stage(graph, level, elsewhere, number, captured) for number in range(last + 1)]


def _stage(
    graph: Graph,
    level: Mapping[str, int],
    elsewhere: Collection[str],
    number: int,
    captured: Mapping[str, Collection[str]],
) -> Stage:
    here = {
        id for id in graph.nodes if level[id] == number and id not in elsewhere and not _is_terminal(graph.nodes[id])
    }
    own: dict[str, NodeState] = {}
    wires: list[tuple[PortRef, PortRef]] = []
    reads: dict[str, PortRef] = {}
    states = [graph.nodes[id] for id in graph.nodes if id in here]
    for reader in here:
        for id in captured.get(reader, ()):
            if _is_terminal(graph.nodes[id]):
                own[id] = graph.nodes[id]
    for target, source in graph.wires.items():
        if target.node not in here:
            continue
        if _is_terminal(graph.nodes[source.node]):
            own[source.node] = graph.nodes[source.node]
        elif source.node not in here:
            name = next((name for name, port in reads.items() if port == source), None)
            if name is None:
                name = _other(graph, f"{source.node}_{source.port}".replace(".", "_"))
                reads[name] = source
                states.append(_given(name, name, graph.checker.type_of(source)))
            source = PortRef(name, "value")
        wires.append((source, target))
    gives: dict[str, PortRef] = {}
    wanted = [
        source
        for target, source in graph.wires.items()
        if source.node in here and (level[target.node] > number or target.node in elsewhere)
    ]
    for source in dict.fromkeys(wanted):
        id = _other(graph, f"{source.node}_{source.port}_out".replace(".", "_"))
        gives[id] = source
        states.append(NodeState(id, Output.type_name()))
        wires.append((source, PortRef(id, "value")))
    sections = {name: graph.section(name) for name in ("opsets", "functions", "extra")}
    nodes = tuple(id for id in graph.order() if id in elsewhere and level[id] == number)
    return Stage(Graph.build([*own.values(), *states], wires, sections), reads, gives, nodes)


class PartedSession:
    """A graph that runs here but for some of its nodes."""

    def __init__(
        self,
        graph: Graph,
        nodes: Collection[str],
        backend: Literal["onnxruntime", "numpy"] = "onnxruntime",
        threads: int | None = None,
        precision: Literal["exact", "fast"] = "exact",
    ) -> None:
        """GraphError if the graph has errors, or cannot be cut at these nodes."""
        errors = [finding for finding in graph.checker.findings() if finding.severity is Severity.ERROR]
        if errors:
            raise GraphError(errors)
        self._graph = graph.copy()
        self.inputs: dict[str, ValueType] = {
            name: graph.checker.type_of(PortRef(id, "value")) for id, name in input_names(graph).items()
        }
        given = {PortRef(id, "value"): _name(state) for id, state in graph.nodes.items() if is_overridable(state)}
        self.inputs |= {name: graph.checker.type_of(port) for port, name in given.items()}
        self.optional = frozenset(given.values())
        self._defaults = {name: graph.nodes[port.node].parameters["tensor"] for port, name in given.items()}
        self._stages = [
            (stage, Session(stage.graph, backend, threads=threads, precision=precision))
            for stage in stages(self._graph, nodes)
        ]
        self._inputs = given | {PortRef(id, "value"): name for id, name in input_names(graph).items()}
        self._outputs = {
            _name(state): graph.wires[PortRef(id, "value")]
            for id, state in graph.nodes.items()
            if state.type == Output.type_name()
        }
        self._acceptor = Acceptor(self.inputs, self.optional)

    def steps(self, inputs: Mapping[str, Any]) -> Steps:
        """Runs the graph once: gives the calls of nodes that run elsewhere, is sent what they gave, in the same order,
        and returns the outputs by name. Several runs may be under way."""
        feeds = self._acceptor.accept(inputs)
        values: dict[PortRef, Any] = {
            port: feeds[name] if name in feeds else self._defaults[name].array() for port, name in self._inputs.items()
        }
        results: dict[str, Any] = {}
        for stage, session in self._stages:
            given = {name: values[port] for name, port in stage.reads.items()}
            given |= {name: feeds[name] for name in session.inputs if name in feeds and name not in given}
            outputs = session.forward(given) if session.outputs else {}
            values |= {port: outputs[name] for name, port in stage.gives.items()}
            results |= {name: outputs[name] for name in self._outputs if name in outputs}
            if stage.elsewhere:
                calls = [(node, self._inputs_of(node, values)) for node in stage.elsewhere]
                for (node, _), found in zip(calls, (yield calls), strict=True):
                    values |= {PortRef(node, port): value for port, value in found.items()}
        for name, source in self._outputs.items():
            if name not in results:
                results[name] = values[source]
        return {name: results[name] for name in self._outputs}

    def _inputs_of(self, node: str, values: Mapping[PortRef, Any]) -> dict[str, Any]:
        return {
            port: values[source]
            for port, source in self._graph.inputs_of(node).items()
            if not _is_initializer(self._graph.nodes[source.node])
        }


def _name(state: NodeState) -> str:
    """The name of a terminal's value outside the graph."""
    return str(state.parameters.get("name") or state.id)


def _is_initializer(state: NodeState) -> bool:
    return state.type == Initializer.type_name() and not is_overridable(state)


def _is_terminal(state: NodeState) -> bool:
    """Whether every stage that reads this node has it."""
    return state.type == Input.type_name() or state.type == Initializer.type_name()


def _given(id: str, name: str, type: ValueType) -> NodeState:
    """An input in a place where a wire was cut."""
    parameters: dict[str, Any] = {"name": name, "type": str(type)}
    if isinstance(type, TensorType):
        parameters = {"name": name, "type": f"tensor({type.element})" if type.element else "tensor(float)"}
        if type.shape is not None:
            parameters["shape"] = [size if size is not None else f"{id}_{axis}" for axis, size in enumerate(type.shape)]
    return NodeState(id, Input.type_name(), parameters)


def _other(graph: Graph, id: str) -> str:
    """An id that no node of the graph has."""
    while id in graph.nodes:
        id += "_"
    return id
