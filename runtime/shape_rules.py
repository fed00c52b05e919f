"""What the inference packages get wrong about shapes, put right: a dimension that nothing tells is None.

Each rule was found by comparing inferred shapes with the outputs of ONNX's own node tests, run with constant, symbolic
and unknown inputs. A rule takes what was asked and the shape that the package gave for an output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from runtime.tensors import Tensor
from runtime.types import Dimension, Shape, TensorType, ValueType, format_shape

Value: TypeAlias = "Tensor | tuple[Dimension, ...]"
"""What is known of a value before a graph runs: a small tensor, or the elements of a list of dimensions."""


@dataclass(frozen=True, slots=True)
class Question:
    """A standard operator with its attributes, types and known values of its inputs (by position), and how many of
    its outputs are in use."""

    operator: str
    attributes: Mapping[str, Any]
    inputs: tuple[ValueType | None, ...]
    values: tuple[Value | None, ...]
    outputs: int = 1

    def has(self, position: int) -> bool:
        """Whether an input is connected."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def shape(self, position: int) -> Shape | None:
        """The shape of an input, or None."""
        type_ = self.inputs[position] if position < len(self.inputs) else None
        return type_.shape if isinstance(type_, TensorType) else None

    def value(self, position: int) -> tuple[Dimension, ...] | None:
        """The elements of an input, or None."""
        value = self.values[position] if position < len(self.values) else None
        return tuple(value.array().reshape(-1).tolist()) if isinstance(value, Tensor) else value


Rule: TypeAlias = Callable[[Question, Shape], Shape | None]


def corrected(question: Question, shape: Shape | None) -> Shape | None:
    """The shape of an output as far as it is certain."""
    rule = _RULES.get(question.operator)
    return rule(question, shape) if rule is not None and shape is not None else shape


def _broadcast(question: Question, shape: Shape) -> Shape | None:
    """Names of different sizes may stand for 1: the result then has either."""
    shapes = [question.shape(position) for position in range(len(question.inputs))]
    if question.operator == "Expand":
        shapes[1:] = [question.value(1)]
    return tuple(
        None if isinstance(size, str) and _differ(shapes, len(shape) - axis, size) else size
        for axis, size in enumerate(shape)
    )


def _differ(shapes: list[Shape | None], from_end: int, size: str) -> bool:
    aligned = {shape[-from_end] if len(shape) >= from_end else 1 for shape in shapes if shape is not None}
    return None in shapes or not aligned <= {1, size}


def _split(question: Question, shape: Shape) -> Shape | None:
    if not question.has(1) or question.value(1) is not None:
        return shape
    return _forget_axis(shape, question.attributes.get("axis", 0))


def _squeeze(question: Question, shape: Shape) -> Shape | None:
    if question.has(1):
        return shape if question.value(1) is not None else None
    given = question.shape(0)
    certain = "axes" in question.attributes or (given is not None and all(isinstance(size, int) for size in given))
    return shape if certain else None


def _choose(question: Question, shape: Shape) -> Shape | None:
    """Compress and Unique: without an axis, a flat list; with one, the input without some of its slices."""
    axis = question.attributes.get("axis")
    if axis is None or len(shape) != 1 or (given := question.shape(0)) is None:
        return shape if axis is None else None
    return _forget_axis(given, axis)


def _slice(question: Question, shape: Shape) -> Shape | None:
    """A slice ends with what it cuts: where that is unknown, the slice may be shorter than its bounds say."""
    given = question.shape(0)
    if given is None or len(given) != len(shape):
        return shape
    return tuple(
        None if isinstance(size, int) and not isinstance(whole, int) else size
        for size, whole in zip(shape, given, strict=True)
    )


def _pool(question: Question, shape: Shape) -> Shape | None:
    """With ceil_mode, a last window that would start in the padding is left out."""
    if not question.attributes.get("ceil_mode"):
        return shape
    return tuple(None if isinstance(size, str) and "ceiling" in size else size for size in shape)


def _resize(question: Question, shape: Shape) -> Shape | None:
    if question.attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch":
        return shape
    return (None,) * len(shape)


def _unknown_sizes(question: Question, shape: Shape) -> Shape | None:
    return (None,) * len(shape)


def _forget_axis(shape: Shape, axis: int) -> Shape:
    return tuple(None if index == axis % len(shape) else size for index, size in enumerate(shape)) if shape else shape


_BROADCASTING = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Expand Greater GreaterOrEqual Less LessOrEqual Max "
    "Mean Min Mod Mul Or Pow Sub Sum Where Xor"
).split()

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_BROADCASTING, _broadcast),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    "Compress": _choose,
    "MelWeightMatrix": _unknown_sizes,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unique": _choose,
}


def contradiction(question: Question) -> str:
    """What is certainly wrong and neither package says, in one sentence; empty if nothing is."""
    rule = _CONTRADICTIONS.get(question.operator)
    return rule(question) if rule is not None else ""


def _parts(question: Question) -> str:
    """Split: ONNX's own inference ends the process where there are more outputs than parts."""
    count, lengths = question.attributes.get("num_outputs"), question.attributes.get("split")
    if question.has(1):
        known = question.value(1)
        given = question.shape(1)
        count = len(known) if known is not None else given[0] if given is not None and len(given) == 1 else None
    elif lengths is not None:
        count = len(lengths)
    if not isinstance(count, int) or count == question.outputs:
        return ""
    return f"It makes {count} parts, and {question.outputs} outputs are in use."


def _bias(question: Question) -> str:
    """Gemm: C is added to a matrix, to which it can be repeated."""
    a, b, c = (question.shape(position) for position in range(3))
    if a is None or b is None or c is None or len(a) != 2 or len(b) != 2:
        return ""
    rows = a[1 if question.attributes.get("transA") else 0]
    columns = b[0 if question.attributes.get("transB") else 1]
    fits = len(c) <= 2 and all(
        own == 1 or not isinstance(own, int) or not isinstance(size, int) or own == size
        for own, size in zip(c[::-1], (columns, rows), strict=False)
    )
    return "" if fits else f"C {format_shape(c)} cannot be added to a matrix of {format_shape((rows, columns))}."


def _scale(question: Question) -> str:
    """LayerNormalization and RMSNormalization: scale and bias are repeated to the normalized dimensions."""
    x = question.shape(0)
    if x is None:
        return ""
    axis = question.attributes.get("axis", -1)
    if not -len(x) <= axis < len(x):
        return f"axis {axis} is none of the {len(x)} dimensions."
    for position, name in ((1, "scale"), (2, "B")):
        given = question.shape(position)
        if given is None:
            continue
        pairs = zip(given[::-1], x[::-1], strict=False)
        if len(given) > len(x) or any(
            isinstance(own, int) and isinstance(size, int) and own not in (1, size) for own, size in pairs
        ):
            return f"{name} {format_shape(given)} cannot be repeated to the shape {format_shape(x)}."
    return ""


def _reshape(question: Question) -> str:
    given, target = question.shape(0), question.value(1)
    if given is None or target is None:
        return ""
    if not question.attributes.get("allowzero") and 0 in target:
        if len(given) < len(target) - target[::-1].index(0):
            return ""
        target = tuple(given[axis] if size == 0 else size for axis, size in enumerate(target))
    if not all(isinstance(size, int) and size >= 0 for size in (*given, *target)):
        return ""
    have, want = prod(map(int, given)), prod(map(int, target))  # type: ignore[arg-type]
    if have == want:
        return ""
    return f"{format_shape(given)} has {have} elements, and the shape {format_shape(target)} takes {want}."


def _convolution(question: Question) -> str:
    image, weights = question.shape(0), question.shape(1)
    if image is None or weights is None or min(len(image), len(weights)) < 2:
        return ""
    channels, each, groups = image[1], weights[1], question.attributes.get("group", 1)
    if not (isinstance(channels, int) and isinstance(each, int)) or channels == each * groups:
        return ""
    return f"X has {channels} channels, and W takes {each} in each of {groups} groups."


def _transpose(question: Question) -> str:
    given, order = question.shape(0), question.attributes.get("perm")
    if given is None or order is None or len(order) == len(given):
        return ""
    return f"perm orders {len(order)} dimensions, and the input has {len(given)}."


_CONTRADICTIONS: dict[str, Callable[[Question], str]] = {
    "Conv": _convolution,
    "Gemm": _bias,
    "LayerNormalization": _scale,
    "RMSNormalization": _scale,
    "Reshape": _reshape,
    "Split": _parts,
    "Transpose": _transpose,
}
