"""Values and tensors as plain data: what YAML has no form for becomes a mapping whose first key begins with `$`.

    {$tensor: float, shape: [2], data: [0.5, 1.0]}         a tensor of a few numbers, or of texts
    {$tensor: float, shape: [2], bytes: AAAAPwAAgD8=}      the same, where numbers would not tell every bit
    {$tensor: float, shape: [64, 64], name: w, sha256: .}  a tensor in the file beside the snippet
    {..., sha256: ., file: other.safetensors}              a tensor in another file, which may be missing
    {$bytes: AAE=}                                         bytes, in base 64
    {$type: tensor(float)}                                 a type
    {$as: floats, value: []}                               a value with its ONNX attribute kind (`runtime.attributes`)
    {$graph: {nodes: ...}}                                 a graph

A key of any other mapping that begins with `$` is written with a second one.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from runtime.tensors import Tensor
from runtime.types import (
    ElementType,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    ValueType,
    kind_of,
    parse_type,
)

MAXIMUM_INLINE = 64
"""Elements of the largest tensor that stands in the YAML itself, if they are no texts."""

COMPLEX = (ElementType.COMPLEX64, ElementType.COMPLEX128)


def encode_type(value: ValueType) -> dict[str, Any]:
    """A type as plain data: its ONNX text, or where names of dimensions would garble that, its parts."""
    try:
        if parse_type(str(value)) == value:
            return {"$type": str(value)}
    except ValueError:
        pass  # the parts it is
    match value:
        case TensorType(_, shape):
            return {"$type": kind_of(value), "shape": list(shape or ())}
        case SequenceType(of):
            return {"$type": "seq", "of": encode_type(of)}
        case OptionalType(of):
            return {"$type": "optional", "of": encode_type(of)}
        case MapType(key, of):
            return {"$type": "map", "key": str(key), "of": encode_type(of)}


def encode_inline(tensor: Tensor) -> dict[str, Any]:
    """A tensor as plain data, all of it, so that it reads back bit for bit."""
    head: dict[str, Any] = {"$tensor": str(tensor.element), "shape": list(tensor.shape)}
    if tensor.element is ElementType.STRING:
        items = [encode_bytes(item) if isinstance(item, bytes) else item for item in tensor.array().reshape(-1)]
        return {**head, "data": items}
    for data in _numbers(tensor):
        try:
            if decode_numbers(tensor.element, tensor.shape, data) == tensor:
                return {**head, "data": data}
        except ValueError:
            continue  # the next form
    return {**head, "bytes": encode_bytes(tensor.raw().tobytes())["$bytes"]}


def _numbers(tensor: Tensor) -> list[list[Any]]:
    """The elements as Python numbers, in the shortest form that may do, then in the surest."""
    array = tensor.array().reshape(-1)
    if tensor.element in COMPLEX:
        return [[[_number(item.real), _number(item.imag)] for item in array.tolist()]]
    if tensor.element.is_float:
        exact = [_number(item) for item in array.astype(np.float64).tolist()]
        return [[float(str(item)) for item in array], exact]
    if tensor.element is ElementType.BOOL:
        return [array.tolist()]
    return [[int(item) for item in array]]


def _number(value: float) -> float:
    """The number; of the many NaNs, the one that YAML has a word for."""
    return math.nan if math.isnan(value) else value


def encode_bytes(data: bytes) -> dict[str, Any]:
    """Bytes as plain data."""
    return {"$bytes": base64.b64encode(data).decode()}


def decode_bytes(text: str) -> bytes:
    """The inverse of `encode_bytes`' text; ValueError if it is not base 64."""
    return base64.b64decode(text, validate=True)


def decode_numbers(element: ElementType, shape: tuple[int, ...], data: list[Any]) -> Tensor:
    """The tensor of these numbers, rows first. ValueError says which of them the element type cannot hold."""
    if element in COMPLEX:
        items = [_complex(item) for item in data]
        return Tensor.from_array(_shaped(np.array(items, element.dtype), shape))
    wanted = {bool} if element is ElementType.BOOL else {int, float} if element.is_float else {int}
    for item in data:
        if type(item) not in wanted:
            names = {bool: "true or false", int: "a whole number", float: "a number"}
            raise ValueError(f"expected {names[max(wanted, key=list(names).index)]} for {element}, found {item!r}")
    if element.is_float:
        with np.errstate(over="ignore"):
            numbers = np.array(data, np.float64)
            array = numbers.astype(element.dtype)
        if bool((np.isfinite(numbers) & ~np.isfinite(array.astype(np.float64))).any()):
            raise ValueError(f"{max(data, key=abs)!r} is out of range for {element}")
        return Tensor.from_array(_shaped(array, shape))
    if element is not ElementType.BOOL:
        signed = str(element).startswith("int")
        low, high = (-(1 << element.bits - 1), (1 << element.bits - 1) - 1) if signed else (0, (1 << element.bits) - 1)
        for item in data:
            if not low <= item <= high:
                raise ValueError(f"{item} is out of range for {element}: {low} to {high}")
    return Tensor.from_array(_shaped(np.array(data, element.dtype), shape))


def _complex(item: Any) -> complex:
    if isinstance(item, list) and len(item) == 2 and all(type(part) in (int, float) for part in item):
        return complex(item[0], item[1])
    raise ValueError(f"expected [real, imaginary], found {item!r}")


def _shaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    expected = int(np.prod(shape, dtype=object)) if shape else 1
    if array.size != expected:
        raise ValueError(f"the shape {list(shape)} has {expected} elements; {array.size} are given")
    return array.reshape(shape)
