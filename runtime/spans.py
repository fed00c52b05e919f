"""Arrays that lie in files as they are in memory: any process reads rows of them, once it has shown to see these files.

A path alone says little: another machine may have another file there. On one machine the system's own number of a file
tells that it is the same; between machines its content does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from io import FileIO
from pathlib import Path

import numpy as np

from runtime.errors import FileError

WHOLE = 64 << 20
"""Bytes of a file up to which a digest is of all of them."""
PIECE = 64 << 10
"""Bytes of each of the 256 pieces, evenly spread, that a digest takes of a larger file."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file has kept as long as it is the same and nobody has written to it, on one machine."""

    device: int
    number: int
    size: int
    written: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Stamp:
        """What the system says of a file; `written` is in nanoseconds."""
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Span:
    """Where the elements of an array lie in a file: from the byte `offset` on, row after row."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class Source:
    """Arrays by name, and the files that they are in: by path what the system, and what the content says of each.

    Paths are absolute; `machine` is where the stamps are from.
    """

    spans: Mapping[str, Span]
    stamps: Mapping[str, Stamp]
    digests: Mapping[str, str]
    machine: str

    def batches(self, start: int, stop: int, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The rows `start` to before `stop`, `size` at a time. FileError if a file is no longer what it was.

        They are read, not mapped: the system ends who maps a file that somebody cuts off.
        """
        with ExitStack() as ends:
            files = {path: ends.enter_context(_opened(path)) for path in {span.path for span in self.spans.values()}}
            for first in range(start, stop, size):
                last = min(first + size, stop)
                rows = {name: _read(files[span.path], span, first, last) for name, span in self.spans.items()}
                for path, file in files.items():
                    if Stamp.of(os.fstat(file.fileno())) != self.stamps[path]:
                        raise _changed(path)
                yield rows

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The rows `start` to before `stop` in one piece."""
        return next(self.batches(start, stop, stop - start))

    def seen_here(self) -> Source:
        """The same files as this process sees them. FileError if one is not there, or is another."""
        stamps = {path: self._seen(path) for path in self.stamps}
        return replace(self, stamps=stamps, machine=machine())

    def _seen(self, path: str) -> Stamp:
        known = self.stamps[path]
        try:
            own = Stamp.of(os.stat(path))
        except OSError as error:
            raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
        if self.machine and self.machine == machine():
            same = own == known
        else:
            same = own.size == known.size and sampled_digest(Path(path)) == self.digests[path]
        if not same:
            raise FileError(path, "is another file than the job's.")
        return own


def _opened(path: str) -> FileIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error


def _changed(path: str) -> FileError:
    return FileError(path, "has changed since the job began: results would be of two data sets.")


def _read(file: FileIO, span: Span, start: int, stop: int) -> np.ndarray:
    array = np.empty((stop - start, *span.shape[1:]), span.dtype)
    room = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    done = 0
    try:
        file.seek(span.offset + start * (array.nbytes // (stop - start)))
        while done < len(room):
            count = file.readinto(room[done:])
            if not count:
                raise _changed(span.path)  # it was long enough
            done += count
    except OSError as error:
        raise FileError(span.path, f"cannot be read: {error.strerror or error}.") from error
    return array


def stamp(path: Path) -> Stamp:
    """What tells whether a file is still what it is now. FileError if there is none."""
    try:
        return Stamp.of(path.stat())
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error


def sampled_digest(path: Path) -> str:
    """A digest of a file's size and content; of a large file's content, of pieces all over it."""
    try:
        size = path.stat().st_size
        digest = sha256(str(size).encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            else:
                for number in range(256):
                    file.seek((size - PIECE) * number // 255)
                    digest.update(file.read(PIECE))
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


@cache
def machine() -> str:
    """What tells this machine, since its system was started, from every other; empty where nothing tells that."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
