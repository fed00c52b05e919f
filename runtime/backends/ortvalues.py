"""Values at ONNX Runtime's border: element types that NumPy lacks, and weights that must not be copied."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import FileError
from runtime.tensors import Tensor
from runtime.types import ElementType

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

INLINE_BYTES = 4096
"""Initializers up to this size stay in the model: ONNX Runtime's fusions look at small constants there."""

WEIGHTS_FILE = "weights"


def is_foreign(element: ElementType) -> bool:
    """Whether ONNX Runtime can take the type only as an OrtValue, because NumPy itself has no such type."""
    return element.name.startswith(("BFLOAT", "FLOAT8", "FLOAT4")) or element.bits in (2, 4)


def to_ort(value: Any) -> Any:
    """An array as ONNX Runtime's `run` takes it: itself, or an OrtValue for a type that NumPy lacks."""
    if not isinstance(value, np.ndarray) or value.dtype.isbuiltin == 1 or value.dtype.kind in "OUS":
        return value
    return ort_value(Tensor.from_array(value))


def ort_value(tensor: Tensor) -> onnxruntime.OrtValue:
    """A tensor as an OrtValue that shares its memory; types below 8 bits, which ONNX Runtime packs, are copied."""
    from onnxruntime import OrtValue

    element = tensor.element
    if element.bits < 8:
        value = OrtValue.ortvalue_from_shape_and_type(list(tensor.shape), int(element))
        raw = np.ascontiguousarray(tensor.raw())
        ctypes.memmove(value.data_ptr(), raw.ctypes.data, raw.nbytes)
        return value
    array = tensor.array()
    if not is_foreign(element):
        return OrtValue.ortvalue_from_numpy(array)
    carrier = np.dtype(f"uint{element.bits}")
    return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(carrier), int(element))


def from_ort(value: onnxruntime.OrtValue) -> Any:
    """What an OrtValue holds, as an array of its own memory (a list for a sequence, None for an absent optional)."""
    if not value.has_value():
        return None
    if not value.is_tensor():
        return value.numpy()
    element = ElementType(value.element_type())
    if not is_foreign(element):
        return value.numpy()
    size = value.tensor_size_in_bytes()
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.uint8) if size else np.empty(0, np.uint8)
    return Tensor(element, value.shape(), raw).array()


def detach_weights(model: ir.Model) -> dict[str, onnxruntime.OrtValue]:
    """Takes the large initializers out of a model, which afterwards names a file for them; returns them by name.

    Those that are inputs too stay: ONNX Runtime must be able to replace them.
    """
    import onnx_ir as ir

    weights: dict[str, onnxruntime.OrtValue] = {}
    offset = 0
    inputs = set(model.graph.inputs)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or value in inputs or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes <= INLINE_BYTES:
            continue
        weights[name] = ort_value(document_tensor(tensor))
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir="",
        )
        offset += tensor.nbytes
    return weights


def document_tensor(tensor: Any) -> Tensor:
    """The tensor of the document that an IR tensor wraps, or one that shares its memory."""
    own = getattr(tensor, "tensor", None)
    return own if isinstance(own, Tensor) else Tensor.from_array(tensor.numpy())


@contextmanager
def weights_folder(size: int) -> Iterator[Path | None]:
    """A folder with a file of `size` bytes, all holes: ONNX Runtime wants the file to exist and never reads it.

    None if there are no weights to put there.
    """
    if not size:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="qmoe-") as folder:
        path = Path(folder, WEIGHTS_FILE)
        try:
            with path.open("wb") as file:
                file.truncate(size)
        except OSError as error:
            reason = error.strerror or error
            raise FileError(path, f"a file of {size:,} bytes, all holes, cannot be made there: {reason}.") from error
        yield Path(folder)
