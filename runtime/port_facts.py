"""What there is to say of a port: what its declaration expects, what is there, and where that comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.drawing.words import type_text
from runtime.errors import Finding
from runtime.function_calls import port_title
from runtime.graph import Graph, PortRef
from runtime.node import Node, Port
from runtime.ports import belongs
from runtime.types import ElementType, ValueType, format_shape

SHOWN_KINDS = 6
"""A type variable's types are counted beyond so many."""


@dataclass(frozen=True, slots=True)
class PortFacts:
    """One port of one node. `title` is what people call it, `source` where an input's value comes from, `targets` where
    an output's goes."""

    ref: PortRef
    title: str
    is_output: bool
    declared: Port | None
    expected: str
    value: ValueType | None = None
    source: PortRef | None = None
    targets: tuple[PortRef, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def demand(self) -> str:
        """`required`, `optional` or `any number of values`."""
        if self.declared is None:
            return "unknown"
        if self.declared.variadic:
            return "any number of values" if self.declared.optional else f"{self.declared.minimum} or more values"
        return "optional" if self.declared.optional else "required"

    @property
    def there(self) -> str:
        """What is there, in a few words."""
        if self.value is None:
            return "nothing is connected"
        return type_text(self.value) or "a value of a type that is not known yet"


def expectation(node_type: type[Node], port: Port) -> str:
    """The declared type and shape: `T [tokens, experts]; T is float, float16 or bfloat16`."""
    shape = f" {format_shape(port.shape)}" if port.shape is not None else ""
    if port.same_shape_as:
        shape += f" of the shape of {port.same_shape_as}"
    kinds = node_type.type_constraints.get(port.type)
    if kinds is None:
        return ("any type" if port.type == "V" else short_kind(port.type)) + shape
    return f"{port.type}{shape}; {port.type} is {kinds_text(kinds)}"


def kinds_text(kinds: Sequence[str]) -> str:
    """`float`, `float16 or bfloat16`, `any tensor type`, or the first of many."""
    names = [short_kind(kind) for kind in kinds]
    tensors = {str(element) for element in ElementType}
    if len(tensors & set(names)) >= 14:
        beyond = any(name not in tensors for name in names)
        return "any type" if beyond else "any tensor type"
    if len(names) > SHOWN_KINDS:
        return f"{', '.join(names[:SHOWN_KINDS])} or {len(names) - SHOWN_KINDS} others"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def short_kind(kind: str) -> str:
    """`float` for `tensor(float)`; other types as they are."""
    return kind[7:-1] if kind.startswith("tensor(") and kind.endswith(")") else kind


def facts_of(graph: Graph, ref: PortRef, is_output: bool, findings: list[Finding]) -> PortFacts:
    """What there is to say of a port of a graph; `findings` are the graph's."""
    node_type = graph.node_type(ref.node)
    declared: Port | None = None
    if node_type is not None:
        declared = node_type.output_port(ref.port) if is_output else node_type.input_port(ref.port)
    expected = expectation(node_type, declared) if node_type is not None and declared is not None else "any type"
    source = None if is_output else graph.wires.get(ref)
    origin = ref if is_output else source
    return PortFacts(
        ref,
        port_title(graph, ref, is_output=is_output),
        is_output,
        declared,
        expected,
        graph.checker.type_of(origin) if origin is not None else None,
        source,
        graph.targets(ref) if is_output else (),
        tuple(finding for finding in findings if (finding.node, finding.port) == tuple(ref)),
    )


def ports_of(graph: Graph, id: str, findings: list[Finding]) -> list[PortFacts]:
    """All ports of a node in their order, inputs first: declared ones, and each of a variadic one that is in use."""
    node_type = graph.node_type(id)
    findings = [finding for finding in findings if finding.node == id]
    sources = graph.inputs_of(id)
    wired = list(dict.fromkeys(source.port for source, _ in graph.wires_of(id) if source.node == id))
    found: list[PortFacts] = []
    for is_output, used in ((False, list(sources)), (True, wired)):
        names = list(used)
        if node_type is not None:
            declared = node_type.outputs if is_output else node_type.inputs
            names = []
            for port in declared:
                own = [name for name in used if belongs(name, port.name)]
                names += own if port.variadic and own else [port.name]
            names += [name for name in used if name not in names]
        found += [facts_of(graph, PortRef(id, name), is_output, findings) for name in names]
    return found
