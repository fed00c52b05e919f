"""The QMoE operator: quantized mixture of experts, as a node type and as a function on arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from runtime.node import Node

__all__ = ["evaluate", "gradients"]


def evaluate(
    inputs: Mapping[str, np.ndarray], attributes: Mapping[str, Any] | None = None, *, backend: str = "numpy"
) -> np.ndarray:
    """One QMoE node on arrays: its output, with the shape and type of `inputs["input"]`.

    `inputs` holds the connected inputs by the operator's names (bfloat16 and float8 as ml_dtypes arrays);
    `attributes` are the operator's own, an absent one has the operator's default. `backend` is "numpy" or
    "onnxruntime". GraphError names the node "QMoE" and the port of everything that is malformed.
    """
    from qmoe_node.checks import layer_of
    from runtime.errors import StudioError

    attributes, inputs = _plain(attributes), _native(inputs)
    layer = layer_of(inputs, attributes)
    if backend == "numpy":
        from qmoe_node.kernel import forward

        return forward(layer, inputs)
    if backend == "onnxruntime":
        from qmoe_node.node import QMoE

        return _run_node(QMoE, ["output"], inputs, _parameters(attributes))["output"]
    raise StudioError(f"unknown backend {backend!r}: expected 'numpy' or 'onnxruntime'.")


def gradients(
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any] | None,
    output_gradient: np.ndarray,
    *,
    wrt: Iterable[str] | None = None,
    backend: str = "numpy",
) -> dict[str, np.ndarray]:
    """The gradients of one QMoE node's inputs from that of its output; the twin of `evaluate`.

    `wrt` are names of inputs; by default all given ones among input, router_probs, router_weights, biases, global
    scales and scales of 16 bits and more. Each gradient has its input's shape and type. A name of weights
    ("fc1_experts_weights") asks for the straight-through estimator: the gradient of the dequantized weights, float32
    [experts, rows, columns]. Scales of 8 bits get theirs in float32. GraphError as from `evaluate`.
    """
    from qmoe_node.checks import layer_of
    from qmoe_node.differentiable import check_output_gradient, wanted_ports
    from runtime.errors import StudioError

    attributes, inputs = _plain(attributes), _native(inputs)
    layer = layer_of(inputs, attributes)
    check_output_gradient(inputs["input"], output_gradient)
    ports = wanted_ports(inputs, wrt)
    if backend == "numpy":
        from qmoe_node.backward import backward

        return backward(layer, inputs, output_gradient, ports)
    if backend == "onnxruntime":
        from qmoe_node.grad import QMoEGrad

        given = {**inputs, "output_gradient": output_gradient}
        parameters = {**_parameters(attributes), "wrt": list(ports)}
        names = [f"gradients.{index}" for index in range(len(ports))]
        found = _run_node(QMoEGrad, names, given, parameters) if ports else {}
        return {port: found[name] for port, name in zip(ports, names, strict=True)}
    raise StudioError(f"unknown backend {backend!r}: expected 'numpy' or 'onnxruntime'.")


TOKEN_INPUTS = ("output_gradient", "input", "router_probs", "router_weights")
"""The inputs that differ from run to run; the others belong to the layer."""


def _run_node(
    node_type: type[Node], outputs: Iterable[str], inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """A node in a graph of its own, the layer's tensors as initializers, run by ONNX Runtime: its outputs by port."""
    from runtime import Graph, Session, Tensor, catalog

    if catalog.find(node_type.type_name()) is not node_type:
        catalog.register(node_type)
    graph = Graph(node_type.operator)
    graph.add(node_type.type_name(), "QMoE", parameters=dict(parameters))
    for name, array in inputs.items():
        if name in TOKEN_INPUTS:
            tensor_type = Tensor.from_array(array).type
            declared = {"type": f"tensor({tensor_type.element})", "shape": list(array.shape)}
            graph.add("Input", name, parameters=declared)
        else:
            graph.add("Initializer", name, parameters={"tensor": Tensor.from_array(array)})
        graph.wire(f"{name}.value", f"QMoE.{name}")
    for number, port in enumerate(outputs):
        graph.add("Output", f"output{number}", parameters={"name": port})
        graph.wire(f"QMoE.{port}", f"output{number}.value")
    session = Session(graph, backend="onnxruntime")
    return session.forward({name: inputs[name] for name in TOKEN_INPUTS if name in inputs})


def _native(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs in this machine's byte order."""
    swapped = {name: a for name, a in inputs.items() if not getattr(getattr(a, "dtype", None), "isnative", True)}
    return {**inputs, **{name: array.astype(array.dtype.newbyteorder("=")) for name, array in swapped.items()}}


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attributes, texts as `str`: ONNX's own messages hold them as bytes."""
    given = {} if attributes is None else attributes
    return {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in given.items()}


def _parameters(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Valid operator attributes as parameters of the node type, in the declared Python types."""
    from qmoe_node.node import QMoE

    parameters: dict[str, Any] = {}
    for name, value in QMoE.to_parameters(attributes).items():
        declared = QMoE.parameter(name)
        kind = declared.type if declared is not None else None
        parameters[name] = kind(value) if isinstance(kind, type) else value
    return parameters
