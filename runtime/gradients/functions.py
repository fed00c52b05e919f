"""Operators that ONNX defines by simpler ones: their function bodies, written on a tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx.defs
import onnx_ir as ir
from onnx_ir import serde

from runtime.gradients.expressions import Expr
from runtime.node import Node
from runtime.onnx_types import to_type_proto
from runtime.types import TensorType

if TYPE_CHECKING:
    from runtime.gradients.walk import Call


def written(call: Call, node_type: type[Node]) -> Sequence[Expr] | None:
    """The outputs of a node whose schema has a function body; None if it has none."""
    if not onnx.defs.has(node_type.operator, call.version, node_type.domain):
        return None
    schema = onnx.defs.get_schema(node_type.operator, call.version, node_type.domain)
    body = _body(call, schema)
    if body is None:
        return None
    function = serde.deserialize_function(body)
    formals = list(function.inputs)
    values: dict[ir.Value, Expr | None] = dict(zip(formals, call.x, strict=False))
    values |= dict.fromkeys(formals[len(call.x) :])
    defaults = {name: _default(item) for name, item in schema.attributes.items()}
    for node in function:
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            return None
        attributes: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            reference = attribute.ref_attr_name
            attributes[name] = call.get(reference, defaults.get(reference)) if reference else attribute.value
        inputs = [None if value is None else values[value] for value in node.inputs]
        results = call.op.apply(node.op_type, *inputs, domain=node.domain, outputs=len(node.outputs), **attributes)
        values.update(zip(node.outputs, results if len(node.outputs) > 1 else (results,), strict=True))
    return [value for output in function.outputs if (value := values[output]) is not None]


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
    return onnx.helper.get_attribute_value(proto) if proto.type else None
