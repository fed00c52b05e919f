"""Which of QMoE's inputs have a gradient, and what is wrong with a request for some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from qmoe_node.attributes import GLOBAL_SCALES, PROJECTIONS
from qmoe_node.checks import INPUTS
from runtime.errors import Finding, GraphError

WEIGHTS = tuple(f"{fc}_experts_weights" for fc in PROJECTIONS)
"""The inputs whose gradients are those of a straight-through estimator."""
SCALES = tuple(f"{fc}_scales" for fc in PROJECTIONS)
BIASES = tuple(f"{fc}_experts_bias" for fc in PROJECTIONS)
DIFFERENTIABLE = ("input", "router_probs", "router_weights", *SCALES, *BIASES, *GLOBAL_SCALES)
"""The inputs that have a gradient of their own."""


def wanted_ports(inputs: Mapping[str, np.ndarray], wrt: Iterable[str] | None, node: str = "QMoE") -> tuple[str, ...]:
    """The inputs whose gradients are wanted, without repetitions; GraphError with everything that has none."""
    if wrt is None:
        return tuple(port for port in DIFFERENTIABLE if port in inputs and inputs[port].dtype.itemsize > 1)
    ports = tuple(dict.fromkeys(wrt))
    findings = []
    for port in ports:
        if port not in INPUTS:
            findings.append(Finding(f"QMoE has no input {port!r}.", node, port, code="unknown-input"))
        elif port not in (*DIFFERENTIABLE, *WEIGHTS):
            findings.append(Finding("this input has no gradient.", node, port, code="no-gradient"))
        elif port not in inputs:
            message = "nothing is connected, and a gradient is wanted."
            findings.append(Finding(message, node, port, code="missing-input"))
    if findings:
        raise GraphError(findings)
    return ports


def check_output_gradient(given: np.ndarray, gradient: np.ndarray, node: str = "QMoE") -> None:
    """GraphError unless the output's gradient is an array of the input's shape and type."""
    if not isinstance(gradient, np.ndarray):
        raise GraphError.at(
            node, "output_gradient", f"expected a NumPy array; got {type(gradient).__name__}.", code="type"
        )
    if gradient.dtype != given.dtype:
        raise GraphError.at(
            node, "output_gradient", f"expected {given.dtype}, input's type; got {gradient.dtype}.", code="type"
        )
    if gradient.shape != given.shape:
        raise GraphError.at(
            node,
            "output_gradient",
            f"expected shape {list(given.shape)}, the output's; got {list(gradient.shape)}.",
            code="shape",
        )
