"""Values at ONNX Runtime's border: element types that NumPy lacks, and weights that must not be copied."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
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

READ_BY_KERNELS_ONLY = frozenset(
    ("com.microsoft", operator) for operator in ("QMoE", "MatMulNBits", "GatherBlockQuantized")
)
"""Operators whose quantized weights no optimization of ONNX Runtime looks at."""
MIXTURES = frozenset({("com.microsoft", "QMoE")})
"""Operators of which it looks at no input."""


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


@dataclass(slots=True)
class Weights:
    """The large initializers of a model, which names a file for them: by name, and where they lie in it.

    `read` are those whose bytes ONNX Runtime may look at in the file while it optimizes the graph.
    """

    values: dict[str, onnxruntime.OrtValue] = field(default_factory=dict)
    size: int = 0
    read: list[tuple[int, Tensor]] = field(default_factory=list)


def detach_weights(model: ir.Model) -> Weights:
    """Takes the large initializers out of a model.

    Those that are inputs too stay: ONNX Runtime must be able to replace them.
    """
    import onnx_ir as ir

    weights = Weights()
    inputs = set(model.graph.inputs)
    varying = _varying(model.graph)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or value in inputs or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes <= INLINE_BYTES:
            continue
        own = document_tensor(tensor)
        weights.values[name] = ort_value(own)
        if not _is_left_alone(value, varying):
            weights.read.append((weights.size, own))
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            weights.size,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir="",
        )
        weights.size += tensor.nbytes
    return weights


def _is_left_alone(value: ir.Value, varying: Set[ir.Value]) -> bool:
    """Whether ONNX Runtime reads an initializer in kernels only, as the value that it is given.

    It folds constants and fuses nodes with what the file says. It does so with nothing that holds quantized weights,
    nor with any input of QMoE, as long as another input of the node is no constant.
    """
    if value.dtype is None or not value.uses():
        return False
    operators = MIXTURES if value.dtype.is_floating_point() else READ_BY_KERNELS_ONLY
    return all(
        (use.node.domain, use.node.op_type) in operators and not varying.isdisjoint(use.node.inputs)
        for use in value.uses()
    )


def _varying(graph: ir.Graph) -> set[ir.Value]:
    """The values of a graph that depend on its inputs."""
    varying = set(graph.inputs)
    for node in graph:
        if not varying.isdisjoint(node.inputs):
            varying.update(node.outputs)
    return varying


def document_tensor(tensor: Any) -> Tensor:
    """The tensor of the document that an IR tensor wraps, or one that shares its memory."""
    own = getattr(tensor, "tensor", None)
    return own if isinstance(own, Tensor) else Tensor.from_array(tensor.numpy())


@contextmanager
def weights_folder(weights: Weights) -> Iterator[Path | None]:
    """A folder with the file that a model without its weights names: ONNX Runtime wants it to exist.

    It holds what may be read there, and holes for all else. None if there are no weights. FileError if there is no
    room for it.
    """
    if not weights.size:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="qmoe-") as folder:
        path = Path(folder, WEIGHTS_FILE)
        try:
            with path.open("wb") as file:
                for offset, tensor in weights.read:
                    file.seek(offset)
                    tensor.write_to(file)
                file.truncate(weights.size)
        except OSError as error:
            reason = error.strerror or error
            raise FileError(
                path, f"a file for {weights.size:,} bytes of weights cannot be made there: {reason}."
            ) from error
        yield Path(folder)
