"""What an editor leaves behind so that no work is lost when it dies: a snapshot of each document that is not saved.

    <folder>/<entry>/lock            held by the process that edits
                     snapshot.json   who and when, the graph as YAML, and where its tensors lie
                     <number>.bin    tensors that lie in no other file

A snapshot is written whole or not at all, and names tensors that lie in the document's own files instead of copying
them: a change of those files is noticed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.atomic import replacing
from runtime.errors import FileError, Finding, Severity, StudioError
from runtime.folders import state_folder
from runtime.graph import Graph
from runtime.locks import lives, started, take_lock
from runtime.snippets import dumps, loads
from runtime.tensors import Place, Tensor
from runtime.types import ElementType

SNAPSHOT = "snapshot.json"
LOCK = "lock"
_VERSION = 1
_LARGEST = 256 << 20
_ALIGNMENT = 64
_SETTLED = 60.0
"""Seconds after which a folder without a snapshot that nobody holds is taken for left over."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Unsaved work of a process that has ended.

    `document` is the file that it was about, None if it had none yet; `time` is of the snapshot, in seconds since 1970.
    `problem` says why it cannot be recovered; it is empty if it can.
    """

    folder: Path
    document: Path | None
    time: float
    nodes: int
    process_id: int
    problem: str = ""


class Journal:
    """The snapshots of one window, and those that others have left. Only `recover` raises."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """`folder`: by default `journal` in the state folder. It is made when it is needed."""
        self.folder = Path(os.path.abspath(folder if folder is not None else state_folder() / "journal"))
        self._document: Path | None = None
        self._saved: Graph | None = None
        self._own: Path | None = None
        self._lock: BinaryIO | None = None
        self._kept: dict[tuple[ElementType, tuple[int, ...], str], tuple[str, int]] = {}
        """Of the tensors in this entry's files: file and offset."""
        self._claimed: dict[Path, BinaryIO] = {}

    # -- one's own work -------------------------------------------------------------------------------------------

    def open(self, document: str | Path | None, graph: Graph) -> None:
        """From now on it is about this document, which is as it was saved, or new. What was before is forgotten."""
        self.close()
        self._document = None if document is None else Path(os.path.abspath(document))
        self._saved = graph.copy()

    def record(self, graph: Graph) -> Finding | None:
        """Writes a snapshot of the document; returns what prevents that, if something does.

        If the document is as it was opened or saved, there is nothing to keep, and an older snapshot goes.
        """
        try:
            if self._saved is not None and graph == self._saved:
                self._remove_snapshot()
            else:
                self._write(graph)
        except Exception as error:  # whatever it is: it must not cost the work that it is there to save
            text = str(error) if isinstance(error, StudioError) else f"{type(error).__name__}: {error}"
            return Finding(
                f"Unsaved work is not being kept for the case of a crash: {text}",
                severity=Severity.WARNING,
                remedy="Save often, and make room on the disk.",
                code="journal",
            )
        return None

    def saved(self, path: str | Path, graph: Graph | None = None) -> None:
        """Notes that the document was saved to a file, `graph` as it was then: there is nothing to recover any more."""
        self._document = Path(os.path.abspath(path))
        self._saved = graph.copy() if graph is not None else None
        self._remove_snapshot()

    def close(self) -> None:
        """Notes that the document was closed: there is nothing to recover."""
        own, self._own = self._own, None
        self._kept.clear()
        self._saved = None
        if own is not None:
            _remove(own, self._lock)
            self._lock = None

    def _entry_folder(self) -> Path:
        if self._own is None or not self._own.is_dir():
            if self._lock is not None:
                self._lock.close()
            self._kept.clear()
            own = self.folder / f"{int(time.time())}-{os.getpid()}-{secrets.token_hex(4)}"
            own.mkdir(parents=True, mode=0o700)
            self._lock = take_lock(own / LOCK)
            self._own = own
        return self._own

    def _write(self, graph: Graph) -> None:
        text, tensors = dumps(graph, by_place=True)
        folder = self._entry_folder()
        places = {name: self._place_of(tensor) for name, tensor in tensors.items()}
        missing = {_key(tensors[name]): tensors[name] for name, place in places.items() if place is None}
        if missing:
            self._keep(folder, missing)
            places = {name: place or self._place_of(tensors[name]) for name, place in places.items()}
        snapshot = {
            "version": _VERSION,
            "document": None if self._document is None else str(self._document),
            "time": time.time(),
            "nodes": len(graph.nodes),
            "process": os.getpid(),
            "started": started(os.getpid()),
            "tensors": {
                name: {"element": str(tensors[name].element), "shape": list(tensors[name].shape), **(place or {})}
                for name, place in places.items()
            },
            "text": text,
        }
        with replacing(folder / SNAPSHOT) as file:
            file.write(json.dumps(snapshot).encode())
        self._drop_unused(folder, {str(place["file"]) for place in places.values() if place and "size" not in place})

    def _place_of(self, tensor: Tensor) -> dict[str, Any] | None:
        place = tensor.place
        if place is not None and not Path(place.path).is_relative_to(self.folder):  # what lies there will go
            return {"file": place.path, "offset": place.offset, "size": place.size, "modified": place.modified}
        kept = self._kept.get(_key(tensor))
        return None if kept is None else {"file": kept[0], "offset": kept[1]}

    def _keep(self, folder: Path, tensors: Mapping[tuple[ElementType, tuple[int, ...], str], Tensor]) -> None:
        """Writes tensors to a file of the entry."""
        numbers = [int(path.stem) for path in folder.glob("*.bin") if path.stem.isdigit()]
        name = f"{max(numbers, default=0) + 1}.bin"
        places: dict[tuple[ElementType, tuple[int, ...], str], tuple[str, int]] = {}
        offset = 0
        with replacing(folder / name) as file:
            for key, tensor in tensors.items():
                file.write(b"\0" * (-offset % _ALIGNMENT))
                offset += -offset % _ALIGNMENT
                places[key] = name, offset
                file.write(np.ascontiguousarray(tensor.raw()).data)
                offset += tensor.nbytes
        self._kept |= places

    def _drop_unused(self, folder: Path, used: set[str]) -> None:
        self._kept = {key: place for key, place in self._kept.items() if place[0] in used}
        for path in folder.glob("*.bin"):
            if path.name not in used:
                with suppress(OSError):
                    path.unlink()

    def _remove_snapshot(self) -> None:
        if self._own is not None:
            with suppress(OSError):
                (self._own / SNAPSHOT).unlink(missing_ok=True)
            self._drop_unused(self._own, set())

    # -- what others have left ------------------------------------------------------------------------------------

    def recoverable(self) -> list[Entry]:
        """What processes that have ended left unsaved, newest first; entries that are spoilt say so in `problem`."""
        try:
            folders = [path for path in self.folder.iterdir() if path.is_dir() and path != self._own]
        except OSError:
            return []
        entries: list[Entry] = []
        for folder in folders:
            with suppress(OSError):
                entry = self._examine(folder)
                if entry is not None:
                    entries.append(entry)
        return sorted(entries, key=lambda entry: -entry.time)

    def _examine(self, folder: Path) -> Entry | None:
        """The entry of a folder; None if its process lives, or if it has nothing to recover."""
        if folder in self._claimed:
            return None
        lock = take_lock(folder / LOCK)
        if lock is None:
            return None
        is_left_over = False
        try:
            snapshot = folder / SNAPSHOT
            if not snapshot.exists():
                is_left_over = time.time() - folder.stat().st_mtime > _SETTLED
                return None
            changed = snapshot.stat().st_mtime
            try:
                data = _read(snapshot)
            except FileError as error:
                return Entry(folder, None, changed, 0, 0, error.message)
            if lives(data["process"], data["started"]):
                return None
            document = data["document"]
            return Entry(
                folder, None if document is None else Path(document), data["time"], data["nodes"], data["process"]
            )
        finally:
            if is_left_over:
                _remove(folder, lock)
            else:
                lock.close()

    def recover(self, entry: Entry) -> Graph:
        """The graph of an entry, which is this process's from then on: no other window is offered it.

        Open its document, record the graph, and `discard` the entry. FileError says why it cannot be recovered.
        """
        if entry.folder not in self._claimed:
            try:
                lock = take_lock(entry.folder / LOCK)
            except OSError as error:
                raise FileError(entry.folder, f"cannot be read: {error.strerror or error}.") from error
            if lock is None:
                raise FileError(entry.folder, "is being recovered by another window.")
            self._claimed[entry.folder] = lock
        try:
            data = _read(entry.folder / SNAPSHOT)
            tensors = {name: _tensor(entry.folder, name, item) for name, item in data["tensors"].items()}
            return loads(data["text"], tensors, path=entry.folder / SNAPSHOT)
        except BaseException as error:
            self._claimed.pop(entry.folder).close()
            if isinstance(error, StudioError) and not isinstance(error, FileError):
                raise FileError(entry.folder / SNAPSHOT, str(error)) from error
            raise

    def discard(self, entry: Entry) -> Finding | None:
        """Removes an entry; returns what prevents that, if something does."""
        try:
            lock = self._claimed.pop(entry.folder, None) or take_lock(entry.folder / LOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _warning(f"{entry.folder} cannot be removed: {error.strerror or error}.")
        if lock is None:
            return _warning(f"{entry.folder} is in use by another window.")
        _remove(entry.folder, lock)
        return _warning(f"{entry.folder} cannot be removed.") if (entry.folder / SNAPSHOT).exists() else None


def _key(tensor: Tensor) -> tuple[ElementType, tuple[int, ...], str]:
    return tensor.element, tensor.shape, tensor.digest


def _remove(folder: Path, lock: BinaryIO | None) -> None:
    """Removes an entry, the snapshot first: what cannot be removed after it is harmless."""
    with suppress(OSError):
        (folder / SNAPSHOT).unlink(missing_ok=True)
    if lock is not None:
        lock.close()
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    """A snapshot, its keys and their types checked. FileError says what is wrong with it."""
    try:
        if path.stat().st_size > _LARGEST:
            raise FileError(path, "is too large for a snapshot.")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is no snapshot: it is not JSON ({error}).") from error
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        raise FileError(path, f"is no snapshot of version {_VERSION}.")
    kinds: dict[str, tuple[type, ...]] = {
        "document": (str, type(None)),
        "time": (int, float),
        "nodes": (int,),
        "process": (int,),
        "started": (str,),
        "tensors": (dict,),
        "text": (str,),
    }
    for key, kind in kinds.items():
        if type(data.get(key)) not in kind:
            raise FileError(path, f"is no snapshot: {key} is missing or of the wrong kind.")
    return data


def _tensor(folder: Path, name: str, item: Any) -> Tensor:
    """A tensor of a snapshot, mapped. FileError if its file is not what it was."""
    where = folder / SNAPSHOT
    try:
        element, shape, file = ElementType.parse(item["element"]), item["shape"], item["file"]
        offset, size, modified = item["offset"], item.get("size"), item.get("modified")
        numbers = [offset, *shape, *([] if size is None else [size, modified])]
        if not isinstance(file, str) or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
            raise ValueError(f"{item} is no place of a tensor")
        if size is None and not re.fullmatch(r"\d+\.bin", file):
            raise ValueError(f"{file!r} is no file of the entry")
        if element is ElementType.STRING:
            raise ValueError("texts do not lie in files")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(where, f"is no snapshot: the tensor {name!r} is wrong ({error}).") from error
    if size is None:
        return Tensor.from_file(folder / file, offset, element, shape)
    if not Place(file, offset, size, modified).is_current():
        raise FileError(file, f"has changed, or is gone, since the snapshot {where} was written.")
    return Tensor.from_file(file, offset, element, shape)


def _warning(message: str) -> Finding:
    return Finding(message, severity=Severity.WARNING, code="journal")
