"""Runs the document over a data set, here or on a cluster: `qmoe run --data` in a process, and its progress."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PySide6.QtCore import QProcess, Qt, QTimer
from PySide6.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from runtime.cluster import sentence
from runtime.cluster_commands import shares
from runtime.errors import StudioError
from runtime.files import YAML, save
from ui import theme
from ui.editor import Editor
from ui.fields import WheelPasses
from ui.running import Runner
from ui.window import BOTTOM, Window

PATIENCE = 8_000
"""Milliseconds that a run has to end by itself after it was told to stop."""
MOST_LINES = 2_000


class DataPane(QWidget):
    """What is run on what, at the left; what happens, at the right."""

    title = "Data set"

    def __init__(self, runner: Runner, editor: Editor) -> None:
        super().__init__()
        self._runner, self._editor = runner, editor
        self._process: QProcess | None = None
        self._copy: TemporaryDirectory[str] | None = None
        self._unread = b""
        self._begun, self._rows, self._done, self._fresh = 0.0, 0, 0, 0
        self._by_worker: dict[int, int] = {}
        self._was_stopped = self._is_complete = False
        self._late = QTimer(self, singleShot=True, interval=PATIENCE)
        self._late.timeout.connect(self._end_now)
        self._make()
        self._show_state()

    def _make(self) -> None:
        self.data, self.out, self.cluster = QLineEdit(), QLineEdit(), QLineEdit("local")
        self.data.setPlaceholderText(".npz, .npy, .parquet, or a folder of such")
        self.out.setPlaceholderText("a new folder")
        self.cluster.setPlaceholderText("none: in one process")
        self.cluster.setToolTip("local: workers on this machine; HOST:PORT: those of a Ray cluster; empty: no workers")
        self.workers, self.batch = QSpinBox(minimum=0, maximum=4096), QSpinBox(minimum=0, maximum=1 << 30)
        self.workers.setSpecialValueText("one a processor")
        self.cluster.textChanged.connect(lambda text: self.workers.setEnabled(bool(text.strip())))
        self.batch.setSpecialValueText("256, or the graph's")
        self.skip_bad = QCheckBox("Set bad batches aside")
        self.resume = QCheckBox("Do what is missing in the folder")
        form = QFormLayout()
        form.setContentsMargins(8, 6, 8, 6)
        form.setVerticalSpacing(3)
        rows: tuple[tuple[str, QLineEdit, Any], ...] = (
            ("Data", self.data, self.ask_data),
            ("Results", self.out, self.ask_out),
        )
        for label, typed, ask in rows:
            button = QToolButton(text="…")
            button.setAccessibleName(f"Choose: {label}")
            button.clicked.connect(ask)
            line = QHBoxLayout()
            line.addWidget(typed)
            line.addWidget(button)
            form.addRow(label, line)
        form.addRow("Cluster", self.cluster)
        form.addRow("Workers", self.workers)
        form.addRow("Batch, rows", self.batch)
        form.addRow("", self.skip_bad)
        form.addRow("", self.resume)
        named = (("Data", self.data), ("Results", self.out), ("Cluster", self.cluster), ("Workers", self.workers))
        for name, field in (*named, ("Batch", self.batch)):
            field.setAccessibleName(name)
        WheelPasses(self.workers, self.batch)
        self.start, self.halt = QPushButton("Start"), QPushButton("Stop")
        self.progress = QProgressBar(textVisible=False)
        self.progress.setAccessibleName("Progress of the run over a data set")
        self.at, self.message = QLabel(), QLabel(wordWrap=True)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.log = QPlainTextEdit(readOnly=True, maximumBlockCount=MOST_LINES)
        self.log.setAccessibleName("What happened")
        buttons = QHBoxLayout()
        for widget in (self.start, self.halt, self.progress, self.at):
            buttons.addWidget(widget)
        buttons.setStretch(2, 1)
        right = QVBoxLayout()
        right.setContentsMargins(6, 6, 6, 2)
        right.addLayout(buttons)
        right.addWidget(self.message)
        right.addWidget(self.log, 1)
        left = QWidget()
        left.setLayout(form)
        left.setFixedWidth(360)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(left)
        layout.addLayout(right, 1)
        self.setFocusProxy(self.data)
        self.start.clicked.connect(self.begin)
        self.halt.clicked.connect(self.stop)
        self.say("")

    # -- orders -------------------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way."""
        return self._process is not None

    def begin(self) -> bool:
        """Starts running the document as it is now; whether that could be done."""
        editor = self._editor
        editor.canvas.refresh()
        if self.is_busy:
            self.say("It runs already.", wrong=True)
            return False
        if editor.errors:
            count = len(editor.errors)
            self.say(f"{count} {'error keeps' if count == 1 else 'errors keep'} the graph from running.", wrong=True)
            return False
        if not self.data.text().strip() or not self.out.text().strip():
            self.say("Name the data, and a folder for the results.", wrong=True)
            return False
        try:
            file = self._file()
        except StudioError as error:
            self.say(str(error), wrong=True)
            return False
        self._was_stopped = self._is_complete = False
        self._unread = b""
        self._rows = self._done = self._fresh = 0
        self._by_worker.clear()
        self.log.clear()
        self.progress.setRange(0, 0)
        self.at.setText("Starting")
        self.say("")
        process = self._process = QProcess(self)
        process.readyReadStandardOutput.connect(self._read)
        process.finished.connect(self._ended)
        process.errorOccurred.connect(self._failed)
        process.start(sys.executable, ["-m", "runtime.cli", *self._words(file)])
        self._show_state()
        return True

    def stop(self) -> None:
        """Ends the run as Ctrl-C does; what is done stays, and can be gone on from."""
        process = self._process
        if process is None:
            return
        self._was_stopped = True
        self.at.setText("Stopping")
        if process.processId() and hasattr(os, "kill") and sys.platform != "win32":
            os.kill(process.processId(), signal.SIGINT)
            self._late.start()
        else:
            process.terminate()

    def close(self) -> bool:
        """Ends what runs."""
        process = self._process
        if process is not None:
            self.stop()
            if not process.waitForFinished(PATIENCE):
                process.kill()
                process.waitForFinished(1000)
        return super().close()

    def ask_data(self) -> None:
        """Asks for the data; a folder is typed."""
        name, _ = QFileDialog.getOpenFileName(self, "Data set", self._folder(), "Data (*.npz *.npy *.parquet)")
        if name:
            self.data.setText(name)

    def ask_out(self) -> None:
        """Asks for the folder of the results."""
        name = QFileDialog.getExistingDirectory(self, "Folder for the results", self._folder())
        if name:
            self.out.setText(name)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _folder(self) -> str:
        return str(self._editor.path.parent if self._editor.path is not None else Path.cwd())

    def _place(self, text: str) -> str:
        """A name that was typed, seen from the document's folder."""
        return str(Path(self._folder()) / Path(text.strip()).expanduser())

    def _words(self, file: Path) -> list[str]:
        words = ["run", str(file), "--data", self._place(self.data.text()), "--out", self._place(self.out.text())]
        words += ["--backend", self._runner.backend, "--json"]
        if self.cluster.text().strip():
            words += ["--cluster", self.cluster.text().strip()]
            words += ["--workers", str(self.workers.value())] if self.workers.value() else []
        words += ["--batch", str(self.batch.value())] if self.batch.value() else []
        words += ["--skip-bad"] if self.skip_bad.isChecked() else []
        return [*words, *(["--resume"] if self.resume.isChecked() else [])]

    def _file(self) -> Path:
        """The document's file, or a copy of the document as it is now, of the same name."""
        editor = self._editor
        if editor.path is not None and not editor.is_changed:
            return editor.path
        self._copy = TemporaryDirectory(prefix="qmoe-")
        name = editor.path.stem if editor.path is not None else "untitled"
        file = Path(self._copy.name) / f"{name}{YAML[0]}"
        save(editor.graph, file)
        return file

    def _read(self) -> None:
        if self._process is None:
            return
        *lines, self._unread = (self._unread + bytes(self._process.readAllStandardOutput().data())).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # what a library printed
            if isinstance(event, dict) and "event" in event:
                self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "started":
            self._begun, self._rows = time.monotonic(), int(event["rows"])
            self.progress.setRange(0, max(1, int(event["shards"])))
            self.progress.setValue(int(event["done"]))
            self.at.setText(f"{event['done']} of {event['shards']} files")
        elif kind == "shard":
            self._fresh += int(event["rows"])
            worker = int(event["worker"])
            self._by_worker[worker] = self._by_worker.get(worker, 0) + int(event["rows"])
            rate = self._fresh / max(1e-3, time.monotonic() - self._begun)
            left = (int(event["of"]) - int(event["done"])) * int(event["rows"]) / rate
            self.progress.setValue(int(event["done"]))
            each = shares(self._by_worker)
            self.at.setText(f"{event['done']} of {event['of']} files, {rate:,.0f} rows/s, {left:,.0f} s left ({each})")
        elif kind == "finished":
            self._is_complete = True
            self.progress.setValue(self.progress.maximum())
            text = f"{int(event['rows']):,} rows done in {event['seconds']:g} s. Results are in {self.out.text()}."
            count = event["skipped"]
            aside = f" {count} {'batch is' if count == 1 else 'batches are'} set aside." if count else ""
            self.say(text + aside)
        if kind not in ("shard", "started"):
            self.log.appendPlainText(sentence(event))

    def _ended(self) -> None:
        self._read()  # a stop may come too late to stop anything
        process, self._process = self._process, None
        if process is None:
            return
        self._late.stop()
        told = bytes(process.readAllStandardError().data()).decode(errors="replace").strip().splitlines()
        code = process.exitCode()
        crashed = process.exitStatus() is QProcess.ExitStatus.CrashExit
        process.deleteLater()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None
        if self._was_stopped:
            self.at.setText("")
        if self._was_stopped and not self._is_complete:
            self.say("Stopped. What is done is kept: “Do what is missing” goes on from there.")
        elif (code or crashed) and not self._was_stopped:
            lines = [line.removeprefix("qmoe: ") for line in told if line.strip()]
            self.say("\n".join(lines[-6:]) or f"The run ended with exit code {code}.", wrong=True)
        if self.progress.maximum() == 0:
            self.progress.setRange(0, 1)
        self._show_state()

    def _failed(self, error: QProcess.ProcessError) -> None:
        if error is QProcess.ProcessError.FailedToStart and self._process is not None:
            self._process = None
            self.say("The process could not be started.", wrong=True)
            self._show_state()

    def _end_now(self) -> None:
        if self._process is not None:
            self._process.kill()

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Shows a sentence above the log."""
        look = theme.current()
        self.message.setStyleSheet(f"color: {theme.css(look.error if wrong else look.faint)};")
        self.message.setText(text)
        self.message.setVisible(bool(text))

    def _show_state(self) -> None:
        self.start.setEnabled(not self.is_busy)
        self.halt.setEnabled(self.is_busy)


def install(window: Window) -> None:
    """Adds the pane and its command."""
    pane = DataPane(window.runner, window.editor)
    window.add_pane(pane, BOTTOM, shown=False)
    window.closing.connect(pane.close)
    window.command("Run", "Over a data set, or on a cluster…", lambda: window.show_pane("Data set"), "F8")
