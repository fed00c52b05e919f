"""Whether two ONNX models say the same: a comparison that knows which differences mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.numpy_helper import to_array


def differences(first: onnx.ModelProto, second: onnx.ModelProto, folders: tuple[Path, Path] | None = None) -> list[str]:
    """Where two models differ, as paths with both values; `folders` hold their data files."""
    folders = folders or (Path(), Path())
    return list(_differences("", _model(first, folders[0]), _model(second, folders[1])))


def _differences(path: str, first: Any, second: Any) -> Any:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted({*first, *second}, key=str):
            yield from _differences(f"{path}/{key}", first.get(key), second.get(key))
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, pair in enumerate(zip(first, second, strict=True)):
            yield from _differences(f"{path}/{index}", *pair)
    elif first != second:
        yield f"{path}: {first!r:.300} != {second!r:.300}"


def _model(model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    return {
        "opsets": {_domain(entry.domain): entry.version for entry in model.opset_import},
        "functions": {(f.domain, f.name, f.overload): _function(f, folder) for f in model.functions},
        "graph": _graph(model.graph, folder),
        "metadata": _pairs(model.metadata_props),
        "training_info": [item.SerializeToString(deterministic=True) for item in model.training_info],
        "configuration": [item.SerializeToString(deterministic=True) for item in model.configuration],
        **{
            key: getattr(model, key)
            for key in ("ir_version", "producer_version", "domain", "model_version", "doc_string")
        },
    }


def _function(function: onnx.FunctionProto, folder: Path) -> dict[str, Any]:
    return {
        "inputs": list(function.input),
        "outputs": list(function.output),
        "attributes": sorted(function.attribute),
        "defaults": {a.name: _attribute(a, folder) for a in function.attribute_proto},
        "opsets": {_domain(entry.domain): entry.version for entry in function.opset_import},
        "nodes": [_node(node, folder) for node in function.node],
        "doc": function.doc_string,
        "metadata": _pairs(function.metadata_props),
    }


def _graph(graph: onnx.GraphProto, folder: Path) -> dict[str, Any]:
    return {
        "name": graph.name or "graph",
        "doc": graph.doc_string,
        "metadata": _pairs(graph.metadata_props),
        "inputs": [_info(info) for info in graph.input],
        "outputs": [_info(info) for info in graph.output],
        "initializers": {tensor.name: _tensor(tensor, folder) for tensor in graph.initializer},
        "sparse": {tensor.values.name: _sparse(tensor, folder) for tensor in graph.sparse_initializer},
        "nodes": [_node(node, folder) for node in graph.node],
        "quantization": {
            entry.tensor_name: _pairs(entry.quant_parameter_tensor_names) for entry in graph.quantization_annotation
        },
    }


def value_info(graph: onnx.GraphProto) -> dict[str, Any]:
    """What a graph says of its values, those of its initializers apart: their tensors say it."""
    names = {tensor.name for tensor in graph.initializer}
    return {info.name: _info(info) for info in graph.value_info if info.name not in names}


def _node(node: onnx.NodeProto, folder: Path) -> dict[str, Any]:
    inputs, outputs = list(node.input), list(node.output)
    for names in (inputs, outputs):
        while names and not names[-1]:
            names.pop()
    return {
        "type": (_domain(node.domain), node.op_type, node.overload),
        "inputs": inputs,
        "outputs": outputs,
        "attributes": {a.name: _attribute(a, folder) for a in node.attribute},
        "doc": node.doc_string,
        "metadata": _pairs(node.metadata_props),
        "devices": [item.SerializeToString(deterministic=True) for item in node.device_configurations],
    }


def _attribute(attribute: onnx.AttributeProto, folder: Path) -> Any:
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
    if attribute.ref_attr_name:
        return kind, attribute.ref_attr_name, attribute.doc_string
    match kind:
        case "TENSOR":
            value: Any = _tensor(attribute.t, folder)
        case "TENSORS":
            value = [_tensor(tensor, folder) for tensor in attribute.tensors]
        case "GRAPH":
            return _graph(attribute.g, folder)
        case "GRAPHS":
            return [_graph(graph, folder) for graph in attribute.graphs]
        case "SPARSE_TENSOR":
            value = _sparse(attribute.sparse_tensor, folder)
        case _:
            value = attribute.SerializeToString(deterministic=True)
    return kind, value, attribute.doc_string


def _tensor(tensor: onnx.TensorProto, folder: Path) -> Any:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor = onnx.TensorProto.FromString(tensor.SerializeToString())
        load_external_data_for_tensor(tensor, str(folder))
    is_text = tensor.data_type == onnx.TensorProto.STRING
    content = list(tensor.string_data) if is_text else to_array(tensor).tobytes()
    about = tensor.doc_string, _pairs(tensor.metadata_props)
    return tensor.name, tensor.data_type, tuple(tensor.dims), content, about


def _sparse(tensor: onnx.SparseTensorProto, folder: Path) -> Any:
    return tuple(tensor.dims), _tensor(tensor.values, folder), _tensor(tensor.indices, folder)


def _info(info: onnx.ValueInfoProto) -> Any:
    about = info.doc_string, _pairs(info.metadata_props)
    return info.name, info.type.SerializeToString(deterministic=True), about


def _pairs(entries: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in entries}


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
