"""Types and shapes of one operator's outputs, from the onnx-shape-inference package, remembered by signature.

The package works on whole ONNX models; here it is asked about one node at a time, so that an edit costs no more than
the nodes that it touches. Beside types, small integer values are followed (the shapes that `Shape`, `Gather` and
`Concat` compute for a `Reshape`), as tuples of integers and names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_shape_inference as library

from runtime.node import Node
from runtime.onnx_types import from_ir_type, type_and_shape
from runtime.tensors import Tensor
from runtime.types import Dimension, TensorType, ValueType

logging.getLogger("onnx_shape_inference").setLevel(logging.ERROR)  # it warns of every operator that it does not know

Value: TypeAlias = "Tensor | tuple[Dimension, ...]"
"""What is known of a value before a graph runs: a small tensor, or the elements of a list of dimensions."""

SMALL = 64
"""Tensors of up to this many elements are worth following as values."""

_MINTED = re.compile(r"\b_d(\d+)\b")


@dataclass(frozen=True, slots=True)
class Known:
    """Types and values of a node's outputs by position, and a contradiction in its inputs, if there is one."""

    types: tuple[ValueType | None, ...] = ()
    values: tuple[Value | None, ...] = ()
    contradiction: str = ""


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
    signature = (node_type, opset, _frozen(attributes), inputs, values, outputs)
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
    library.registry.collect()
    function = library.registry.get(node_type.domain, node_type.operator, version=opset)
    if function is None:
        return Known()
    context = library.ShapeInferenceContext({"": opset, node_type.domain: opset}, policy="refine")
    context.reserve_symbol_names(_names_of(inputs))
    arguments = [None if type_ is None else _to_value(type_, number) for number, type_ in enumerate(inputs)]
    for argument, value in zip(arguments, values, strict=True):
        if argument is None or value is None:
            continue
        if isinstance(value, Tensor):
            argument.const_value = ir.Tensor(value.array(), dtype=ir.DataType(value.element), name=argument.name)
        else:
            context.set_symbolic_value(
                argument, [item if isinstance(item, int) else ir.SymbolicDim(item) for item in value]
            )
    node = ir.Node(
        node_type.domain,
        node_type.operator,
        arguments,
        [ir_attribute for name, value in attributes.items() if (ir_attribute := _to_attribute(name, value))],
        num_outputs=outputs,
        version=opset,
    )
    try:
        function(context, node)
    except (library.OpUsageError, library.ShapeInferenceError) as error:
        return Known(contradiction=_sentence(error))
    except Exception as error:  # the package's rules may fail on what they did not foresee: then nothing is known
        logging.getLogger(__name__).debug("no inference for %s: %r", node_type.type_name(), error)
        return Known()
    types = tuple(_from_value(value) for value in node.outputs)
    found = tuple(_value_of(context, value) for value in node.outputs)
    return Known(types, found)


def _sentence(error: Exception) -> str:
    message = str(getattr(error, "message", "") or error)
    return message if message.endswith(".") else message + "."


def _frozen(value: Any) -> Any:
    """A hashable twin of an attribute value (or a mapping of them); subgraphs stand for themselves."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, _frozen(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, float):
        return repr(value)  # NaN equals itself here, and -0.0 is not 0.0
    return (type(value).__name__, value) if isinstance(value, bool | int) else value


def _names_of(types: tuple[ValueType | None, ...]) -> set[str]:
    """Every word in the symbolic dimensions of some types."""
    words: set[str] = set()
    for type_ in types:
        if isinstance(type_, TensorType) and type_.shape:
            for dimension in type_.shape:
                if isinstance(dimension, str):
                    words.update(re.findall(r"\w+", dimension))
    return words


def _renamed(known: Known, id: str) -> Known:
    """The result with names that the package minted made unique to a node."""
    if not _has_minted(known):
        return known
    stem = re.sub(r"\W", "_", id)

    def dimension(item: Dimension) -> Dimension:
        return _MINTED.sub(rf"_{stem}_\1", item) if isinstance(item, str) else item

    def renamed(type_: ValueType | None) -> ValueType | None:
        if isinstance(type_, TensorType) and type_.shape and any(isinstance(item, str) for item in type_.shape):
            return TensorType(type_.element, tuple(map(dimension, type_.shape)), type_.sparse)
        return type_

    values = tuple(tuple(map(dimension, value)) if isinstance(value, tuple) else value for value in known.values)
    return Known(tuple(map(renamed, known.types)), values, known.contradiction)


def _has_minted(known: Known) -> bool:
    dimensions: list[Dimension] = [item for value in known.values if isinstance(value, tuple) for item in value]
    for type_ in known.types:
        if isinstance(type_, TensorType) and type_.shape:
            dimensions += type_.shape
    return any(isinstance(item, str) and "_d" in item for item in dimensions)


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


def _to_attribute(name: str, value: Any) -> ir.Attr | None:
    """The attribute as onnx_ir has it; None for kinds that no shape depends on (subgraphs, types, ...)."""
    match value:
        case bool():
            return ir.AttrInt64(name, int(value))
        case int():
            return ir.AttrInt64(name, value)
        case float():
            return ir.AttrFloat32(name, value)
        case str():
            return ir.AttrString(name, value)
        case Tensor():
            return ir.AttrTensor(name, ir.Tensor(value.array(), dtype=ir.DataType(value.element)))
        case list() | tuple() if value and all(isinstance(item, int) for item in value):
            return ir.AttrInt64s(name, list(value))
        case list() | tuple() if value and all(isinstance(item, float | int) for item in value):
            return ir.AttrFloat32s(name, [float(item) for item in value])
        case list() | tuple() if value and all(isinstance(item, str) for item in value):
            return ir.AttrStrings(name, list(value))
    return None
