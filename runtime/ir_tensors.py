"""The document's tensors as onnx-ir and ONNX's messages hold them, without copies where that is possible."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.numpy_helper import to_array
from onnx_ir._core import TensorBase

from runtime.tensors import Tensor
from runtime.types import ElementType

MAXIMUM_DENSE_BYTES = 1 << 28
"""Bytes that any sparse tensor may have when it is written out in full."""

MAXIMUM_GROWTH = 64
"""How many times as large as its values and indices a larger sparse tensor may become when it is written out."""


class GraphTensor(TensorBase):
    """A document's tensor as onnx-ir sees it; `tensor` is the document's own, and no byte is copied."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor, name: str | None = None) -> None:
        super().__init__(name=name)
        self.tensor = tensor

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]  # the tensor never changes
        return ir.DataType(int(self.tensor.element))

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]  # the tensor never changes
        return ir.Shape(self.tensor.shape, frozen=True)

    @property
    def raw(self) -> Tensor:
        return self.tensor

    def numpy(self) -> np.ndarray:
        return self.tensor.array()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.tensor.array(), dtype, copy=copy)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.tensor.array().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.array().__dlpack_device__()

    def tobytes(self) -> bytes:
        return self.tensor.raw().tobytes()

    def tofile(self, file: Any) -> None:
        file.write(np.ascontiguousarray(self.tensor.raw()).data)

    def __repr__(self) -> str:
        return f"GraphTensor({self.tensor.type}, name={self.name!r})"


class GraphStrings(ir.StringTensor):
    """A document's tensor of strings as onnx-ir sees it; `tensor` is the document's own."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor, name: str | None = None) -> None:
        strings = [item if isinstance(item, bytes) else item.encode() for item in tensor.array().reshape(-1)]
        super().__init__(strings, shape=ir.Shape(tensor.shape), name=name)
        self.tensor = tensor


def wrap(tensor: Tensor, name: str | None = None) -> GraphTensor | GraphStrings:
    """A tensor as onnx-ir wants it."""
    return GraphStrings(tensor, name) if tensor.element is ElementType.STRING else GraphTensor(tensor, name)


def dense_tensor(proto: onnx.SparseTensorProto) -> Tensor:
    """A sparse tensor with its zeros written out. ValueError says what is wrong with it."""
    shape = tuple(proto.dims)
    size = math.prod(shape)
    if any(dimension < 0 for dimension in shape):
        raise ValueError(f"a sparse tensor has a negative dimension: {list(shape)}")
    values, indices = to_array(proto.values).reshape(-1), to_array(proto.indices)
    most = max(MAXIMUM_DENSE_BYTES, MAXIMUM_GROWTH * (values.nbytes + indices.nbytes))
    if size * values.itemsize > most:
        raise ValueError(
            f"a sparse tensor of shape {list(shape)} with {values.size} values takes {size * values.itemsize} bytes "
            f"when it is written out; at most {most} were expected"
        )
    if indices.ndim == 2:
        if indices.shape != (values.size, len(shape)):
            raise ValueError(f"a sparse tensor of {values.size} values has indices of shape {list(indices.shape)}")
        if (indices < 0).any() or (indices >= np.array(shape)).any():
            raise ValueError("a sparse tensor's index lies outside its shape")
        indices = np.ravel_multi_index(tuple(indices.T), shape)
    if indices.shape != values.shape or (indices < 0).any() or (indices >= size).any():
        raise ValueError("a sparse tensor's indices do not fit its values and shape")
    dense = np.zeros(size, values.dtype)
    dense[indices] = values
    return Tensor.from_array(dense.reshape(shape))
