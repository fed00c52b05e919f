"""The results of a job over a data set, in a folder: numbered files, a journal while it runs, a manifest of all.

`manifest.json` says what the job is, and at its end what every file holds. `part-00000.npz` and so on have the outputs
by name, in the order of the data. `journal.jsonl` has a line for every file that is there, until the manifest has them;
`log.jsonl` has what happened when. Every file but the journal and the log is written whole or not at all: whoever makes
results writes them under a hidden name, and `Results`, who alone knows what is done, puts them in their place.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.arrays import put_arrays, read_arrays
from runtime.atomic import flush_folder, replacing
from runtime.errors import FileError
from runtime.locks import take_lock
from runtime.spans import machine

MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
LOG = "log.jsonl"
FORMAT = 1
LARGEST_MANIFEST = 1 << 30
HIDDEN = re.compile(r"\.part-\d{5,}\.npz\.[0-9a-f]{8}\.part|\.seen-[0-9a-f]{32}")
"""Names of files that are only there while a job runs, and that whoever was killed leaves behind."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Rows of the data, `start` to before `stop`, that have no results, and why."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of results: of the rows `start` to before `stop`, but for those that were skipped.

    `per` says of each output whether it has a result for each "row" or one for each "batch".
    """

    index: int
    file: str
    start: int
    stop: int
    bytes: int
    per: Mapping[str, str]
    skipped: Sequence[Skipped] = ()


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of results, for those who write into it. `token` is a name that no file in any other folder has."""

    path: Path
    token: str = field(default_factory=lambda: f".seen-{secrets.token_hex(16)}")
    machine: str = field(default_factory=machine)

    def absolute(self) -> Folder:
        """The same folder for processes that work elsewhere."""
        return replace(self, path=self.path.absolute())

    def is_here(self) -> bool:
        """Whether this process sees the same folder under its path."""
        return (self.path / self.token).is_file()

    def write(self, index: int, outputs: Mapping[str, np.ndarray]) -> str:
        """Writes outputs under a hidden name, which `Results.add` takes. FileError if there is no room for them."""
        path = self.path / _name(index)
        temporary = self.path / f".{path.name}.{secrets.token_hex(4)}.part"
        try:
            with temporary.open("xb") as file:
                put_arrays(file, outputs)
                if not self.machine or self.machine != machine():  # on one machine, who adds it flushes it, too
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if not isinstance(error, OSError):
                raise
            raise FileError(path, f"cannot be written: {error.strerror or error}.") from error
        return temporary.name


@dataclass(frozen=True, slots=True)
class Made:
    """Results of the rows `start` to before `stop`, which are in the folder under the hidden name `file`."""

    index: int
    start: int
    stop: int
    file: str
    per: Mapping[str, str]
    skipped: Sequence[Skipped] = ()


class Results:
    """The folder while its job runs. `done` are the shards that are there, by index."""

    def __init__(self, folder: Path, job: Mapping[str, Any], resume: bool) -> None:
        """Takes a folder that is new or empty, or with `resume` one with a part of the same job's results.

        FileError if there is something else in it, or if another process works on it.
        """
        self.folder = folder
        self.place = Folder(folder)
        self.job = json.loads(json.dumps(job))
        self.done: dict[int, Shard] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise FileError(folder, f"cannot be written: {error.strerror or error}.") from error
        if there and not resume:
            if MANIFEST in there:
                raise FileError(folder, "has results already: resume that job (--resume), or name another folder.")
            raise FileError(folder, f"is not empty ({there[0]}): name another folder.")
        try:
            lock = take_lock(folder / ".lock")
        except OSError as error:
            raise FileError(folder, f"cannot be written: {error.strerror or error}.") from error
        if lock is None:
            raise FileError(folder, "is being written by another process.")
        self._lock = lock
        try:
            if MANIFEST in there:
                self._take_up()
            elif there:
                raise FileError(folder, f"has no {MANIFEST}: there is nothing to resume.")
            else:
                self._write_manifest(complete=False)
            self._sweep()
            self._make_token()
        except FileError:
            self._lock.close()
            raise

    def close(self) -> None:
        """Lets others have the folder."""
        self._sweep()
        self._lock.close()

    def add(self, made: Sequence[Made]) -> None:
        """Puts files that `Folder.write` wrote in their places. FileError if that fails; what is there stays.

        Each is on the disk before it is in its place, and then noted in the journal at once. That all of this lasts is
        seen to at the end: what a power failure makes of names and lines is found when the job is taken up.
        """
        if not made:
            return
        with self._at_end(JOURNAL) as journal:
            try:
                for one in made:
                    shard = self._put_in_place(one)
                    journal.write(_line(shard))
                    journal.flush()
                    self.done[shard.index] = shard
            finally:
                flush_folder(self.folder)
                os.fsync(journal.fileno())

    def log(self, *events: Mapping[str, Any]) -> None:
        """Adds what happened to the log, with the time."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._at_end(LOG) as log:
            log.write(b"".join(json.dumps({"time": time, **event}).encode() + b"\n" for event in events))

    def finish(self) -> None:
        """Writes the manifest of all shards; the journal goes."""
        self._write_manifest(complete=True)
        with suppress(OSError):  # it is not read when the manifest is complete
            (self.folder / JOURNAL).unlink(missing_ok=True)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _make_token(self) -> None:
        path = self.folder / self.place.token
        try:
            path.touch()
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror or error}.") from error

    def _put_in_place(self, made: Made) -> Shard:
        name = _name(made.index)
        temporary = self.folder / made.file
        try:
            with temporary.open("rb+" if os.name == "nt" else "rb", buffering=0) as file:  # it may be another user's
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            temporary.replace(self.folder / name)
        except OSError as error:
            raise FileError(self.folder / name, f"cannot be written: {error.strerror or error}.") from error
        return Shard(made.index, name, made.start, made.stop, size, made.per, made.skipped)

    def _sweep(self) -> None:
        """Removes what is only there while a job runs."""
        with suppress(OSError):
            for entry in os.scandir(self.folder):
                if HIDDEN.fullmatch(entry.name):
                    os.unlink(entry.path)

    def _take_up(self) -> None:
        manifest = read_manifest(self.folder)
        before = manifest["job"]
        for key in self.job:
            if before.get(key) != self.job[key]:
                text = (
                    f"has results of another job: {key} was {_brief(before.get(key))} and is {_brief(self.job[key])}."
                )
                raise FileError(self.folder, text)
        for shard in [*manifest["shards"], *self._journal()]:
            path = self.folder / shard.file
            if path.is_file() and path.stat().st_size == shard.bytes and _is_whole(path):
                self.done[shard.index] = shard

    def _journal(self) -> Iterator[Shard]:
        try:
            lines = (self.folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileError(self.folder / JOURNAL, f"cannot be read: {error.strerror or error}.") from error
        for line in lines:
            with suppress(ValueError, TypeError, KeyError, AttributeError):  # a line that a crash cut off: done again
                yield _shard(json.loads(line))

    def _write_manifest(self, complete: bool) -> None:
        head = json.dumps({"format": FORMAT, "complete": complete, "job": self.job}, indent=1).removesuffix("\n}")
        shards = [_line(shard).decode().strip() for _, shard in sorted(self.done.items())] if complete else []
        with replacing(self.folder / MANIFEST) as file:  # a line for each shard
            file.write((f'{head},\n "shards": [\n  ' + ",\n  ".join(shards) + "\n ]\n}\n").encode())

    @contextmanager
    def _at_end(self, name: str) -> Iterator[BinaryIO]:
        """A file of lines, to write more of them."""
        path = self.folder / name
        try:
            with path.open("ab+") as file:
                end = file.seek(0, os.SEEK_END)
                if end:  # after a crash the last line may lack its end
                    file.seek(end - 1)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                yield file
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror or error}.") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder of results says of itself: "job", "complete", and "shards" as `Shard`s."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise FileError(path, "is too large for a manifest.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(path, "is not there: this is no folder of results.") from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise FileError(path, f"cannot be read: {error}.") from error
    try:
        if content["format"] != FORMAT:
            raise FileError(path, f"has the format {content['format']!r}; this version reads {FORMAT}.")
        shards = [_shard(entry) for entry in content["shards"]]
        return {"job": dict(content["job"]), "complete": content["complete"] is True, "shards": shards}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(path, f"is no manifest: {error!r}.") from error


def read_results(folder: str | Path) -> Iterator[dict[str, np.ndarray]]:
    """The results of a finished job, shard after shard in the order of the data.

    FileError if the job is not complete, or a file is not there.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise FileError(folder, "is not complete: resume the job.")
    for shard in manifest["shards"]:
        yield read_arrays(folder / shard.file)


def _shard(entry: Mapping[str, Any]) -> Shard:
    numbers = {key: entry[key] for key in ("index", "start", "stop", "bytes")}
    name = _name(numbers["index"])
    if any(type(number) is not int or number < 0 for number in numbers.values()) or entry["file"] != name:
        raise ValueError("a shard's entry is not as it should be")
    skipped = tuple(Skipped(int(one["start"]), int(one["stop"]), str(one["reason"])) for one in entry["skipped"])
    return Shard(
        file=name, per={str(key): str(value) for key, value in entry["per"].items()}, skipped=skipped, **numbers
    )


def _line(shard: Shard) -> bytes:
    facts = {name: getattr(shard, name) for name in Shard.__slots__}  # asdict() copies all the way down
    return json.dumps(facts | {"skipped": [asdict(one) for one in shard.skipped]}).encode() + b"\n"


def _name(index: int) -> str:
    return f"part-{index:05d}.npz"


def _is_whole(path: Path) -> bool:
    """Whether every byte is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
