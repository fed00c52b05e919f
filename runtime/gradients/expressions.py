"""Values of a model as expressions: `op.Exp(x) * 2` writes the nodes Exp and Mul on a tape.

Types and shapes are inferred as the nodes are written, so that what is built on them can look at both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from runtime import catalog
from runtime.backends.control import attribute_values
from runtime.backends.numpy import subgraphs
from runtime.errors import Finding, GraphError
from runtime.inference import infer
from runtime.onnx_types import from_ir_type, type_and_shape
from runtime.shape_rules import Value
from runtime.tape import Tape
from runtime.tensors import Tensor
from runtime.types import Dimension, ElementType, Shape, TensorType, ValueType

SMALL = 64
"""Constants of up to this many elements are followed as values."""


class Expr:
    """A value of the model under construction. Numbers beside it in a formula become constants of its element type."""

    __slots__ = ("_type", "op", "value")

    def __init__(self, op: Formulas, value: ir.Value) -> None:
        self.op = op
        self.value = value
        self._type: TensorType | None = None

    @property
    def type(self) -> TensorType:
        """Element type and shape, as far as they are known."""
        if self._type is None:
            self._type = self.op.type_of(self.value)
        return self._type

    @property
    def element(self) -> ElementType:
        """The element type. GraphError if it is not known."""
        if self.type.element is None:
            raise GraphError(
                Finding(
                    f"The element type of the value {self.value.name!r} is not known, and its gradient depends on it.",
                    remedy="Declare the types of the graph's inputs.",
                    code="type",
                )
            )
        return self.type.element

    @property
    def shape(self) -> Shape | None:
        """The shape, None if not even the number of dimensions is known."""
        return self.type.shape

    @property
    def rank(self) -> int:
        """The number of dimensions. GraphError if it is not known."""
        if self.type.shape is None:
            raise GraphError(
                Finding(
                    f"The number of dimensions of the value {self.value.name!r} is not known, and a gradient depends "
                    "on it.",
                    remedy="Declare the shapes of the graph's inputs.",
                    code="shape",
                )
            )
        return len(self.type.shape)

    def known(self) -> np.ndarray | None:
        """The numbers, if they are constant."""
        return self.op.known(self.value)

    def cast(self, element: ElementType) -> Expr:
        """The value in another element type."""
        return self if self.type.element == element else self.op.Cast(self, to=int(element))

    def __neg__(self) -> Expr:
        return self.op.Neg(self)

    def __add__(self, other: Operand) -> Expr:
        return self.op.Add(self, other)

    def __radd__(self, other: Operand) -> Expr:
        return self.op.Add(other, self)

    def __sub__(self, other: Operand) -> Expr:
        return self.op.Sub(self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return self.op.Sub(other, self)

    def __mul__(self, other: Operand) -> Expr:
        return self.op.Mul(self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return self.op.Mul(other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return self.op.Div(self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return self.op.Div(other, self)

    def __pow__(self, other: Operand) -> Expr:
        return self.op.Pow(self, other)

    def __matmul__(self, other: Expr) -> Expr:
        return self.op.MatMul(self, other)

    def __gt__(self, other: Operand) -> Expr:
        return self.op.Greater(self, other)

    def __lt__(self, other: Operand) -> Expr:
        return self.op.Less(self, other)

    def __ge__(self, other: Operand) -> Expr:
        return self.op.GreaterOrEqual(self, other)

    def __le__(self, other: Operand) -> Expr:
        return self.op.LessOrEqual(self, other)


Operand: TypeAlias = "Expr | float | Sequence[int] | np.ndarray | np.generic"
"""What stands in a formula: a number takes the element type of the expression beside it, a list is int64."""


class Formulas:
    """Writes operators on a tape: `op.Mul(a, b)`, `op.ReduceSum(x, [0], keepdims=0)`.

    An argument of None is an absent input, an attribute of None is left out. `outputs` says how many there are, if not
    one: the result is then a tuple. Operators of other domains are called by `apply`.
    """

    def __init__(self, tape: Tape, opsets: Mapping[str, int], outer: Formulas | None = None) -> None:
        self.tape = tape
        self.opsets = dict(opsets)
        self.outer = outer
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Expr] = {}
        self._values: dict[ir.Value, Value] = outer._values if outer is not None else {}

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return self.tape.opset

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[:1].isupper():
            raise AttributeError(operator)
        return lambda *inputs, **attributes: self.apply(operator, *inputs, **attributes)

    def apply(
        self, operator: str, *inputs: Operand | None, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """Appends a node; returns its output, or its outputs."""
        like = next((item for item in inputs if isinstance(item, Expr)), None)
        arguments = [None if item is None else self.operand(item, like) for item in inputs]
        given = {name: value for name, value in attributes.items() if value is not None}
        stored: dict[str, Any] = {
            name: ir.tensor(v.array()) if isinstance(v, Tensor) else v for name, v in given.items()
        }
        values = self.tape.ops(
            operator, [None if item is None else item.value for item in arguments], outputs, domain=domain, **stored
        )
        self._give_types(operator, domain, given, [None if item is None else item.value for item in arguments], values)
        results = tuple(Expr(self, value) for value in values)
        return results[0] if outputs == 1 else results

    def operand(self, item: Operand, like: Expr | None = None) -> Expr:
        """The item as an expression; a plain number becomes a constant of the element type of `like`."""
        if isinstance(item, Expr):
            return item
        if isinstance(item, bool | int | float):
            if like is None:
                raise TypeError("a plain number needs an expression beside it")
            return self.constant(np.asarray(item, like.element.dtype))
        return self.constant(np.asarray(item, np.int64) if isinstance(item, list | tuple) else np.asarray(item))

    def constant(self, array: np.ndarray) -> Expr:
        """A constant; the same one for the same content."""
        key = (str(array.dtype), array.shape, array.tobytes())
        scope: Formulas | None = self
        while scope is not None:
            if key in scope._constants:
                return scope._constants[key]
            scope = scope.outer
        tensor = Tensor.from_array(array)
        value = self.tape.op("Constant", [], value=ir.tensor(array, dtype=ir.DataType(int(tensor.element))))
        value.type, value.shape = type_and_shape(tensor.type)
        if tensor.size <= SMALL:
            self._values[value] = tensor
        made = self._constants[key] = Expr(self, value)
        return made

    def reduce(self, operator: str, x: Expr, axes: Sequence[int], keepdims: int = 1) -> Expr:
        """A reduction along axes; before version 18 of the standard operators, most take them as an attribute."""
        if operator == "ReduceSum" or self.opset >= 18:
            result: Expr = self.apply(operator, x, list(axes), keepdims=keepdims)
        else:
            result = self.apply(operator, x, axes=list(axes), keepdims=keepdims)
        return result

    def like(self, number: float, x: Expr) -> Expr:
        """A tensor of the shape and element type of `x`, filled with one number."""
        if x.shape is not None and all(isinstance(size, int) for size in x.shape):
            return self.Expand(self.operand(number, x), [int(size) for size in x.shape if isinstance(size, int)])
        return self.Expand(self.operand(number, x), self.Shape(x))

    def unit(self, size: Expr, x: Expr) -> Expr:
        """The unit matrix of a size, int64 [1], in the element type of `x`."""
        shape = self.Concat(size, size, axis=0)
        result: Expr = self.EyeLike(self.Expand(self.constant(np.zeros(1, np.float32)), shape)).cast(x.element)
        return result

    def inner(self) -> Formulas:
        """Formulas for the nodes of a subgraph, which may use this one's values."""
        return Formulas(self.tape.inner(), self.opsets, self)

    # -- what is known of values ----------------------------------------------------------------------------------

    def type_of(self, value: ir.Value) -> TensorType:
        """Element type and shape of a value of the model."""
        if value.type is None and value.const_value is not None:
            tensor = value.const_value
            return TensorType(ElementType(tensor.dtype.value), tuple(int(size) for size in tensor.shape.numpy()))
        known = from_ir_type(value.type, value.shape)
        return known if isinstance(known, TensorType) else TensorType()

    def known(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of a constant."""
        followed = self._values.get(value)
        if isinstance(followed, Tensor):
            return followed.array()
        if value.is_graph_input():
            return None
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else np.asarray(tensor.numpy())

    def dimensions(self, value: ir.Value) -> tuple[Dimension, ...] | None:
        """The elements of a list of dimensions, names and numbers, as far as they are known before the run."""
        followed = self._values.get(value)
        if isinstance(followed, tuple):
            return followed
        array = self.known(value)
        return None if array is None else tuple(array.reshape(-1).tolist())

    def _give_types(
        self,
        operator: str,
        domain: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
    ) -> None:
        name = f"{domain}.{operator}" if domain else operator
        node_type = catalog.find(name, self.opsets)
        if node_type is None or any(isinstance(value, ir.Graph) for value in attributes.values()):
            return
        types = tuple(None if value is None else self.type_of(value) for value in inputs)
        values = tuple(None if value is None else self._value_of(value) for value in inputs)
        opset = self.opsets.get(domain) or catalog.newest_opset(domain)
        label = str(outputs[0].name)
        known = infer(node_type, attributes, types, values, len(outputs), opset, label)
        if known.contradiction:
            came = ", ".join(str(type_) for type_ in types)
            raise GraphError.at(
                self.tape.owner, "", f"the gradient needs {name} of {came}: {known.contradiction}", code="gradient"
            )
        for value, type_ in zip(outputs, known.types, strict=False):
            if type_ is not None:
                self.set_type(value, type_)
        for value, content in zip(outputs, known.values, strict=False):
            if content is not None:
                self._values[value] = content

    def complete(self, nodes: Iterable[ir.Node]) -> None:
        """Infers the types of outputs where the model says nothing."""
        for node in nodes:
            if any(value.type is None for value in node.outputs):
                attributes = {
                    name: Tensor.from_array(value) if isinstance(value, np.ndarray) else value
                    for name, value in attribute_values(node).items()
                }
                self._give_types(node.op_type, node.domain, attributes, node.inputs, node.outputs)
            if any(value.shape is None for value in node.outputs):
                self._give_types_of_bodies(node)

    def _give_types_of_bodies(self, node: ir.Node) -> None:
        """Types of outputs as far as subgraphs tell: carried values keep theirs, stacked ones gain a dimension."""
        for graph in subgraphs(node):
            self.complete(graph)
            carried = len(node.inputs) - 2 if node.op_type == "Loop" else len(node.outputs)
            if node.op_type == "Scan":
                carried = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
            results = graph.outputs[1:] if node.op_type == "Loop" else graph.outputs
            for place, (value, result) in enumerate(zip(node.outputs, results, strict=False)):
                type_ = self.type_of(result)
                if value.shape is None and type_.shape is not None:
                    rank = len(type_.shape) + (place >= carried)
                    self.set_type(value, TensorType(type_.element, (None,) * rank))

    def set_type(self, value: ir.Value, type_: ValueType) -> None:
        """Tells what is known of a value that was written without that knowledge."""
        value.type, value.shape = type_and_shape(type_)

    def _value_of(self, value: ir.Value) -> Value | None:
        followed = self._values.get(value)
        if followed is None and not value.is_graph_input():
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.size <= SMALL and tensor.dtype != ir.DataType.STRING:
                followed = self._values[value] = Tensor.from_array(np.asarray(tensor.numpy()))
        return followed
