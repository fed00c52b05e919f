"""Attribute values: Python values, and the ONNX attributes that they stand for.

A value's ONNX kind is the declared one where the node type is known, else what the value itself tells; where neither
does (an empty list, a whole number for a float attribute of an unknown operator), it is wrapped in `Typed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.tensors import Tensor
from runtime.types import MapType, OptionalType, SequenceType, TensorType, ValueType

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from runtime.graph import Graph
    from runtime.node import Parameter

KINDS = {
    1: "float",
    2: "int",
    3: "str",
    4: "tensor",
    5: "graph",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "type",
    14: "types",
}
"""Names of ONNX's attribute kinds by the numbers of AttributeProto.AttributeType."""

_NUMBERS = {kind: number for number, kind in KINDS.items()} | {"bool": 2}
_ITEMS = {"int": "ints", "float": "floats", "str": "strings", "tensor": "tensors", "graph": "graphs", "type": "types"}
_EXACT_KINDS = ("type", "types", "sparse_tensor", "sparse_tensors")

EXACT = "qmoe.attribute"
"""Where the `meta` of an onnx-ir attribute holds the message that a file gets in its place."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A value with its ONNX attribute kind, one of KINDS ("ints", "float", ...), or "ref".

    A "ref" is an attribute of a node in a function that stands for one of the function's own attributes: its value is
    (name of the function's attribute, kind). Sparse tensors are held as the bytes of their SparseTensorProto, types
    of which a file says more than a type of ours can hold as those of their TypeProto.
    """

    kind: str
    value: Any


def kind_of_value(value: Any) -> str:
    """The ONNX kind that a Python value tells by itself; empty if it does not."""
    from runtime.graph import Graph

    match value:
        case Typed(kind, _):
            return kind
        case bool() | int():
            return "int"
        case float():
            return "float"
        case str() | bytes():
            return "str"
        case Tensor():
            return "tensor"
        case Graph():
            return "graph"
        case TensorType() | SequenceType() | OptionalType() | MapType():
            return "type"
        case list() | tuple():
            kinds = {kind_of_value(item) for item in value}
            return _ITEMS.get(kinds.pop(), "") if len(kinds) == 1 else ""
    return ""


def fits(value: Any, kind: str) -> bool:
    """Whether an attribute of a kind can hold a value: whole numbers stand for floats, booleans for integers."""
    own = kind_of_value(value)
    if own == kind or (own == "" and isinstance(value, list | tuple) and not value and kind in _ITEMS.values()):
        return True
    if kind == "bool":
        return own == "int" and value in (0, 1)
    if kind == "floats" and isinstance(value, list | tuple):
        return all(kind_of_value(item) in ("int", "float") for item in value)
    return kind == "float" and own == "int"


def from_proto(
    proto: onnx.AttributeProto,
    declared: Parameter | None,
    read_tensor: Callable[[onnx.TensorProto], Tensor],
    read_graph: Callable[[onnx.GraphProto], Graph],
) -> Any:
    """The Python value of an attribute; a `Typed` where neither value nor declaration tells its kind.

    ValueError says what is wrong with the attribute.
    """
    kind = KINDS.get(proto.type, "")
    if not kind:
        raise ValueError(f"the attribute {proto.name!r} has no kind that ONNX knows ({proto.type})")
    if proto.ref_attr_name:
        return Typed("ref", (proto.ref_attr_name, kind))
    value = _read(proto, kind, read_tensor, read_graph)
    expected = declared.kind if declared is not None else ""
    plain = value if not isinstance(value, tuple) else list(value)
    if expected == "bool" and kind == "int" and plain in (0, 1):
        return bool(plain)
    own = kind_of_value(plain)
    if kind.startswith("sparse") or (expected or own) != kind or (kind in ("type", "types") and own != kind):
        return Typed(kind, plain)
    return plain


def _read(
    proto: onnx.AttributeProto,
    kind: str,
    read_tensor: Callable[[onnx.TensorProto], Tensor],
    read_graph: Callable[[onnx.GraphProto], Graph],
) -> Any:
    match kind:
        case "float":
            return _shortest(proto.f)
        case "int":
            return int(proto.i)
        case "str":
            return _text(proto.s)
        case "tensor":
            return read_tensor(proto.t)
        case "graph":
            return read_graph(proto.g)
        case "floats":
            return [_shortest(item) for item in proto.floats]
        case "ints":
            return list(proto.ints)
        case "strings":
            return [_text(item) for item in proto.strings]
        case "tensors":
            return [read_tensor(item) for item in proto.tensors]
        case "graphs":
            return [read_graph(item) for item in proto.graphs]
        case "sparse_tensor":
            return proto.sparse_tensor.SerializeToString(deterministic=True)
        case "sparse_tensors":
            return [item.SerializeToString(deterministic=True) for item in proto.sparse_tensors]
        case "type":
            return _type(proto.tp)
        case _:
            return [_type(item) for item in proto.type_protos]


def _type(proto: onnx.TypeProto) -> ValueType | bytes:
    """The type, or the message's bytes where that does not say all of it: a denotation, an opaque type, nothing."""
    from runtime.onnx_types import from_type_proto, to_type_proto

    try:
        type_ = from_type_proto(proto)
    except ValueError:
        return proto.SerializeToString(deterministic=True)
    return type_ if to_type_proto(type_) == proto else proto.SerializeToString(deterministic=True)


def _shortest(value: float) -> float:
    """The number with the fewest digits that ONNX's 32 bits hold as the same: 0.1 for 0.10000000149011612."""
    return value if math.isnan(value) else float(str(np.float32(value)))


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class _RawText(str):
    """A text that is no Unicode, as onnx-ir wants texts: one that encodes to the bytes."""

    raw: bytes

    @classmethod
    def of(cls, text: str | bytes) -> str:
        if isinstance(text, str):
            return text
        made = cls(text.decode(errors="replace"))
        made.raw = text
        return made

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.raw


def to_attribute(
    name: str,
    value: Any,
    kind: str,
    wrap_tensor: Callable[[Tensor], ir.TensorProtocol],
    build_graph: Callable[[Graph], ir.Graph],
) -> ir.Attr:
    """The ONNX attribute for a value. `kind` is the declared one, or empty. ValueError if the value does not fit it.

    Where onnx-ir has no such attribute, or writes less than all of it, the message is in its `meta` as EXACT.
    """
    import onnx_ir as ir

    if isinstance(value, Typed):
        if value.kind == "ref":
            reference, kind = value.value
            return ir.RefAttr(name, reference, ir.AttributeType(_NUMBERS[kind]))
        kind, value = value.kind, value.value
        if kind not in _EXACT_KINDS and not fits(value, kind):
            raise ValueError(f"expected {kind}, got {value!r}")
    elif not kind:
        kind = kind_of_value(value)
    elif not fits(value, kind):
        raise ValueError(f"expected {kind}, got {value!r}")
    if kind not in _NUMBERS:
        raise ValueError(f"no ONNX attribute can hold {value!r}")
    match kind:
        case "tensor":
            value = wrap_tensor(value)
        case "tensors":
            value = [wrap_tensor(item) for item in value]
        case "graph":
            value = build_graph(value)
        case "graphs":
            value = [build_graph(item) for item in value]
        case "str":
            value = _RawText.of(value)
        case "strings":
            value = [_RawText.of(item) for item in value]
        case _ if kind in _EXACT_KINDS:
            return _exact_attribute(name, value, kind)
    return ir.Attr(name, ir.AttributeType(_NUMBERS[kind]), value)


def _exact_attribute(name: str, value: Any, kind: str) -> ir.Attr:
    """An attribute with the message that onnx-ir would not write: it knows no maps as types, and no sparse tensors."""
    import onnx
    import onnx_ir as ir
    from google.protobuf.message import DecodeError

    proto = onnx.AttributeProto(name=name, type=onnx.AttributeProto.AttributeType.Name(_NUMBERS[kind]))
    try:
        match kind:
            case "type":
                proto.tp.CopyFrom(_type_proto(value))
            case "types":
                proto.type_protos.extend(_type_proto(item) for item in value)
            case "sparse_tensor":
                proto.sparse_tensor.ParseFromString(value)
            case _:
                proto.sparse_tensors.extend(onnx.SparseTensorProto.FromString(item) for item in value)
    except (DecodeError, TypeError) as error:
        raise ValueError(f"expected {kind}, got {value!r}") from error
    attribute = ir.Attr(name, ir.AttributeType.STRING, "")  # what stands for a sparse tensor is never read
    if kind == "type":
        attribute = ir.Attr(name, ir.AttributeType.TYPE_PROTO, _ir_type(value))
    elif kind == "types":
        attribute = ir.Attr(name, ir.AttributeType.TYPE_PROTOS, [_ir_type(item) for item in value])
    attribute.meta[EXACT] = proto
    return attribute


def _type_proto(value: Any) -> onnx.TypeProto:
    import onnx

    from runtime.onnx_types import to_type_proto

    if isinstance(value, bytes):
        return onnx.TypeProto.FromString(value)
    if kind_of_value(value) != "type":
        raise TypeError(f"{value!r} is no type")
    return to_type_proto(value)


def _ir_type(value: ValueType | bytes) -> ir.TypeAndShape:
    """A type as far as onnx-ir knows it."""
    import onnx_ir as ir

    from runtime.onnx_types import type_and_shape

    type_, shape = (None, None) if isinstance(value, bytes) else type_and_shape(value)
    return ir.TypeAndShape(type_, shape if type_ is not None else None)
