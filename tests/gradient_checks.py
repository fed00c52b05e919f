"""Gradients beside central differences: of one graph, in double precision on the NumPy backend.

    difference = largest_difference(graph, inputs)

A random direction is drawn for every output, so that the outputs become one number; its slope along each element of
each input is measured with two forward passes and compared with the gradient. ONNX Runtime's gradient is compared with
NumPy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime import Graph, Session
from runtime.types import TensorType

STEP = 1e-6
ELEMENTS = 24
"""How many elements of an input are tried, at most."""


@dataclass(frozen=True)
class Comparison:
    """The largest differences relative to the largest gradient: from central differences, and between backends.

    `tried` counts the slopes that were measured; `onnxruntime` is None where that backend was left out.
    """

    slopes: float
    onnxruntime: float | None
    tried: int


def compare(
    graph: Graph,
    inputs: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    native: bool = True,
    step: float = STEP,
    wanted: list[str] | None = None,
) -> Comparison:
    """The gradients of all float inputs of a graph (or those in `wanted`), at `inputs`, beside measured slopes."""
    rng = np.random.default_rng(seed)
    session = Session(graph, "numpy")
    outputs = session.forward(inputs)
    directions = {
        name: rng.standard_normal(value.shape).astype(value.dtype)
        for name, value in outputs.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }
    gradients = session.backward(directions, wanted)

    def total(given: Mapping[str, np.ndarray]) -> float:
        results = session.forward(given)
        return float(sum(np.sum(results[name] * direction) for name, direction in directions.items()))

    worst, scale, tried = 0.0, 1e-3, 0
    for name, gradient in gradients.items():
        value = inputs[name]
        assert gradient.shape == value.shape and gradient.dtype == value.dtype, (name, gradient.shape, value.shape)
        scale = max(scale, float(np.abs(gradient).max(initial=0)))
        places = list(np.ndindex(value.shape))
        for index in rng.permutation(len(places))[:ELEMENTS]:
            place = places[index]
            moved = []
            for sign in (1, -1):
                other = value.copy()
                other[place] += sign * step
                moved.append(total({**inputs, name: other}))
            slope = (moved[0] - moved[1]) / (2 * step)
            worst = max(worst, abs(slope - float(gradient[place])))
            tried += 1
    between = None
    if native:
        other_session = Session(graph, "onnxruntime")
        other_session.forward(inputs)
        others = other_session.backward(directions, wanted)
        between = max((float(np.abs(others[n] - g).max(initial=0)) for n, g in gradients.items()), default=0) / scale
    return Comparison(worst / scale, between, tried)


def graph_of(
    operator: str,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any] | None = None,
    *,
    outputs: int | None = None,
    opset: int = 23,
    constants: tuple[str, ...] = (),
    symbolic: bool = False,
) -> Graph:
    """A graph of one operator. `inputs` by port name; those of integers in `constants` become initializers.

    With `symbolic`, the shapes of the inputs are not declared but for their number of dimensions.
    """
    from runtime import Tensor

    domain = operator.rpartition(".")[0]
    graph = Graph("case", opsets={"": opset} | ({domain: 1} if domain else {}))
    graph.add(operator, "node", parameters=dict(attributes or {}))
    node_type = graph.node_type("node")
    assert node_type is not None
    for port, array in inputs.items():
        id = port.replace(".", "_")
        if port in constants:
            graph.add("Initializer", id, parameters={"tensor": Tensor.from_array(array)})
        else:
            shape = [f"{id}_{axis}" for axis in range(array.ndim)] if symbolic else list(array.shape)
            graph.add(
                "Input",
                id,
                parameters={"type": str(TensorType(Tensor.from_array(array).element)).split(" ")[0], "shape": shape},
            )
        graph.wire(f"{id}.value", f"node.{port}")
    count = outputs if outputs is not None else sum(not port.optional for port in node_type.outputs)
    for index in range(count):
        port = node_type.outputs[min(index, len(node_type.outputs) - 1)]
        name = f"{port.name}.{index - len(node_type.outputs) + 1}" if port.variadic else port.name
        graph.add("Output", f"y{index}")
        graph.wire(f"node.{name}", f"y{index}.value")
    return graph
