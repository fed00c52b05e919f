"""Graph -> plain data in the form of a snippet, ready for `emit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.attributes import Typed
from runtime.errors import Finding, GraphError
from runtime.graph import Graph, NodeState, PortRef
from runtime.node import Node
from runtime.ports import index_of
from runtime.snippets.emit import Block
from runtime.snippets.values import MAXIMUM_INLINE, encode_bytes, encode_inline, encode_type
from runtime.tensors import AbsentTensor, Place, Tensor
from runtime.types import ElementType, MapType, OptionalType, SequenceType, TensorType

VERSION = 1

GRAPH_KEYS = ("name", "doc", "opsets", "info", "functions", "nodes", "layout", "extra")
DOCUMENT_KEYS = ("qmoe", "tensors", *GRAPH_KEYS)
NODE_KEYS = ("type", "parameters", "inputs", "layout", "extra")
"""Keys with a meaning. `extra` holds unknown keys that are called as one of these; all others stand beside them."""

TERMINALS = frozenset({"Input", "Initializer", "Capture"})
"""Types whose one output need not be named in a wire: they are known wherever a snippet is read."""


class Writer:
    """Turns graphs into plain data and gathers the tensors that belong beside them, by the names that it gives them.

    `awaited`: the files that hold tensors which are absent. With `by_place`, tensors that lie in files are told apart
    by where they lie, and neither read nor hashed.
    """

    def __init__(self, files: Mapping[str, str] | None = None, by_place: bool = False) -> None:
        """`files`: names of tensors that lie in other files than the one beside the snippet, and which."""
        self.tensors: dict[str, Tensor] = {}
        self.awaited: set[str] = set()
        self._files = files or {}
        self._by_place = by_place
        self._names: dict[tuple[ElementType, tuple[int, ...], str | Place], str] = {}

    def document(self, graph: Graph, tensors_file: str) -> Block:
        """The whole document; `tensors_file` is the name of the file beside it, used if it needs one."""
        content = self._graph(graph, {}, "", DOCUMENT_KEYS)
        head = Block(qmoe=VERSION)
        for key in ("name", "doc", "opsets"):
            if key in content:
                head[key] = content.pop(key)
        if self.tensors:
            head["tensors"] = tensors_file
        return Block(head | content)

    def _graph(
        self, graph: Graph, outer_opsets: Mapping[str, int], prefix: str, keys: Sequence[str] = GRAPH_KEYS
    ) -> Block:
        """A graph; names of tensors begin with `prefix`. A nested one leaves out opsets that are the outer graph's."""
        data = Block()
        info = dict(graph.section("info"))
        place = _Place("", prefix, graph.opsets)
        for key in ("name", "doc"):
            if isinstance(info.get(key), str):
                data[key] = place.text(info.pop(key), key)
        if graph.opsets != outer_opsets:
            data["opsets"] = dict(graph.opsets)
        _put(data, "info", self._section(info, place.inside("info")))
        functions = Block()
        for key, body in graph.section("functions").items():
            if not isinstance(body, Graph):
                raise GraphError(Finding(f"The function {key!r} is no graph and cannot be written.", code="function"))
            functions[place.text(key, key)] = self._graph(body, graph.opsets, f"{prefix}{key}.")
        _put(data, "functions", functions)
        data["nodes"] = Block({id: self._node(graph, state, prefix) for id, state in graph.nodes.items()})
        _put(data, "layout", self._section(graph.section("layout"), place.inside("layout")))
        self._extra(data, graph.section("extra"), keys, place)
        return data

    def _node(self, graph: Graph, state: NodeState, prefix: str) -> Block:
        node_type = graph.node_type(state.id)
        place = _Place(state.id, f"{prefix}{state.id}.", graph.opsets)
        data = Block(type=place.text(state.type, "type"))
        parameters = dict(state.parameters)
        if node_type is not None:
            declared = [parameter.name for parameter in node_type.parameters if parameter.name in parameters]
            parameters = {key: parameters[key] for key in declared} | parameters
        _put(data, "parameters", self._section(parameters, place))
        inputs = graph.inputs_of(state.id)
        if node_type is not None:
            inputs = dict(sorted(inputs.items(), key=lambda item: _position(node_type, item[0])))
        wires = {place.text(port, port): _source(graph, source) for port, source in inputs.items()}
        _put(data, "inputs", Block(wires))
        _put(data, "layout", self._section(state.layout, place.inside("layout")))
        self._extra(data, state.extra, NODE_KEYS, place)
        return data

    def _extra(self, data: Block, extra: Mapping[str, Any], keys: Sequence[str], place: _Place) -> None:
        data.update(self._section({key: value for key, value in extra.items() if key not in keys}, place))
        hidden = {key: value for key, value in extra.items() if key in keys}
        _put(data, "extra", self._section(hidden, place.inside("extra")))

    def _section(self, content: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in content.items():
            if not isinstance(key, str):
                raise place.error(str(key), f"Keys are texts; {key!r} cannot be written to a snippet.")
            place.text(key, key)
            name = place.prefix + key
            if key == "tensor":  # an initializer's: called as the initializer is
                name = str(content.get("name") or place.prefix.removesuffix("."))
            data[f"${key}" if key.startswith("$") else key] = self._value(value, key, name, place)
        return data

    def _value(self, value: Any, key: str, name: str, place: _Place) -> Any:
        """One value of the parameter (or other entry) `key`; `name` is what a tensor in it may be called."""
        match value:
            case None | bool():
                return value
            case int():
                return int(value)
            case float():
                return float(value)
            case str():
                return place.text(value, key)
            case np.generic() if isinstance(value.item(), int | float | str):
                return self._value(value.item(), key, name, place)
            case bytes():
                return encode_bytes(value)
            case list() | tuple():
                return [self._value(item, key, f"{name}.{index}", place) for index, item in enumerate(value)]
            case Mapping():
                return self._section(value, place.inside(name.removeprefix(place.prefix)))
            case Tensor():
                return self._tensor(value, key, name, place)
            case Graph():
                return {"$graph": self._graph(value, place.opsets, f"{name}.")}
            case Typed(kind, inner):
                return {"$as": kind, "value": self._value(inner, key, name, place)}
            case TensorType() | SequenceType() | OptionalType() | MapType():
                return encode_type(value)
        raise place.error(key, f"A value of the kind {type(value).__name__} cannot be written to a snippet.")

    def _tensor(self, tensor: Tensor, key: str, name: str, place: _Place) -> dict[str, Any]:
        if isinstance(tensor, AbsentTensor):
            self.awaited.add(tensor.location)
            return _reference(tensor, tensor.name, tensor.location)
        if tensor.element is ElementType.STRING or tensor.size <= MAXIMUM_INLINE:
            data = encode_inline(tensor)
            for item in data.get("data", ()):
                if isinstance(item, str):
                    place.text(item, key)
            return data
        lies = tensor.place if self._by_place else None
        content = (tensor.element, tensor.shape, lies or tensor.digest)
        if content not in self._names:
            name, number, stem = place.text(name, key), 1, name
            while name in self.tensors or name in ("", "__metadata__"):
                number += 1
                name = f"{stem}.{number}"
            self._names[content] = name
            self.tensors[name] = tensor
        name = self._names[content]
        return _reference(tensor, name, self._files.get(name, ""), is_hashed=lies is None)


def _reference(tensor: Tensor, name: str, file: str, is_hashed: bool = True) -> dict[str, Any]:
    """A tensor in a file; `file` is empty for the one beside the snippet."""
    data = {"$tensor": str(tensor.element), "shape": list(tensor.shape), "name": name}
    return data | ({"sha256": tensor.digest} if is_hashed else {}) | ({"file": file} if file else {})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands: its node (empty for the graph), the start of its tensors' names, the graph's opsets."""

    node: str
    prefix: str
    opsets: Mapping[str, int]

    def inside(self, key: str) -> _Place:
        return replace(self, prefix=f"{self.prefix}{key}.")

    def error(self, key: str, message: str) -> GraphError:
        return GraphError.at(self.node, key.encode(errors="replace").decode(), message, code="snippet")

    def text(self, text: str, key: str) -> str:
        """The text, if it is one that a file can hold."""
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise self.error(key, f"{text!a} is no Unicode text and cannot be written to a snippet.") from error
        return str(text)


def _put(data: Block, key: str, content: dict[str, Any]) -> None:
    if content:
        data[key] = content


def _source(graph: Graph, source: PortRef) -> str:
    if source.port == "value" and graph.nodes[source.node].type in TERMINALS:
        return source.node
    return str(source)


def _position(node_type: type[Node], port: str) -> tuple[int, int]:
    """Where an input stands among the declared ones."""
    declared = node_type.input_port(port)
    index = next((i for i, other in enumerate(node_type.inputs) if declared and other.name == declared.name), 0)
    return index, index_of(port)
