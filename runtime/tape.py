"""Writing ONNX nodes one after the other, so that building a graph looks like writing the formula."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import onnx_ir as ir

from runtime.types import ElementType

OWNER = "qmoe.node"
"""The entry of a node's metadata that names the document's node."""


class Tape:
    """Writes nodes one after the other; every operation returns its output value."""

    def __init__(self, prefix: str, owner: str, opset: int, taken: Set[str] = frozenset()) -> None:
        self.prefix = prefix
        self.owner = owner
        self.opset = opset
        self.taken = taken
        self.nodes: list[ir.Node] = []
        self._count = [0]

    def op(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        name: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Appends a node with one output, which it returns."""
        return self.ops(operator, inputs, 1, domain=domain, name=name, **attributes)[0]

    def ops(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        name: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Appends a node with several outputs."""
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=outputs)
        node.name = name or self.unique(operator)
        node.metadata_props[OWNER] = self.owner
        for index, value in enumerate(node.outputs):
            value.name = self.unique(operator, f".{index}")
        self.nodes.append(node)
        return node.outputs

    def literal(self, value: Any, dtype: Any) -> ir.Value:
        """A small constant."""
        return self.op("Constant", [], value=ir.tensor(np.asarray(value, dtype)))

    def unique(self, what: str, end: str = "") -> str:
        """A name for a new node or value that belongs to this tape."""
        while True:
            self._count[0] += 1
            name = f"{self.prefix}/{what}.{self._count[0]}{end}"
            if name not in self.taken:  # a model may have been written to before
                return name

    def inner(self) -> Tape:
        """A tape for the nodes of a subgraph, which may use this one's values."""
        tape = Tape(self.prefix, self.owner, self.opset, self.taken)
        tape._count = self._count
        return tape

    def graph(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
        """What is on the tape, as a subgraph."""
        return ir.Graph(inputs, outputs, nodes=self.nodes, name=self.unique("body"))

    def formal(self, element: ElementType, shape: Sequence[int | str | None]) -> ir.Value:
        """A formal input of a subgraph."""
        return ir.Value(name=self.unique("value"), type=tensor_type(element), shape=ir.Shape(shape))


def tensor_type(element: ElementType) -> ir.TensorType:
    """The IR's type of tensors of these elements."""
    return ir.TensorType(ir.DataType(int(element)))
