"""Nodes that a native kernel must not see malformed: they are checked with the real shapes of every run.

Some kernels read and write past their buffers, or end the process, when a node's tensors do not fit together. Shapes
that a graph leaves open are known when it runs: from the shapes of its inputs, or, where these do not tell, from the
values themselves, right before the node.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime import catalog
from runtime.check import Checker
from runtime.errors import GraphError, Severity
from runtime.graph import Graph, PortRef
from runtime.node import Node, NodeContext
from runtime.nodes.terminals import Input
from runtime.types import ElementType, TensorType, ValueType

if TYPE_CHECKING:
    import onnx_ir as ir

REMEMBERED_SHAPES = 256


def is_guarded(node_type: type[Node] | None) -> bool:
    """Whether a node type's kernels need its check first: those are the types that come with a rewrite for them."""
    return node_type is not None and node_type.lower is not None


class Guard:
    """What a graph's guarded nodes have been checked for."""

    def __init__(self, graph: Graph, checker: Checker) -> None:
        self._graph = graph
        guarded = [id for id in graph.nodes if is_guarded(graph.node_type(id))]
        self._open = [id for id in guarded if not _settled(graph, checker, id)]
        self.is_needed = bool(self._open)
        """Whether there are nodes whose shapes depend on the run."""
        self.barriers: frozenset[str] = frozenset()
        """Nodes whose shapes not even the shapes of the inputs tell: whoever runs them checks them as values."""
        self._passed: OrderedDict[tuple[Any, ...], None] = OrderedDict()
        self._trial: Graph | None = None
        self._trial_checker: Checker | None = None

    def check(self, inputs: Mapping[str, Any]) -> bool:
        """Checks the guarded nodes for a run with these inputs. True if `barriers` has grown.

        GraphError names the nodes and ports that do not fit together.
        """
        shapes = tuple((name, value.shape) for name, value in inputs.items() if isinstance(value, np.ndarray))
        if shapes in self._passed:
            self._passed.move_to_end(shapes)
            return False
        graph, checker = self._with_shapes(dict(shapes))
        wrong = [
            finding
            for finding in checker.findings()
            if finding.node in self._open and finding.severity is Severity.ERROR
        ]
        if wrong:
            raise GraphError(wrong)
        unsettled = {id for id in self._open if not _settled(graph, checker, id)}
        grown = not unsettled <= self.barriers
        self.barriers |= unsettled
        self._passed[shapes] = None
        if len(self._passed) > REMEMBERED_SHAPES:
            self._passed.popitem(last=False)
        return grown

    def _with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Graph, Checker]:
        """The graph with the shapes of this run declared at its inputs."""
        if self._trial is None or self._trial_checker is None:
            self._trial = self._graph.copy()
            self._trial_checker = Checker(self._trial)
        for id, name in input_names(self._trial).items():
            if name in shapes and self._trial.nodes[id].parameters.get("shape") != shapes[name]:
                self._trial.set(id, "shape", shapes[name], merge="shapes")
        return self._trial, self._trial_checker


def input_names(graph: Graph) -> dict[str, str]:
    """By id of an Input node: the name under which its value is given to a run."""
    input_type = Input.type_name()
    return {
        id: str(state.parameters.get("name") or id) for id, state in graph.nodes.items() if state.type == input_type
    }


def check_values(node: ir.Node, id: str, values: Mapping[str, Any], opsets: Mapping[str, int]) -> None:
    """Checks one node, given its inputs' values by name, as the graph's check would. GraphError if it is malformed."""
    from runtime.backends.control import attribute_values, operator_name
    from runtime.backends.numpy import port_names

    node_type = catalog.find(operator_name(node), opsets)
    assert node_type is not None
    types: dict[str, ValueType] = {}
    for port, value in zip(port_names(node_type, len(node.inputs)), node.inputs, strict=False):
        if value is None:
            continue
        if value.const_value is not None:
            shape = tuple(value.const_value.shape.numpy())
            types[port] = TensorType(ElementType(value.const_value.dtype.value), shape)
        else:
            array = values[value.name or ""]
            types[port] = TensorType(ElementType.of(array.dtype), array.shape)
    context = NodeContext(
        id,
        types,
        attribute_values(node),
        outputs=tuple(port.name for port in node_type.outputs),
        opsets=opsets,
    )
    wrong = [finding for finding in node_type.infer(context).findings if finding.severity is Severity.ERROR]
    if wrong:
        raise GraphError(wrong)


def contains_guarded(node: ir.Node, opsets: Mapping[str, int]) -> bool:
    """Whether a node's subgraphs have guarded nodes."""
    from runtime.backends.control import operator_name
    from runtime.backends.numpy import subgraphs

    return any(
        is_guarded(catalog.find(operator_name(inner), opsets)) or contains_guarded(inner, opsets)
        for graph in subgraphs(node)
        for inner in graph
    )


def _settled(graph: Graph, checker: Checker, id: str) -> bool:
    """Whether the shapes of all of a node's inputs are numbers."""
    return all(_is_known(checker.type_of(PortRef(*source))) for source in graph.inputs_of(id).values())


def _is_known(type: ValueType) -> bool:
    return (
        isinstance(type, TensorType)
        and type.element is not None
        and type.shape is not None
        and all(isinstance(size, int) for size in type.shape)
    )
