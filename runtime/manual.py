"""A node type's page of the manual, as Markdown, from its declaration."""

from __future__ import annotations

from collections.abc import Iterator
from math import isinf
from typing import Any

from runtime.node import Node, Parameter, Port
from runtime.types import format_shape


def page(node_type: type[Node]) -> str:
    """What a node type does, its parameters, its terminals and the types that they take."""
    return "\n".join(_lines(node_type)) + "\n"


def summary(node_type: type[Node]) -> str:
    """The first sentence of a node type's description."""
    text = " ".join(node_type.doc.split("\n\n")[0].replace("<br>", " ").split())
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def _lines(node_type: type[Node]) -> Iterator[str]:
    yield f"# {node_type.type_name()}"
    yield ""
    if node_type.is_operator:
        version = f"Since version {node_type.since_version} of the operator set {node_type.domain or 'ai.onnx'}."
        if not node_type.cpu_kernel and node_type.evaluate is None:
            version += " ONNX Runtime has no CPU kernel for it."
        if node_type.deprecated:
            version += " Deprecated."
        yield version
        yield ""
    yield node_type.doc.rstrip()
    yield ""
    if node_type.inputs:
        yield "## Graphs in"
        yield ""
        yield from (_terminal(port) for port in node_type.inputs)
        yield ""
    if node_type.parameters:
        yield "## Parameters"
        yield ""
        yield from (_parameter(parameter) for parameter in node_type.parameters)
        yield ""
    if node_type.outputs:
        yield "## Graphs out"
        yield ""
        yield from (_terminal(port) for port in node_type.outputs)
        yield ""
    if node_type.type_constraints:
        yield "## Type constraints"
        yield ""
        for variable, kinds in node_type.type_constraints.items():
            yield f"- **{variable}**: {', '.join(kinds)}"


def _terminal(port: Port) -> str:
    marks = [
        word
        for word, holds in (
            ("optional", port.optional),
            ("variadic", port.variadic),
            ("heterogeneous", not port.homogeneous),
        )
        if holds
    ]
    noted = f" ({', '.join(marks)})" if marks else ""
    text = f"- **{port.name}**{noted} - {port.type}"
    if port.shape is not None:
        text += f" {format_shape(port.shape)}"
    if port.same_shape_as:
        text += f", the shape of {port.same_shape_as}"
    return f"{text}: {_flat(port.doc)}" if port.doc else text


def _parameter(parameter: Parameter) -> str:
    facts = [parameter.kind]
    if parameter.required:
        facts.append("required")
    elif parameter.means_default is not None:
        facts.append(f"default {_value(parameter.default)} (operator default: {_value(parameter.operator_default)})")
    elif parameter.default not in (None, ""):
        facts.append(f"default {_value(parameter.default)}")
    if parameter.minimum is not None:
        facts.append(f"at least {parameter.minimum:g}")
    if parameter.maximum is not None:
        facts.append(f"at most {parameter.maximum:g}")
    if parameter.choices:
        facts.append("one of " + ", ".join(map(str, parameter.choices)))
    return f"- **{parameter.name}** ({'; '.join(facts)}): {_flat(parameter.doc)}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "no limit" if isinf(value) else f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _flat(text: str) -> str:
    return " ".join(text.split())
