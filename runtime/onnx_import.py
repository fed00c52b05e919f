"""ONNX -> Graph: any model becomes a document, and what the document has no place for is kept in `extra`.

Read straight from the protobuf messages, so that nothing is dropped on the way. Keys of a node's `extra`: "doc",
"metadata", "overload", "device_configurations" of a node; "values", what the file says of each output by port (its
"type", "doc", "metadata", "quantization"); "attributes" with the names of our own parameters; "attribute_docs", and
"attribute_tensors", the names, docs and metadata of tensors in attributes (a function's `info` holds both for its
defaults); "sparse", and "sparse_indices" where their name or order tells more. Of a graph's: messages that only
exporters and trainers read, and what is said of values that it does not have, as bytes; "repeated_outputs", each with
its position.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from runtime import catalog
from runtime.attributes import from_proto
from runtime.compile import (
    COMMON_NAMES,
    DATA_FILE,
    DEFAULT_NAME,
    MAXIMUM_DEPTH,
    OUTPUT_PREFIX,
    PREFIX,
    PRODUCER,
    own_ir_version,
)
from runtime.errors import GraphError
from runtime.graph import ID_PATTERN, Graph, NodeState, PortRef
from runtime.ir_tensors import dense_tensor, usual_indices
from runtime.node import In, Node, Out
from runtime.onnx_messages import Source, bad_texts
from runtime.onnx_names import free_name, id_from_name
from runtime.onnx_types import known_type, to_type_proto
from runtime.ports import UNKNOWN_INPUT, UNKNOWN_OUTPUT
from runtime.tensors import Tensor
from runtime.types import TensorType, ValueType, kind_of, parse_type

if TYPE_CHECKING:
    import onnx_ir as ir


def import_model(model: onnx.ModelProto | ir.Model, path: str | Path | None = None) -> Graph:
    """The document for an ONNX model. `path`: the file that it came from, beside which its external data lies.

    FileError says what is wrong with the model.
    """
    if not isinstance(model, onnx.ModelProto):
        from onnx_ir import serde

        model = serde.serialize_model(model)
    reader = _Reader(Path(path) if path is not None else None)
    try:
        bad = next(bad_texts(model), None)
    except UnicodeDecodeError as error:
        bad = repr(error.object)
    if bad is not None:
        reader.fail(f"a name or a text in it is no Unicode: {bad:.80}.")
    return reader.model(model)


@dataclass(slots=True)
class _Scope:
    """A graph that is being read: the names of its values, and which of them its subgraphs read."""

    names: frozenset[str]
    captured: set[str] = field(default_factory=set)


class _Reader(Source):
    """What reading one model shares: the file, and the operator sets of the part that is being read."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self.opsets: dict[str, int] = {}

    # -- the model ------------------------------------------------------------------------------------------------

    def model(self, proto: onnx.ModelProto) -> Graph:
        self.opsets = _opsets(proto.opset_import) or {"": 1}
        own_opsets = self.opsets
        functions: dict[str, Graph] = {}
        for function in proto.functions:
            key = f"{_domain(function.domain)}::{function.name}"
            key = f"{key}::{function.overload}" if function.overload else key
            if key in functions:
                self.fail(f"two functions are called {key}.")
            functions[key] = self.function(function)
        self.opsets = own_opsets
        info: dict[str, Any] = {}
        if proto.doc_string:
            info["doc"] = proto.doc_string
        metadata = _metadata(proto.metadata_props)
        metadata.pop(DATA_FILE, None)
        layout = _own_layout(metadata, PREFIX)
        if metadata:
            info["metadata"] = metadata
        for key in ("producer_name", "producer_version", "domain", "model_version", "ir_version"):
            if getattr(proto, key):
                info[key] = getattr(proto, key)
        if info.get("producer_name") == PRODUCER:
            del info["producer_name"]
        if info.get("ir_version") == own_ir_version(self.opsets):
            del info["ir_version"]
        extra: dict[str, Any] = {}
        for key in ("training_info", "configuration"):
            if getattr(proto, key):
                extra[key] = [item.SerializeToString(deterministic=True) for item in getattr(proto, key)]
        sections = {"info": info, "functions": functions, "layout": layout, "extra": extra}
        return self.graph(proto.graph, [], sections, prefix="graph_")

    def function(self, proto: onnx.FunctionProto) -> Graph:
        self.opsets = _opsets(proto.opset_import)
        info: dict[str, Any] = {}
        if proto.attribute:
            info["attributes"] = list(proto.attribute)
        if proto.attribute_proto:
            info["attribute_defaults"] = {
                attribute.name: from_proto(attribute, None, self.tensor, lambda graph: self.graph(graph, [], {}))
                for attribute in proto.attribute_proto
            }
            info |= _said_of(proto.attribute_proto)
        body = onnx.GraphProto(
            node=proto.node,
            value_info=proto.value_info,
            doc_string=proto.doc_string,
            metadata_props=proto.metadata_props,
        )
        infos = {entry.name: entry for entry in proto.value_info}
        body.input.extend(infos.get(name) or onnx.ValueInfoProto(name=name) for name in proto.input)
        body.output.extend(infos.get(name) or onnx.ValueInfoProto(name=name) for name in proto.output)
        return self.graph(body, [], {"info": info}, is_function=True)

    # -- graphs ---------------------------------------------------------------------------------------------------

    def graph(
        self,
        proto: onnx.GraphProto,
        around: Sequence[_Scope],
        sections: Mapping[str, Mapping[str, Any]],
        prefix: str = "",
        *,
        is_function: bool = False,
    ) -> Graph:
        """A graph, a subgraph (with the graphs `around` it, outermost first), or a function's body."""
        if len(around) > MAXIMUM_DEPTH:
            self.fail(f"subgraphs are nested more than {MAXIMUM_DEPTH} deep.")
        info = dict(sections.get("info", {}))
        if proto.name and proto.name != DEFAULT_NAME:
            info["name"] = proto.name
        if proto.doc_string:
            info[f"{prefix}doc"] = proto.doc_string
        if proto.metadata_props:
            info[f"{prefix}metadata"] = _metadata(proto.metadata_props)
        body = _Body(self, proto, around, is_main=bool(prefix), is_function=is_function)
        nodes, wires = body.read()
        extra = dict(sections.get("extra", {}))
        extra |= body.extra
        try:
            return Graph.build(
                nodes,
                wires,
                {**sections, "info": info, "opsets": dict(self.opsets), "extra": extra},
            )
        except GraphError as error:
            self.fail(f"the graph cannot be read: {error}")


class _Body:
    """One graph on its way into a document."""

    def __init__(
        self, reader: _Reader, proto: onnx.GraphProto, around: Sequence[_Scope], *, is_main: bool, is_function: bool
    ) -> None:
        self.reader, self.proto, self.around = reader, proto, around
        self.is_main, self.is_function = is_main, is_function
        self.scope = _Scope(frozenset(_names(proto)))
        self.value_info = {info.name: info for info in proto.value_info}
        self.quantization = {
            annotation.tensor_name: {entry.key: entry.value for entry in annotation.quant_parameter_tensor_names}
            for annotation in proto.quantization_annotation
        }
        self.extra: dict[str, list[Any]] = {}
        """What the graph has no place for: messages about values that it does not have, outputs that it lists again."""
        self.given_out: set[str] = set()
        self.ids = _Ids()
        self.sources: dict[str, PortRef] = {}
        self.terminals: list[NodeState] = []
        self.captures: dict[str, NodeState] = {}
        self.wires: list[tuple[PortRef, PortRef]] = []

    def read(self) -> tuple[list[NodeState], list[tuple[PortRef, PortRef]]]:
        """The nodes and the wires."""
        self._reserve_ids()
        self._read_inputs_and_initializers()
        ids = [self.ids.take(node.name, _own(node.metadata_props, PREFIX), node.op_type) for node in self.proto.node]
        types = [catalog.find(_type_name(node), self.reader.opsets) for node in self.proto.node]
        ports = [
            (self._ports(node, node_type, In), self._ports(node, node_type, Out))
            for node, node_type in zip(self.proto.node, types, strict=True)
        ]
        for id, node, (_, made) in zip(ids, self.proto.node, ports, strict=True):
            for name, port in zip(node.output, made, strict=True):
                if name:
                    self._define(name, PortRef(id, port))
        for id, node, (inputs, _) in zip(ids, self.proto.node, ports, strict=True):
            for name, port in zip(node.input, inputs, strict=True):
                if name:
                    self.wires.append((self._source(name, node), PortRef(id, port)))
        states = [
            self._node(id, node, node_type) for id, node, node_type in zip(ids, self.proto.node, types, strict=True)
        ]
        output_infos = self._outputs()
        outputs = [self._output(info) for info in output_infos]
        wired = {source for source, _ in self.wires}
        given_out = Counter(info.name for info in output_infos)
        states = [
            self._with_names(state, node, node_type, list(output_ports), wired, given_out)
            for state, node, node_type, (_, output_ports) in zip(states, self.proto.node, types, ports, strict=True)
        ]
        produced = set(self.scope.names) | {info.name for info in self.proto.output}
        unused_info = [info for name, info in self.value_info.items() if name not in produced]
        annotations = self.proto.quantization_annotation
        unused_quantization = [entry for entry in annotations if entry.tensor_name not in produced]
        for key, unused in (("unused_value_info", unused_info), ("unused_quantization", unused_quantization)):
            if unused:
                self.extra[key] = [message.SerializeToString(deterministic=True) for message in unused]
        return [*self.terminals, *self.captures.values(), *states, *outputs], self.wires

    def _reserve_ids(self) -> None:
        """Ids that the file gives itself come first: no other node may take them."""
        for info in (*self.proto.input, *self.proto.value_info):
            self.ids.reserve(_own(info.metadata_props, PREFIX))
        for info in self.proto.output:
            self.ids.reserve(_own(info.metadata_props, OUTPUT_PREFIX))
        for node in self.proto.node:
            self.ids.reserve(_own(node.metadata_props, PREFIX))

    def _define(self, name: str, port: PortRef) -> None:
        if name in self.sources:
            self.reader.fail(f"two values are called {name!r}; the values of a graph have names of their own.")
        self.sources[name] = port

    def _source(self, name: str, node: onnx.NodeProto | None) -> PortRef:
        """Where a value comes from; a capture is made for one of the graphs around."""
        if name in self.sources:
            return self.sources[name]
        for scope in reversed(self.around):
            if name in scope.names:
                scope.captured.add(name)
                if name not in self.captures:
                    id = self.ids.take(name, "", "capture")
                    self.captures[name] = NodeState(id, "Capture", {"name": name})
                return PortRef(self.captures[name].id, "value")
        reader = f"the node {node.name or node.op_type!r} reads" if node is not None else "an output gives out"
        self.reader.fail(f"{reader} the value {name!r}, which nothing makes.")

    # -- terminals ------------------------------------------------------------------------------------------------

    def _read_inputs_and_initializers(self) -> None:
        tensors: dict[str, tuple[onnx.TensorProto, Mapping[str, Any], Tensor]] = {}
        for proto in self.proto.initializer:
            self._add_initializer(tensors, proto, {}, self.reader.tensor(proto))
        for sparse in self.proto.sparse_initializer:
            try:
                tensor = dense_tensor(sparse)
            except (ValueError, TypeError) as error:
                self.reader.fail(f"the tensor {sparse.values.name!r} cannot be read: {error}.")
            said, indices = _said_of_tensor(sparse.indices), self.reader.tensor(sparse.indices)
            if indices != usual_indices(tensor.array()):
                said["indices"] = indices
            extra = {"sparse": True} | ({"sparse_indices": said} if said else {})
            self._add_initializer(tensors, sparse.values, extra, tensor)
        overridden = set()
        for info in self.proto.input:
            if info.name in tensors:
                overridden.add(info.name)
                self._initializer(info, *tensors[info.name], overridable=True)
            else:
                parameters, about = self._declared(info)
                self._terminal("Input", info, parameters, about)
        for name, found in tensors.items():
            if name not in overridden:
                info = self.value_info.get(name) or onnx.ValueInfoProto(name=name)
                self._initializer(info, *found, overridable=False)

    def _add_initializer(
        self,
        tensors: dict[str, tuple[onnx.TensorProto, Mapping[str, Any], Tensor]],
        proto: onnx.TensorProto,
        extra: Mapping[str, Any],
        tensor: Tensor,
    ) -> None:
        if not proto.name:
            self.reader.fail("an initializer has no name.")
        if proto.name in tensors:
            self.reader.fail(f"two initializers are called {proto.name!r}.")
        tensors[proto.name] = proto, extra, tensor

    def _initializer(
        self,
        info: onnx.ValueInfoProto,
        proto: onnx.TensorProto,
        extra: Mapping[str, Any],
        tensor: Tensor,
        *,
        overridable: bool,
    ) -> None:
        about = self._about(info, tensor.type)
        if proto.doc_string:
            about["tensor_doc"] = proto.doc_string
        if proto.metadata_props:
            about["tensor_metadata"] = _metadata(proto.metadata_props)
        parameters: dict[str, Any] = {"tensor": tensor}
        metadata = about.get("metadata", {})
        training_type = metadata.pop(PREFIX + "training_type", "")
        if "metadata" in about and not metadata:
            del about["metadata"]
        if training_type:
            parameters["training_type"] = training_type
        if overridable:
            parameters["overridable"] = True
        self._terminal("Initializer", info, parameters, about, extra)

    def _terminal(
        self,
        type: str,
        info: onnx.ValueInfoProto,
        parameters: dict[str, Any],
        about: dict[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        id = self.ids.take(info.name, _own(info.metadata_props, PREFIX), type.lower())
        own_name = {"name": info.name} if info.name != id else {}
        layout = _own_layout(_metadata(info.metadata_props), PREFIX)
        kept = {**(extra or {}), **({"values": {"value": about}} if about else {})}
        self.terminals.append(NodeState(id, type, {**own_name, **parameters}, layout, kept))
        self._define(info.name, PortRef(id, "value"))

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        """The outputs; of a whole model's, whose names its users know, each name once."""
        outputs: dict[str, onnx.ValueInfoProto] = {}
        repeated: list[Any] = []
        for position, info in enumerate(self.proto.output):
            if info.name in outputs:
                repeated.append([position, info.SerializeToString(deterministic=True)])
            else:
                outputs[info.name] = info
        if not repeated or not self.is_main:
            return list(self.proto.output)
        self.extra["repeated_outputs"] = repeated
        return list(outputs.values())

    def _output(self, info: onnx.ValueInfoProto) -> NodeState:
        # The outputs of subgraphs and functions are known by their places: those of one name get names of their own.
        name = free_name(info.name, self.scope.names, self.given_out) if info.name in self.given_out else info.name
        self.given_out.add(name)
        id = self.ids.take(info.name, _own(info.metadata_props, OUTPUT_PREFIX), "output")
        parameters, about = self._declared(info)
        layout = _own_layout(_metadata(info.metadata_props), OUTPUT_PREFIX)
        own_name = {"name": name} if name != id else {}
        self.wires.append((self._source(info.name, None), PortRef(id, "value")))
        return NodeState(
            id, "Output", {**own_name, **parameters}, layout, {"values": {"value": about}} if about else {}
        )

    def _declared(self, info: onnx.ValueInfoProto) -> tuple[dict[str, Any], dict[str, Any]]:
        """The type and shape parameters of an input or output, and what else the file says of it.

        Those of a function have the types that a call gives them: what the file says of them is kept, and binds nobody.
        """
        about = self._about(info, None)
        if self.is_function:
            return {}, about
        parameters: dict[str, Any] = {}
        about.pop("type", None)
        exact = about.pop("proto", None)
        if info.HasField("type"):
            declared = known_type(info.type)
            if isinstance(declared, TensorType):
                if declared != TensorType() or not info.type.WhichOneof("value"):
                    parameters["type"] = kind_of(declared)
                if declared.shape is not None:
                    parameters["shape"] = list(declared.shape)
            else:
                parameters["type"] = str(declared)
            if not isinstance(declared, TensorType) and exact is not None:
                about["proto"] = exact
            elif to_type_proto(declared) != info.type:
                about["proto"] = info.type.SerializeToString(deterministic=True)
        return parameters, about

    def _about(self, info: onnx.ValueInfoProto, known: ValueType | None) -> dict[str, Any]:
        """What the file says of a value; its type only if it is not the known one."""
        about: dict[str, Any] = {}
        if info.HasField("type") and info.type.WhichOneof("value"):
            declared = known_type(info.type)
            if known is None or declared != known:
                if _reads_back(declared) and to_type_proto(declared) == info.type:
                    about["type"] = str(declared)
                else:
                    about["proto"] = info.type.SerializeToString(deterministic=True)
        if info.doc_string:
            about["doc"] = info.doc_string
        metadata = _metadata(info.metadata_props)
        for prefix in (OUTPUT_PREFIX, PREFIX):
            _own_layout(metadata, prefix)
        if metadata:
            about["metadata"] = metadata
        if info.name in self.quantization:
            about["quantization"] = self.quantization[info.name]
        return about

    # -- operators ------------------------------------------------------------------------------------------------

    def _ports(self, node: onnx.NodeProto, node_type: type[Node] | None, kind: type[In] | type[Out]) -> list[str]:
        """The ports of a node's inputs or outputs, by position."""
        if node_type is not None and not node_type.is_operator:
            self.reader.fail(f"the node {node.name!r} has the type {node.op_type}, which is no operator.")
        count = len(node.input if kind is In else node.output)
        if node_type is None:
            base = UNKNOWN_INPUT if kind is In else UNKNOWN_OUTPUT
            return [f"{base}.{index}" for index in range(count)]
        ports: list[str] = []
        for port in node_type.inputs if kind is In else node_type.outputs:
            if port.variadic:
                ports += [f"{port.name}.{index}" for index in range(count - len(ports))]
            else:
                ports.append(port.name)
        if count > len(ports):
            word = "inputs" if kind is In else "outputs"
            self.reader.fail(
                f"the node {node.name or node.op_type!r} has {count} {word}; {node_type.type_name()} at version "
                f"{node_type.since_version} has at most {len(ports)}."
            )
        return ports[:count]

    def _node(self, id: str, node: onnx.NodeProto, node_type: type[Node] | None) -> NodeState:
        attributes: dict[str, Any] = {}
        clashing: dict[str, Any] = {}
        for proto in node.attribute:
            if proto.name in attributes or proto.name in clashing:
                self.reader.fail(f"the node {node.name or node.op_type!r} has two attributes {proto.name!r}.")
            declared = node_type.parameter(proto.name) if node_type is not None else None
            is_ours = proto.name in COMMON_NAMES and (declared is None or declared.attribute is None)
            try:
                value = from_proto(proto, None if is_ours else declared, self.reader.tensor, self._subgraph)
            except ValueError as error:
                self.reader.fail(f"the node {node.name or node.op_type!r} cannot be read: {error}.")
            (clashing if is_ours else attributes)[proto.name] = value
        parameters = node_type.to_parameters(attributes) if node_type is not None else attributes
        metadata = _metadata(node.metadata_props)
        layout = _own_layout(metadata, PREFIX)
        for key, kinds in (("training?", bool), ("lda coeff", (int, float))):
            value = _json(metadata.get(PREFIX + key, ""))
            if isinstance(value, kinds) and key not in parameters:
                parameters[key] = value
                del metadata[PREFIX + key]
        extra: dict[str, Any] = {}
        if node.name and node.name != id:
            own = node_type.parameter("name") if node_type is not None else None
            if own is not None and own.attribute is not None:
                extra["node_name"] = node.name
            else:
                parameters["name"] = node.name
        if "." in node.op_type:
            extra["operator"] = node.op_type
        for key, kept in (
            ("doc", node.doc_string),
            ("metadata", metadata),
            ("overload", node.overload),
            ("attributes", clashing),
            ("device_configurations", [c.SerializeToString(deterministic=True) for c in node.device_configurations]),
        ):
            if kept:
                extra[key] = kept
        extra |= _said_of(node.attribute)
        return NodeState(id, _type_name(node), parameters, layout, extra)

    def _subgraph(self, proto: onnx.GraphProto) -> Graph:
        return self.reader.graph(proto, [*self.around, self.scope], {})

    def _with_names(
        self,
        state: NodeState,
        node: onnx.NodeProto,
        node_type: type[Node] | None,
        ports: list[str],
        wired: set[PortRef],
        given_out: Mapping[str, int],
    ) -> NodeState:
        """The node with its outputs' names, where they are not those that they get by themselves, and their types."""
        outer = {name for scope in self.around for name in scope.names}
        values: dict[str, Any] = {}
        by_themselves = True
        for name, port in zip(node.output, ports, strict=True):
            if not name:
                continue
            own = name if given_out.get(name) == 1 else f"{state.id}.{port}"
            declared = node_type.output_port(port) if node_type is not None else None
            made = PortRef(state.id, port) in wired or (
                declared is not None and not declared.optional and not declared.variadic
            )
            by_themselves &= made and name == own and name not in self.scope.captured and name not in outer
            info = self.value_info.get(name)
            if info is None and name in self.quantization:
                info = onnx.ValueInfoProto(name=name)
            about = self._about(info, None) if info is not None and name not in given_out else {}
            if about:
                values[port] = about
        parameters = dict(state.parameters)
        if not by_themselves:
            names = list(node.output)
            while names and not names[-1]:
                names.pop()
            parameters["specified_outputs_name"] = names
        extra = {**state.extra, "values": values} if values else state.extra
        return NodeState(state.id, state.type, parameters, state.layout, extra)


class _Ids:
    """Hands out ids: those that the file reserves, and new ones made from names."""

    def __init__(self) -> None:
        self._reserved: set[str] = set()
        self._used: set[str] = set()
        self._numbers: dict[tuple[str, bool], int] = {}  # the last one tried, so that no search begins anew

    def reserve(self, id: str) -> None:
        if id:
            self._reserved.add(id)

    def take(self, name: str, reserved: str, fallback: str) -> str:
        """The reserved id of a node if it has one, else one made from its name, else from the fallback."""
        if reserved and reserved not in self._used:
            self._used.add(reserved)
            return reserved
        base = id_from_name(name or fallback.lower())
        stem = base, bool(name)
        number = self._numbers.get(stem, 1 if name else 0)
        id = base if name and number == 1 else f"{base}_{number}"
        while id in self._used or id in self._reserved:
            number += 1
            id = f"{base}_{number}"
        self._numbers[stem] = number
        self._used.add(id)
        return id


def _names(proto: onnx.GraphProto) -> Iterator[str]:
    """The names of all values that a graph makes."""
    yield from (info.name for info in proto.input)
    yield from (tensor.name for tensor in proto.initializer)
    yield from (tensor.values.name for tensor in proto.sparse_initializer)
    for node in proto.node:
        yield from (name for name in node.output if name)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _type_name(node: onnx.NodeProto) -> str:
    domain = _domain(node.domain)
    return f"{domain}.{node.op_type}" if domain else node.op_type


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(entry.domain): int(entry.version) for entry in imports}


def _metadata(entries: Iterable[onnx.StringStringEntryProto]) -> dict[str, str]:
    return {entry.key: entry.value for entry in entries}


def _said_of(attributes: Iterable[onnx.AttributeProto]) -> dict[str, Any]:
    """What a file says of attributes, and of the tensors in them, beside their values: entries of `extra`."""
    docs: dict[str, str] = {}
    tensors: dict[str, Any] = {}
    for proto in attributes:
        if proto.doc_string:
            docs[proto.name] = proto.doc_string
        said = [_said_of_tensor(tensor) for tensor in (proto.t, *proto.tensors)]
        if said[0]:
            tensors[proto.name] = said[0]
        elif any(said):
            tensors[proto.name] = said[1:]
    return {key: kept for key, kept in (("attribute_docs", docs), ("attribute_tensors", tensors)) if kept}


def _said_of_tensor(proto: onnx.TensorProto) -> dict[str, Any]:
    said = ("name", proto.name), ("doc", proto.doc_string), ("metadata", _metadata(proto.metadata_props))
    return {key: kept for key, kept in said if kept}


def _own(entries: Iterable[onnx.StringStringEntryProto], prefix: str) -> str:
    """The id that a file of ours gives a node; empty if it gives none that is valid."""
    id = _metadata(entries).get(prefix + "id", "")
    return id if ID_PATTERN.fullmatch(id) else ""


def _own_layout(metadata: dict[str, str], prefix: str) -> dict[str, Any]:
    """The layout in metadata, from which it and the other entries that describe the document's node are taken out."""
    layout: dict[str, Any] = {}
    rest = _json(metadata.get(prefix + "layout", ""))
    if isinstance(rest, dict):
        layout |= rest
        del metadata[prefix + "layout"]
    position = _json(metadata.get(prefix + "position", ""))
    if position is not None:
        layout = {"position": position, **layout}
        del metadata[prefix + "position"]
    for key in ("id", "node"):
        metadata.pop(prefix + key, None)
    return layout


def _json(text: str) -> Any:
    """What a JSON text holds; None if it is none."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _reads_back(type: ValueType) -> bool:
    """Whether a type's text says all of it: names of dimensions may hold what separates them."""
    try:
        return parse_type(str(type)) == type
    except ValueError:
        return False
