"""Tensor values as immutable bytes: in memory, or mapped from a file and read only when looked at."""

from __future__ import annotations

import errno
import hashlib
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from runtime.errors import FileError, Finding, GraphError
from runtime.types import ElementType, TensorType

PIECE = 64 << 20
"""Bytes of a tensor that are looked at together."""
LARGE = 1 << 20
"""Bytes of a mapped tensor from which on the system copies them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which file a tensor's bytes lie, and by what a change of the file is noticed: its size and its time."""

    path: str
    offset: int
    size: int
    modified: int

    def is_current(self) -> bool:
        """Whether the file is still the one that was mapped."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


class Tensor:
    """An element type, a shape, and the elements: little-endian, rows first, types under 8 bits packed low bits first.

    The layout is ONNX's `raw_data`. Strings have no bytes: they are held as an object array of `str` (or `bytes`
    where they are not UTF-8). Tensors are compared by content and never change; arrays that they hand out are
    read-only views where that is possible without a copy.

    A pickled tensor that is mapped from a file is the name of the file, not its bytes; FileError where it is read if
    the file has changed by then.
    """

    __slots__ = ("_data", "_digest", "element", "shape")

    def __init__(self, element: ElementType, shape: Sequence[int], data: np.ndarray) -> None:
        """`data`: the raw bytes as a flat uint8 array, or for strings an object array of the elements."""
        self.element = element
        self.shape = tuple(int(size) for size in shape)
        self._data = data
        self._digest = ""
        expected = self.size if element is ElementType.STRING else (self.size * element.bits + 7) // 8
        if data.size != expected:
            unit = "strings" if element is ElementType.STRING else "bytes"
            raise ValueError(f"a {element} tensor of shape {list(self.shape)} has {expected} {unit}, not {data.size}")

    @classmethod
    def from_array(cls, array: np.ndarray) -> Tensor:
        """The tensor of a NumPy (or ml_dtypes) array; shares its memory where the layout allows."""
        array = np.asarray(array)
        element = ElementType.of(array.dtype)
        if element is ElementType.STRING:
            strings = np.array([_plain(item) for item in array.reshape(-1)] or [], dtype=object)
            return cls(element, array.shape, strings)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        flat = np.ascontiguousarray(array).reshape(-1)
        raw = flat.view(np.uint8) if flat.size else np.empty(0, np.uint8)
        return cls(element, array.shape, _pack(raw, element.bits) if element.bits < 8 else raw)

    @classmethod
    def from_file(cls, path: str | Path, offset: int, element: ElementType, shape: Sequence[int]) -> Tensor:
        """The tensor whose bytes lie in a file at `offset`; mapped, not read. FileError if they leave the file."""
        size = (math.prod(shape) * element.bits + 7) // 8
        path = Path(path)
        try:
            status = path.stat()
        except OSError as error:
            raise FileError(path, f"cannot be read: {error.strerror}") from error
        if offset < 0 or offset + size > status.st_size:
            raise FileError(path, f"holds {status.st_size} bytes; a tensor needs bytes {offset} to {offset + size}")
        data: np.ndarray = np.empty(0, np.uint8)
        if size:
            data = map_file(path)[offset : offset + size]
        return cls(element, shape, data)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; for strings, of their UTF-8 text."""
        if self.element is ElementType.STRING:
            return sum(len(item if isinstance(item, bytes) else item.encode()) for item in self._data)
        return int(self._data.size)

    @property
    def type(self) -> TensorType:
        """Element type and shape."""
        return TensorType(self.element, self.shape)

    @property
    def is_mapped(self) -> bool:
        """Whether the elements lie in a mapped file."""
        return isinstance(self._data, np.memmap)

    @property
    def file(self) -> Path | None:
        """The file that the elements are mapped from."""
        return Path(str(self._data.filename)) if isinstance(self._data, np.memmap) and self._data.filename else None

    @property
    def place(self) -> Place | None:
        """Where the elements lie, if that is a mapped file that has not changed since."""
        if not isinstance(self._data, np.memmap):
            return None
        mapping = self._data._mmap  # type: ignore[attr-defined]
        found = _places.get(mapping) if mapping is not None else None
        if found is None:
            return None
        path, size, modified = found
        start = self._data.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
        place = Place(path, start, size, modified)
        return place if place.is_current() else None

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Lets go of the memory of a mapped file, of this tensor's bytes; what is looked at again is read again."""
        mapping = self._data._mmap if isinstance(self._data, np.memmap) else None  # type: ignore[attr-defined]
        if mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = self._data.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
        page = mmap.PAGESIZE
        low = -(-(first + start) // page) * page
        high = (first + (self._data.size if stop is None else stop)) // page * page
        if low < high:
            mapping.madvise(mmap.MADV_DONTNEED, low, high - low)

    def pieces(self) -> Iterator[np.ndarray]:
        """The elements' bytes in order, flat uint8, so many at once; a mapped file need not fit in memory."""
        raw = self.raw()
        for start in range(0, raw.size, PIECE):
            yield np.ascontiguousarray(raw[start : start + PIECE])
            if raw.size > PIECE:
                self.release(start, min(start + PIECE, raw.size))

    def write_to(self, file: BinaryIO) -> None:
        """Writes the elements' bytes. Those in a mapped file are copied by the system, and need no memory.

        FileError if the mapped file was cut short meanwhile.
        """
        place = self.place if self.nbytes >= LARGE else None
        if place is None:
            for piece in self.pieces():
                file.write(piece.data)
            return
        with open(place.path, "rb", buffering=0) as source:
            copy_bytes(source, place.offset, self.nbytes, file)

    def raw(self) -> np.ndarray:
        """The elements' bytes, flat uint8, no copy. TypeError for strings."""
        if self.element is ElementType.STRING:
            raise TypeError("a tensor of strings has no raw bytes")
        return self._data

    def array(self) -> np.ndarray:
        """The elements as an array of the element type's dtype; a read-only view unless they had to be unpacked."""
        if self.element is ElementType.STRING:
            return self._data.reshape(self.shape)
        if self.element.bits < 8:
            codes = _unpack(np.asarray(self._data), self.element, self.size)
            return codes.view(self.element.dtype).reshape(self.shape)
        view = self._data.view(np.ndarray)
        if view.ctypes.data % self.element.dtype.itemsize:  # files need not align their tensors
            view = view.copy()
        view = view.view(self.element.dtype).reshape(self.shape)
        view.flags.writeable = False
        return view

    @property
    def digest(self) -> str:
        """SHA-256 of the elements' bytes, in hexadecimal; of a NUL-joined UTF-8 text for strings."""
        if not self._digest:
            if self.element is ElementType.STRING:
                text = b"\0".join(item if isinstance(item, bytes) else item.encode() for item in self._data)
                self._digest = hashlib.sha256(text).hexdigest()
            else:
                found = hashlib.sha256()
                for piece in self.pieces():
                    found.update(piece.data)
                self._digest = found.hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Tensor):
            return NotImplemented
        if isinstance(self, AbsentTensor) or isinstance(other, AbsentTensor):
            return self.type == other.type and self.digest == other.digest
        return (self.element, self.shape) == (other.element, other.shape) and (
            self._data is other._data or bool(np.array_equal(self._data, other._data))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        place = self.place
        if place is not None:
            return _mapped_again, (place, self.element, self.shape)
        return Tensor, (self.element, self.shape, self._data.view(np.ndarray))

    def __copy__(self) -> Tensor:
        return self

    def __deepcopy__(self, memo: object) -> Tensor:
        return self

    def __hash__(self) -> int:
        return hash((self.element, self.shape))

    def __repr__(self) -> str:
        return f"Tensor({self.type})"


class AbsentTensor(Tensor):
    """A tensor that is known by type, shape and SHA-256, while its elements lie in a file that is not there.

    It goes through editing and saving like any other, and equals the tensor that it stands for. What needs its elements
    gets a GraphError that says which file is missing.
    """

    __slots__ = ("location", "name")

    def __init__(self, element: ElementType, shape: Sequence[int], digest: str, name: str, location: str) -> None:
        """`name` is what the tensor is called in the file `location`, a plain name. Not for strings."""
        self.element = element
        self.shape = tuple(int(size) for size in shape)
        self._data = np.empty(0, np.uint8)
        self._digest = digest.lower()
        self.name = name
        self.location = location

    def __reduce__(self) -> tuple[Any, ...]:
        return AbsentTensor, (self.element, self.shape, self._digest, self.name, self.location)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take where they are."""
        return (self.size * self.element.bits + 7) // 8

    def raw(self) -> np.ndarray:
        """GraphError: the elements are not there."""
        raise GraphError(self.finding())

    def array(self) -> np.ndarray:
        """GraphError: the elements are not there."""
        raise GraphError(self.finding())

    def finding(self, node: str = "", port: str = "") -> Finding:
        """What to say of it, and what to do."""
        return Finding(
            f"the tensor {self.name!r}, {self.type}, SHA-256 {self.digest}, did not come along with the graph, and no "
            f"{self.location} that holds it lies beside it.",
            node,
            port,
            remedy=f"Put {self.location} into the same folder and load the graph again.",
            code="absent-tensor",
        )

    def __hash__(self) -> int:
        return super().__hash__()


_mappings: WeakValueDictionary[tuple[int, ...], np.memmap] = WeakValueDictionary()
"""The files that are mapped, by what tells a file and its content from others."""

_places: WeakKeyDictionary[mmap.mmap, tuple[str, int, int]] = WeakKeyDictionary()
"""Of each mapping the file's path, size and time of its last change, when it was mapped."""


def map_file(path: str | Path) -> np.memmap:
    """The bytes of a file, mapped. OSError if it cannot be read, ValueError if it is empty.

    One mapping serves all who ask: each takes one of the few files that a process may have open.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        mapping = _mappings.get(key)
        if mapping is None:
            mapping = _mappings[key] = np.memmap(file, np.uint8, "r")
            place = os.path.abspath(path), status.st_size, status.st_mtime_ns
            _places[mapping._mmap] = place  # type: ignore[attr-defined]
    return mapping


def hash_together(tensors: Iterable[Tensor]) -> None:
    """Computes the digests of tensors on several threads, for those who will ask for all of them."""
    large = [tensor for tensor in tensors if tensor.element is not ElementType.STRING and tensor.nbytes >= LARGE]
    if len(large) > 1:
        with ThreadPoolExecutor(min(len(large), os.cpu_count() or 1)) as pool:
            list(pool.map(lambda tensor: tensor.digest, large))


def copy_bytes(source: FileIO, start: int, count: int, file: BinaryIO) -> None:
    """Copies a part of one file to where another one is written. FileError if the first ends before."""
    file.flush()
    end = start + count
    by_system = hasattr(os, "copy_file_range")
    while start < end:
        done = 0
        if by_system:
            try:
                done = os.copy_file_range(source.fileno(), file.fileno(), min(end - start, PIECE), start)
            except OSError as error:
                if error.errno not in _NOT_BY_SYSTEM:
                    raise
                by_system = False
                continue
        else:
            source.seek(start)
            piece = source.read(min(end - start, PIECE))
            file.write(piece or b"")
            done = len(piece or b"")
        if not done:
            raise FileError(str(source.name), "was cut short while it was copied.")
        start += done
    file.seek(0, os.SEEK_END)


_NOT_BY_SYSTEM = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}
"""What a system says that cannot copy between these files itself."""


def _mapped_again(place: Place, element: ElementType, shape: tuple[int, ...]) -> Tensor:
    """A tensor from its place; FileError if the file is not the one that it was."""
    if not place.is_current():
        raise FileError(place.path, "has changed, or is gone, since its tensors were mapped.")
    return Tensor.from_file(place.path, place.offset, element, shape)


def _plain(item: object) -> str | bytes:
    if isinstance(item, bytes):
        try:
            return item.decode()
        except UnicodeDecodeError:
            return item
    return str(item)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    per_byte = 8 // bits
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes & ((1 << bits) - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: np.ndarray = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1).astype(np.uint8)
    return packed


def _unpack(packed: np.ndarray, element: ElementType, count: int) -> np.ndarray:
    bits = element.bits
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = ((packed[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    if element in (ElementType.INT4, ElementType.INT2):  # ml_dtypes holds one signed value a byte
        sign = 1 << (bits - 1)
        codes = ((codes ^ sign).astype(np.int16) - sign).astype(np.int8).view(np.uint8)
    return np.ascontiguousarray(codes)
