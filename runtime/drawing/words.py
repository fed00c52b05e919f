"""What is written on nodes and wires."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from runtime.attributes import Typed
from runtime.graph import Graph, NodeState
from runtime.node import Node
from runtime.tensors import Tensor
from runtime.types import SequenceType, TensorType, ValueType, format_shape

SHOWN_NUMBERS = 4
"""A constant of up to so many numbers is written out."""
LONGEST_VALUE = 36
HIDDEN = frozenset({"name", "specified_outputs_name"})


def type_text(value: ValueType) -> str:
    """`float[tokens, 64]`, `float` for a single number, an empty text if nothing is known."""
    if isinstance(value, TensorType):
        if value.element is None and value.shape is None:
            return ""
        element = "?" if value.element is None else str(value.element)
        return element if value.shape == () else f"{element}{format_shape(value.shape)}"
    if isinstance(value, SequenceType):
        return f"seq({type_text(value.of)})"
    return str(value)


def tensor_text(tensor: Tensor) -> str:
    """The numbers of a small constant, else its type."""
    if 0 < tensor.size <= SHOWN_NUMBERS and len(tensor.shape) < 2:
        numbers = ", ".join(number_text(item) for item in tensor.array().reshape(-1).tolist())
        return f"{tensor.element} {numbers}" if tensor.shape == () else f"{tensor.element} [{numbers}]"
    return type_text(tensor.type)


def number_text(value: Any) -> str:
    """A number as short as it can be told; a text in quotes."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    if isinstance(value, str | bytes):
        return repr(value if isinstance(value, str) else value.decode(errors="replace"))
    return str(value)


def seconds_text(seconds: float) -> str:
    """A time with three digits, in the unit that fits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size * 0.9995:
            return f"{seconds / size:.3g} {unit}" if seconds < 999.5 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1e6:.1f} µs"


def value_text(value: Any) -> str:
    """The value of a parameter in a few letters."""
    value = value.value if isinstance(value, Typed) else value
    if isinstance(value, Tensor):
        text = tensor_text(value)
    elif isinstance(value, Graph):
        text = f"graph of {len(value.nodes)} nodes"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(value_text(item) for item in value[:8]) + (", …]" if len(value) > 8 else "]")
    elif isinstance(value, bytes):
        text = f"{len(value)} bytes"
    else:
        text = number_text(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def told_parameters(node_type: type[Node] | None, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The parameters that differ from their defaults, with their values."""
    for name, value in parameters.items():
        declared = node_type.parameter(name) if node_type is not None else None
        if name in HIDDEN or value is None:
            continue
        if declared is not None and not declared.required:
            default = declared.operator_default if declared.attribute is not None else declared.default
            if value == default or (declared.means_default is not None and value == declared.means_default):
                continue
        yield name, value_text(value)


def own_name(state: NodeState) -> str:
    """What its author calls a node: its name, else its id."""
    return str(state.parameters.get("name") or state.id)
