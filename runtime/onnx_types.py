"""Types of values as ONNX files write them (`TypeProto`) and as onnx-ir holds them."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from runtime.types import (
    Dimension,
    ElementType,
    MapType,
    OptionalType,
    SequenceType,
    Shape,
    TensorType,
    ValueType,
)


def from_type_proto(proto: onnx.TypeProto) -> ValueType:
    """The type that a TypeProto describes; ValueError for an unknown kind or element type."""
    match proto.WhichOneof("value"):
        case None:
            return TensorType()
        case "tensor_type":
            return _tensor(proto.tensor_type, sparse=False)
        case "sparse_tensor_type":
            return _tensor(proto.sparse_tensor_type, sparse=True)
        case "sequence_type":
            return SequenceType(from_type_proto(proto.sequence_type.elem_type))
        case "optional_type":
            return OptionalType(from_type_proto(proto.optional_type.elem_type))
        case "map_type":
            return MapType(ElementType(proto.map_type.key_type), from_type_proto(proto.map_type.value_type))
        case other:
            raise ValueError(f"values of the kind {other!r} are unknown here")


def known_type(proto: onnx.TypeProto) -> ValueType:
    """The type that a TypeProto describes as far as it is known here: nothing is known of opaque types."""
    try:
        return from_type_proto(proto)
    except ValueError:
        return TensorType()


def _tensor(proto: onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor, *, sparse: bool) -> TensorType:
    shape: Shape | None = None
    if proto.HasField("shape"):
        shape = tuple(_dimension(dim) for dim in proto.shape.dim)
    return TensorType(ElementType(proto.elem_type) if proto.elem_type else None, shape, sparse)


def _dimension(proto: onnx.TensorShapeProto.Dimension) -> Dimension:
    if proto.HasField("dim_value"):
        return int(proto.dim_value)
    return proto.dim_param or None


def to_type_proto(type: ValueType) -> onnx.TypeProto:
    """The TypeProto that describes a type: the inverse of `from_type_proto`."""
    proto = onnx.TypeProto()
    _write(type, proto)
    return proto


def _write(type: ValueType, proto: onnx.TypeProto) -> None:
    match type:
        case TensorType(element, shape, sparse):
            tensor = proto.sparse_tensor_type if sparse else proto.tensor_type
            tensor.SetInParent()
            if element is not None:
                tensor.elem_type = int(element)
            if shape is not None:
                tensor.shape.SetInParent()
                for dimension in shape:
                    entry = tensor.shape.dim.add()
                    if isinstance(dimension, int):
                        entry.dim_value = dimension
                    elif dimension is not None:
                        entry.dim_param = dimension
        case SequenceType(of):
            proto.sequence_type.SetInParent()
            _write(of, proto.sequence_type.elem_type)
        case OptionalType(of):
            proto.optional_type.SetInParent()
            _write(of, proto.optional_type.elem_type)
        case MapType(key, of):
            proto.map_type.key_type = int(key)
            _write(of, proto.map_type.value_type)


def type_and_shape(type: ValueType) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    """onnx-ir's type and shape of a value; (None, None) where it has no such type: maps, and unknown elements."""
    match type:
        case TensorType(element, shape, sparse):
            own = None if shape is None else ir.Shape(shape)
            if element is None:
                return None, own
            data_type = ir.DataType(int(element))
            return (ir.SparseTensorType(data_type) if sparse else ir.TensorType(data_type)), own
        case SequenceType(of):
            inner, shape_ = type_and_shape(of)
            return (None, None) if inner is None else (ir.SequenceType(inner), shape_)
        case OptionalType(of):
            inner, shape_ = type_and_shape(of)
            return (None, None) if inner is None else (ir.OptionalType(inner), shape_)
    return None, None


def from_ir_type(type_: ir.TypeProtocol | None, shape: ir.Shape | None = None) -> ValueType:
    """The type that onnx-ir describes by a type and a shape, which belongs to the innermost tensor."""
    if isinstance(type_, ir.SequenceType):
        return SequenceType(from_ir_type(type_.elem_type, shape))
    if isinstance(type_, ir.OptionalType):
        return OptionalType(from_ir_type(type_.elem_type, shape))
    element = None if type_ is None or not int(type_.dtype) else ElementType(int(type_.dtype))
    dimensions = None if shape is None else tuple(item if isinstance(item, int) else item.value for item in shape)
    return TensorType(element, dimensions, isinstance(type_, ir.SparseTensorType))
