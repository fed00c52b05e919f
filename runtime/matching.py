"""Which nodes of two graphs stand for each other: by their names, then by what feeds them and what they feed."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from runtime.experts import FLOAT_TWIN
from runtime.graph import Graph, NodeState, PortRef
from runtime.nodes.terminals import Initializer, Input, Output
from runtime.tensors import Tensor

EXPERTS_HOOK = "expert_differences"
"""The function of a node type that compares the experts of two mixtures; see `runtime.mixture_differences`."""


@dataclass(frozen=True, slots=True)
class Matching:
    """The ids in the second graph by those in the first, and the operators that have no counterpart, in order.

    `by_structure` are the first graph's ids that were not found by name.
    """

    nodes: Mapping[str, str]
    by_structure: frozenset[str]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def is_mixture(graph: Graph, node: str) -> bool:
    """Whether a node is a mixture of experts that can be compared with another: quantized, or in floats."""
    return graph.nodes[node].type == FLOAT_TWIN or hasattr(graph.node_type(node), EXPERTS_HOOK)


def match(first: Graph, second: Graph) -> Matching:
    """The counterparts of the first graph's nodes.

    They have the same type, or are mixtures of experts both. First those with the same id (inputs, outputs: name) are
    found; then those that are fed by counterparts at all ports, or feed counterparts; then mixtures in order.
    """
    found = _Matcher(first, second)
    found.by_name()
    by_name = set(found.names)
    found.terminals()
    found.by_structure()
    found.mixtures()
    return Matching(
        found.names,
        frozenset(found.names) - by_name,
        tuple(id for id in first.order() if id not in found.names and _is_told(first, id)),
        tuple(id for id in second.order() if id not in found.back and _is_told(second, id)),
    )


def _is_told(graph: Graph, id: str) -> bool:
    """Weights belong to the operators that read them: they are not told of one by one."""
    return graph.nodes[id].type != Initializer.type_name()


class _Matcher:
    def __init__(self, first: Graph, second: Graph) -> None:
        self.first, self.second = first, second
        self.names: dict[str, str] = {}
        self.back: dict[str, str] = {}

    def pair(self, id: str, other: str) -> None:
        """Takes two nodes for each other, and the tensors that they read at the same port."""
        self.names[id], self.back[other] = other, id
        sources = self.second.inputs_of(other)
        for port, source in self.first.inputs_of(id).items():
            its = sources.get(port)
            if its is not None and self._is_free(source.node, its.node) and self._are_weights(source.node, its.node):
                self.names[source.node], self.back[its.node] = its.node, source.node

    def by_name(self) -> None:
        for id in self.first.nodes:
            if id in self.second.nodes and self._is_free(id, id) and self._fits(id, id):
                self.pair(id, id)
        for kind in (Input.type_name(), Output.type_name()):
            others = {_name(state): id for id, state in self.second.nodes.items() if state.type == kind}
            for id, state in self.first.nodes.items():
                other = others.get(_name(state), "")
                if state.type == kind and other and self._is_free(id, other):
                    self.pair(id, other)

    def terminals(self) -> None:
        """Inputs and outputs with other names, in order, if there are as many."""
        for kind in (Input.type_name(), Output.type_name()):
            mine = [id for id, state in self.first.nodes.items() if state.type == kind and id not in self.names]
            its = [id for id, state in self.second.nodes.items() if state.type == kind and id not in self.back]
            if len(mine) == len(its):
                for id, other in zip(mine, its, strict=True):
                    self.pair(id, other)

    def by_structure(self) -> None:
        """Goes from the inputs on, then from the outputs back, until nothing more is found."""
        count = -1
        while count < len(self.names):
            count = len(self.names)
            for forward in (True, False):
                candidates: dict[Hashable, list[str]] = {}
                for other in self.second.order():
                    if other not in self.back and _is_operator(self.second, other):
                        # Keys are in the second graph's ids, which are their own counterparts here.
                        key = self._key(self.second, other, None, forward)
                        candidates.setdefault(key, []).append(other)
                ids = self.first.order()
                for id in ids if forward else reversed(ids):
                    if id in self.names or not _is_operator(self.first, id):
                        continue
                    key = self._key(self.first, id, self.names, forward)
                    fitting = [other for other in candidates.get(key, ()) if other not in self.back] if key else []
                    if fitting:
                        self.pair(id, max(fitting, key=lambda other, id=id: self._likeness(id, other)))  # type: ignore[misc]

    def mixtures(self) -> None:
        mine = [id for id in self.first.order() if id not in self.names and is_mixture(self.first, id)]
        its = [id for id in self.second.order() if id not in self.back and is_mixture(self.second, id)]
        if mine and len(mine) == len(its):
            for id, other in zip(mine, its, strict=True):
                self.pair(id, other)
            self.by_structure()

    def _key(self, graph: Graph, id: str, names: Mapping[str, str] | None, forward: bool) -> Hashable:
        """What tells a node by its neighbours' ids in the second graph; None where one is not known."""
        kind = "mixture" if is_mixture(graph, id) else graph.nodes[id].type
        wires = []
        for mine, its in self._neighbours(graph, id, forward):
            other = its.node if names is None else names.get(its.node)
            if names is None and its.node not in self.back:
                other = None
            if other is None:
                if forward:
                    return None
                continue
            wires.append((mine, other, its.port))
        return (kind, frozenset(wires)) if wires or forward else None

    @staticmethod
    def _neighbours(graph: Graph, id: str, forward: bool) -> Iterator[tuple[str, PortRef]]:
        if forward:
            for port, source in graph.inputs_of(id).items():
                if graph.nodes[source.node].type != Initializer.type_name():
                    yield port, source
        else:
            for source, target in graph.wires_of(id):
                if source.node == id:
                    yield source.port, target

    def _is_free(self, id: str, other: str) -> bool:
        return id not in self.names and other not in self.back

    def _fits(self, id: str, other: str) -> bool:
        if is_mixture(self.first, id) and is_mixture(self.second, other):
            return True
        if self.first.nodes[id].type != self.second.nodes[other].type:
            return False
        return _is_operator(self.first, id) or self._are_weights(id, other) or _tensor(self.first, id) is None

    def _are_weights(self, id: str, other: str) -> bool:
        """Whether both are tensors that can be compared: codes are not what floats are."""
        mine, its = _tensor(self.first, id), _tensor(self.second, other)
        if mine is None or its is None or mine.shape != its.shape:
            return False
        return mine.element == its.element or (mine.element.is_float and its.element.is_float)

    def _likeness(self, id: str, other: str) -> tuple[bool, int]:
        """How much two nodes of one type have in common: parameters, then tensors."""
        mine, its = self.first.nodes[id], self.second.nodes[other]
        sources, others = self.first.inputs_of(id), self.second.inputs_of(other)
        tensors = [
            (_tensor(self.first, source.node), _tensor(self.second, others[port].node))
            for port, source in sources.items()
            if port in others
        ]
        return _plain(mine) == _plain(its), sum(a is not None and a == b for a, b in tensors)


def _is_operator(graph: Graph, id: str) -> bool:
    return graph.nodes[id].type not in (Input.type_name(), Output.type_name(), Initializer.type_name())


def _name(state: NodeState) -> str:
    return str(state.parameters.get("name") or state.id)


def _tensor(graph: Graph, id: str) -> Tensor | None:
    state = graph.nodes[id]
    tensor = state.parameters.get("tensor") if state.type == Initializer.type_name() else None
    return tensor if isinstance(tensor, Tensor) else None


def _plain(state: NodeState) -> dict[str, str]:
    """Parameters as text, less the names."""
    return {key: str(value) for key, value in state.parameters.items() if key not in ("name", "specified_outputs_name")}
