"""Types and shapes of one operator's outputs, from two packages, remembered by signature.

onnx-shape-inference knows contrib operators and computes with symbolic dimensions; it works on whole ONNX models, but
is asked here about one node at a time, so that an edit costs no more than the nodes that it touches. ONNX's own
inference is the second opinion on standard operators: what it refuses, ONNX Runtime refuses, and its numbers count
where the two differ. Beside types, small integer values are followed (the shapes that `Shape`, `Gather` and `Concat`
compute for a `Reshape`), as tuples of integers and names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir
import onnx_shape_inference as library
from onnx_ir import serde

from runtime.attributes import to_attribute
from runtime.node import Node
from runtime.onnx_types import from_ir_type, from_type_proto, to_type_proto, type_and_shape
from runtime.shape_rules import Question, Value, contradiction, corrected
from runtime.tensors import Tensor
from runtime.types import Dimension, Shape, TensorType, ValueType

logging.getLogger("onnx_shape_inference").setLevel(logging.ERROR)  # it warns of every operator that it does not know

SMALL = 64
LONGEST_LIST = 4096
"""Tensors of up to this many elements are worth following as values."""

TAKES_UNKNOWN_FOR_ZERO = frozenset({"Attention", "FlexAttention", "Resize", "StringNormalizer"})
"""Operators about which ONNX itself is asked only if all sizes of their inputs are known."""

NOT_ASKED_TWICE = frozenset({"Constant", "STFT"})
"""Operators about which ONNX itself is not asked: a Constant may be large, and STFT's `onesided` loses its default."""

CONTRADICTIONS = (
    library.OpUsageError,
    library.ShapeInferenceError,
    onnx.shape_inference.InferenceError,
    ValueError,  # what onnx-ir says of a Constant with two values, say
)
"""What is raised about nodes that are certainly wrong."""

_MINTED = re.compile(r"\b_d(\d+)\b")


@dataclass(frozen=True, slots=True)
class Known:
    """Types and values of a node's outputs by position, and a contradiction in its inputs, if there is one.

    `has_own_names` says that some dimensions have names that were made for them.
    """

    types: tuple[ValueType | None, ...] = ()
    values: tuple[Value | None, ...] = ()
    contradiction: str = ""
    has_own_names: bool = False


@dataclass(slots=True)
class Memory:
    """Results by signature: layers that repeat are inferred once."""

    results: dict[Any, Known] = field(default_factory=dict)


_memory = Memory()
REMEMBERED = 20_000


def infer(
    node_type: type[Node],
    attributes: Mapping[str, Any],
    inputs: tuple[ValueType | None, ...],
    values: tuple[Value | None, ...],
    outputs: int,
    opset: int,
    id: str,
) -> Known:
    """What is known of the outputs of a node with these inputs (by position, None for an absent one).

    Dimensions that nothing tells get names that begin with an underscore and end with a number, unique by `id`.
    """
    signature = (node_type, opset, frozen(attributes), inputs, values, outputs)
    known = _memory.results.get(signature)
    if known is None:
        if len(_memory.results) >= REMEMBERED:
            _memory.results.clear()
        known = _memory.results[signature] = _infer(node_type, attributes, inputs, values, outputs, opset)
    return _renamed(known, id)


def _infer(
    node_type: type[Node],
    attributes: Mapping[str, Any],
    inputs: tuple[ValueType | None, ...],
    values: tuple[Value | None, ...],
    outputs: int,
    opset: int,
) -> Known:
    question = Question(node_type.operator, attributes, inputs, values, outputs)
    if node_type.domain == "" and (message := contradiction(question)):
        return Known(contradiction=message)
    try:
        node = _node(node_type, attributes, inputs, values, outputs, opset)
        known = _first_opinion(node, inputs, values, opset)
        refined = _second_opinion(node_type, node, inputs, opset)
    except CONTRADICTIONS as error:
        return Known(contradiction=_sentence(error))
    if node_type.domain == "":
        known = Known(tuple(_corrected(question, type_) for type_ in known.types), known.values)
    types = [known.types[index] if index < len(known.types) else None for index in range(outputs)]
    return _marked(Known(_named(tuple(map(_agreed, types, refined or types))), known.values))


def _node(
    node_type: type[Node],
    attributes: Mapping[str, Any],
    inputs: tuple[ValueType | None, ...],
    values: tuple[Value | None, ...],
    outputs: int,
    opset: int,
) -> ir.Node:
    """The node, with inputs that have types, and values where they are tensors."""
    arguments = [None if type_ is None else _to_value(type_, number) for number, type_ in enumerate(inputs)]
    for argument, value in zip(arguments, values, strict=True):
        if argument is not None and isinstance(value, Tensor):
            argument.const_value = _wrapped(value, argument.name or "")
    kinds = {parameter.attribute: parameter.kind for parameter in node_type.parameters}
    converted = [_to_attribute(name, value, kinds.get(name, "")) for name, value in attributes.items()]
    return ir.Node(
        node_type.domain,
        node_type.operator,
        arguments,
        [attribute for attribute in converted if attribute is not None],
        outputs=[ir.Value(name=f"output{number}") for number in range(outputs)],
        version=opset,
    )


def _first_opinion(
    node: ir.Node, inputs: tuple[ValueType | None, ...], values: tuple[Value | None, ...], opset: int
) -> Known:
    """What onnx-shape-inference knows."""
    library.registry.collect()
    function = library.registry.get(node.domain, node.op_type, version=opset)
    if function is None or (node.domain == "" and any(map(_is_long_list, inputs))):
        return Known()
    context = library.ShapeInferenceContext({"": opset, node.domain: opset}, policy="refine")
    context.reserve_symbol_names(names_in(inputs))
    for argument, value in zip(node.inputs, values, strict=True):
        if argument is not None and isinstance(value, tuple):
            items = [item if isinstance(item, int) else ir.SymbolicDim(item) for item in value]
            context.set_symbolic_value(argument, items)
    try:
        function(context, node)
    except (library.OpUsageError, library.ShapeInferenceError):
        raise
    except Exception as error:  # the package's rules may fail on what they did not foresee: then nothing is known
        logging.getLogger(__name__).debug("no inference for %s: %r", node.op_type, error)
        return Known()
    return Known(
        tuple(_from_value(value) for value in node.outputs), tuple(_value_of(context, value) for value in node.outputs)
    )


def _second_opinion(
    node_type: type[Node], node: ir.Node, inputs: tuple[ValueType | None, ...], opset: int
) -> list[ValueType | None] | None:
    """What ONNX itself knows; None if it was not asked. InferenceError for a contradiction."""
    schema = _schema(node_type.domain, node_type.operator, node_type.since_version)
    if schema is None or any(isinstance(type_, TensorType) and type_.element is None for type_ in inputs):
        return None
    certain = all(type_ is None or _is_known(type_) for type_ in inputs)
    if node_type.operator in TAKES_UNKNOWN_FOR_ZERO and not certain:
        return None
    given = [
        (value.name or "", value, type_) for value, type_ in zip(node.inputs, inputs, strict=True) if value and type_
    ]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            serde.serialize_node(node),
            {name: to_type_proto(type_) for name, _, type_ in given},
            {
                name: serde.serialize_tensor(value.const_value)
                for name, value, _ in given
                if value.const_value is not None
            },
            opset_imports=[onnx.helper.make_opsetid(node_type.domain, opset)],
        )
        types = [from_type_proto(found[name]) if (name := value.name) in found else None for value in node.outputs]
        return types if certain else [_without_zeros(type_) for type_ in types]
    except onnx.shape_inference.InferenceError:
        raise
    except Exception as error:  # it is asked for a second opinion only, and raises various errors without one
        logging.getLogger(__name__).debug("no second opinion for %s: %r", node_type.type_name(), error)
        return None


def _is_long_list(type_: ValueType | None) -> bool:
    """Whether the package would make a symbol for each of very many integers, as if they were a shape."""
    if not isinstance(type_, TensorType) or type_.shape is None or len(type_.shape) != 1:
        return False
    (size,) = type_.shape
    return isinstance(size, int) and size > LONGEST_LIST


def _is_known(type_: ValueType) -> bool:
    """Whether all sizes of a tensor are numbers."""
    return (
        isinstance(type_, TensorType) and type_.shape is not None and all(isinstance(size, int) for size in type_.shape)
    )


def _without_zeros(type_: ValueType | None) -> ValueType | None:
    if not isinstance(type_, TensorType) or type_.shape is None:
        return type_
    return TensorType(type_.element, tuple(size if size != 0 else None for size in type_.shape), type_.sparse)


@cache
def _schema(domain: str, operator: str, version: int) -> onnx.defs.OpSchema | None:
    if operator in NOT_ASKED_TWICE or not onnx.defs.has(operator, version, domain):
        return None
    return onnx.defs.get_schema(operator, version, domain)


def _corrected(question: Question, type_: ValueType | None) -> ValueType | None:
    if not isinstance(type_, TensorType):
        return type_
    return TensorType(type_.element, corrected(question, type_.shape), type_.sparse)


def _agreed(first: ValueType | None, second: ValueType | None) -> ValueType | None:
    """What two opinions on a type come to: the second's numbers, the first's names."""
    if first is None or not (isinstance(first, TensorType) and isinstance(second, TensorType)):
        return second or first
    shape: Shape | None = first.shape if second.shape is None else second.shape
    if first.shape is not None and second.shape is not None and len(first.shape) == len(second.shape):
        shape = tuple(
            b if a is None or isinstance(b, int) else a for a, b in zip(first.shape, second.shape, strict=True)
        )
    return TensorType(second.element if second.element is not None else first.element, shape, first.sparse)


def _named(types: tuple[ValueType | None, ...]) -> tuple[ValueType | None, ...]:
    """The types with a name for every unknown dimension, in the form of those that the package mints."""
    used = [int(number) for type_ in types for number in _MINTED.findall(str(type_))]
    numbers = count(max(used, default=-1) + 1)

    def named(type_: ValueType | None) -> ValueType | None:
        if not isinstance(type_, TensorType) or type_.shape is None or None not in type_.shape:
            return type_
        shape = tuple(f"_d{next(numbers)}" if size is None else size for size in type_.shape)
        return TensorType(type_.element, shape, type_.sparse)

    return tuple(map(named, types))


def _sentence(error: Exception) -> str:
    message = str(getattr(error, "message", "") or error)
    message = re.sub(r"^\[\w+\] *(\(.*?\) *)?", "", message).strip()
    return message if message.endswith(".") else message + "."


def frozen(value: Any) -> Any:
    """A hashable twin of an attribute value (or a mapping of them); subgraphs stand for themselves."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, frozen(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    if isinstance(value, float):
        return repr(value)  # NaN equals itself here, and -0.0 is not 0.0
    return (type(value).__name__, value) if isinstance(value, bool | int) else value


def names_in(types: Iterable[ValueType | None]) -> set[str]:
    """Every word in the symbolic dimensions of some types."""
    words: set[str] = set()
    for type_ in types:
        if isinstance(type_, TensorType) and type_.shape:
            for dimension in type_.shape:
                if isinstance(dimension, str):
                    words.update(re.findall(r"\w+", dimension))
    return words


def of_call(types: Iterable[ValueType], id: str, known: Collection[str]) -> list[ValueType]:
    """Types in a function's body as they are of one call: a size that has a name only there is another in every call.

    `known` are names from around.
    """
    stem = re.sub(r"\W", "_", id)
    minted: dict[str, str] = {}

    def dimension(item: Dimension) -> Dimension:
        if not isinstance(item, str) or set(re.findall(r"[^\W\d]\w*", item)) <= set(known):
            return item
        return minted.setdefault(item, f"_{stem}_d{len(minted)}")

    return [
        TensorType(type_.element, tuple(map(dimension, type_.shape)), type_.sparse)
        if isinstance(type_, TensorType) and type_.shape
        else type_
        for type_ in types
    ]


def _renamed(known: Known, id: str) -> Known:
    """The result with names that the package minted made unique to a node."""
    if not known.has_own_names:
        return known
    stem = re.sub(r"\W", "_", id)

    def dimension(item: Dimension) -> Dimension:
        return _MINTED.sub(rf"_{stem}_\1", item) if isinstance(item, str) else item

    def renamed(type_: ValueType | None) -> ValueType | None:
        if isinstance(type_, TensorType) and type_.shape and any(isinstance(item, str) for item in type_.shape):
            return TensorType(type_.element, tuple(map(dimension, type_.shape)), type_.sparse)
        return type_

    values = tuple(tuple(map(dimension, value)) if isinstance(value, tuple) else value for value in known.values)
    return replace(known, types=tuple(map(renamed, known.types)), values=values)


def _marked(known: Known) -> Known:
    """The result, with a mark if the package minted names for it."""
    dimensions: list[Dimension] = [item for value in known.values if isinstance(value, tuple) for item in value]
    for type_ in known.types:
        if isinstance(type_, TensorType) and type_.shape:
            dimensions += type_.shape
    return replace(known, has_own_names=any(isinstance(item, str) and "_d" in item for item in dimensions))


# -- to and from onnx_ir ------------------------------------------------------------------------------------------


def _to_value(type_: ValueType, number: int) -> ir.Value:
    if isinstance(type_, TensorType) and type_.shape is not None:
        named = tuple(f"_a{number}_{axis}" if item is None else item for axis, item in enumerate(type_.shape))
        type_ = TensorType(type_.element, named, type_.sparse)
    ir_type, shape = type_and_shape(type_)
    return ir.Value(name=f"input{number}", shape=shape, type=ir_type)


def _from_value(value: ir.Value) -> ValueType | None:
    if value.type is None and value.shape is None:
        return None
    return from_ir_type(value.type, value.shape)


def _value_of(context: library.ShapeInferenceContext, value: ir.Value) -> Value | None:
    constant = value.const_value
    if constant is not None and constant.size <= SMALL and constant.dtype != ir.DataType.STRING:
        return Tensor.from_array(np.array(constant.numpy()))
    followed = context.get_symbolic_value(value)
    if followed is None or len(followed) > SMALL or value.shape is None or len(value.shape) != 1:
        return None
    items = tuple(item if isinstance(item, int) else item.value for item in followed)
    return None if None in items else items


def _to_attribute(name: str, value: Any, kind: str) -> ir.Attr | None:
    """The attribute as onnx-ir has it; None for one that does not fit its kind, which `check` says itself."""
    try:
        return to_attribute(name, value, kind, _wrapped, _no_graph)
    except (TypeError, ValueError):
        return None


def _wrapped(tensor: Tensor, name: str = "") -> ir.TensorProtocol:
    return ir.Tensor(tensor.array(), dtype=ir.DataType(tensor.element), name=name)


def _no_graph(graph: Any) -> ir.Graph:
    raise TypeError("nodes with subgraphs are not inferred here")
