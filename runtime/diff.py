"""What differs between two graphs in meaning: not where nodes stand, nor in which order operators are listed.

Nodes are matched by id, and those left over by what they are and what feeds them, so that a renamed node is one change.
A parameter that is not set equals one that is set to its declared default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from runtime import catalog
from runtime.attributes import Typed
from runtime.captures import bodies_of
from runtime.graph import ABSENT, Graph, NodeState, PortRef
from runtime.node import Node
from runtime.nodes.terminals import Input, Output
from runtime.tensors import AbsentTensor, Tensor
from runtime.types import ElementType, TensorType

TERMINALS = ("Input", "Output", "Initializer", "Capture")


class ChangeKind(StrEnum):
    """What a change is about."""

    NODE_ADDED = "node added"
    NODE_REMOVED = "node removed"
    NODE_RENAMED = "node renamed"
    NODE_RETYPED = "node retyped"
    PARAMETER = "parameter"
    TENSOR = "tensor"
    WIRE_ADDED = "wire added"
    WIRE_REMOVED = "wire removed"
    OPSET = "opset"
    FUNCTION_ADDED = "function added"
    FUNCTION_REMOVED = "function removed"
    INFO = "info"
    EXTRA = "unknown key"
    ORDER = "order"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; `str()` is a sentence.

    `place` is a node's id, `node.parameter`, a wire's target or a key; in nested graphs it begins with where those are.
    `old` and `new` are the values, ABSENT where there is none.
    """

    kind: ChangeKind
    place: str
    old: Any = ABSENT
    new: Any = ABSENT
    detail: str = ""

    def __str__(self) -> str:
        match self.kind:
            case ChangeKind.NODE_ADDED:
                return f"{self.place}: added ({self.new})."
            case ChangeKind.NODE_REMOVED:
                return f"{self.place}: removed ({self.old})."
            case ChangeKind.NODE_RENAMED:
                return f"{self.place}: renamed to {self.new}."
            case ChangeKind.NODE_RETYPED:
                return f"{self.place}: type {self.old} -> {self.new}."
            case ChangeKind.WIRE_ADDED:
                return f"{self.place}: wire from {self.new} added."
            case ChangeKind.WIRE_REMOVED:
                return f"{self.place}: wire from {self.old} removed."
            case ChangeKind.FUNCTION_ADDED:
                return f"{self.place}: function added."
            case ChangeKind.FUNCTION_REMOVED:
                return f"{self.place}: function removed."
            case ChangeKind.TENSOR:
                return f"{self.place}: {self.detail}."
        text = f"{self.place}: {_show(self.old)} -> {_show(self.new)}"
        return f"{text} ({self.detail})." if self.detail else f"{text}."


def diff(a: Graph, b: Graph) -> list[Change]:
    """The changes that lead from `a` to `b`; empty if they mean the same. Nested graphs are compared too."""
    return list(_graphs(a, b, ""))


def _graphs(a: Graph, b: Graph, prefix: str, *, is_subgraph: bool = False) -> Iterator[Change]:
    yield from _entries(a.section("info"), b.section("info"), ChangeKind.INFO, prefix)
    if not is_subgraph:  # a subgraph has the operator sets of the graph around it
        yield from _entries(*_opsets(a, b), ChangeKind.OPSET, prefix + "opset ")
    for key in _union(a.section("functions"), b.section("functions")):
        old, new = a.section("functions").get(key), b.section("functions").get(key)
        if isinstance(old, Graph) and isinstance(new, Graph):
            yield from _graphs(old, new, f"{prefix}{key}/")
        elif old is None:
            yield Change(ChangeKind.FUNCTION_ADDED, prefix + key, new=new)
        elif new is None:
            yield Change(ChangeKind.FUNCTION_REMOVED, prefix + key, old=old)
    names = _match(a, b)  # by a's ids
    back = {new: old for old, new in names.items()}
    for id, state in a.nodes.items():
        if id not in names:
            yield Change(ChangeKind.NODE_REMOVED, prefix + id, old=state.type)
            continue
        other = b.nodes[names[id]]
        if other.id != id:
            yield Change(ChangeKind.NODE_RENAMED, prefix + id, old=id, new=other.id)
        types = a.node_type(id), b.node_type(other.id)
        if state.type == other.type == Output.type_name():
            state, other = _declared(a, state, other), _declared(b, other, state)
        yield from _nodes(state, other, *types, prefix + other.id)
    for kind in (Input.type_name(), Output.type_name()):
        old = [names[id] for id, state in a.nodes.items() if state.type == kind and id in names]
        new = [id for id, state in b.nodes.items() if state.type == kind and id in back]
        if old != new:
            yield Change(ChangeKind.ORDER, f"{prefix}{kind}s", old=old, new=new)
    for id, state in b.nodes.items():
        if id not in back:
            yield Change(ChangeKind.NODE_ADDED, prefix + id, new=state.type)
    yield from _wires(a, b, names, prefix)
    yield from _entries(a.section("extra"), b.section("extra"), ChangeKind.EXTRA, prefix)


def _opsets(a: Graph, b: Graph) -> tuple[dict[str, int], dict[str, int]]:
    """The versions of both graphs' operator sets; one that is named in one graph only is the newest in the other."""
    first, second = dict(a.opsets), dict(b.opsets)
    for domain in _union(first, second):
        for mine, graph in ((first, a), (second, b)):
            if domain not in mine and _uses(graph, domain):
                mine[domain] = catalog.newest_opset(domain)
    return first, second


def _uses(graph: Graph, domain: str) -> bool:
    """Whether a graph, or one inside it, has nodes of a domain."""
    return any(
        (state.type.rpartition(".")[0] == domain and state.type not in TERMINALS)
        or any(_uses(body, domain) for body in bodies_of(state))
        for state in graph.nodes.values()
    )


def _declared(graph: Graph, output: NodeState, other: NodeState) -> NodeState:
    """An output with type and shape as they are inferred, where it does not declare them and the other one does."""
    if all(key in output.parameters or key not in other.parameters for key in ("type", "shape")):
        return output
    source = graph.inputs_of(output.id).get("value")
    known = graph.checker.type_of(source) if source is not None else None
    if not isinstance(known, TensorType) or known.element is None or known.shape is None:
        return output
    inferred = {"type": f"tensor({known.element})", "shape": list(known.shape)}
    wanted = {key: value for key, value in inferred.items() if key in other.parameters}
    return replace(output, parameters=wanted | dict(output.parameters))


def _nodes(
    a: NodeState, b: NodeState, a_type: type[Node] | None, b_type: type[Node] | None, place: str
) -> Iterator[Change]:
    if a.type != b.type:
        yield Change(ChangeKind.NODE_RETYPED, place, old=a.type, new=b.type)
    for key in _union(a.parameters, b.parameters):
        old, new = a.parameters.get(key, ABSENT), b.parameters.get(key, ABSENT)
        if not _same(_effective(old, key, a_type), _effective(new, key, b_type)):
            yield from _values(old, new, ChangeKind.PARAMETER, f"{place}.{key}")
    yield from _entries(a.extra, b.extra, ChangeKind.EXTRA, f"{place}.")


def _effective(value: Any, key: str, node_type: type[Node] | None) -> Any:
    """What a parameter means: an unset one its default, a whole number for a float parameter that float."""
    declared = node_type.parameter(key) if node_type is not None else None
    if declared is None:
        return value
    if value is ABSENT or value is None:
        value = ABSENT if declared.default is None else declared.default
    if declared.kind == "float" and isinstance(value, int):
        return float(value)
    if declared.kind == "int" and isinstance(value, bool):
        return int(value)
    return value


def _wires(a: Graph, b: Graph, names: Mapping[str, str], prefix: str) -> Iterator[Change]:
    """Wires of `a` that `b` lacks, then those that it has more, by the ids of `b` where it has the nodes."""

    def renamed(port: PortRef) -> PortRef:
        return PortRef(names.get(port.node, port.node), port.port)

    before = {renamed(target): renamed(source) for target, source in a.wires.items()}
    for target, source in before.items():
        if b.wires.get(target) != source:
            yield Change(ChangeKind.WIRE_REMOVED, f"{prefix}{target}", old=source)
    for target, source in b.wires.items():
        if before.get(target) != source:
            yield Change(ChangeKind.WIRE_ADDED, f"{prefix}{target}", new=source)


def _entries(a: Mapping[str, Any], b: Mapping[str, Any], kind: ChangeKind, prefix: str) -> Iterator[Change]:
    for key in _union(a, b):
        old, new = a.get(key, ABSENT), b.get(key, ABSENT)
        if not _same(old, new):
            yield from _values(old, new, kind, prefix + (key or '""'))


def _values(old: Any, new: Any, kind: ChangeKind, place: str) -> Iterator[Change]:
    """The changes between two values that are not the same."""
    if isinstance(old, Graph) and isinstance(new, Graph):
        yield from _graphs(old, new, f"{place}/", is_subgraph=True)
    elif isinstance(old, Tensor) and isinstance(new, Tensor):
        yield Change(ChangeKind.TENSOR, place, old, new, _tensors(old, new))
    elif (
        isinstance(old, list | tuple)
        and isinstance(new, list | tuple)
        and len(old) == len(new)
        and any(isinstance(item, Graph | Tensor) for item in (*old, *new))
    ):
        for index, (first, second) in enumerate(zip(old, new, strict=True)):
            if not _same(first, second):
                yield from _values(first, second, kind, f"{place}.{index}")
    else:
        kinds = (type(old).__name__, type(new).__name__)
        detail = f"{kinds[0]} -> {kinds[1]}" if _show(old) == _show(new) and kinds[0] != kinds[1] else ""
        yield Change(kind, place, old, new, detail)


def _same(a: Any, b: Any) -> bool:
    """Whether two values mean the same: NaN equals NaN, 1 is not 1.0, a tuple is a list, graphs without layout."""
    if a is b:
        return True
    a, b = (value.item() if isinstance(value, np.generic) else value for value in (a, b))
    match a, b:
        case ((list() | tuple()), (list() | tuple())):
            return len(a) == len(b) and all(map(_same, a, b))
        case Mapping(), Mapping():
            return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
        case Typed(), Typed():
            return a.kind == b.kind and _same(a.value, b.value)
        case Graph(), Graph():
            return next(_graphs(a, b, "", is_subgraph=True), None) is None
        case float(), float():
            # 0.0 and -0.0 are two numbers to an operator.
            return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (math.isnan(a) and math.isnan(b))
        case Tensor(), Tensor():
            return a == b
    return type(a) is type(b) and bool(a == b)


# -- matching -----------------------------------------------------------------------------------------------------


def _match(a: Graph, b: Graph) -> dict[str, str]:
    """The id in `b` of every node of `a` that `b` has: the same id, else the same content fed by the same nodes."""
    names = {id: id for id in a.nodes if id in b.nodes}
    left = {id for id in b.nodes if id not in a.nodes}
    if not left or len(names) == len(a.nodes):
        return names
    candidates: dict[Any, list[str]] = {}
    for id in b.order():
        if id in left:
            candidates.setdefault(_feed(b, id, {}), []).append(id)
    for id in a.order():
        if id in names:
            continue
        for other in candidates.get(_feed(a, id, names), ()):
            if other in left and _alike(a.nodes[id], b.nodes[other]):
                names[id] = other
                left.discard(other)
                break
    return names


def _feed(graph: Graph, id: str, names: Mapping[str, str]) -> Any:
    """What tells a node by its type and by what feeds it."""
    sources = graph.inputs_of(id)
    wires = frozenset((port, names.get(source.node, source.node), source.port) for port, source in sources.items())
    return graph.nodes[id].type, wires


def _alike(a: NodeState, b: NodeState) -> bool:
    return _same(dict(a.parameters), dict(b.parameters)) and _same(dict(a.extra), dict(b.extra))


# -- sentences ----------------------------------------------------------------------------------------------------


def _tensors(a: Tensor, b: Tensor) -> str:
    """How two tensors differ."""
    if a.type != b.type:
        return f"{a.type} -> {b.type}"
    digests = f"SHA-256 {a.digest[:8]} -> {b.digest[:8]}"
    if isinstance(a, AbsentTensor) or isinstance(b, AbsentTensor):
        return f"{a.type}: {digests}"
    first, second = a.array().reshape(-1), b.array().reshape(-1)
    if a.element is ElementType.STRING:
        count = sum(x != y for x, y in zip(first, second, strict=True))
        return f"{a.type}: {count} of {a.size} texts differ ({digests})"
    count, largest, at = _largest_difference(first, second, a.element)
    if not count:
        return f"{a.type}: the same numbers in other bits ({digests})"
    index = [int(i) for i in np.unravel_index(at, a.shape)]
    return f"{a.type}: {count} of {a.size} elements differ, by up to {largest:.6g} at {index} ({digests})"


def _largest_difference(a: np.ndarray, b: np.ndarray, element: ElementType) -> tuple[int, float, int]:
    """How many elements differ, the largest difference (NaN if one of the two is none), and where it is."""
    wide = np.complex128 if element in (ElementType.COMPLEX64, ElementType.COMPLEX128) else np.float64
    count, largest, at = 0, -1.0, 0
    for start in range(0, a.size, 1 << 20):
        x, y = a[start : start + (1 << 20)], b[start : start + (1 << 20)]
        different = (x != y) & ~((x != x) & (y != y))
        count += int(np.count_nonzero(different))
        if not different.any() or math.isnan(largest):
            continue
        places = np.flatnonzero(different)
        with np.errstate(invalid="ignore", over="ignore"):
            sizes = np.abs(x[places].astype(wide) - y[places].astype(wide))
        here = int(np.argmax(sizes))  # the first NaN if there is one
        if math.isnan(sizes[here]) or sizes[here] > largest:
            largest, at = float(sizes[here]), start + int(places[here])
    return count, largest, at


def _show(value: Any) -> str:
    if value is ABSENT:
        return "not set"
    text = f"{value.kind} {value.value!r}" if isinstance(value, Typed) else repr(value)
    if isinstance(value, Graph):
        text = f"a graph of {len(value.nodes)} nodes"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _union(a: Mapping[str, Any], b: Mapping[str, Any]) -> Sequence[str]:
    """The keys of both, in their order."""
    return list(dict.fromkeys((*a, *b)))
