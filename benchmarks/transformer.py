"""A document of 2,000 nodes: a transformer of 40 layers."""

from __future__ import annotations

import numpy as np

from runtime.graph import Graph
from runtime.tensors import Tensor

LAYERS, HIDDEN, HEADS = 40, 64, 4


class Builder:
    """A graph that grows node by node."""

    def __init__(self) -> None:
        self.graph = Graph("transformer", opsets={"": 23})
        self.constants: dict[tuple[int, ...], str] = {}

    def op(self, type: str, *inputs: str, output: str = "", **parameters: object) -> str:
        """Adds an operator and returns its first output."""
        node_type = self.graph.node_type(id := self.graph.add(type, parameters=parameters))
        assert node_type is not None
        for number, source in enumerate(inputs):
            port = node_type.inputs[min(number, len(node_type.inputs) - 1)]
            self.graph.wire(source, f"{id}.{port.name}.{number}" if port.variadic else f"{id}.{port.name}")
        return f"{id}.{output or node_type.outputs[0].name}"

    def weight(self, *shape: int) -> str:
        """Adds a tensor of zeros."""
        tensor = Tensor.from_array(np.zeros(shape, np.float32))
        return f"{self.graph.add('Initializer', parameters={'tensor': tensor})}.value"

    def numbers(self, *values: int) -> str:
        """Adds a list of integers, once."""
        if values not in self.constants:
            tensor = Tensor.from_array(np.array(values, np.int64))
            self.constants[values] = f"{self.graph.add('Initializer', parameters={'tensor': tensor})}.value"
        return self.constants[values]


def transformer(layers: int = LAYERS) -> Graph:
    """Attention and a gated feed-forward network `layers` times; the heads are split by computed shapes."""
    build = Builder()
    op, graph = build.op, build.graph
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["batch", "tokens", HIDDEN]})
    stream = "x.value"
    for _ in range(layers):
        normal = op("RMSNormalization", stream, build.weight(HIDDEN))
        shape = op("Shape", normal)
        batch = op("Gather", shape, build.numbers(0))
        tokens = op("Gather", shape, build.numbers(1))
        split = op("Concat", batch, tokens, build.numbers(HEADS), build.numbers(HIDDEN // HEADS), axis=0)
        heads = []
        for _ in range(3):
            projected = op("Add", op("MatMul", normal, build.weight(HIDDEN, HIDDEN)), build.weight(HIDDEN))
            heads.append(op("Transpose", op("Reshape", projected, split), perm=[0, 2, 1, 3]))
        query, key, value = heads
        scores = op("Mul", op("MatMul", query, op("Transpose", key, perm=[0, 1, 3, 2])), build.weight(1))
        mixed = op("Transpose", op("MatMul", op("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
        joined = op("Reshape", mixed, op("Concat", batch, tokens, build.numbers(HIDDEN), axis=0))
        projected = op("Add", op("MatMul", joined, build.weight(HIDDEN, HIDDEN)), build.weight(HIDDEN))
        stream = op("Add", stream, projected)
        normal = op("RMSNormalization", stream, build.weight(HIDDEN))
        gate = op("MatMul", normal, build.weight(HIDDEN, 4 * HIDDEN))
        up = op("MatMul", normal, build.weight(HIDDEN, 4 * HIDDEN))
        gated = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
        stream = op("Add", stream, op("MatMul", gated, build.weight(4 * HIDDEN, HIDDEN)))
    graph.add("Output", "y")
    graph.wire(stream, "y.value")
    return graph
