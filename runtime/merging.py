"""Nodes that compute the same from the same, written twice, computed once."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import onnx_ir as ir

SMALL = 1 << 12
"""Bytes of a constant up to which it is compared by its content."""


def merge_equal(graph: ir.Graph, kept: Container[str | None]) -> None:
    """Lets users of a node read an equal earlier one instead, and removes it; nodes are in an order that can run.

    Nodes with subgraphs, of random operators, and those that make a value named in `kept` or an output stay. ONNX
    Runtime does the like, but after it has computed what depends on constants alone, and so makes equals different.
    """
    first: dict[Any, ir.Node] = {}
    known: dict[ir.Value | None, ir.Value | None] = {}
    for node in list(graph):
        key = _key(node, known)
        if key is None:
            continue
        earlier = first.setdefault(key, node)
        if earlier is node or any(value.name in kept or value.is_graph_output() for value in node.outputs):
            continue
        for value, other in zip(node.outputs, earlier.outputs, strict=True):
            known[value] = other
            value.replace_all_uses_with(other)
        graph.remove(node, safe=True)


def _key(node: ir.Node, known: dict[ir.Value | None, ir.Value | None]) -> Any:
    """What is the same for nodes that compute the same; None for those that are never merged."""
    if node.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")):
        return None
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        value: Any = attribute.value
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) or attribute.is_ref():
            return None
        if attribute.type == ir.AttributeType.TENSOR:
            if value.nbytes > SMALL or value.dtype == ir.DataType.STRING:
                return None
            value = value.dtype, tuple(value.shape.numpy()), value.tobytes()
        elif attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
            value = repr(value)  # 0.0 and -0.0 are equal, and not the same
        elif isinstance(value, list):
            value = tuple(value)
        attributes.append((name, attribute.type, value))
    inputs = tuple(known.get(value, value) for value in node.inputs)
    outputs = tuple(bool(value.name) for value in node.outputs)  # one that is left out brings nobody a value
    key = (node.domain, node.op_type, node.overload, outputs, inputs, tuple(attributes))
    try:
        hash(key)
    except TypeError:  # an attribute of an unusual type
        return None
    return key
