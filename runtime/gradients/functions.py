"""Operators that ONNX defines by simpler ones: their function bodies, written on a tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir
from onnx import numpy_helper

from runtime.gradients.expressions import Expr
from runtime.node import Node
from runtime.onnx_types import to_type_proto
from runtime.types import TensorType

if TYPE_CHECKING:
    from runtime.gradients.walk import Call


def written(call: Call, node_type: type[Node]) -> Sequence[Expr | None] | None:
    """The outputs of a node whose schema has a function body; None if it has none, or one with subgraphs."""
    if not onnx.defs.has(node_type.operator, call.version, node_type.domain):
        return None
    schema = onnx.defs.get_schema(node_type.operator, call.version, node_type.domain)
    body = _body(call, schema)
    if body is None or any(a.type in (a.GRAPH, a.GRAPHS) for node in body.node for a in node.attribute):
        return None
    values: dict[str, Expr | None] = {
        "": None,
        **dict.fromkeys(body.input),
        **dict(zip(body.input, call.x, strict=False)),
    }
    defaults = {name: _default(item) for name, item in schema.attributes.items()}
    for node in body.node:
        attributes: dict[str, Any] = {}
        for item in node.attribute:
            reference = item.ref_attr_name
            attributes[item.name] = call.get(reference, defaults.get(reference)) if reference else _plain(item)
        if node.op_type == "Constant":
            ((kind, value),) = ((name, value) for name, value in attributes.items() if value is not None)
            values[node.output[0]] = call.op.constant(_constant(kind, value))
            continue
        inputs = [values[name] for name in node.input]
        results = call.op.apply(node.op_type, *inputs, domain=node.domain, outputs=len(node.output), **attributes)
        values.update(zip(node.output, results if len(node.output) > 1 else (results,), strict=True))
    return [values.get(name) for name in body.output]


def _constant(kind: str, value: Any) -> Any:
    """A Constant's attribute as an array."""
    element = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return np.asarray(value, element.get(kind))


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if hasattr(value, "__len__") else value


def _body(call: Call, schema: Any) -> onnx.FunctionProto | None:
    version = call.op.opset
    if schema.has_function:
        versions = [item for item in schema.function_opset_versions if item <= version]
        if versions:
            return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(max(versions)))
    if schema.has_context_dependent_function:
        versions = [item for item in schema.context_dependent_function_opset_versions if item <= version]
        types = [to_type_proto(TensorType() if x is None else x.type).SerializeToString() for x in call.x]
        if versions:
            text = schema.get_context_dependent_function_with_opset_version(
                max(versions), ir.to_proto(call.node).SerializeToString(), types
            )
            return onnx.FunctionProto.FromString(text) if text else None
    return None


def _default(attribute: onnx.defs.OpSchema.Attribute) -> Any:
    proto = attribute.default_value
    return _plain(proto) if proto.type else None
