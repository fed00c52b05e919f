"""Compiled models -> the bytes of ONNX files: what onnx-ir cannot hold is put back, and large tensors are streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import onnx
import onnx_ir as ir

from runtime.attributes import EXACT
from runtime.compile import DATA_FILE, PREFIX
from runtime.errors import Finding, GraphError
from runtime.ir_tensors import sparse_tensor
from runtime.onnx_types import known_type, to_type_proto
from runtime.tensors import Tensor
from runtime.types import TensorType, ValueType, parse_type

BULK = 1 << 16
"""Bytes from which a tensor goes from where it lies to the file without a copy in memory."""

ALIGNMENT = 4096
"""Tensors in a file of their own begin at multiples of this, so that they can be mapped."""


@dataclass(slots=True)
class Bulk:
    """A large initializer on its way to a file."""

    tensor: Any  # onnx_ir's TensorProtocol, and `tofile`
    message: onnx.TensorProto
    """All but the data; names file and offset if the tensor goes to a file of its own."""
    offset: int = 0


@dataclass(slots=True)
class Parts:
    """A model ready to be written: the message without its large tensors, and these."""

    message: onnx.ModelProto
    bulk: list[Bulk]
    nbytes: int
    """Bytes of all initializers."""


def parts_of(model: ir.Model, type_of: Callable[[str], ValueType]) -> Parts:
    """Takes a compiled model apart for writing; the model must not be used after.

    `type_of` gives what is known of the type of a value of the main graph by its name.
    """
    large: dict[str, Any] = {}
    total = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        total += tensor.nbytes
        if tensor.nbytes >= BULK and tensor.dtype != ir.DataType.STRING and not value.meta.get("qmoe.sparse"):
            large[name] = tensor
            value.const_value = ir.ExternalTensor(
                "-",
                None,
                None,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
                doc_string=tensor.doc_string,
            )
    message = ir.serde.serialize_model(model)
    _remove_values_of_functions(message)
    _restore_graph(model.graph, message.graph, type_of)
    for function, body in zip(model.functions.values(), message.functions, strict=True):
        _restore_function(function, body)
    _complete_terminals(message.graph, type_of)
    _repeat_outputs(message.graph, model.graph.meta.get("qmoe.repeated_outputs") or ())
    for key in ("training_info", "configuration"):
        for data in model.meta.get(PREFIX + key) or ():
            getattr(message, key).add().ParseFromString(data)
    bulk: list[Bulk] = []
    kept: list[onnx.TensorProto] = []
    for tensor_message in message.graph.initializer:
        tensor = large.get(tensor_message.name)
        if tensor is None:
            kept.append(tensor_message)
        else:
            tensor_message.ClearField("external_data")
            tensor_message.ClearField("data_location")
            bulk.append(Bulk(tensor, tensor_message))
    copies = onnx.GraphProto(initializer=kept)
    bulk = [Bulk(item.tensor, onnx.TensorProto.FromString(item.message.SerializeToString())) for item in bulk]
    del message.graph.initializer[:]
    message.graph.initializer.extend(copies.initializer)
    return Parts(message, bulk, total)


def write_in_one(parts: Parts, file: BinaryIO) -> None:
    """Writes a model into one file, which must stay under 2 GiB."""
    graph = parts.message.graph.SerializeToString()
    parts.message.ClearField("graph")
    head = parts.message.SerializeToString()
    tensors = []
    for item in parts.bulk:
        start = item.message.SerializeToString()
        raw = _tag(onnx.TensorProto.RAW_DATA_FIELD_NUMBER) + _varint(item.tensor.nbytes)
        length = len(start) + len(raw) + item.tensor.nbytes
        tensors.append((_tag(onnx.GraphProto.INITIALIZER_FIELD_NUMBER) + _varint(length) + start + raw, item.tensor))
    size = len(graph) + sum(len(start) + tensor.nbytes for start, tensor in tensors)
    file.write(head + _tag(onnx.ModelProto.GRAPH_FIELD_NUMBER) + _varint(size) + graph)
    for start, tensor in tensors:
        file.write(start)
        tensor.tofile(file)


def write_in_two(parts: Parts, file: BinaryIO, data: BinaryIO, location: str) -> None:
    """Writes a model, and its large tensors into a second file that the first one names `location`."""
    parts.message.metadata_props.add(key=DATA_FILE, value=location)
    position = 0
    for item in parts.bulk:
        offset = -(-position // ALIGNMENT) * ALIGNMENT
        data.write(bytes(offset - position))
        item.tensor.tofile(data)
        position = offset + item.tensor.nbytes
        item.message.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", item.tensor.nbytes)):
            item.message.external_data.add(key=key, value=str(value))
        parts.message.graph.initializer.append(item.message)
    file.write(parts.message.SerializeToString())


def _tag(field: int) -> bytes:
    """What introduces a field of bytes in a protobuf message."""
    return _varint(field << 3 | 2)


def _varint(number: int) -> bytes:
    """A number as protobuf writes lengths: seven bits a byte, low ones first, the top bit set on all but the last."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


# -- what onnx-ir cannot hold -----------------------------------------------------------------------------------------


def _restore_graph(graph: ir.Graph, message: onnx.GraphProto, type_of: Callable[[str], ValueType] | None) -> None:
    infos = {info.name: info for info in message.value_info}
    for value, info in zip(graph.inputs, message.input, strict=True):
        _restore_type(value, info)
    for value, info in zip(graph.outputs, message.output, strict=True):
        apart = value.meta.get("qmoe.output")
        if apart is not None:
            info.CopyFrom(ir.serde.serialize_value(apart))
        _restore_type(value if apart is None else apart, info)
    for value, info in zip(graph.inputs, message.input, strict=True):
        if value.is_initializer() and "qmoe.value_info" in value.meta:
            info.type.CopyFrom(_declared(value.meta["qmoe.value_info"]))
    listed_names = {info.name for info in (*message.input, *message.output)}
    for value in _values(graph):
        name = str(value.name)
        info = infos.get(name)
        about = value.meta.get("qmoe.value_info")
        if value.is_initializer() and info is not None and about is None:
            info.ClearField("type")  # the tensor says it
        if about is not None and name not in listed_names:
            declared = _declared(about)
            if type_of is None or not _contradict(known_type(declared), type_of(name)):
                if info is None:
                    info = message.value_info.add(name=name)
                info.type.CopyFrom(declared)
    for position in reversed(range(len(message.value_info))):
        info = message.value_info[position]
        if not (info.HasField("type") or info.doc_string or info.metadata_props):
            del message.value_info[position]
    for position in reversed(range(len(message.initializer))):
        tensor = message.initializer[position]
        value = graph.initializers[tensor.name]
        about = value.meta.get("qmoe.tensor") or {}
        if about.get("tensor_doc"):
            tensor.doc_string = str(about["tensor_doc"])
        for key, text in (about.get("tensor_metadata") or {}).items():
            tensor.metadata_props.add(key=key, value=text)
        if value.meta.get("qmoe.sparse"):
            message.sparse_initializer.insert(0, _sparse(tensor, value.meta.get("qmoe.sparse_indices") or {}))
            del message.initializer[position]
    for data in graph.meta.get("qmoe.unused_value_info") or ():
        message.value_info.append(onnx.ValueInfoProto.FromString(data))
    for data in graph.meta.get("qmoe.unused_quantization") or ():
        message.quantization_annotation.append(onnx.TensorAnnotation.FromString(data))
    _restore_nodes(graph, message.node)


def _repeat_outputs(message: onnx.GraphProto, repeated: Iterable[tuple[int, bytes]]) -> None:
    """Lists outputs again that a file had listed more than once, if the graph still has them."""
    outputs = {info.name: info for info in message.output}
    for position, data in repeated:
        info = onnx.ValueInfoProto.FromString(data)
        output = outputs.get(info.name)
        if output is None:
            continue
        if _contradict(known_type(info.type), known_type(output.type)):
            info.type.CopyFrom(output.type)
        message.output.insert(position, info)


def _remove_values_of_functions(message: onnx.ModelProto) -> None:
    """Takes out of the main graph what onnx-ir says there of functions' values in files of old versions."""
    heads = tuple(f"{function.domain}::{function.name}/" for function in message.functions)
    infos = message.graph.value_info
    for position in reversed(range(len(infos))):
        if heads and infos[position].name.startswith(heads):
            del infos[position]


def _restore_function(function: ir.Function, message: onnx.FunctionProto) -> None:
    graph = function.graph
    for attribute in message.attribute_proto:
        _restore_attribute(function.attributes[attribute.name], attribute)
    del message.value_info[:]
    for value in dict.fromkeys((*graph.inputs, *_values(graph))):
        info = ir.serde.serialize_value(value)
        about = value.meta.get("qmoe.value_info")
        exact = value.meta.get("qmoe.type")
        if about is not None:
            info.type.CopyFrom(_declared(about))
        elif isinstance(exact, onnx.TypeProto):
            info.type.CopyFrom(exact)
        if info.HasField("type") or info.doc_string or info.metadata_props:
            message.value_info.append(info)
    for data in graph.meta.get("qmoe.unused_value_info") or ():
        message.value_info.append(onnx.ValueInfoProto.FromString(data))
    _restore_nodes(graph, message.node)


def _restore_type(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    exact = value.meta.get("qmoe.type")
    if isinstance(exact, onnx.TypeProto):
        info.type.CopyFrom(exact)


def _restore_nodes(graph: ir.Graph, messages: Any) -> None:
    for node, message in zip(graph, messages, strict=True):
        if "qmoe.name" in node.meta:
            message.name = node.meta["qmoe.name"]
        for data in node.meta.get("qmoe.devices", ()):
            message.device_configurations.append(onnx.NodeDeviceConfigurationProto.FromString(data))
        for position in reversed(range(len(message.metadata_props))):
            if message.metadata_props[position].key == PREFIX + "node":
                del message.metadata_props[position]
        for attribute in message.attribute:
            own = node.attributes.get(attribute.name)
            if own is None:
                continue
            _restore_attribute(own, attribute)
            if attribute.name == "value" and "qmoe.sparse" in node.meta:
                attribute.ClearField("t")
                attribute.name, attribute.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
                attribute.sparse_tensor.ParseFromString(node.meta["qmoe.sparse"])


def _restore_attribute(own: ir.Attr, message: onnx.AttributeProto) -> None:
    if own.is_ref():
        return
    if own.type == ir.AttributeType.GRAPH:
        _restore_graph(own.value, message.g, None)
    elif own.type == ir.AttributeType.GRAPHS:
        for body, body_message in zip(own.value, message.graphs, strict=True):
            _restore_graph(body, body_message, None)
    elif EXACT in own.meta:
        message.CopyFrom(own.meta[EXACT])
        if own.doc_string:
            message.doc_string = own.doc_string


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _declared(about: Mapping[str, Any]) -> onnx.TypeProto:
    exact = about.get("proto")
    if isinstance(exact, bytes):
        return onnx.TypeProto.FromString(exact)
    return to_type_proto(parse_type(str(about["type"])))


def _contradict(declared: ValueType, known: ValueType) -> bool:
    """Whether what a file once said of a value cannot be so any more."""
    if not (isinstance(declared, TensorType) and isinstance(known, TensorType)):
        return known != TensorType() and type(declared) is not type(known)
    if None not in (declared.element, known.element) and declared.element is not known.element:
        return True
    if declared.shape is None or known.shape is None:
        return False
    if len(declared.shape) != len(known.shape):
        return True
    pairs = zip(declared.shape, known.shape, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _sparse(tensor: onnx.TensorProto, about: Mapping[str, Any]) -> onnx.SparseTensorProto:
    """A tensor in sparse form; `about` is what a file said of its indices, and these where they are not as usual."""
    indices = about.get("indices")
    sparse = sparse_tensor(tensor, indices if isinstance(indices, Tensor) else None)
    sparse.indices.name = str(about.get("name") or "")
    sparse.indices.doc_string = str(about.get("doc") or "")
    for key, text in (about.get("metadata") or {}).items():
        sparse.indices.metadata_props.add(key=str(key), value=str(text))
    return sparse


def _complete_terminals(message: onnx.GraphProto, type_of: Callable[[str], ValueType]) -> None:
    """Gives inputs and outputs without a type the one that is known. GraphError for an input of unknown type."""
    for infos, is_input in ((message.input, True), (message.output, False)):
        for info in infos:
            if info.type.WhichOneof("value") == "tensor_type" and not info.type.tensor_type.elem_type:
                info.type.tensor_type.ClearField("elem_type")
            if info.HasField("type") and _is_complete(info.type):
                continue
            known = _told(type_of(info.name), known_type(info.type))
            if isinstance(known, TensorType) and known.element is None:
                if is_input:
                    remedy = "Set the input's type, such as tensor(float)."
                    finding = Finding(
                        "An input of an ONNX file needs a type.", info.name, "type", remedy=remedy, code="type"
                    )
                    raise GraphError(finding)
                continue
            info.type.CopyFrom(to_type_proto(known))


def _is_complete(type: onnx.TypeProto) -> bool:
    return type.WhichOneof("value") is not None and (
        not type.HasField("tensor_type") or bool(type.tensor_type.elem_type)
    )


def _told(known: ValueType, declared: ValueType) -> ValueType:
    """A type without the names that the check gives to unknown dimensions, and with the declared shape, if any."""
    if not isinstance(known, TensorType):
        return known
    shape = known.shape
    if isinstance(declared, TensorType) and declared.shape is not None:
        shape = declared.shape
    if shape is not None:
        shape = tuple(None if isinstance(size, str) and size.startswith("_") else size for size in shape)
    return TensorType(known.element, shape, known.sparse)
