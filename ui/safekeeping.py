"""Unsaved work is kept for the case of a crash, and offered again in a bar above the canvas."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QWidget

from runtime.errors import StudioError
from runtime.graph import Graph
from runtime.journal import Entry, Journal
from ui.editor import Editor
from ui.window import Window

AFTER = 2000
"""Milliseconds from the first edit that is not kept yet to the snapshot."""


class Keeper(QObject):
    """Writes a snapshot soon after edits, in a thread, and removes it when the document is saved or left."""

    _wrote = Signal(object)

    def __init__(self, editor: Editor, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.journal = Journal()
        self._pool = ThreadPoolExecutor(1, "journal")
        self._is_failing = False
        self._timer = QTimer(self, singleShot=True, interval=AFTER)
        self._timer.timeout.connect(self.keep)
        editor.edited.connect(lambda edit: self._timer.isActive() or self._timer.start())
        editor.document_changed.connect(self._begin)
        editor.title_changed.connect(self._on_title)
        self._wrote.connect(self._tell)
        self._begin()

    def keep(self) -> Future[None]:
        """Writes a snapshot of the document as it is now."""
        graph = self._editor.graph.copy()
        return self._pool.submit(lambda: self._wrote.emit(self.journal.record(graph)))

    def _begin(self) -> None:
        self._timer.stop()
        # What was recovered, or came from the clipboard, is in no file: all of it is to be kept.
        saved = Graph() if self._editor.is_changed else self._editor.graph.copy()
        self._pool.submit(self.journal.open, self._editor.path, saved)
        if self._editor.is_changed:
            self._timer.start()

    def _on_title(self) -> None:
        if not self._editor.is_changed and self._editor.path is not None:
            self._timer.stop()
            self._pool.submit(self.journal.saved, self._editor.path, self._editor.graph.copy())

    def _tell(self, finding: Any) -> None:
        if finding is not None and not self._is_failing:  # once, not with every edit
            self._editor.told.emit(str(finding))
        self._is_failing = finding is not None

    def close(self) -> None:
        """The document was left on purpose: nothing is kept of it."""
        self._timer.stop()
        self._pool.submit(self.journal.close)
        self._pool.shutdown()


class RecoveryBar(QWidget):
    """Offers what an earlier process left, one document after the other."""

    def __init__(self, keeper: Keeper, window: Window) -> None:
        super().__init__()
        self._keeper, self._window = keeper, window
        self._entries: list[Entry] = []
        self.label = QLabel(wordWrap=True)
        self.recover = QPushButton("Recover")
        self.discard = QPushButton("Discard")
        later = QPushButton("Later")
        layout = QHBoxLayout(self)
        layout.addWidget(self.label, 1)
        for button, call in ((self.recover, self._recover), (self.discard, self._discard), (later, self.hide)):
            button.clicked.connect(call)
            layout.addWidget(button)
        self.look()

    def look(self) -> None:
        """Looks for what was left."""
        self._entries = self._keeper.journal.recoverable()
        self._show()

    def _show(self) -> None:
        self.setVisible(bool(self._entries))
        if not self._entries:
            return
        entry = self._entries[0]
        name = entry.document.name if entry.document is not None else "a document without a file"
        ago = _ago(time.time() - entry.time)
        more = f" There are {len(self._entries) - 1} more." if len(self._entries) > 1 else ""
        if entry.problem:
            self.label.setText(f"Unsaved work of {name}, {ago}, cannot be recovered: {entry.problem}{more}")
        else:
            self.label.setText(f"Unsaved work of {name} was found: {entry.nodes} nodes, {ago}.{more}")
        self.recover.setEnabled(not entry.problem)

    def _recover(self) -> None:
        entry = self._entries[0]
        if not self._window.is_safe_to_leave():
            return
        try:
            graph = self._keeper.journal.recover(entry)
        except StudioError as error:
            self._window.tell_error("The work cannot be recovered", error)
            return
        self._window.editor.show(graph, entry.document, changed=True)
        # What is recovered is kept anew before the old snapshot goes.
        self._keeper.keep().result()
        self._discard()

    def _discard(self) -> None:
        finding = self._keeper.journal.discard(self._entries.pop(0))
        if finding is not None:
            self._window.say(str(finding))
        self._show()


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds / size)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def install(window: Window) -> None:
    """Begins to keep, and looks for what was left."""
    keeper = Keeper(window.editor, window)
    window.closing.connect(keeper.close)
    window.add_bar(RecoveryBar(keeper, window))
