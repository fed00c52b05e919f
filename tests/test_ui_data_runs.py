"""The Data set pane: runs over data sets in a process of their own, with progress; stopped, gone on with, refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# isort: split
import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLineEdit
from pytestqt.qtbot import QtBot

from runtime import Graph, save
from runtime.shards import read_manifest, read_results
from tests.test_scoring import TABLE, looked_up, slow
from ui import theme
from ui.data_runs import DataPane
from ui.window import Window

ENOUGH = 60_000


@pytest.fixture
def window(qtbot: QtBot, tmp_path: Path) -> Iterator[Window]:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    save(looked_up(), tmp_path / "table.yaml")
    np.savez(tmp_path / "d.npz", index=np.arange(20_000) % 10)
    made = Window(tmp_path / "table.yaml")
    qtbot.addWidget(made, before_close_func=lambda w: w.isVisible() and w.editor.show(Graph()))
    made.show()
    made.commands["Over a data set, or on a cluster…"].trigger()
    yield made
    pane_of(made).close()


def pane_of(window: Window) -> DataPane:
    found = window.panes["Data set"].widget()
    assert isinstance(found, DataPane)
    return found


def fill(field: QLineEdit, text: str) -> None:
    field.clear()
    QTest.keyClicks(field, text)


def press(button: object) -> None:
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)  # type: ignore[call-overload]


def until_it_ends(qtbot: QtBot, pane: DataPane) -> None:
    qtbot.waitUntil(lambda: not pane.is_busy, timeout=ENOUGH)


def test_a_document_is_run_over_a_data_set_with_its_unsaved_edits(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    pane = pane_of(window)
    assert pane.isVisible()
    fill(pane.data, "d.npz")
    fill(pane.out, "scored")
    fill(pane.cluster, "")
    window.editor.graph.set("row", "name", "value")
    press(pane.start)
    assert pane.is_busy and pane.halt.isEnabled() and not pane.start.isEnabled()
    until_it_ends(qtbot, pane)
    assert "20,000 rows done" in pane.message.text() and pane.progress.value() == pane.progress.maximum()
    found = np.concatenate([part["value"] for part in read_results(tmp_path / "scored")])
    assert np.array_equal(found, TABLE[np.arange(20_000) % 10])
    assert not window.editor.path or "name: value" not in window.editor.path.read_text()
    press(pane.start)
    until_it_ends(qtbot, pane)
    assert "has results already" in pane.message.text()


def test_a_run_on_a_cluster_is_stopped_and_gone_on_with(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    np.savez(tmp_path / "d.npz", index=np.arange(96_000) % 10)
    pane = pane_of(window)
    window.editor.show(slow(4000), tmp_path / "table.yaml", changed=True)
    fill(pane.data, "d.npz")
    fill(pane.out, "scored")
    pane.workers.setValue(2)
    pane.batch.setValue(100)
    press(pane.start)
    qtbot.waitUntil(lambda: pane.progress.maximum() == 60 and pane.progress.value() > 3, timeout=ENOUGH)
    assert "rows/s" in pane.at.text() and "worker" in pane.at.text()
    assert "Worker" in pane.log.toPlainText()
    press(pane.halt)
    until_it_ends(qtbot, pane)
    assert "Stopped" in pane.message.text() and not read_manifest(tmp_path / "scored")["complete"]
    pane.resume.setChecked(True)
    pane.batch.setValue(0)
    press(pane.start)
    until_it_ends(qtbot, pane)
    assert "batch" in pane.message.text() and not read_manifest(tmp_path / "scored")["complete"]
    pane.batch.setValue(100)
    press(pane.start)
    until_it_ends(qtbot, pane)
    assert "rows done" in pane.message.text() and read_manifest(tmp_path / "scored")["complete"]


def test_a_stop_that_comes_too_late_does_not_say_that_something_is_missing(
    window: Window, qtbot: QtBot, tmp_path: Path
) -> None:
    pane = pane_of(window)
    fill(pane.data, "d.npz")
    fill(pane.out, "scored")
    fill(pane.cluster, "")
    press(pane.start)
    qtbot.waitUntil(lambda: "rows done" in pane.message.text(), timeout=ENOUGH)
    pane.stop()
    until_it_ends(qtbot, pane)
    assert "20,000 rows done" in pane.message.text() and read_manifest(tmp_path / "scored")["complete"]


def test_what_cannot_be_run_is_said(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    pane = pane_of(window)
    press(pane.start)
    assert "Name the data" in pane.message.text() and not pane.is_busy
    fill(pane.data, "nothing.npz")
    fill(pane.out, "scored")
    fill(pane.cluster, "")
    press(pane.start)
    until_it_ends(qtbot, pane)
    assert "nothing.npz: is not there" in pane.message.text()
    index = np.arange(2_000) % 10
    index[700] = 99
    np.savez(tmp_path / "d.npz", index=index)
    fill(pane.data, "d.npz")
    fill(pane.out, "bad")
    press(pane.start)
    until_it_ends(qtbot, pane)
    assert "rows 512 to 767 of the data" in pane.message.text()
    fill(pane.out, "aside")
    pane.skip_bad.setChecked(True)
    press(pane.start)
    until_it_ends(qtbot, pane)
    assert "1 batch is set aside" in pane.message.text() and "512 to 767" in pane.log.toPlainText()
    window.editor.graph.remove("table")
    press(pane.start)
    assert "keeps the graph from running" in pane.message.text()


def test_many_workers_fit_in_the_pane(window: Window) -> None:
    pane = pane_of(window)
    pane._take({"event": "started", "rows": 64_000, "shards": 64, "done": 0})
    for worker in range(64):
        event = {"event": "shard", "index": worker, "worker": worker, "rows": 1000 + worker, "done": worker + 1}
        pane._take({**event, "of": 64})
    assert pane.at.text().endswith("(64 workers, 1,000 to 1,063 rows each)")


def test_workers_are_those_of_a_cluster(window: Window) -> None:
    pane = pane_of(window)
    assert pane.workers.isEnabled()
    fill(pane.cluster, "")
    assert not pane.workers.isEnabled()
    fill(pane.cluster, "head:6379")
    assert pane.workers.isEnabled()
