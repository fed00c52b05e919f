"""The files that were opened last."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.atomic import replacing
from runtime.errors import FileError, Finding, Severity
from runtime.folders import state_folder

MOST = 20
_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class RecentFile:
    """A file, when it was opened last (seconds since 1970), and whether it is missing now."""

    path: Path
    time: float
    is_missing: bool


class RecentFiles:
    """The list, in a file of its own, which other windows may write to as well. Nothing here raises."""

    def __init__(self, path: str | Path | None = None) -> None:
        """`path`: the list's own file; by default `recent.json` in the state folder."""
        self.path = Path(path) if path is not None else state_folder() / "recent.json"
        self.problem: Finding | None = None
        """What was wrong with the list when it was last read or written."""

    def files(self) -> list[RecentFile]:
        """The files, last opened first; none if the list cannot be read, and `problem` says why."""
        return [RecentFile(Path(path), when, not os.path.exists(path)) for path, when in self._read().items()]

    def add(self, path: str | Path) -> Finding | None:
        """Puts a file first; returns what prevents that, if something does."""
        name = os.path.abspath(path)
        return self._write({name: time.time(), **{key: when for key, when in self._read().items() if key != name}})

    def remove(self, path: str | Path) -> Finding | None:
        """Takes a file out; returns what prevents that, if something does."""
        name = os.path.abspath(path)
        return self._write({key: when for key, when in self._read().items() if key != name})

    def clear(self) -> Finding | None:
        """Takes all files out; returns what prevents that, if something does."""
        return self._write({})

    def _read(self) -> dict[str, float]:
        self.problem = None
        try:
            with open(self.path, "rb") as file:
                content = file.read(_LARGEST + 1)
            if len(content) > _LARGEST:
                raise ValueError("it is too large")
            return _checked(json.loads(content))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.problem = _problem(f"The list of recent files, {self.path}, cannot be read: {error}.")
            return {}

    def _write(self, files: dict[str, float]) -> Finding | None:
        entries = [{"path": path, "time": when} for path, when in list(files.items())[:MOST]]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                file.write(json.dumps({"version": 1, "files": entries}, indent=1).encode())
        except (OSError, FileError, ValueError) as error:
            self.problem = _problem(f"The list of recent files cannot be written: {error}")
            return self.problem
        return None


def _checked(data: Any) -> dict[str, float]:
    """The times by path; ValueError if it is no such list."""
    if not isinstance(data, dict) or data.get("version") != 1 or not isinstance(data.get("files"), list):
        raise ValueError("it is no list of files of version 1")
    files: dict[str, float] = {}
    for entry in data["files"][:MOST]:
        path, when = (entry.get("path"), entry.get("time")) if isinstance(entry, dict) else (None, None)
        if not isinstance(path, str) or not path or "\0" in path or type(when) not in (int, float):
            raise ValueError(f"{str(entry)[:80]!r} is no entry with a path and a time")
        files[path] = float(when or 0)
    return files


def _problem(message: str) -> Finding:
    return Finding(message, severity=Severity.WARNING, code="recent")
