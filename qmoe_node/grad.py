"""QMoEGrad, the operator that a backward pass has in the place of QMoE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qmoe_node.checks import examine
from qmoe_node.differentiable import DIFFERENTIABLE, WEIGHTS, check_output_gradient, wanted_ports
from qmoe_node.node import QMoE
from runtime.errors import Finding
from runtime.node import FLOATS, In, Inference, Node, NodeContext, Out, Parameter
from runtime.types import ElementType, TensorType, ValueType

if TYPE_CHECKING:
    from runtime.gradients.expressions import Expr
    from runtime.gradients.walk import Call

WORTH_BYTES = 1 << 19
"""Packed bytes of the first weights of all experts, from which on the NumPy kernel is faster (1.02 to 5 times, measured
with 98 thousand to 100 million weights and 16 to 1,024 tokens) and needs less memory."""
LARGE = "its gradient is faster there for a layer of this size, and needs less memory"
NARROW = (ElementType.FLOAT8E4M3FN, ElementType.FLOAT8E8M0)


class QMoEGrad(Node):
    """The gradients of QMoE's inputs, from that of its output.

    `wrt` names inputs; the node has one output for each of them, in that order, with the input's shape and type. It
    reads nothing of the forward pass but QMoE's own inputs, and what `qmoe_node.kept` may have; it computes the rest.

    A name of weights stands for the dequantized weights: their gradient, as if codes were free to move, is float32
    (experts, rows, columns). Scales of 8 bits get theirs in float32.
    """

    domain = "qmoe"
    family = "mixture"
    cpu_kernel = False
    type_constraints: ClassVar[Mapping[str, tuple[str, ...]]] = {**QMoE.type_constraints, "V": FLOATS}

    inputs: ClassVar[tuple[In, ...]] = (
        In("T", name="output_gradient", doc="The gradient of QMoE's output, in its shape and type."),
        *QMoE.inputs,
    )
    gradients = Out("V", variadic=True, homogeneous=False, doc="The gradients, in the order of `wrt`.")

    parameters: ClassVar[tuple[Parameter, ...]] = QMoE.parameters
    wrt = Parameter("strings", required=True, doc="The inputs of QMoE whose gradients are wanted.")

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        """Every output has the type and shape of its input."""
        inputs, attributes = of_forward(context.inputs), without_wrt(context.attributes)
        values = {name: array for name, array in context.values.items() if name in inputs}
        layer, found = examine(context.id, inputs, attributes, values=values)
        wrt = list(context.attributes.get("wrt") or ())
        findings = [*found]
        findings += [
            Finding(f"{port!r} is no input of QMoE that has a gradient.", context.id, "wrt", code="attribute")
            for port in wrt
            if port not in (*DIFFERENTIABLE, *WEIGHTS)
        ]
        projections = {} if layer is None else {p.port("experts_weights"): p for p in layer.projections}
        outputs: dict[str, TensorType] = {}
        for index, port in enumerate(wrt):
            given, projection = inputs.get(port), projections.get(port)
            known = given if isinstance(given, TensorType) else TensorType()
            if port in WEIGHTS:
                experts = None if layer is None else layer.experts
                shape = None if projection is None else (experts, projection.rows, projection.columns)
                known = TensorType(ElementType.FLOAT, shape)
            elif known.element in NARROW:
                known = TensorType(ElementType.FLOAT, known.shape)
            outputs[f"gradients.{index}"] = known
        return Inference(outputs, findings)

    @staticmethod
    def evaluate(inputs: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        """The NumPy kernel: `inputs` by port; GraphError if they are malformed."""
        from qmoe_node.backward import backward
        from qmoe_node.checks import layer_of

        forward = of_forward(inputs)
        layer = layer_of(forward, without_wrt(attributes))
        upstream = inputs["output_gradient"]
        check_output_gradient(forward["input"], upstream)
        wrt = list(attributes["wrt"])
        found = backward(layer, forward, upstream, wanted_ports(forward, wrt))
        return tuple(found[port] for port in wrt)

    @staticmethod
    def numpy_pays(inputs: Mapping[str, ValueType], attributes: Mapping[str, Any], exact: bool) -> str:
        """The rewrite unpacks expert by expert in ONNX Runtime's memory, one operator after the other."""
        weights = inputs.get("fc1_experts_weights")
        sizes = weights.shape if isinstance(weights, TensorType) and weights.shape is not None else ()
        numbers = [size for size in sizes if isinstance(size, int)]
        return LARGE if len(numbers) == 3 and math.prod(numbers) >= WORTH_BYTES else ""

    @staticmethod
    def lower(site: Any, exact: bool) -> None:
        """Rewrites the node for ONNX Runtime; see `qmoe_node.portable_backward.lower`."""
        from qmoe_node.portable_backward import lower

        lower(site)

    @staticmethod
    def expand(site: Any) -> None:
        """Rewrites the node as a call of a function; see `qmoe_node.portable_backward.expand`."""
        from qmoe_node.portable_backward import expand

        expand(site)


def of_forward(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those inputs of the node that are QMoE's."""
    return {port: value for port, value in inputs.items() if port != "output_gradient"}


def without_wrt(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those attributes of the node that are QMoE's."""
    return {name: value for name, value in attributes.items() if name != "wrt"}


def gradient(call: Call) -> Sequence[Expr | None] | None:
    """QMoE's rule: one QMoEGrad for all the gradients that are needed.

    Codes and scales of 8 bits have none in a graph, where a gradient has the type of its value.
    """
    from runtime import catalog

    if catalog.find(QMoEGrad.type_name()) is None:
        catalog.register(QMoEGrad)
    ports = [port.name for port in QMoE.inputs[: len(call.x)]]
    wrt = [
        port
        for port, x, needed in zip(ports, call.x, call.needs, strict=True)
        if needed and x is not None and port in DIFFERENTIABLE and x.type.element not in NARROW
    ]
    if not wrt:
        return None
    found = call.op.apply(
        QMoEGrad.operator, call.d, *call.x, domain=QMoEGrad.domain, outputs=len(wrt), wrt=wrt, **call.attributes
    )
    by_port = dict(zip(wrt, found if len(wrt) > 1 else (found,), strict=True))
    for port, x in zip(ports, call.x, strict=True):
        if port in by_port and x is not None:
            call.op.set_type(by_port[port].value, x.type)
    return [by_port.get(port) for port in ports]
