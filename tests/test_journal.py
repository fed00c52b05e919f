"""Recovery after a crash, the list of recent files, and the folders that they lie in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.errors import FileError
from runtime.folders import config_folder, state_folder
from runtime.graph import Graph
from runtime.journal import SNAPSHOT, Journal
from runtime.locks import lives, started, take_lock
from runtime.recent import MOST, RecentFiles
from runtime.tensors import AbsentTensor, Tensor
from runtime.types import ElementType

ROOT = Path(__file__).resolve().parents[1]

EDITOR = """
import sys, time
import numpy as np
import runtime
from runtime.journal import Journal
from runtime.tensors import Tensor

document, folder, how = sys.argv[1:]
graph = runtime.load(document)
journal = Journal(folder)
journal.open(document if how != "untitled" else None, graph)
graph.set("moe", "name", "unsaved")
graph.add("Initializer", "fresh", parameters={"tensor": Tensor.from_array(np.arange(5000, dtype=np.float32))})
assert journal.record(graph) is None
graph.set("moe", "name", "unsaved too")
assert journal.record(graph) is None
if how == "saved":
    journal.saved(document, graph)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    for name in ("digits_moe.yaml", "digits_moe.safetensors"):
        shutil.copy(ROOT / "snippets" / name, tmp_path / name)
    return tmp_path / "digits_moe.yaml"


def killed_editor(document: Path, folder: Path, how: str = "") -> int:
    """Lets a process edit a document and dies by kill -9; returns its number."""
    command = [sys.executable, "-c", EDITOR, str(document), str(folder), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert Journal(folder).recoverable() == []  # it lives
        process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
        return process.pid


def edited(document: Path) -> Graph:
    graph = runtime.load(document)
    graph.set("moe", "name", "unsaved too")
    graph.add("Initializer", "fresh", parameters={"tensor": Tensor.from_array(np.arange(5000, dtype=np.float32))})
    return graph


def small(name: str = "small") -> Graph:
    graph = Graph(name)
    graph.add("Input", "x")
    return graph


def test_work_of_a_killed_editor_is_recovered(document: Path, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    process = killed_editor(document, folder)
    journal = Journal(folder)
    [entry] = journal.recoverable()
    assert (entry.document, entry.process_id, entry.problem) == (document, process, "")
    graph = journal.recover(entry)
    assert graph == edited(document) and entry.nodes == len(graph.nodes)
    assert sum(path.stat().st_size for path in entry.folder.glob("*.bin")) == 20_000  # only what lies nowhere else
    assert Journal(folder).recoverable() == []  # it is this process's now
    with pytest.raises(FileError, match="another window"):
        Journal(folder).recover(entry)
    journal.open(document, runtime.load(document))
    assert journal.record(graph) is None
    assert journal.discard(entry) is None and not entry.folder.exists()
    assert graph == edited(document)
    journal.close()
    assert list(folder.iterdir()) == []


def test_a_document_without_a_file_is_recovered_too(document: Path, tmp_path: Path) -> None:
    killed_editor(document, tmp_path / "journal", "untitled")
    journal = Journal(tmp_path / "journal")
    [entry] = journal.recoverable()
    assert entry.document is None and journal.recover(entry) == edited(document)


def test_saved_work_is_not_offered(document: Path, tmp_path: Path) -> None:
    killed_editor(document, tmp_path / "journal", "saved")
    assert Journal(tmp_path / "journal").recoverable() == []


def test_a_changed_file_of_tensors_is_noticed(document: Path, tmp_path: Path) -> None:
    killed_editor(document, tmp_path / "journal")
    journal = Journal(tmp_path / "journal")
    [entry] = journal.recoverable()
    (tmp_path / "digits_moe.safetensors").write_bytes(b"other")
    with pytest.raises(FileError, match="has changed"):
        journal.recover(entry)
    assert journal.recoverable() == [entry]


def test_spoilt_entries_say_so_and_can_be_discarded(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    good = {
        "version": 1,
        "document": None,
        "time": 1.0,
        "nodes": 0,
        "process": 0,
        "started": "",
        "tensors": {},
        "text": "qmoe: 1\n",
    }
    spoilt = [b"", b"{", b"[" * 100_000, b"[]", b'{"version": 2}', b"\xff", json.dumps({**good, "text": 1}).encode()]
    for index, content in enumerate(spoilt):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / SNAPSHOT).write_bytes(content)
    entries = journal.recoverable()
    assert len(entries) == len(spoilt) and all(entry.problem for entry in entries)
    for entry in entries:
        with pytest.raises(FileError):
            journal.recover(entry)
        assert journal.discard(entry) is None and journal.discard(entry) is None
    assert list(tmp_path.iterdir()) == []
    for index, change in enumerate(
        [
            {"text": "qmoe: 7\n"},
            {"text": "{{"},
            {"tensors": {"w": None}},
            {"tensors": {"w": {"element": "float", "shape": [2], "file": "../secret", "offset": 0}}},
            {"tensors": {"w": {"element": "float", "shape": [2], "file": "1.bin", "offset": 0}}},
            {"tensors": {"w": {"element": "float", "shape": [-1], "file": "1.bin", "offset": 0}}},
        ]
    ):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / SNAPSHOT).write_text(json.dumps({**good, **change}))
    for entry in journal.recoverable():
        with pytest.raises(FileError):
            journal.recover(entry)


def test_undoing_all_edits_and_closing_leave_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    graph = small()
    journal.open(None, graph)
    assert journal.record(graph) is None and list(tmp_path.iterdir()) == []
    graph.add("Relu", "relu")
    assert journal.record(graph) is None and len(list(tmp_path.glob(f"*/{SNAPSHOT}"))) == 1
    graph.undo()
    assert journal.record(graph) is None and list(tmp_path.glob(f"*/{SNAPSHOT}")) == []
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_written_once_and_go_when_unused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    graph = small()
    journal.open(None, graph)
    for index in range(3):
        tensor = Tensor.from_array(np.full(1000, index, np.float32))
        graph.add("Initializer", f"w{index}", parameters={"tensor": tensor})
        assert journal.record(graph) is None
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.bin")}
    assert len(files) == 3
    graph.set("x", "name", "other")
    assert journal.record(graph) is None
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.bin")} == files
    graph.remove("w1")
    assert journal.record(graph) is None
    assert len(list(tmp_path.glob("*/*.bin"))) == 2


def test_tensors_that_are_missing_stay_missing(tmp_path: Path) -> None:
    graph = small()
    absent = AbsentTensor(ElementType.FLOAT, (4096,), "ab" * 32, "w", "elsewhere.safetensors")
    graph.add("Initializer", "w", parameters={"tensor": absent})
    journal = Journal(tmp_path / "journal")
    journal.open(None, small())
    assert journal.record(graph) is None
    [path] = (tmp_path / "journal").glob(f"*/{SNAPSHOT}")
    (tmp_path / "other" / "entry").mkdir(parents=True)
    data = json.loads(path.read_text()) | {"process": 0, "started": ""}
    (tmp_path / "other" / "entry" / SNAPSHOT).write_text(json.dumps(data))
    journal.close()
    others = Journal(tmp_path / "other")
    [entry] = others.recoverable()
    found = others.recover(entry)
    assert found == graph and isinstance(found.nodes["w"].parameters["tensor"], AbsentTensor)


@pytest.mark.skipif(sys.platform == "win32", reason="no such file")
def test_what_cannot_be_kept_is_said_and_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    journal = Journal(blocked / "journal")
    graph = small()
    journal.open(None, graph)
    graph.add("Relu", "relu")
    finding = journal.record(graph)
    assert finding is not None and finding.code == "journal" and "not being kept" in finding.message
    assert journal.recoverable() == []
    journal.saved(tmp_path / "x.yaml")
    journal.close()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path / "journal")
    journal.open(None, small())
    monkeypatch.setattr(os, "fsync", full)
    finding = journal.record(graph)
    assert finding is not None and "No space left on device" in finding.message
    monkeypatch.undo()
    assert journal.record(graph) is None
    journal.close()


def test_locks_and_processes(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "lock")
    assert lock is not None and take_lock(tmp_path / "lock") is None
    lock.close()
    again = take_lock(tmp_path / "lock")
    assert again is not None
    again.close()
    if sys.platform != "win32":
        assert started(os.getpid()) and lives(os.getpid(), started(os.getpid()))
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            start = started(process.pid)
            assert lives(process.pid, start) and not lives(process.pid, "another time")
        assert not lives(process.pid, start)


# -- recent files ---------------------------------------------------------------------------------------------------


def test_recent_files_are_few_and_newest_first(tmp_path: Path) -> None:
    recent = RecentFiles(tmp_path / "state" / "recent.json")
    assert recent.files() == [] and recent.problem is None
    for index in range(MOST + 5):
        (tmp_path / f"{index}.yaml").touch()
        assert recent.add(tmp_path / f"{index}.yaml") is None
    assert recent.add(tmp_path / "10.yaml") is None
    names = [file.path.name for file in RecentFiles(recent.path).files()]
    assert len(names) == MOST and names[:2] == ["10.yaml", f"{MOST + 4}.yaml"] and names.count("10.yaml") == 1
    (tmp_path / "10.yaml").unlink()
    assert [file.is_missing for file in recent.files()[:2]] == [True, False]
    assert recent.remove(tmp_path / "10.yaml") is None and recent.files()[0].path.name == f"{MOST + 4}.yaml"
    assert recent.clear() is None and recent.files() == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"version": 1, "files": [7]}', b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)]
)
def test_a_spoilt_list_of_recent_files_is_begun_again(tmp_path: Path, content: bytes) -> None:
    recent = RecentFiles(tmp_path / "recent.json")
    recent.path.write_bytes(content)
    assert recent.files() == [] and recent.problem is not None
    assert recent.add(tmp_path / "x.yaml") is None and len(recent.files()) == 1 and recent.problem is None


def test_a_list_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recent = RecentFiles(tmp_path / "file" / "recent.json")
    assert recent.add("x.yaml") is not None and recent.files() == []


def test_folders_follow_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QMOE_STATE_FOLDER", str(tmp_path))
    assert state_folder() == tmp_path and Journal().folder == tmp_path / "journal"
    monkeypatch.delenv("QMOE_STATE_FOLDER")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_folder() == tmp_path / "state" / "qmoe-studio"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert config_folder() == Path.home() / ".config" / "qmoe-studio"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert state_folder() == Path.home() / "Library" / "Application Support" / "qmoe-studio"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert config_folder() == tmp_path / "local" / "qmoe-studio"
