"""What is wrong with a node by its declaration alone: ports, type variables, parameters; and names that clash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from runtime.attributes import Typed
from runtime.errors import Finding, Severity
from runtime.graph import Graph, NodeState, PortRef
from runtime.node import Node, NodeContext, Parameter
from runtime.nodes.terminals import declared_type
from runtime.ports import belongs
from runtime.tensors import AbsentTensor, Tensor
from runtime.types import OptionalType, TensorType, ValueType, format_shape, kind_of


def finding_at(
    node: str,
    port: str,
    message: str,
    remedy: str = "",
    *,
    severity: Severity = Severity.ERROR,
    code: str,
) -> Finding:
    """A finding about one port or parameter of one node."""
    return Finding(message, node, port, severity, remedy, code)


def shown(type_: ValueType) -> str:
    """A type as messages show it: dimensions that nothing tells are question marks."""
    if not isinstance(type_, TensorType):
        return str(type_)
    shape = type_.shape
    if shape is not None:
        shape = tuple(None if isinstance(size, str) and size.startswith("_") else size for size in shape)
    element = "?" if type_.element is None else type_.element
    return f"tensor({element}) {format_shape(shape)}"


def choices(kinds: Iterable[str]) -> str:
    """`a`, or `one of a, b`."""
    names = list(kinds)
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def missing_inputs(state: NodeState, node_type: type[Node], sources: Mapping[str, PortRef]) -> Iterator[Finding]:
    """Required inputs that are not connected, gaps in variadic ones, and wires to inputs that do not exist."""
    for port in node_type.inputs:
        if port.variadic:
            indices = {
                int(name.rpartition(".")[2]) for name in sources if belongs(name, port.name) and name != port.name
            }
            gaps = sorted(set(range(max(indices, default=-1))) - indices)
            if len(indices) < port.minimum and not port.optional:
                yield finding_at(
                    state.id,
                    port.name,
                    f"expected at least {port.minimum} values; {len(indices) or 'nothing'} connected.",
                    f"Wire {port.name}.{len(indices)}.",
                    code="missing-input",
                )
            elif gaps and node_type.operator != "Loop":
                yield finding_at(
                    state.id,
                    f"{port.name}.{gaps[0]}",
                    f"{port.name}.{max(indices)} is connected and this one before it is not.",
                    "Wire the values without gaps.",
                    code="missing-input",
                )
        elif not port.optional and port.name not in sources:
            expected = f" ({port.type})" if "(" in port.type else ""
            yield finding_at(
                state.id,
                port.name,
                f"a required input{expected}; nothing is connected.",
                "Wire a value to it.",
                code="missing-input",
            )
    if not node_type.type_constraints and not node_type.inputs:
        return
    for name in sources:
        if node_type.input_port(name) is None:
            yield finding_at(
                state.id, name, f"{node_type.type_name()} has no such input.", "Cut the wire.", code="port"
            )


def type_variables(
    state: NodeState, node_type: type[Node], inputs: Mapping[str, ValueType]
) -> tuple[dict[str, ValueType], list[Finding]]:
    """What the type variables of a node stand for, and where its inputs disagree."""
    bound: dict[str, tuple[str, ValueType]] = {}
    findings: list[Finding] = []
    for name, type_ in inputs.items():
        port = node_type.input_port(name)
        kind = kind_of(type_)
        if port is None or "?" in kind:
            continue
        allowed: Sequence[str] | None = node_type.type_constraints.get(port.type)
        if allowed is None and "(" in port.type:
            allowed = (port.type,)
        if allowed is not None and kind not in allowed:
            findings.append(finding_at(state.id, name, f"expected {choices(allowed)}; got {kind}.", code="type"))
            continue
        if allowed is None or not port.homogeneous or "(" in port.type:
            continue
        first = bound.setdefault(port.type, (name, type_))
        if kind_of(first[1]) != kind and not isinstance(type_, OptionalType):
            findings.append(
                finding_at(
                    state.id,
                    name,
                    f"expected {kind_of(first[1])}, the type {port.type} that {first[0]} has; got {kind}.",
                    "Insert a Cast, or change one of the two.",
                    code="type",
                )
            )
    return {variable: type_ for variable, (_, type_) in bound.items()}, findings


def absent_tensors(state: NodeState, parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """Tensors whose numbers lie in a file that is not there."""
    for name, value in parameters.items():
        if isinstance(value, AbsentTensor):
            yield value.finding(state.id, name)


def wrong_parameters(state: NodeState, node_type: type[Node], parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """Parameters that are missing, unknown, or out of the range that is declared."""
    for declared in node_type.parameters:
        if declared.required and declared.name not in parameters:
            yield finding_at(
                state.id, declared.name, f"a required parameter ({declared.kind}); it is not set.", code="parameter"
            )
    for name, value in parameters.items():
        declared_ = node_type.parameter(name)
        if declared_ is None:
            if node_type.is_operator:
                close = get_close_matches(name, [parameter.name for parameter in node_type.parameters], 1)
                remedy = f"Did you mean {close[0]}?" if close else "Remove it."
                message = f"{node_type.type_name()} has no such parameter."
                yield finding_at(state.id, name, message, remedy, code="parameter")
            continue
        wrong = _wrong_value(declared_, value)
        if wrong:
            yield finding_at(state.id, name, f"expected {wrong}; got {_brief(value)}.", code="parameter")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_ITEMS = {"ints": (int, np.integer), "floats": (float, int), "strings": (str, bytes)}


def _wrong_value(declared: Parameter, value: Any) -> str:
    """What was expected instead of a value, or an empty string if it fits."""
    kind = declared.kind
    if isinstance(value, Typed):
        return ""
    if kind == "bool":
        return "" if isinstance(value, bool) or value in (0, 1) else "true or false"
    if kind == "int":
        if not isinstance(value, int | np.integer):
            return "an integer" + _range(declared)
    elif kind == "float":
        if not isinstance(value, float | int | np.floating) or isinstance(value, bool):
            return "a number" + _range(declared)
    elif kind == "str":
        if not isinstance(value, str | bytes):
            return "a text"
    elif kind in _ITEMS:
        if not isinstance(value, list | tuple) or not all(isinstance(item, _ITEMS[kind]) for item in value):
            return f"a list of {kind}"
    elif kind == "tensor":
        if not isinstance(value, Tensor):
            return "a tensor"
    elif kind == "graph" and not isinstance(value, Graph):
        return "a graph"
    elif kind == "shape" and not (
        isinstance(value, list | tuple) and all(item is None or isinstance(item, int | str) for item in value)
    ):
        return "a list of integers, names and nulls"
    if declared.choices and value not in declared.choices:
        return "one of " + ", ".join(map(str, declared.choices))
    if declared.minimum is not None and value < declared.minimum:
        return f"at least {declared.minimum:g}"
    if declared.maximum is not None and value > declared.maximum:
        return f"at most {declared.maximum:g}"
    return ""


def _range(declared: Parameter) -> str:
    if declared.minimum is not None:
        return f" of at least {declared.minimum:g}"
    return ""


def disagreements_of_output(state: NodeState, inputs: Mapping[str, ValueType]) -> Iterator[Finding]:
    """Where the declared type of an Output differs from the type that it gets."""
    try:
        declared = declared_type(NodeContext(state.id, {}, state.parameters))
    except ValueError as error:
        yield finding_at(state.id, "type", f"{error}.", code="parameter")
        return
    came = inputs.get("value")
    if came is None:
        return
    kinds = kind_of(declared), kind_of(came)
    if "?" not in kinds[0] + kinds[1] and kinds[0] != kinds[1]:
        yield finding_at(state.id, "value", f"declared as {kinds[0]}; gets {kinds[1]}.", code="type")
    elif isinstance(declared, TensorType) and isinstance(came, TensorType) and declared.shape and came.shape:
        pairs = list(zip(declared.shape, came.shape, strict=False))
        clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        if clash or len(declared.shape) != len(came.shape):
            message = f"declared with shape {format_shape(declared.shape)}; gets {shown(came)}."
            # Exporters write wrong shapes often enough, and the numbers do not depend on them.
            yield finding_at(state.id, "value", message, severity=Severity.WARNING, code="shape")


def duplicate_names(graph: Graph) -> Iterator[Finding]:
    """Names that two inputs, two outputs or two values share."""
    seen: dict[tuple[str, str], str] = {}
    for id, node in graph.nodes.items():
        names: list[tuple[str, str]] = []
        if node.type in ("Input", "Initializer"):
            names = [("value", str(node.parameters.get("name") or id))]
        elif node.type == "Output":
            names = [("output", str(node.parameters.get("name") or id))]
        else:
            own = node.parameters.get("specified_outputs_name")
            if own:
                names = [("value", str(name)) for name in own if name]
        for kind, name in names:
            other = seen.setdefault((kind, name), id)
            if other != id or names.count((kind, name)) > 1:
                yield finding_at(
                    id,
                    "specified_outputs_name"
                    if kind == "value" and node.type not in ("Input", "Initializer")
                    else "name",
                    f"the name {name!r} is taken by {other}: the {'outputs' if kind == 'output' else 'values'} of a "
                    "graph have names of their own.",
                    "Choose another.",
                    code="duplicate-name",
                )
                break
