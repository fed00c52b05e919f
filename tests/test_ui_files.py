"""What is kept when the editor dies, what it remembers, and what it shows when there is nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import ui.library  # before Qt  # noqa: F401

# isort: split
import pytest
from PySide6.QtCore import QCoreApplication, QEvent, QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QApplication, QMessageBox
from pytestqt.qtbot import QtBot

from runtime import Graph
from runtime.files import save
from runtime.shipped import snippets_folder
from ui import theme
from ui.on_disk import DiskBar
from ui.safekeeping import Keeper, RecoveryBar
from ui.start import StartPage
from ui.window import Window

EDITOR = """
import sys
from pathlib import Path
from ui.app import application
from ui.window import Window
from ui.on_disk import DiskBar
from ui.safekeeping import Keeper

running = application("light")
window = Window(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
window.show()
window.editor.graph.add("Relu", "unsaved")
window.editor.graph.add("Neg", "also")
keeper = window.findChild(Keeper)
keeper._timer.stop()
keeper.keep().result()
running.processEvents()
print("kept", flush=True)
running.exec()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    state = tmp_path / "state"
    monkeypatch.setenv("QMOE_STATE_FOLDER", str(state))
    monkeypatch.setenv("QMOE_CONFIG_FOLDER", str(state))
    return state


@pytest.fixture
def windows(qtbot: QtBot) -> Iterator[list[Window]]:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made: list[Window] = []
    yield made
    for window in made:
        window.editor.show(Graph())
        window.close()
        window.deleteLater()


def open_window(windows: list[Window], path: Path | None = None) -> Window:
    window = Window(path)
    windows.append(window)
    window.show()
    QApplication.processEvents()
    return window


def killed_editor(*arguments: str) -> None:
    """An editor with unsaved edits that is killed, as a crash or a power failure would."""
    process = subprocess.Popen(
        [sys.executable, "-c", EDITOR, *arguments], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "kept"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_work_of_a_killed_editor_is_offered_and_recovered(windows: list[Window], tmp_path: Path) -> None:
    graph = Graph("kept", opsets={"": 21})
    graph.add("Input", "x")
    save(graph, tmp_path / "kept.yaml")
    before = (tmp_path / "kept.yaml").read_bytes()
    killed_editor(str(tmp_path / "kept.yaml"))
    window = open_window(windows)
    bar = window.findChild(RecoveryBar)
    assert bar is not None and bar.isVisible() and "kept.yaml" in bar.label.text() and "3 nodes" in bar.label.text()
    bar.recover.click()
    assert set(window.editor.graph.nodes) == {"x", "unsaved", "also"}
    assert window.editor.path == tmp_path / "kept.yaml" and window.isWindowModified()
    assert not bar.isVisible()
    assert (tmp_path / "kept.yaml").read_bytes() == before, "recovering writes nothing over the file"
    assert window.save()
    assert b"unsaved" in (tmp_path / "kept.yaml").read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_recovered_work_survives_a_second_crash(windows: list[Window]) -> None:
    killed_editor()
    window = open_window(windows)
    bar = window.findChild(RecoveryBar)
    assert bar is not None
    bar.recover.click()
    keeper = window.findChild(Keeper)
    assert keeper is not None
    snapshots = list(keeper.journal.folder.glob("*/snapshot.json"))
    assert len(snapshots) == 1 and "unsaved" in snapshots[0].read_text()
    second = open_window(windows)
    other = second.findChild(RecoveryBar)
    assert other is not None and not other.isVisible(), "what a living window has is not offered"


def test_nothing_is_kept_of_what_was_saved_or_left(windows: list[Window], qtbot: QtBot, tmp_path: Path) -> None:
    window = open_window(windows)
    keeper = window.findChild(Keeper)
    assert keeper is not None
    window.editor.graph.add("Relu")
    keeper.keep().result()
    assert list(keeper.journal.folder.glob("*/snapshot.json"))
    assert window.save_to(tmp_path / "saved.yaml")
    qtbot.waitUntil(lambda: not list(keeper.journal.folder.glob("*/snapshot.json")))


def test_edits_are_kept_soon(windows: list[Window], qtbot: QtBot) -> None:
    window = open_window(windows)
    keeper = window.findChild(Keeper)
    assert keeper is not None
    window.editor.graph.add("Relu")
    start = time.monotonic()
    qtbot.waitUntil(lambda: bool(list(keeper.journal.folder.glob("*/snapshot.json"))), timeout=8000)
    assert time.monotonic() - start < 6


def test_a_folder_that_cannot_be_written_is_told_once(windows: list[Window], folder: Path, qtbot: QtBot) -> None:
    folder.write_text("a file where the folder should be")
    window = open_window(windows)
    said: list[str] = []
    window.editor.told.connect(said.append)
    keeper = window.findChild(Keeper)
    assert keeper is not None
    for _ in range(3):
        window.editor.graph.add("Relu")
        keeper.keep().result()
        QApplication.processEvents()
    about = [text for text in said if "state" in text or "kept" in text]
    assert len(about) == 1, said


def test_an_empty_window_shows_what_can_be_opened(windows: list[Window], qtbot: QtBot, tmp_path: Path) -> None:
    window = open_window(windows)
    page = window.findChild(StartPage)
    assert page is not None and page.isVisible()
    names = [page.list.item(row).text() for row in range(page.list.count())]
    assert "digits_moe" in names
    page._open(page.list.item(names.index("digits_moe")))
    assert window.editor.path == snippets_folder() / "digits_moe.yaml"
    assert not page.isVisible()
    second = open_window(windows)
    page = second.findChild(StartPage)
    assert page is not None and page.list.item(0).text() == "digits_moe", "what was opened last comes first"


def test_an_empty_diagram_may_be_begun(windows: list[Window]) -> None:
    window = open_window(windows)
    page = window.findChild(StartPage)
    assert page is not None
    page.begin()
    assert not page.isVisible()
    window.editor.graph.add("Relu")
    assert not page.isVisible()


def test_a_file_may_be_dropped_on_the_first_page(windows: list[Window], tmp_path: Path) -> None:
    window = open_window(windows)
    page = window.findChild(StartPage)
    assert page is not None
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(snippets_folder() / "digits_moe.png"))])
    button, none, copy = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, Qt.DropAction.CopyAction
    QApplication.sendEvent(page, QDragEnterEvent(QPoint(50, 50), copy, data, button, none))
    QApplication.sendEvent(page, QDropEvent(QPointF(50, 50), copy, data, button, none))
    assert "moe" in window.editor.graph.nodes and not page.isVisible()


def test_a_window_for_a_file_that_is_not_there_says_so(windows: list[Window], tmp_path: Path) -> None:
    window = open_window(windows, tmp_path / "nothing.yaml")
    assert window.opening.isVisible() and "nothing.yaml" in window.opening.label.text()


def test_windows_that_were_closed_leave_nothing(qapp: QApplication) -> None:
    """Widgets, threads and processes are those of one window after many."""
    gone: list[weakref.ref[Window]] = []
    widgets, threads = set(qapp.allWidgets()), set(threading.enumerate())  # other tests' may go meanwhile
    for _ in range(8):
        window = Window(snippets_folder() / "digits_moe.yaml")
        window.show()
        window.runner.warm_up()
        qapp.processEvents()
        gone.append(weakref.ref(window))
        assert window.close()
        window.deleteLater()
        del window
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        qapp.processEvents()
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]
    assert not set(qapp.allWidgets()) - widgets
    assert not set(threading.enumerate()) - threads
    assert not multiprocessing.active_children()


def test_a_file_that_changed_meanwhile_is_told_and_not_replaced_unasked(
    windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shared.yaml"
    graph = Graph("shared", opsets={"": 21})
    graph.add("Input", "x")
    save(graph, path)
    first, second = open_window(windows, path), open_window(windows, path)
    second.editor.graph.add("Neg", "theirs")
    assert second.save()
    first.editor.graph.add("Relu", "mine")  # the first edit looks, and so does the window when it comes to the front
    bar = first.findChild(DiskBar)
    assert bar is not None and bar.isVisible() and "changed by another program" in bar.label.text()
    monkeypatch.setattr(QMessageBox, "question", lambda *arguments: QMessageBox.StandardButton.Cancel)
    assert not first.save() and "theirs" in path.read_text() and first.isWindowModified()
    monkeypatch.setattr(QMessageBox, "question", lambda *arguments: QMessageBox.StandardButton.Yes)
    assert first.save() and "mine" in path.read_text() and not bar.isVisible()
    QApplication.sendEvent(second, QEvent(QEvent.Type.WindowActivate))
    other = second.findChild(DiskBar)
    assert other is not None and other.isVisible()
    other.again.click()
    assert "mine" in second.editor.graph.nodes and not other.isVisible()


def test_a_file_that_was_removed_meanwhile_can_be_written_again(windows: list[Window], tmp_path: Path) -> None:
    path = tmp_path / "gone.yaml"
    save(Graph("gone"), path)
    window = open_window(windows, path)
    path.unlink()
    QApplication.sendEvent(window, QEvent(QEvent.Type.WindowActivate))
    bar = window.findChild(DiskBar)
    assert bar is not None and bar.isVisible() and "no longer there" in bar.label.text()
    assert window.save() and path.exists() and not bar.isVisible()


def test_what_inputs_read_follows_a_document_into_another_folder(windows: list[Window], tmp_path: Path) -> None:
    window = Window()
    windows.append(window)
    window.editor.open(snippets_folder() / "digits_moe.yaml")
    assert window.save_to(tmp_path / "mine.yaml")
    data = "digits_moe.data.npz"
    assert (tmp_path / data).read_bytes() == (snippets_folder() / data).read_bytes() and data in window._say.text()
    (tmp_path / data).unlink()
    (tmp_path / "other").mkdir()
    assert window.save_to(tmp_path / "other" / "mine.yaml")
    assert data in window._say.text() and "not there" in window._say.text()
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / data).write_bytes(b"mine")
    (tmp_path / "other" / data).write_bytes(b"theirs")
    assert window.save_to(tmp_path / "third" / "mine.yaml")
    assert (tmp_path / "third" / data).read_bytes() == b"mine"
