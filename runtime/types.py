"""Element types, shapes, and the types of values, in ONNX's own spelling.

A value is a tensor, or a sequence, optional, map or sparse tensor of something. `parse_type` reads ONNX's type
strings (`tensor(float)`, `seq(tensor(int64))`), `str()` writes them. A shape is a tuple whose entries are
integers, names (symbolic dimensions) or None (unknown); a shape of None has an unknown rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TypeAlias

import numpy as np

Dimension: TypeAlias = int | str | None
Shape: TypeAlias = tuple[Dimension, ...]


class ElementType(IntEnum):
    """ONNX's element types, by the numbers of TensorProto.DataType. `str()` gives ONNX's spelling ("float16")."""

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23
    FLOAT8E8M0 = 24
    UINT2 = 25
    INT2 = 26

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> ElementType:
        """The element type that ONNX spells `text`; ValueError names the closest spelling for NumPy's names."""
        found = _BY_NAME.get(text)
        if found is None:
            hint = {"float32": "float", "float64": "double"}.get(text)
            raise ValueError(f"unknown element type {text!r}" + (f"; ONNX spells it {hint!r}" if hint else ""))
        return found

    @classmethod
    def of(cls, dtype: np.dtype) -> ElementType:
        """The element type of a NumPy (or ml_dtypes) dtype; TypeError if ONNX has none."""
        if dtype.kind in "OUST":
            return cls.STRING
        found = _BY_DTYPE.get(dtype.name)
        if found is None:
            raise TypeError(f"ONNX has no element type for NumPy's {dtype.name}")
        return found

    @property
    def bits(self) -> int:
        """Bits that one element takes in a tensor's bytes; 0 for strings, which have no fixed size."""
        return _BITS.get(self) or self.dtype.itemsize * 8

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype of one element; ml_dtypes' for those that NumPy lacks, object for strings."""
        if self is ElementType.STRING:
            return np.dtype(object)
        name = _DTYPE_NAMES[self]
        if hasattr(np, name):
            return np.dtype(getattr(np, name))
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type, of any width."""
        return "float" in str(self) or self is ElementType.DOUBLE


_DTYPE_NAMES: dict[ElementType, str] = {
    ElementType.FLOAT: "float32",
    ElementType.DOUBLE: "float64",
    ElementType.BOOL: "bool_",
    ElementType.FLOAT8E4M3FN: "float8_e4m3fn",
    ElementType.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    ElementType.FLOAT8E5M2: "float8_e5m2",
    ElementType.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    ElementType.FLOAT4E2M1: "float4_e2m1fn",
    ElementType.FLOAT8E8M0: "float8_e8m0fnu",
} | {
    kind: kind.name.lower()
    for kind in ElementType
    if kind.name.startswith(("INT", "UINT", "COMPLEX", "BFLOAT")) or kind is ElementType.FLOAT16
}
_BY_NAME = {str(kind): kind for kind in ElementType}
_BY_DTYPE = {name: kind for kind, name in _DTYPE_NAMES.items()} | {"bool": ElementType.BOOL}
_BITS = {
    ElementType.STRING: 0,
    ElementType.UINT4: 4,
    ElementType.INT4: 4,
    ElementType.FLOAT4E2M1: 4,
    ElementType.UINT2: 2,
    ElementType.INT2: 2,
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's element type and shape; None where unknown."""

    element: ElementType | None = None
    shape: Shape | None = None
    sparse: bool = False

    def __str__(self) -> str:
        kind = "sparse_tensor" if self.sparse else "tensor"
        text = f"{kind}({self.element if self.element is not None else '?'})"
        return text if self.shape is None else f"{text} {format_shape(self.shape)}"


@dataclass(frozen=True, slots=True)
class SequenceType:
    """A sequence of values of one type."""

    of: ValueType

    def __str__(self) -> str:
        return f"seq({self.of})"


@dataclass(frozen=True, slots=True)
class OptionalType:
    """A value that may be absent at run time."""

    of: ValueType

    def __str__(self) -> str:
        return f"optional({self.of})"


@dataclass(frozen=True, slots=True)
class MapType:
    """A map from keys of an integer or string type to values of one type."""

    key: ElementType
    of: ValueType

    def __str__(self) -> str:
        return f"map({self.key},{self.of})"


ValueType: TypeAlias = TensorType | SequenceType | OptionalType | MapType

UNKNOWN = TensorType()
"""The type of a value about which nothing is known."""


def format_shape(shape: Shape | None) -> str:
    """`[tokens, 64, ?]`; `[...]` when the rank is unknown."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if dimension is None else str(dimension) for dimension in shape) + "]"


def kind_of(value: ValueType) -> str:
    """ONNX's type string without shapes: `tensor(float)`, as operator schemas list them."""
    match value:
        case TensorType(element, _, sparse):
            return _TENSOR_KINDS[element, sparse]
        case SequenceType(of):
            return f"seq({kind_of(of)})"
        case OptionalType(of):
            return f"optional({kind_of(of)})"
        case MapType(key, of):
            return f"map({key},{kind_of(of)})"


_TENSOR_KINDS = {
    (element, sparse): f"{'sparse_tensor' if sparse else 'tensor'}({'?' if element is None else element})"
    for element in (None, *ElementType)
    for sparse in (False, True)
}


@lru_cache(maxsize=4096)
def parse_type(text: str) -> ValueType:
    """The type that an ONNX type string means: `tensor(float)`, `float` for short, `seq(tensor(int64))`.

    A shape may follow a tensor: `tensor(float)[tokens, 64]`. ValueError says what is wrong with the string.
    """
    text = text.strip()
    match = re.fullmatch(r"(tensor|sparse_tensor)\(([a-z0-9?]+)\)\s*(\[.*\])?", text)
    if match:
        element = None if match[2] == "?" else ElementType.parse(match[2])
        return TensorType(element, _parse_shape(match[3]), match[1] == "sparse_tensor")
    match = re.fullmatch(r"(seq|optional)\((.*)\)", text)
    if match:
        inner = parse_type(match[2])
        return SequenceType(inner) if match[1] == "seq" else OptionalType(inner)
    match = re.fullmatch(r"map\(([a-z0-9]+)\s*,\s*(.*)\)", text)
    if match:
        return MapType(ElementType.parse(match[1]), parse_type(match[2]))
    return TensorType(ElementType.parse(text))


def _parse_shape(text: str | None) -> Shape | None:
    if not text or text == "[...]":
        return None
    entries = [entry.strip() for entry in text[1:-1].split(",") if entry.strip()]
    return tuple(None if entry == "?" else int(entry) if entry.isdigit() else entry for entry in entries)
