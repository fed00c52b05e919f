"""The document's tensors as onnx-ir and ONNX's messages hold them, without copies where that is possible."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.numpy_helper import from_array, to_array
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
        self.tensor.write_to(file)

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
    positions = _positions(indices, shape)
    if positions.size != values.size:
        raise ValueError(f"a sparse tensor of {values.size} values has indices of shape {list(indices.shape)}")
    dense = np.zeros(size, values.dtype)
    dense[positions] = values
    return Tensor.from_array(dense.reshape(shape))


def _positions(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Where the elements that a sparse tensor lists lie among all of them, rows first. ValueError if they lie outside.

    ONNX has two forms: these positions themselves, or a row of one index per dimension for each element.
    """
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        if (indices < 0).any() or (indices >= np.array(shape)).any():
            raise ValueError("a sparse tensor's index lies outside its shape")
        return np.asarray(np.ravel_multi_index(tuple(indices.T), shape))
    if indices.ndim != 1 or (indices < 0).any() or (indices >= math.prod(shape)).any():
        raise ValueError(f"a sparse tensor's indices do not fit its shape {list(shape)}")
    return indices


def usual_indices(array: np.ndarray) -> Tensor:
    """The indices that a sparse tensor gets if nobody says others: the positions of all that is not zero."""
    return Tensor.from_array(np.flatnonzero(array).astype(np.int64))


def sparse_tensor(proto: onnx.TensorProto, indices: Tensor | None = None) -> onnx.SparseTensorProto:
    """A tensor as a list of its elements: the usual ones, or those that `indices` name if no other is left out.

    The inverse of `dense_tensor`. The tensor's name, doc and metadata are those of its values.
    """
    array = to_array(proto)
    listed = written = usual_indices(array).array()
    if indices is not None:
        with suppress(ValueError):  # the tensor may be another one by now
            positions = _positions(indices.array(), array.shape)
            if np.isin(listed, positions).all():
                listed, written = positions, indices.array()
    values = from_array(array.reshape(-1)[listed], proto.name)
    values.doc_string = proto.doc_string
    values.metadata_props.extend(proto.metadata_props)
    return onnx.SparseTensorProto(values=values, indices=from_array(written), dims=array.shape)
