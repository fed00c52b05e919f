"""Data sets: arrays by input name with one sample in each row, in files of any size, read piece by piece in order."""

from __future__ import annotations

import logging
import math
import os
import struct
import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from runtime.errors import FileError
from runtime.spans import Source, Span, machine, sampled_digest, stamp

Rows = dict[str, np.ndarray]

LOCAL_HEADER = 30
"""Bytes before a member's name in a zip file."""


class DataSet(Protocol):
    """Arrays by name, `rows` long each."""

    path: Path
    rows: int
    names: tuple[str, ...]
    processors: int
    """How many processors of a cluster reading takes."""
    why_not_in_place: str
    """Why rows cannot be read where they lie, but only in their order; empty if they can."""

    @abstractmethod
    def pieces(self, size: int, start: int = 0) -> Iterator[Rows]:
        """`size` rows at a time, the last time what is left, from row `start` on."""

    @abstractmethod
    def source(self) -> Source | None:
        """Where the rows lie, for whoever reads some of them; None if there is a `why_not_in_place`."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other: plain data."""


def open_data(path: Path, name: str = "") -> DataSet:
    """A data set in a file (.npz, .npy, .parquet) or in a folder (of .npy files, one for each input, or of .parquet).

    `name` is what the array of a single .npy file is called. Nothing that is in a file is executed. FileError says what
    is wrong.
    """
    if path.is_dir():
        arrays = sorted(path.glob("*.npy"))
        tables = sorted(path.glob("*.parquet"))
        if arrays and not tables:
            return Arrays(path, {file.stem: file for file in arrays})
        if tables and not arrays:
            return Tables(path, tables)
        came = "both" if arrays else "neither"
        raise FileError(
            path, f"expected a folder of .npy files, one for each input, or of .parquet files; it has {came}."
        )
    if not path.exists():
        raise FileError(path, "is not there.")
    match path.suffix.lower():
        case ".npy":
            return Arrays(path, {name: path})
        case ".npz":
            return Archive(path)
        case ".parquet":
            return Tables(path, [path])
    raise FileError(path, "expected .npz, .npy, .parquet, or a folder of .npy or of .parquet files.", code="name")


class _Files:
    """What all data sets in files have in common."""

    processors = 0
    rows: int
    names: tuple[str, ...]

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self.why_not_in_place = ""
        self._files = files
        self._stamps = {os.path.abspath(file): stamp(file) for file in files}
        self._spans: dict[str, Span] = {}

    def source(self) -> Source | None:
        """See `DataSet`."""
        if self.why_not_in_place:
            return None
        return Source(self._spans, self._stamps, self._digests, machine())

    def fingerprint(self) -> dict[str, Any]:
        """See `DataSet`."""
        return {Path(path).name: digest for path, digest in self._digests.items()}

    def _pieces_in_place(self, size: int, start: int) -> Iterator[Rows]:
        yield from Source(self._spans, self._stamps, {}, "").batches(start, self.rows, size)

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {os.path.abspath(file): sampled_digest(file) for file in self._files}


class Arrays(_Files):
    """.npy files: nothing is read before it is looked at."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        super().__init__(path, list(files.values()))
        self._arrays = {name: _mapped(file) for name, file in files.items()}
        self.names = tuple(files)
        self.rows = _rows(path, {name: array.shape for name, array in self._arrays.items()})
        for name, array in self._arrays.items():
            if not array.flags.c_contiguous:
                self.why_not_in_place = f"{files[name].name} is stored by columns"
            else:
                self._spans[name] = Span(os.path.abspath(files[name]), array.offset, array.shape, array.dtype)

    def pieces(self, size: int, start: int = 0) -> Iterator[Rows]:
        """See `DataSet`."""
        if not self.why_not_in_place:
            yield from self._pieces_in_place(size, start)
            return
        for first in range(start, self.rows, size):
            yield {name: np.array(array[first : first + size]) for name, array in self._arrays.items()}


class Archive(_Files):
    """A .npz file: read where its arrays lie or, if it is compressed, as a stream. Memory does not grow with it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, [path])
        shapes: dict[str, tuple[int, ...]] = {}
        with self._opened() as archive:
            self._members = {member.removesuffix(".npy"): member for member in archive.namelist()}
            for name, member in self._members.items():
                entry = archive.getinfo(member)
                with self._entered(archive, name, member) as file:
                    shapes[name], dtype = self._header(name, file)
                    header = file.tell()
                if entry.compress_type != zipfile.ZIP_STORED:
                    self.why_not_in_place = f"{name} is compressed"
                    continue
                offset = self._start(archive, name, entry) + header
                self._spans[name] = Span(os.path.abspath(path), offset, shapes[name], dtype)
                if header + math.prod(shapes[name]) * dtype.itemsize > entry.file_size:
                    raise FileError(path, f"{name} cannot be read to its end: it ends early.")
        self.names = tuple(self._members)
        self.rows = _rows(path, shapes)

    def pieces(self, size: int, start: int = 0) -> Iterator[Rows]:
        """See `DataSet`."""
        if not self.why_not_in_place:
            yield from self._pieces_in_place(size, start)
            return
        with self._opened() as archive:
            files = {name: self._entered(archive, name, member) for name, member in self._members.items()}
            forms = {name: self._header(name, file) for name, file in files.items()}
            at = 0
            while at < self.rows:
                count = min(size if at >= start else min(size, start - at), self.rows - at)
                rows = {name: self._read(name, files[name], *forms[name], count) for name in files}
                at += count
                if at > start:
                    yield rows

    def _start(self, archive: zipfile.ZipFile, name: str, entry: zipfile.ZipInfo) -> int:
        """The byte of the file at which what a stored member holds begins."""
        # ZipFile has compared the header there with the directory when it opened the member, but keeps no offset.
        with open(self.path, "rb") as file:
            file.seek(entry.header_offset)
            header = file.read(LOCAL_HEADER)
        name_size, extra_size = struct.unpack("<HH", header[26:30]) if len(header) == LOCAL_HEADER else (0, 0)
        begin = entry.header_offset + LOCAL_HEADER + name_size + extra_size
        if entry.compress_size != entry.file_size or begin + entry.file_size > archive.start_dir:
            raise FileError(self.path, f"{name} cannot be read: its place in the archive is not as the archive says.")
        return begin

    def _entered(self, archive: zipfile.ZipFile, name: str, member: str) -> IO[bytes]:
        try:
            return archive.open(member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # damaged, encrypted, unknown
            raise FileError(self.path, f"{name} cannot be read: {error}.") from error

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise FileError(self.path, f"is no .npz file: {error}.") from error
        except OSError as error:
            raise FileError(self.path, f"cannot be read: {error.strerror or error}.") from error

    def _header(self, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and type of an array whose elements come next."""
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileError(self.path, f"{name} cannot be read as an array: {error}.") from error
        if dtype.hasobject:
            raise FileError(self.path, f"{name} holds Python objects; expected plain numbers.")
        if by_columns and len(shape) > 1:
            raise FileError(
                self.path, f"{name} is stored by columns; expected rows, as np.ascontiguousarray makes them."
            )
        return shape, dtype

    def _read(self, name: str, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], count: int) -> np.ndarray:
        array = np.empty((count, *shape[1:]), dtype)
        room = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
        done = 0
        try:
            while done < len(room):
                piece = file.read(min(len(room) - done, 16 << 20))
                if not piece:
                    raise EOFError("it ends early")
                room[done : done + len(piece)] = piece
                done += len(piece)
        except (EOFError, OSError, zipfile.BadZipFile) as error:
            raise FileError(self.path, f"{name} cannot be read to its end: {error}.") from error
        return array


class Tables(_Files):
    """Parquet files, which Ray Data reads: columns of numbers, or of lists of one length."""

    processors = 1

    def __init__(self, path: Path, files: list[Path]) -> None:
        super().__init__(path, files)
        self.why_not_in_place = "Ray Data reads Parquet, and gives it to this process"
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError as error:
            raise FileError(
                path, "Parquet is read by Ray Data, which is not installed: pip install 'qmoe-studio[cluster]'."
            ) from error
        self.rows = 0
        self.names = ()
        for number, file in enumerate(files):
            try:
                with ParquetFile(file) as table:
                    self.rows += table.metadata.num_rows
                    names = tuple(map(str, table.schema_arrow.names))
            except (ArrowException, OSError) as error:
                raise FileError(file, f"cannot be read as Parquet: {error}.") from error
            if number and names != self.names:
                raise FileError(file, f"has the columns {', '.join(names)}; {files[0].name}: {', '.join(self.names)}.")
            self.names = names
        if not self.rows:
            raise FileError(path, "has no rows.")

    def pieces(self, size: int, start: int = 0) -> Iterator[Rows]:
        """See `DataSet`."""
        import ray
        import ray.data

        if not ray.is_initialized():  # it would start a cluster of its own, which nobody asked for
            raise FileError(self.path, "Parquet is read by Ray Data, on a cluster: add --cluster local.")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        table = ray.data.read_parquet([str(file) for file in self._files])
        left = start
        held: Rows = {}
        for batch in table.iter_batches(batch_size=size, batch_format="numpy"):
            rows = {name: self._array(name, column) for name, column in batch.items()}
            count = len(next(iter(rows.values())))
            dropped = min(left, count)
            left -= dropped
            rows = {name: array[dropped:] for name, array in rows.items()}
            held = {name: np.concatenate([held[name], array]) for name, array in rows.items()} if held else rows
            while held and len(next(iter(held.values()))) >= size:
                yield {name: array[:size] for name, array in held.items()}
                held = {name: array[size:] for name, array in held.items()}
        if held and len(next(iter(held.values()))):
            yield held

    def _array(self, name: str, column: np.ndarray) -> np.ndarray:
        """Lists of one length as one array."""
        if column.dtype != object or not len(column) or isinstance(column[0], str):
            return column
        lists = [
            np.asarray(item.tolist() if isinstance(item, np.ndarray) and item.dtype == object else item)
            for item in column
        ]
        sizes = {item.shape for item in lists}
        if len(sizes) > 1 or any(item.dtype == object for item in lists):
            raise FileError(self.path, f"the column {name} has lists of several lengths; expected one length.")
        return np.stack(lists)


def _mapped(path: Path) -> np.memmap[Any, Any]:
    try:
        array: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FileError(path, f"cannot be read as NumPy's .npy of plain numbers: {error}.") from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
    return array


def _rows(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many rows all arrays have."""
    single = [name for name, shape in shapes.items() if not shape]
    if single:
        raise FileError(path, f"{single[0]} is a single number; expected an array with one sample in each row.")
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise FileError(path, f"all arrays must have the same number of rows; there are {listed}.")
    if not lengths or not next(iter(lengths.values())):
        raise FileError(path, "has no rows.")
    return next(iter(lengths.values()))
