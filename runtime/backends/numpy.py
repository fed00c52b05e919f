"""The readable backend: nodes one after the other, each by a NumPy kernel.

A node type's own kernel (`evaluate`) comes first, then the few of `runtime.backends.kernels`, then `onnx.reference`.
bfloat16, float8 and the integers below 8 bits are ml_dtypes arrays throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from runtime import catalog
from runtime.backends import kernels
from runtime.backends.control import (
    Control,
    Placement,
    attribute_values,
    document_node,
    named,
    observed,
    operator_name,
)
from runtime.errors import Finding, GraphError, StudioError

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.node import Node

Values: TypeAlias = "dict[ir.Value, Any]"
Kernel: TypeAlias = "Callable[[list[Any], Values, Control], Sequence[Any]]"


@dataclass(frozen=True, slots=True)
class Step:
    """One node, ready to run."""

    node: str
    operator: str
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    kernel: Kernel
    last_uses: tuple[ir.Value, ...]


class Program:
    """Nodes in an order in which they can run, with their kernels; bodies of If, Loop and the like are programs too.

    Values live in one dictionary whose keys are the model's `ir.Value`s, so that a body sees the values around it.
    GraphError names every node that has no kernel.
    """

    def __init__(self, nodes: Iterable[ir.Node], opsets: Mapping[str, int], threads: int | None = None) -> None:
        """`threads` is how many a kernel may use, its own choice if None."""
        self._threads = threads
        self.constants: Values = {}
        self.steps: list[Step] = []
        nodes = list(nodes)
        findings: list[Finding] = []
        uses: dict[ir.Node, list[ir.Value]] = {node: [] for node in nodes}
        for value, user in _last_uses(nodes).items():
            uses[user].append(value)
        for node in nodes:
            try:
                kernel = self._kernel(node, opsets)
            except GraphError as error:
                findings.extend(error.findings)
                continue
            inputs, outputs = tuple(node.inputs), tuple(node.outputs)
            self.steps.append(
                Step(document_node(node), operator_name(node), inputs, outputs, kernel, tuple(uses[node]))
            )
        if findings:
            raise GraphError(findings)

    def run(self, values: Values, keep: Container[ir.Value], control: Control, *, top: bool = False) -> None:
        """Runs every node: takes its inputs from `values` and puts its outputs there.

        What no node needs any more is dropped, unless it is in `keep`.
        """
        for step in self.steps:
            if top:
                control.step(step.node)
            else:
                control.check()
            inputs = [None if value is None else values[value] for value in step.inputs]
            if top:
                with control.timed(step.node):
                    outputs = _call(step, inputs, values, control, self._threads)
            else:
                outputs = _call(step, inputs, values, control, self._threads)
            for value, output in zip(step.outputs, outputs, strict=False):
                values[value] = np.asarray(output) if isinstance(output, np.generic) else output
            for value in step.last_uses:
                if value not in keep:
                    values.pop(value, None)

    def body(self, graph: ir.Graph, opsets: Mapping[str, int]) -> Body:
        """The program of a subgraph."""
        program = Program(graph, opsets, self._threads)
        self.constants |= program.constants | constants(graph)
        return Body(program, tuple(graph.inputs), tuple(graph.outputs))

    def _kernel(self, node: ir.Node, opsets: Mapping[str, int]) -> Kernel:
        own = catalog.find(operator_name(node), opsets)
        if own is not None and own.evaluate is not None:
            return _own(node, own)
        controlled = kernels.CONTROL_FLOW.get(node.op_type) if not node.domain else None
        if controlled is not None:
            return controlled(node, lambda graph: self.body(graph, opsets), opsets)
        plain = kernels.PLAIN.get(operator_name(node))
        if plain is not None and opsets.get("", 1) >= kernels.SINCE.get(node.op_type, 1):
            attributes = attribute_values(node)
            return lambda inputs, values, control: plain(inputs, attributes)
        return _reference(node, opsets)


@dataclass(frozen=True, slots=True)
class Body:
    """A subgraph, ready to run with values of its formal inputs."""

    program: Program
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]

    def __call__(self, inputs: Iterable[Any], values: Values, control: Control) -> list[Any]:
        values.update(zip(self.inputs, inputs, strict=False))
        self.program.run(values, self.outputs, control)
        return [values[value] for value in self.outputs]


class Engine:
    """A compiled model on NumPy kernels alone."""

    def __init__(self, model: ir.Model, threads: int | None = None) -> None:
        graph = model.graph
        self._program = Program(graph, dict(model.opset_imports), threads)
        self._inputs = {value.name or "": value for value in graph.inputs}
        self._values = {value.name or "": value for node in graph for value in node.outputs}
        self._values.update(graph.initializers)
        self._values.update(self._inputs)
        self._constants = constants(graph) | self._program.constants
        self.placement = Placement({document_node(node): "numpy" for node in graph})

    def drop_copies(self) -> None:
        """There are none."""

    def shortcut(self, feeds: Mapping[str, Any], wanted: Sequence[str]) -> None:
        """There is none: a program keeps the same steps in every run."""

    def run(self, feeds: Mapping[str, Any], wanted: Sequence[str], control: Control) -> list[Any]:
        """The values called `wanted`, of inputs by name."""
        values = dict(self._constants)
        values.update((self._inputs[name], array) for name, array in feeds.items())
        keep = [self._values[name] for name in wanted]
        control.total, control.done = len(self._program.steps), 0
        self._program.run(values, set(keep), control, top=True)
        return [values[value] for value in keep]


def constants(graph: ir.Graph) -> Values:
    """The arrays of a graph's initializers."""
    return {
        value: array_of(value.const_value) for value in graph.initializers.values() if value.const_value is not None
    }


def array_of(tensor: Any) -> np.ndarray:
    """An IR tensor's elements: a view of the document's tensor where it wraps one."""
    own = getattr(tensor, "tensor", None)
    if own is not None:
        array: np.ndarray = own.array()
        return array
    if tensor.dtype.name == "STRING":
        from runtime.tensors import Tensor

        return Tensor.from_array(np.asarray(tensor.numpy(), dtype=object)).array()
    array = tensor.numpy()
    return array


def _last_uses(nodes: Sequence[ir.Node]) -> dict[ir.Value, ir.Node]:
    """By value made by one of the nodes: the node after which none of them reads it any more."""
    made = {value for node in nodes for value in node.outputs}
    last: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        last.update({value: node for value in read_by(node) if value in made})
        last.update({value: node for value in node.outputs if value in made})
    return last


def read_by(node: ir.Node) -> set[ir.Value]:
    """The values that a node reads, also from inside its subgraphs."""
    values = {value for value in node.inputs if value is not None}
    for body in subgraphs(node):
        own = {*body.inputs, *body.initializers.values()}
        read = set(body.outputs)
        for inner in body:
            read |= read_by(inner)
            own.update(inner.outputs)
        values |= read - own
    return values


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs among a node's attributes."""
    import onnx_ir as ir

    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value


def _call(step: Step, inputs: list[Any], values: Values, control: Control, threads: int | None) -> Sequence[Any]:
    try:
        with (
            observed(control, threads),
            np.errstate(all="ignore"),
        ):  # NaN and infinity are results here; check_numerics looks for them
            return step.kernel(inputs, values, control)
    except GraphError as error:
        raise named(error, step.node) from error
    except StudioError:
        raise
    except Exception as error:  # a kernel may fail in any way on values that it cannot take
        cause = error.__cause__ or error
        got = ", ".join(_describe(value) for value in inputs)
        raise GraphError.at(
            step.node, "", f"{step.operator} failed on {got}: {type(cause).__name__}: {cause}", code="kernel"
        ) from error


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return "nothing" if value is None else type(value).__name__


def _own(node: ir.Node, node_type: type[Node]) -> Kernel:
    """The node type's own kernel, which takes its inputs by port name."""
    evaluate = node_type.evaluate
    assert evaluate is not None
    names = port_names(node_type, len(node.inputs))
    attributes = attribute_values(node)

    def kernel(inputs: list[Any], values: Values, control: Control) -> Sequence[Any]:
        return evaluate(
            {name: value for name, value in zip(names, inputs, strict=False) if value is not None}, attributes
        )

    return kernel


def port_names(node_type: type[Node], count: int) -> list[str]:
    """The names of a node's first `count` inputs: the last port takes all that are left if it is variadic."""
    names: list[str] = []
    for port in node_type.inputs:
        if port.variadic:
            names += [f"{port.name}.{index}" for index in range(count - len(names))]
        else:
            names.append(port.name)
    return names[:count]


def _reference(node: ir.Node, opsets: Mapping[str, int]) -> Kernel:
    """The kernel of `onnx.reference`: the evaluator of a graph that is just this node."""
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import RuntimeImplementationError

    graph = onnx.GraphProto(name="node")
    graph.node.append(ir.to_proto(node))
    # An input that nobody reads: it makes the evaluator choose bodies that depend on types when it sees the values.
    graph.input.append(onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, []))
    try:
        evaluator = ReferenceEvaluator(graph, opsets=dict(opsets))
    except (NotImplementedError, RuntimeImplementationError, RuntimeError, onnx.defs.SchemaError) as error:
        raise GraphError.at(
            document_node(node),
            "",
            f"There is no NumPy kernel for {operator_name(node)}.",
            "Run the graph on the onnxruntime backend.",
            "no-kernel",
        ) from error
    operator = evaluator.rt_nodes_[0]
    body = getattr(operator, "impl_", None)  # an operator that its schema defines by a function takes all its inputs
    absent = [None] * (len(getattr(body, "input_names", ())) - len(node.inputs))
    return lambda inputs, values, control: operator.run(*inputs, *absent)
