"""What a model's messages hold: tensors, in the message or in files beside the model's, and texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx.numpy_helper import to_array

from runtime.errors import FileError
from runtime.tensors import Tensor
from runtime.types import ElementType

MAXIMUM_EXTENT = 1 << 48
"""What the dimensions of a tensor that are not zero may come to, also where another one is zero: arrays have limits."""


class Source:
    """Where a model comes from: the file, if there is one, in whose folder its tensors may lie."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def fail(self, message: str) -> NoReturn:
        """Raises a FileError about the file."""
        raise FileError(self.path if self.path is not None else "ONNX model", message)

    def tensor(self, proto: onnx.TensorProto) -> Tensor:
        """A tensor: mapped from the file that holds its data, or sharing the message's bytes."""
        what = f"the tensor {proto.name!r}"
        try:
            element = ElementType(proto.data_type)
        except ValueError:
            self.fail(f"{what} has an element type that is unknown here (number {proto.data_type}).")
        shape = tuple(proto.dims)
        if any(size < 0 for size in shape):
            self.fail(f"{what} has a negative dimension: {list(shape)}.")
        if 0 in shape and math.prod(size for size in shape if size) > MAXIMUM_EXTENT:
            self.fail(f"{what} is empty, but its shape {list(shape)} is larger than any array's.")
        if proto.HasField("segment"):
            self.fail(f"{what} is stored in segments, which no version of ONNX defines.")
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self._external(proto, element, shape, what)
        try:
            if element is ElementType.STRING:
                strings = np.array([*proto.string_data, b""], dtype=object)[:-1]
                return Tensor.from_array(strings.reshape(shape))
            if proto.HasField("raw_data"):
                return Tensor(element, shape, np.frombuffer(proto.raw_data, np.uint8))
            return Tensor.from_array(to_array(proto).reshape(shape))
        except (ValueError, TypeError, OverflowError) as error:
            self.fail(f"{what} does not hold what its type and shape say: {error}.")

    def _external(self, proto: onnx.TensorProto, element: ElementType, shape: tuple[int, ...], what: str) -> Tensor:
        """A tensor whose bytes lie in a file beside the model's."""
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = entries.get("location", "")
        if self.path is None:
            self.fail(f"{what} lies in the file {location!r}; load the model from its file to find it.")
        if element is ElementType.STRING:
            self.fail(f"{what} holds strings, which cannot lie in another file.")
        if not location or "\0" in location:
            self.fail(f"{what} lies in another file, but the file is not named.")
        pure, windows = PurePosixPath(location), PureWindowsPath(location)
        if pure.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            self.fail(f"{what} lies in {location!r}; only files in the model's own folder are read.")
        # A model that is reached by a link has two folders: stores of downloads keep files in one, links in the other.
        folders = [self.path.absolute().parent, self.path.resolve().parent]
        file = next((folder / location for folder in folders if (folder / location).exists()), folders[0] / location)
        if not any(file.resolve().is_relative_to(folder.resolve()) for folder in folders):
            self.fail(f"{what} lies in {location!r}, a link that leaves the model's own folder; it is not followed.")
        if not file.is_file():
            self.fail(f"{what} lies in {location!r}, and there is no such file beside the model.")
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or -1)
        except ValueError:
            self.fail(f"{what} has an offset or a length that is no number.")
        tensor = Tensor.from_file(file, offset, element, shape)
        if length not in (-1, tensor.nbytes):
            self.fail(f"{what} needs {tensor.nbytes} bytes; {length} are said to lie in {location!r}.")
        return tensor


def bad_texts(message: Message) -> Iterator[str]:
    """Texts of a message, and of those in it, that are not Unicode: protobuf hands them out as bytes, or raises."""
    fields = message.ListFields() if not isinstance(message, onnx.TensorProto) else _texts_of_tensor(message)
    for descriptor, value in fields:
        if descriptor.type == FieldDescriptor.TYPE_STRING:
            for text in (value,) if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    yield repr(text)
        elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in (value,) if isinstance(value, Message) else value:
                yield from bad_texts(inner)


def _texts_of_tensor(tensor: onnx.TensorProto) -> Iterator[tuple[FieldDescriptor, Any]]:
    """The fields of a tensor but for its data, which listing them all would copy."""
    for name in ("name", "doc_string", "external_data", "metadata_props"):
        yield tensor.DESCRIPTOR.fields_by_name[name], getattr(tensor, name)
