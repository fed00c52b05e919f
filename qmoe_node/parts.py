"""Arrays that grow an expert at a time: in memory, or in files of a folder, where work that was broken off goes on."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import FileError
from runtime.tensors import Tensor
from runtime.types import ElementType

JOURNAL = "journal.jsonl"
LARGEST_JOURNAL = 256 << 20


class Parts:
    """Arrays by name, and a journal of what is done.

    A folder that holds other work than `identity` says is emptied. Only a folder that Parts made itself is touched:
    FileError for any other, or if it cannot be written.
    """

    def __init__(self, folder: Path | None, identity: str = "") -> None:
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        self._entries: list[dict[str, Any]] = []
        if folder is None:
            return
        try:
            entries = _read(folder, identity)
            if entries is None:
                if folder.exists():
                    _empty(folder)
                folder.mkdir(exist_ok=True)
                _append(folder / JOURNAL, {"identity": identity})
            self._entries = entries or []
        except OSError as error:
            raise FileError(folder, f"cannot be written: {error.strerror or error}.") from error

    def entries(self) -> list[dict[str, Any]]:
        """What was done before."""
        return list(self._entries)

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """The array of that name, made if it is not there yet."""
        if name not in self._arrays:
            self._arrays[name] = np.zeros(shape, dtype) if self._folder is None else self._mapped(name, shape, dtype)
        return self._arrays[name]

    def done(self, entry: dict[str, Any]) -> None:
        """Makes what was written last, and notes it; lets go of its memory."""
        self._entries.append(entry)
        if self._folder is None:
            return
        try:
            for array in self._arrays.values():
                mapping = array._mmap  # type: ignore[attr-defined]
                mapping.flush()
                if hasattr(mmap, "MADV_DONTNEED"):
                    mapping.madvise(mmap.MADV_DONTNEED)
            _append(self._folder / JOURNAL, entry)
        except OSError as error:
            raise FileError(self._folder, f"cannot be written: {error.strerror or error}.") from error

    def tensors(self) -> dict[str, Tensor]:
        """The arrays as tensors; those in files are mapped."""
        if self._folder is None:
            return {name: Tensor.from_array(array) for name, array in self._arrays.items()}
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        return {
            name: Tensor.from_file(self._folder / name, 0, ElementType.of(array.dtype), array.shape)
            for name, array in self._arrays.items()
        }

    def _mapped(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        assert self._folder is not None
        path = self._folder / name
        size = int(np.prod(shape)) * dtype.itemsize
        try:
            if not path.exists() or path.stat().st_size != size:
                with path.open("wb") as file:
                    if hasattr(os, "posix_fallocate") and size:
                        # Room is taken at once: a disk that is full when a mapped page is written ends the process.
                        os.posix_fallocate(file.fileno(), 0, size)
                    file.truncate(size)
            return np.memmap(path, dtype, "r+", shape=shape)
        except OSError as error:
            with suppress(OSError):
                path.unlink()  # else a disk that had too little room stays full
            raise FileError(path, f"cannot be written: {error.strerror or error}.") from error


def _read(folder: Path, identity: str) -> list[dict[str, Any]] | None:
    """What the journal of the same work says; None if it is of other work, or not there."""
    journal = folder / JOURNAL
    if not journal.is_file() or journal.stat().st_size > LARGEST_JOURNAL:
        return None
    lines = list(_lines(journal))
    if not lines or lines[0].get("identity") != identity:
        return None
    return lines[1:]


def _lines(journal: Path) -> Iterator[dict[str, Any]]:
    """The journal's entries but for those that were cut short."""
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _append(journal: Path, entry: dict[str, Any]) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(entry) + "\n")  # the line before may have been cut short
        file.flush()
        os.fsync(file.fileno())


def _empty(folder: Path) -> None:
    if not (folder / JOURNAL).is_file() and any(folder.iterdir()):
        raise FileError(folder, "is in the way: it holds something else than a conversion that was broken off.")
    shutil.rmtree(folder)


def clear(folder: Path) -> None:
    """Removes a folder of such folders: the work is done."""
    shutil.rmtree(folder, ignore_errors=True)
