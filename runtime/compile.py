"""Graph -> ONNX IR.

Names come from the document: a value is called as `specified_outputs_name` says, else as the graph's output that it
alone feeds, else `<id>.<port>`; inputs and initializers by their `name`, else by their id. What ONNX has no place for
(ids that names do not tell, positions, training parameters) travels as metadata whose keys start with "qmoe.".
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir

from runtime import catalog
from runtime.attributes import Typed, to_attribute
from runtime.captures import MAXIMUM_DEPTH, bodies_of
from runtime.errors import Finding, GraphError
from runtime.graph import Graph, NodeState, PortRef
from runtime.ir_tensors import GraphTensor as GraphTensor
from runtime.ir_tensors import dense_tensor, wrap
from runtime.node import COMMON_PARAMETERS, Node, NodeContext
from runtime.nodes.terminals import declared_type
from runtime.onnx_names import (
    free_name,
    has_common,
    id_from_name,
    input_ports,
    is_terminal,
    operator_of,
    output_ports,
    value_names,
)
from runtime.onnx_types import to_type_proto, type_and_shape
from runtime.tensors import Tensor
from runtime.types import TensorType, ValueType

PREFIX = "qmoe."
"""Starts the keys of our own entries in ONNX metadata."""

OUTPUT_PREFIX = "qmoe.output."
"""Starts the keys of an output's entries, which lie with the value that it gives out."""

DATA_FILE = "qmoe.data"
"""The key of a model's metadata that names the data file that was written with it."""

DEFAULT_NAME = "graph"
"""The name in ONNX of a graph without one: ONNX wants every graph to have a name."""

PRODUCER = "qmoe-studio"

LOWEST_IR_VERSION = 10
"""The version of the file format in which nodes and values have metadata."""

COMMON_NAMES = frozenset(parameter.name for parameter in COMMON_PARAMETERS)


@dataclass(frozen=True)
class Compiled:
    """A graph as an ONNX model.

    `values` gives the name in the model of every output port that it computes; `nodes` the document's id for the name
    of an ONNX node (names are unique; nodes of subgraphs belong to the node that holds the subgraph). Initializers and
    tensors in attributes are `GraphTensor`s (`GraphStrings` for strings). Entries of `meta` of values and nodes that
    begin with "qmoe." say what onnx-ir cannot hold; `runtime.onnx_export` writes them to files.
    """

    model: ir.Model
    values: dict[PortRef, str]
    nodes: dict[str, str]

    def mark_nodes(self) -> None:
        """Writes on every ONNX node, those of subgraphs too, which node of the document it belongs to."""
        for node in self.model.graph.all_nodes():
            node.metadata_props[PREFIX + "node"] = self.nodes[str(node.name)]

    def give_types(self, type_of: Callable[[PortRef], ValueType]) -> Callable[[], None]:
        """Gives the main graph's values the types that are known of ports, where the document says none.

        The returned function takes them back.
        """
        given: list[tuple[ir.Value, Any, Any]] = []
        values = {value.name: value for node in self.model.graph for value in node.outputs}
        values |= {value.name: value for value in self.model.graph.inputs}
        for port, name in self.values.items():
            value = values.get(name)
            if value is None:
                continue
            given.append((value, value.type, value.shape))
            type_, shape = type_and_shape(type_of(port))
            value.type = value.type or type_
            value.shape = value.shape if value.shape is not None else shape

        def take_back() -> None:
            for value, type_, shape in given:
                value.type, value.shape = type_, shape

        return take_back


def compile_graph(graph: Graph) -> Compiled:
    """The ONNX model of a graph. GraphError names what cannot be written; run `check` before for all that is wrong."""
    info = graph.section("info")
    opsets = _opsets(graph)
    model = _Model(opsets)
    functions = [
        _function(key, body, opsets) for key, body in graph.section("functions").items() if isinstance(body, Graph)
    ]
    for function in functions:
        opsets.setdefault(function.domain, 1)
    body = _Body(model, graph, {}, "", 0, info_prefix="graph_").build()
    metadata = {str(key): str(value) for key, value in (info.get("metadata") or {}).items()}
    metadata |= _layout(graph.section("layout"))
    compiled = ir.Model(
        body.graph,
        ir_version=_ir_version(graph, opsets, bool(functions)),
        producer_name=info.get("producer_name", PRODUCER),
        producer_version=info.get("producer_version"),
        domain=info.get("domain"),
        model_version=info.get("model_version"),
        doc_string=info.get("doc"),
        functions=functions,
        metadata_props=metadata,
    )
    for key in ("training_info", "configuration"):
        compiled.meta[PREFIX + key] = graph.section("extra").get(key)
    return Compiled(compiled, body.names, model.nodes)


def _opsets(graph: Graph) -> dict[str, int]:
    """Versions of all operator sets that a graph uses: its own, and the newest installed where it has none."""
    opsets = {"" if domain == "ai.onnx" else domain: version for domain, version in graph.opsets.items()}
    for domain in sorted(_domains(graph)):
        if domain not in opsets:
            opsets[domain] = catalog.newest_opset(domain)
    return opsets


def _domains(graph: Graph) -> Iterator[str]:
    for state in graph.nodes.values():
        if not is_terminal(state):
            yield operator_of(state)[0]
        for body in bodies_of(state):
            yield from _domains(body)


def _ir_version(graph: Graph, opsets: Mapping[str, int], has_functions: bool) -> int:
    own = graph.section("info").get("ir_version")
    if isinstance(own, int):
        fixed = any(
            state.type == "Initializer" and not state.parameters.get("overridable") for state in graph.nodes.values()
        )
        return max(own, 8 if has_functions else 4 if fixed else 1)
    return own_ir_version(opsets)


def own_ir_version(opsets: Mapping[str, int]) -> int:
    """The version of the file format that a model with these operator sets is written in."""
    from onnx.helper import find_min_ir_version_for, make_opsetid

    imports = [make_opsetid(domain, version) for domain, version in opsets.items()]
    return max(LOWEST_IR_VERSION, find_min_ir_version_for(imports, ignore_unknown=True))


def _function(key: str, body: Graph, opsets: Mapping[str, int]) -> ir.Function:
    domain, name, overload = split_function_key(key)
    own = {"" if domain == "ai.onnx" else domain: version for domain, version in body.opsets.items()}
    for used in sorted(_domains(body)):
        if used not in own:
            own[used] = opsets[used] if used in opsets else catalog.newest_opset(used)
    model = _Model(own)
    built = _Body(model, body, {}, "", 0).build().graph
    info = body.section("info")
    attributes = [ir.Attr(str(item), ir.AttributeType.UNDEFINED, None) for item in info.get("attributes") or ()]
    for item, default in (info.get("attribute_defaults") or {}).items():
        attributes.append(
            to_attribute(item, default, "", wrap, lambda graph: _Body(model, graph, {}, "", 1).build().graph)
        )
        _describe(attributes[-1], str(item), info)
    return ir.Function(domain, name, overload, graph=built, attributes=attributes)


def split_function_key(key: str) -> tuple[str, str, str]:
    """Domain, name and overload of a function from its key "domain::name" or "domain::name::overload"."""
    parts = key.split("::")
    if len(parts) not in (2, 3) or not parts[1]:
        raise GraphError(Finding(f"A function's key is domain::name, not {key!r}.", code="function"))
    return parts[0], parts[1], parts[2] if len(parts) == 3 else ""


@dataclass(slots=True)
class _Model:
    """What is shared by all graphs of one model."""

    opsets: dict[str, int]
    nodes: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    """The last number that was put behind a node's name, so that no search for a free one begins anew."""


class _Body:
    """One graph (the main one, a subgraph, a function's) on its way to onnx-ir."""

    def __init__(
        self,
        model: _Model,
        graph: Graph,
        outer: Mapping[str, ir.Value],
        owner: str,
        depth: int,
        info_prefix: str = "",
    ) -> None:
        if depth > MAXIMUM_DEPTH:
            raise GraphError.at(owner, "", f"Subgraphs are nested more than {MAXIMUM_DEPTH} deep.", code="depth")
        self._model, self._source, self._outer, self._owner, self._depth = model, graph, outer, owner, depth
        self._info_prefix = info_prefix  # of the main graph's entries, whose others are the model's
        self._types = {id: self._type_of(state) for id, state in graph.nodes.items() if not is_terminal(state)}
        self._ports = {id: output_ports(graph, id, node_type) for id, node_type in self._types.items()}
        self.names = value_names(graph, self._ports, outer)
        self._visible: dict[str, ir.Value] = dict(outer)
        self._values: dict[PortRef, ir.Value] = {}

    def _type_of(self, state: NodeState) -> type[Node] | None:
        return catalog.find(state.type, self._model.opsets)

    def build(self) -> _Body:
        """Builds `graph`."""
        inputs: list[ir.Value] = []
        initializers: list[ir.Value] = []
        states = self._source.nodes
        for id, state in states.items():
            if state.type == "Capture":
                self._capture(id, state)
            elif state.type in ("Input", "Initializer"):
                value = self._terminal(id, state)
                if state.type == "Initializer":
                    initializers.append(value)
                if state.type == "Input" or state.parameters.get("overridable"):
                    inputs.append(value)
        for id in self._ports:
            self._declare(id)
        nodes = [self._node(id) for id in self._order()]
        outputs: list[ir.Value] = []
        for id, state in states.items():
            if state.type == "Output":
                outputs.append(self._output(id, state, nodes))
        info = self._source.section("info")
        metadata = info.get(f"{self._info_prefix}metadata") or {}
        self.graph = ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            doc_string=info.get(f"{self._info_prefix}doc"),
            opset_imports=dict(self._model.opsets) if self._depth == 0 else None,
            name=self._source.name or DEFAULT_NAME,
            metadata_props={str(key): str(value) for key, value in metadata.items()},
        )
        for key in ("unused_value_info", "unused_quantization", "repeated_outputs"):
            self.graph.meta[PREFIX + key] = self._source.section("extra").get(key)
        return self

    # -- terminals ------------------------------------------------------------------------------------------------

    def _capture(self, id: str, state: NodeState) -> None:
        name = str(state.parameters.get("name", ""))
        value = self._outer.get(name)
        if value is None:
            where = "around" if self._depth else "outside: only a subgraph has one"
            raise GraphError.at(self._place(id), "name", f"There is no value {name!r} {where}.", code="capture")
        self._values[PortRef(id, "value")] = value

    def _terminal(self, id: str, state: NodeState) -> ir.Value:
        port = PortRef(id, "value")
        name = self.names[port]
        value = ir.Value(name=name)
        if state.type == "Initializer":
            tensor = state.parameters.get("tensor")
            if not isinstance(tensor, Tensor):
                raise GraphError.at(self._place(id), "tensor", "The initializer has no tensor.", code="parameter")
            value.const_value = wrap(tensor, name)
            value.type, value.shape = type_and_shape(tensor.type)
            training_type = state.parameters.get("training_type", "constant")
            if training_type != "constant":
                value.metadata_props[PREFIX + "training_type"] = str(training_type)
            if state.extra.get("sparse"):
                value.meta["qmoe.sparse"] = True
                value.meta["qmoe.sparse_indices"] = state.extra.get("sparse_indices")
        else:
            self._set_type(value, id, state)
        self._decorate(value, state, "value")
        self._mark(value.metadata_props, PREFIX, state, name)
        self._values[port] = self._visible[name] = value
        return value

    def _set_type(self, value: ir.Value, id: str, state: NodeState) -> None:
        try:
            declared = declared_type(NodeContext(id, {}, state.parameters))
        except ValueError as error:
            raise GraphError.at(self._place(id), "type", f"{error}.", code="parameter") from error
        value.type, value.shape = type_and_shape(declared)
        if value.type is None and declared != TensorType():
            value.meta["qmoe.type"] = to_type_proto(declared)
        exact = _of_value(state, "value").get("proto")
        if isinstance(exact, bytes):
            value.meta["qmoe.type"] = onnx.TypeProto.FromString(exact)

    def _output(self, id: str, state: NodeState, nodes: list[ir.Node]) -> ir.Value:
        source = self._source.wires.get(PortRef(id, "value"))
        if source is None:
            raise GraphError.at(self._place(id), "value", "Nothing is wired to this output.", code="missing-input")
        value = self._values.get(source)
        if value is None:
            raise GraphError.at(self._place(id), "value", f"{source} is no output.", code="wire")
        name = str(state.parameters.get("name") or id)
        captured = value.name is not None and self._outer.get(value.name) is value
        if value.name != name or captured:
            if self._depth:  # nobody knows the outputs of a subgraph by their names
                name = free_name(name, self._visible)
            elif name in self._visible:
                taken = f"The name {name!r} is taken by another value."
                raise GraphError.at(self._place(id), "name", taken, "Choose another.", "duplicate-name")
            given = ir.Value(name=name, type=value.type, shape=value.shape)
            nodes.append(ir.Node("", "Identity", [value], outputs=[given], name=self._unique(f"{id}.identity", id)))
            self._visible[name] = value = given
        if value.producer() is None:  # an input, say, given out as it is: what is said of each stays apart
            apart = ir.Value(name=name)
            if _says_type(state):
                self._set_type(apart, id, state)
            else:
                apart.type, apart.shape = value.type, value.shape
            value.meta["qmoe.output"] = apart
        else:
            apart = value
            if _says_type(state):
                self._set_type(value, id, state)
        self._decorate(apart, state, "value")
        self._mark(apart.metadata_props, OUTPUT_PREFIX, state, name)
        return value

    def _decorate(self, value: ir.Value, state: NodeState, port: str) -> None:
        """Gives a value what its file said about it beside its type."""
        about = _of_value(state, port)
        if about.get("doc"):
            value.doc_string = str(about["doc"])
        for key, text in (about.get("metadata") or {}).items():
            value.metadata_props[str(key)] = str(text)
        if about.get("quantization"):
            value.meta["quant_parameter_tensor_names"] = dict(about["quantization"])
        if about.get("type") or (about.get("proto") and state.type not in ("Input", "Output")):
            value.meta["qmoe.value_info"] = about
        if about.get("tensor_doc") or about.get("tensor_metadata"):
            value.meta["qmoe.tensor"] = about

    # -- operators ------------------------------------------------------------------------------------------------

    def _declare(self, id: str) -> None:
        state = self._source.nodes[id]
        for port in self._ports[id]:
            value = ir.Value(name=self.names[PortRef(id, port)] if port else "")
            if port:
                self._decorate(value, state, port)
                self._values[PortRef(id, port)] = self._visible[str(value.name)] = value
        self._outputs_of(id)

    def _outputs_of(self, id: str) -> list[ir.Value]:
        return [self._values[PortRef(id, port)] if port else ir.Value(name="") for port in self._ports[id]]

    def _node(self, id: str) -> ir.Node:
        state, node_type = self._source.nodes[id], self._types[id]
        domain, operator = operator_of(state)
        sources = self._source.inputs_of(id)
        inputs: list[ir.Value | None] = []
        for port in input_ports(sources, node_type, self._place(id)):
            source = sources.get(port)
            if source is None:
                inputs.append(None)
                continue
            value = self._values.get(source)
            if value is None:
                raise GraphError.at(self._place(id), port, f"{source} is no output that is computed.", code="wire")
            inputs.append(value)
        name = str(state.parameters.get("name") or "") if has_common(node_type, "name") else ""
        name = name or str(state.extra.get("node_name") or id)
        unique = self._unique(name, id)
        node = ir.Node(
            domain,
            operator,
            inputs,
            [],
            overload=str(state.extra.get("overload") or ""),
            outputs=self._outputs_of(id),
            name=unique,
            doc_string=state.extra.get("doc"),
            metadata_props={str(key): str(text) for key, text in (state.extra.get("metadata") or {}).items()},
        )
        for attribute in self._attributes(id, state, node_type, node):
            node.attributes.add(attribute)
        if unique != name:
            node.meta["qmoe.name"] = name
        if state.extra.get("device_configurations"):
            node.meta["qmoe.devices"] = tuple(state.extra["device_configurations"])
        self._mark(node.metadata_props, PREFIX, state, name)
        for key, default in (("training?", True), ("lda coeff", 1.0)):
            if key in state.parameters and has_common(node_type, key) and state.parameters[key] != default:
                node.metadata_props[PREFIX + key] = json.dumps(state.parameters[key])
        return node

    def _attributes(self, id: str, state: NodeState, node_type: type[Node] | None, node: ir.Node) -> Iterator[ir.Attr]:
        if node_type is not None:
            attributes = node_type.to_attributes(state.parameters)
        else:
            attributes = {key: value for key, value in state.parameters.items() if key not in COMMON_NAMES}
        attributes |= state.extra.get("attributes") or {}
        for own_name, value in attributes.items():
            if value is None:
                continue
            name = own_name
            if name == "sparse_value" and isinstance(value, Typed) and state.type == "Constant":
                node.meta["qmoe.sparse"] = value.value
                name, value = "value", self._dense(id, value.value)
            declared = node_type.parameter(name) if node_type is not None else None
            kind = declared.kind if declared is not None else ""
            try:
                attribute = to_attribute(name, value, kind, wrap, self._subgraph(id))
            except ValueError as error:
                raise GraphError.at(self._place(id), name, f"{error}.", code="parameter") from error
            _describe(attribute, own_name, state.extra)
            yield attribute

    def _dense(self, id: str, data: bytes) -> Tensor:
        try:
            return dense_tensor(onnx.SparseTensorProto.FromString(data))
        except ValueError as error:
            raise GraphError.at(self._place(id), "sparse_value", f"{error}.", code="parameter") from error

    def _subgraph(self, id: str) -> Callable[[Graph], ir.Graph]:
        owner = self._owner or id
        return lambda graph: _Body(self._model, graph, self._visible, owner, self._depth + 1).build().graph

    def _mark(self, metadata: dict[str, str], prefix: str, state: NodeState, name: str) -> None:
        """Writes the id, where the name does not tell it, and the layout of a node into its ONNX metadata."""
        base = id_from_name(name)
        if state.id != base:
            head, _, number = state.id.rpartition("_")
            if not (head == base and number.isdigit() and base in self._source.nodes):
                metadata[prefix + "id"] = state.id
        metadata |= {prefix + key.removeprefix(PREFIX): text for key, text in _layout(state.layout).items()}

    def _place(self, id: str) -> str:
        """The node to name in an error: in a subgraph, the node of the document that holds it."""
        return self._owner or id

    def _unique(self, name: str, id: str) -> str:
        """A name for an ONNX node that no other node of the model has."""
        number = self._model.numbers.get(name, 1)
        unique = name if number == 1 else f"{name}_{number}"
        while unique in self._model.nodes:
            number += 1
            unique = f"{name}_{number}"
        self._model.numbers[name] = number
        self._model.nodes[unique] = self._place(id)
        return unique

    def _order(self) -> list[str]:
        """Operators such that each comes after all that feed it, subgraphs included; else in the document's order."""
        position = {id: index for index, id in enumerate(self._ports)}
        makers = {self.names[PortRef(id, port)]: id for id, ports in self._ports.items() for port in ports if port}
        before: dict[str, set[str]] = {id: set() for id in position}
        for target, source in self._source.wires.items():
            if source.node in position and target.node in position:
                before[target.node].add(source.node)
        for id in position:
            for body in bodies_of(self._source.nodes[id]):
                before[id] |= {makers[name] for name in self._free_names(body) if name in makers}
        after: dict[str, list[str]] = {id: [] for id in position}
        for id, earlier in before.items():
            for feeding in earlier:
                after[feeding].append(id)
        waiting = {id: len(earlier) for id, earlier in before.items()}
        ready = [position[id] for id, count in waiting.items() if not count]
        ids = list(position)
        order: list[str] = []
        while ready:
            id = ids[heapq.heappop(ready)]
            order.append(id)
            for follower in after[id]:
                waiting[follower] -= 1
                if not waiting[follower]:
                    heapq.heappush(ready, position[follower])
        if len(order) < len(ids):
            stuck = [id for id in ids if waiting[id]]
            message = f"These nodes feed each other, through captured values too: {', '.join(stuck)}."
            raise GraphError.at(self._place(stuck[0]), "", message, code="cycle")
        return order

    def _free_names(self, graph: Graph, depth: int = 0) -> set[str]:
        """Names that a subgraph, and those in it, read from the graphs around them."""
        if depth > MAXIMUM_DEPTH:
            return set()  # building it says so
        free = {str(s.parameters.get("name", "")) for s in graph.nodes.values() if s.type == "Capture"}
        inner: set[str] = set()
        for state in graph.nodes.values():
            for body in bodies_of(state):
                inner |= self._free_names(body, depth + 1)
        if inner:
            ports = {
                id: output_ports(graph, id, self._type_of(state))
                for id, state in graph.nodes.items()
                if not is_terminal(state)
            }
            inner -= set(value_names(graph, ports, {}).values())
        return free | inner


def _describe(attribute: ir.Attr, name: str, said: Mapping[str, Any]) -> None:
    """Gives an attribute, and the tensors in it, what a file said of them beside their values."""
    attribute.doc_string = (said.get("attribute_docs") or {}).get(name)
    about = (said.get("attribute_tensors") or {}).get(name)
    if attribute.is_ref() or not about:
        return
    if attribute.type == ir.AttributeType.TENSOR:
        _describe_tensor(attribute.value, about)
    elif attribute.type == ir.AttributeType.TENSORS:
        for tensor, about_tensor in zip(attribute.value, about, strict=False):
            _describe_tensor(tensor, about_tensor)


def _describe_tensor(tensor: Any, about: Mapping[str, Any]) -> None:
    tensor.name = about.get("name")
    tensor.doc_string = about.get("doc")
    for key, text in (about.get("metadata") or {}).items():
        tensor.metadata_props[str(key)] = str(text)


def _says_type(state: NodeState) -> bool:
    """Whether an output says its type: where its type is unknown here, only in the file's own message."""
    return bool(state.parameters.get("type") or "shape" in state.parameters or _of_value(state, "value").get("proto"))


def _of_value(state: NodeState, port: str) -> Mapping[str, Any]:
    """What the file said about a node's output."""
    values = state.extra.get("values")
    about = values.get(port) if isinstance(values, Mapping) else None
    return about if isinstance(about, Mapping) else {}


def _layout(layout: Mapping[str, Any]) -> dict[str, str]:
    """A layout as metadata: the position, and the rest in one entry."""
    metadata = {}
    rest = dict(layout)
    if "position" in rest:
        metadata[PREFIX + "position"] = json.dumps(rest.pop("position"))
    if rest:
        metadata[PREFIX + "layout"] = json.dumps(rest)
    return metadata
