"""The float mixtures (MoE nodes) of a graph: their experts, the tokens they see, and quantized ones in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qmoe_node.attributes import read_settings
from qmoe_node.conversion import Converted
from qmoe_node.layer import Settings
from qmoe_node.mixtures import Expert, Mixture, Samples
from qmoe_node.routing import route
from runtime.errors import Finding, GraphError, Severity
from runtime.feeds import retyped
from runtime.graph import Graph, PortRef
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType, ValueType

FLOAT = "com.microsoft.MoE"
QUANTIZED = "com.microsoft.QMoE"
FLOATS = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16)
TRAINED = "trainable weight"


def float_mixtures(graph: Graph) -> list[str]:
    """The MoE nodes of a graph, in the order of computation."""
    return [id for id in graph.order() if graph.nodes[id].type == FLOAT]


def mixture_in(graph: Graph, node: str) -> Mixture:
    """The experts of a MoE node. GraphError if its weights are not all there, or do not fit together."""
    tensors: dict[str, Tensor] = {}
    for port, source in graph.inputs_of(node).items():
        if not port.startswith("fc"):
            continue
        tensor = graph.nodes[source.node].parameters.get("tensor")
        if not isinstance(tensor, Tensor):
            text = "is computed when the graph runs; only weights that the document holds can be quantized."
            raise GraphError(Finding(text, node, port, code="weights"))
        if tensor.element not in FLOATS:
            raise GraphError(Finding(f"expected floats; {tensor.element} came.", node, port, code="weights"))
        tensors[port] = tensor
    settings = settings_of(graph, node)
    for name in ("fc1", "fc2"):
        if f"{name}_experts_weights" not in tensors:
            raise GraphError(Finding("is not connected.", node, f"{name}_experts_weights", code="weights"))
    experts, hidden, inter = tensors["fc2_experts_weights"].shape
    expected = {
        "fc1_experts_weights": (experts, settings.fusion * inter, hidden),
        "fc3_experts_weights": (experts, inter, hidden),
        "fc1_experts_bias": (experts, settings.fusion * inter),
        "fc2_experts_bias": (experts, hidden),
        "fc3_experts_bias": (experts, inter),
    }
    for port, shape in expected.items():
        if port in tensors and tensors[port].shape != shape:
            text = f"expected {list(shape)}; {list(tensors[port].shape)} came."
            raise GraphError(Finding(text, node, port, code="weights"))
    arrays = {port: tensor.array() for port, tensor in tensors.items()}
    names = {"experts_weights": "", "experts_bias": "_bias"}

    def expert(number: int) -> Expert:
        found = {f"{port[:3]}{names[port[4:]]}": array[number].astype(np.float32) for port, array in arrays.items()}
        return Expert(**found)

    def forget() -> None:
        for tensor in tensors.values():
            tensor.release()

    places = [str(tensor.place or tensor.digest) for tensor in tensors.values()]
    return Mixture(node, experts, hidden, inter, settings, expert, repr(places), forget)


def graph_samples(graph: Graph, nodes: Iterable[str], inputs: Mapping[str, np.ndarray]) -> dict[str, Samples]:
    """The tokens that MoE nodes see when the graph runs on `inputs`, floats of any width, and where they are sent."""
    sources = {node: [graph.inputs_of(node)[port] for port in ("input", "router_probs")] for node in nodes}
    session = Session(graph)
    fed = {name: _as_wanted(array, session.inputs.get(name)) for name, array in inputs.items()}
    session.forward(fed, probes={source for pair in sources.values() for source in pair})
    probes = session.last_run.probes
    found: dict[str, Samples] = {}
    for node, pair in sources.items():
        tokens, logits = (probes[str(source)] for source in pair)
        settings = settings_of(graph, node)
        chosen = route(
            logits,
            settings.k,
            normalize_routing_weights=settings.normalize_routing_weights,
            use_sparse_mixer=settings.use_sparse_mixer,
        )
        flat = np.ascontiguousarray(tokens.reshape(-1, tokens.shape[-1]).astype(np.float32))
        found[node] = Samples(flat, chosen.indices, chosen.weights)
    return found


def _as_wanted(array: np.ndarray, wanted: ValueType | None) -> np.ndarray:
    """Floats in the width that an input has."""
    array = retyped(array, wanted)
    if isinstance(wanted, TensorType) and wanted.element in FLOATS and array.dtype.kind == "f":
        return array.astype(wanted.element.dtype)
    return array


def replace_mixture(graph: Graph, node: str, converted: Converted) -> None:
    """Puts a quantized mixture in the place of a MoE node, under the same id, as one step that can be undone."""
    state = graph.nodes[node]
    wires = graph.wires_of(node)
    given = graph.checker.type_of(PortRef(*graph.inputs_of(node)["input"]))
    element = given.element if isinstance(given, TensorType) and given.element in FLOATS else ElementType.FLOAT
    kept = {k: v for k, v in state.parameters.items() if k in ("name", "training?", "lda coeff", "use_sparse_mixer")}
    with graph.transaction(f"Quantize {node}"):
        sources = {source.node for source, target in wires if target.node == node and target.port.startswith("fc")}
        graph.remove(node)
        for id in sources:
            if not graph.wires_of(id):
                graph.remove(id)
        graph.add(QUANTIZED, node, parameters={**kept, **converted.parameters})
        for key, value in state.layout.items():
            graph.set(node, key, value, section="layout")
        for source, target in wires:
            if source.node == node:
                graph.wire(PortRef(node, "output"), target)
            elif target.port in ("input", "router_probs"):
                graph.wire(source, target)
        if converted.factors is not None:
            _rescale(graph, node, converted.factors, element)
        for port, tensor in converted.tensors.items():
            if port.endswith("bias") and element is not ElementType.FLOAT:
                tensor = Tensor.from_array(tensor.array().astype(element.dtype))
            parameters: dict[str, Any] = {"tensor": tensor}
            if tensor.element in FLOATS:
                parameters["training_type"] = TRAINED
            id = graph.add("Initializer", free_id(graph, f"{node}_{port}"), parameters=parameters)
            graph.wire(PortRef(id, "value"), PortRef(node, port))


def _rescale(graph: Graph, node: str, factors: np.ndarray, element: ElementType) -> None:
    source = graph.inputs_of(node)["input"]
    tensor = Tensor.from_array((1 / factors).astype(element.dtype))
    id = graph.add("Initializer", free_id(graph, f"{node}_input_factors"), parameters={"tensor": tensor})
    product = graph.add("Mul", free_id(graph, f"{node}_rescaled"))
    graph.cut(PortRef(node, "input"))
    graph.wire(source, PortRef(product, "A"))
    graph.wire(PortRef(id, "value"), PortRef(product, "B"))
    graph.wire(PortRef(product, "C"), PortRef(node, "input"))


def free_id(graph: Graph, id: str) -> str:
    number, found = 1, id
    while found in graph.nodes:
        number += 1
        found = f"{id}_{number}"
    return found


def settings_of(graph: Graph, node: str) -> Settings:
    """The settings of a mixture; GraphError if a parameter is malformed."""
    node_type = graph.node_type(node)
    assert node_type is not None

    def complain(port: str, message: str, remedy: str = "", *, severity: Severity = Severity.ERROR, **_: Any) -> None:
        if severity is Severity.ERROR:
            raise GraphError(Finding(message, node, port, remedy=remedy, code="parameter"))

    return read_settings(node_type.to_attributes(graph.nodes[node].parameters), complain)
