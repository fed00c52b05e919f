"""The QMoE operator: quantized mixture of experts, as a node type and as a function on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["evaluate"]


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

    attributes = {} if attributes is None else attributes
    layer = layer_of(inputs, attributes)
    if backend == "numpy":
        from qmoe_node.kernel import forward

        return forward(layer, inputs)
    if backend == "onnxruntime":
        return _run(inputs, attributes)
    raise StudioError(f"unknown backend {backend!r}: expected 'numpy' or 'onnxruntime'.")


def _run(inputs: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> np.ndarray:
    raise NotImplementedError
