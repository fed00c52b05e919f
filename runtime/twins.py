"""Where the float weights of a quantized mixture are: remembered by its node, and put in its place to compare.

In a document, the node's `layout` says it: `float_twin: {path: ../mixtral, name: model.layers.3.mlp}`. The path, from
the document's folder, is that of a graph, where `name` is a node, or of a checkpoint's folder, where it is a block.
`rescaled: true` says that the node's input is divided by factors that its weights are multiplied by.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from runtime.errors import Finding, GraphError
from runtime.experts import FLOAT_TWIN
from runtime.files import load
from runtime.graph import Graph, PortRef
from runtime.tensors import Tensor

KEY = "float_twin"
LONGEST = 4096
ACTIVATIONS = ("input", "router_probs")


@dataclass(frozen=True, slots=True)
class FloatTwin:
    """What a node remembers. `path` is written with slashes, from the document's folder or from the root."""

    path: str
    name: str
    rescaled: bool = False

    @property
    def is_beside(self) -> bool:
        """Whether it lies in the document's folder or below, so that it may be read unasked."""
        path = PurePosixPath(self.path)
        return not path.is_absolute() and ".." not in path.parts and ":" not in self.path and "\\" not in self.path


def twin_of(graph: Graph, node: str) -> FloatTwin | None:
    """What a node remembers; None if that is nothing, or not in this form."""
    stored = graph.nodes[node].layout.get(KEY)
    if not isinstance(stored, Mapping):
        return None
    path, name, rescaled = stored.get("path"), stored.get("name"), stored.get("rescaled", False)
    if not (isinstance(path, str) and isinstance(name, str) and isinstance(rescaled, bool)):
        return None
    if not 0 < len(path) <= LONGEST or len(name) > LONGEST or "\0" in path:
        return None
    return FloatTwin(path, name, rescaled)


def beside(graph: Graph, node: str, document: Path | None) -> Path | None:
    """Where the floats are that a node remembers, if that is beside the document or below, and there."""
    twin = twin_of(graph, node)
    if twin is None or document is None or not twin.is_beside:
        return None
    path = document.parent / twin.path
    return path if _is_inside(path, document) and os.path.exists(path) else None


def _is_inside(path: Path, document: Path) -> bool:
    """Whether a path stays in the document's folder when links are followed."""
    folder = os.path.realpath(document.parent)
    return os.path.realpath(path).startswith(os.path.join(folder, ""))


def remember_twin(graph: Graph, node: str, source: Path, name: str, document: Path, *, rescaled: bool = False) -> None:
    """Lets a node of a graph that will be saved as `document` remember where its float weights are."""
    try:
        path = Path(os.path.relpath(source.resolve(), document.resolve().parent))
    except ValueError:  # on another drive
        path = source.resolve()
    stored: dict[str, Any] = {"path": path.as_posix(), "name": name}
    if rescaled:
        stored["rescaled"] = True
    graph.set(node, KEY, stored, section="layout")


def with_floats(graph: Graph, document: Path, source: Path | None = None, nodes: Iterable[str] | None = None) -> Graph:
    """A copy of a document with float mixtures in the place of the quantized ones that remember theirs.

    `nodes` are those that are replaced, if not all. `source` is where the floats are if not where the nodes say;
    without it, only what lies beside the document or below is read. GraphError names the node and says what is missing.
    """
    whole = graph.copy()
    wanted = graph.nodes if nodes is None else nodes
    found = {node: twin for node in wanted if (twin := twin_of(graph, node)) is not None}
    if not found:
        text = "No mixture of this graph remembers where its float weights are."
        raise GraphError(Finding(text, remedy="Name both graphs: compare FLOATS QUANTIZED.", code="twin"))
    loaded: dict[Path, Graph] = {}
    for node, twin in found.items():
        if source is None and not (twin.is_beside and _is_inside(document.parent / twin.path, document)):
            text = f"its float weights are said to be in {twin.path}, outside of the document's folder."
            raise GraphError(Finding(text, node, remedy=f"If you trust it, say --twin {twin.path}.", code="twin"))
        path = source if source is not None else document.parent / twin.path
        if not os.path.exists(path):
            raise GraphError(Finding(f"its float weights are not in {path}: that is not there.", node, code="twin"))
        if path.is_dir():
            parameters, tensors = _of_checkpoint(graph, node, path, twin.name)
        else:
            if path not in loaded:
                loaded[path] = load(path)
            parameters, tensors = _of_graph(node, loaded[path], path, twin.name)
        _replace(whole, node, twin, parameters, tensors)
    return whole


def _of_graph(node: str, other: Graph, path: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if name not in other.nodes or other.nodes[name].type != FLOAT_TWIN:
        raise GraphError(Finding(f"{path} has no {FLOAT_TWIN} node called {name}.", node, code="twin"))
    tensors = {}
    for port, wire in other.inputs_of(name).items():
        tensor = other.nodes[wire.node].parameters.get("tensor")
        if port not in ACTIVATIONS:
            if not isinstance(tensor, Tensor):
                raise GraphError(Finding(f"{name}.{port} in {path} is no tensor of the document.", node, code="twin"))
            tensors[port] = tensor
    return dict(other.nodes[name].parameters), tensors


def _of_checkpoint(graph: Graph, node: str, path: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    node_type: Any = graph.node_type(node)
    if not hasattr(node_type, "floats_in_checkpoint"):
        text = f"float weights in a checkpoint are for quantized mixtures; this is a {graph.nodes[node].type}."
        raise GraphError(Finding(text, node, code="twin"))
    parameters, arrays = node_type.floats_in_checkpoint(path, name)
    return parameters, {port: Tensor.from_array(array) for port, array in arrays.items()}


def _replace(
    graph: Graph, node: str, twin: FloatTwin, parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Puts a float mixture in the place of a node, under the same id."""
    wires, inputs, layout = graph.wires_of(node), graph.inputs_of(node), graph.nodes[node].layout
    given = {port: inputs[port] for port in ACTIVATIONS if port in inputs}
    if "router_weights" in inputs:
        text = f"{FLOAT_TWIN} has no router_weights, so that it cannot stand in its place."
        raise GraphError(Finding(text, node, "router_weights", code="twin"))
    factor = given["input"].node if twin.rescaled and "input" in given else ""
    if factor:
        if graph.nodes[factor].type != "Mul":
            text = f"its input is said to be divided by factors, but {factor} is no Mul."
            raise GraphError(Finding(text, node, "input", code="twin"))
        given["input"] = graph.inputs_of(factor)["A"]
    with graph.transaction("Float weights"):
        unused = {source.node for source, target in wires if target.node == node and target.port not in ACTIVATIONS}
        graph.remove(node)
        for id in (*sorted(unused), *((factor,) if factor else ())):
            if not any(source.node == id for source, _ in graph.wires_of(id)):
                graph.remove(id)
        graph.add(FLOAT_TWIN, node, parameters=dict(parameters))
        for key, value in layout.items():
            graph.set(node, key, value, section="layout")
        for port, source in given.items():
            graph.wire(source, PortRef(node, port))
        for source, target in wires:
            if source.node == node:
                graph.wire(PortRef(node, "output"), target)
        for port, tensor in tensors.items():
            id = port if port not in graph.nodes else graph.new_id("Initializer")
            graph.add("Initializer", id, parameters={"tensor": tensor})
            graph.wire(PortRef(id, "value"), PortRef(node, port))
