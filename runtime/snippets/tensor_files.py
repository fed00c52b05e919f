"""Tensors beside a snippet or in it: the safetensors form, as files (mapped when read, streamed when written) or bytes.

Types that the format lacks (complex numbers, and all below 8 bits) are stored as their bytes, U8; the snippet knows the
real type and shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from runtime.atomic import replacing
from runtime.errors import FileError
from runtime.tensors import Tensor, map_file
from runtime.types import ElementType, TensorType

MAXIMUM_HEADER = 64 << 20
MAXIMUM_RANK = 64
"""Sizes that a shape may have; arrays have no more."""

STORED_AS = {
    ElementType.BOOL: "BOOL",
    ElementType.UINT8: "U8",
    ElementType.INT8: "I8",
    ElementType.UINT16: "U16",
    ElementType.INT16: "I16",
    ElementType.UINT32: "U32",
    ElementType.INT32: "I32",
    ElementType.UINT64: "U64",
    ElementType.INT64: "I64",
    ElementType.FLOAT16: "F16",
    ElementType.BFLOAT16: "BF16",
    ElementType.FLOAT: "F32",
    ElementType.DOUBLE: "F64",
    ElementType.FLOAT8E4M3FN: "F8_E4M3",
    ElementType.FLOAT8E5M2: "F8_E5M2",
    ElementType.FLOAT8E8M0: "F8_E8M0",
}
"""Names of element types in safetensors files."""

_ELEMENTS = {name: element for element, name in STORED_AS.items()}


def stored_type(tensor: Tensor) -> TensorType:
    """Type and shape that a tensor has in a file."""
    if tensor.element in STORED_AS:
        return tensor.type
    return TensorType(ElementType.UINT8, (tensor.nbytes,))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors by name, atomically; mapped ones are read piece by piece. FileError if that cannot be done."""
    header, ordered = _laid_out(tensors)
    if len(header) > MAXIMUM_HEADER:
        raise FileError(path, f"cannot be written: {len(tensors):,} tensors are more than one file can name.")
    with replacing(path) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for tensor in ordered:
            tensor.write_to(file)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """What `write_tensors` writes, in memory: for small tensors."""
    header, ordered = _laid_out(tensors)
    return b"".join([len(header).to_bytes(8, "little"), header, *(tensor.raw().tobytes() for tensor in ordered)])


def _laid_out(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[Tensor]]:
    """A file's header, and the tensors in the order in which they follow it."""
    header: dict[str, Any] = {}
    offset = 0
    # Wider types first: then every tensor lies at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: -max(8, item[1].element.bits))
    for name, tensor in ordered:
        stored = stored_type(tensor)
        assert stored.element is not None and stored.shape is not None
        header[name] = {
            "dtype": STORED_AS[stored.element],
            "shape": list(stored.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8), [tensor for _, tensor in ordered]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped. FileError says what is wrong with the file.

    Those whose type has no counterpart here come as their bytes, uint8.
    """
    try:
        whole = map_file(path)
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is empty"
        raise FileError(path, f"cannot be read: {problem}.") from error
    return parse_tensors(whole, path)


def parse_tensors(whole: np.ndarray, path: str | Path) -> dict[str, Tensor]:
    """The tensors in the bytes of a file, flat uint8, as views of them. `path` is what FileError calls the file."""
    path = Path(path)
    length = int.from_bytes(whole[:8].tobytes(), "little")
    if whole.size < 8 or length > min(whole.size - 8, MAXIMUM_HEADER):
        raise FileError(path, f"is no safetensors file: its header of {length} bytes does not fit in it.")
    try:
        header = json.loads(whole[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is no safetensors file: its header is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise FileError(path, "is no safetensors file: its header is no JSON object.")
    header.pop("__metadata__", None)
    data = whole[8 + length :]
    tensors: dict[str, Tensor] = {}
    ends: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        element, shape, start, stop = _entry(path, name, entry)
        if stop > data.size:
            raise FileError(
                path, f"the tensor {name!r} ends at byte {stop}, but there are {data.size}: the file is cut short."
            )
        ends.append((start, stop, name))
        try:
            tensors[name] = Tensor(element, shape, data[start:stop])
        except ValueError as error:
            raise FileError(path, f"the tensor {name!r} does not fit its place: {error}.") from error
    ends.sort()
    for (_, end, first), (start, _, second) in pairwise(ends):
        if start < end:
            raise FileError(path, f"the tensors {first!r} and {second!r} overlap.")
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[ElementType, tuple[int, ...], int, int]:
    """Element type, shape and the ends of one entry of the header, checked."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise FileError(path, f"the entry of the tensor {name!r} is no JSON object with a dtype.")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(item) is int and 0 <= item < 1 << 48 for item in numbers):
            raise FileError(path, f"the tensor {name!r} has a shape or place that is no list of sizes.")
    assert isinstance(shape, list) and isinstance(offsets, list)
    if len(shape) > MAXIMUM_RANK:
        raise FileError(path, f"the tensor {name!r} has more than {MAXIMUM_RANK} dimensions.")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileError(path, f"the tensor {name!r} has no place in the file: {offsets}.")
    element = _ELEMENTS.get(entry["dtype"])
    if element is None:
        return ElementType.UINT8, (offsets[1] - offsets[0],), offsets[0], offsets[1]
    return element, tuple(shape), offsets[0], offsets[1]
