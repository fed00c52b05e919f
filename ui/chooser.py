"""A list that is filtered while one types: for choosing with the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QObject, QPoint, Qt
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QFrame, QLabel, QLineEdit, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

WIDTH, ROWS = 380, 9
_CHOICE = Qt.ItemDataRole.UserRole
_MOVES = (Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_PageDown)


@dataclass(frozen=True, slots=True)
class Choice:
    """One line: what it says, in more words, and what is done when it is chosen."""

    text: str
    detail: str
    choose: Callable[[], object]


class Chooser(QFrame):
    """Pops up at a place; Enter takes the marked line, Esc closes."""

    def __init__(self, title: str, choices: Sequence[Choice], parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._choices = list(choices)
        self.field = QLineEdit()
        self.field.setPlaceholderText(title)
        self.field.setAccessibleName(title)
        self.list = QListWidget()
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.note = QLabel(wordWrap=True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        for part in (self.field, self.list, self.note):
            layout.addWidget(part)
        self.field.textChanged.connect(self._filter)
        self.list.currentItemChanged.connect(lambda now, before: self._show_detail(now))
        self.list.itemClicked.connect(lambda row: self._take())
        self.field.installEventFilter(self)
        self._filter("")

    def pop_up(self, place: QPoint) -> None:
        """Shows the list with its corner at a place of the screen."""
        self.setFixedWidth(WIDTH)
        row = self.list.sizeHintForRow(0) if self.list.count() else 20
        self.list.setFixedHeight(row * min(ROWS, max(1, len(self._choices))) + 6)
        self.move(place)
        self.show()
        self.field.setFocus()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Keys of the field that move in the list, take a line or close."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            if event.key() in _MOVES:
                self.list.event(event)
                return True
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._take()
                return True
            if event.key() == Qt.Key.Key_Escape:
                self.close()
                return True
        return super().eventFilter(watched, event)

    def _filter(self, text: str) -> None:
        """Lists what holds all the words, those that begin with the text first."""
        words = text.lower().split()
        fitting = [c for c in self._choices if all(word in f"{c.text} {c.detail}".lower() for word in words)]
        fitting.sort(key=lambda choice: not choice.text.lower().startswith(text.lower()))
        self.list.clear()
        for choice in fitting:
            row = QListWidgetItem(choice.text)
            row.setData(_CHOICE, choice)
            self.list.addItem(row)
        self.list.setCurrentRow(0)
        if not fitting:
            self.note.setText("Nothing fits.")

    def _show_detail(self, row: QListWidgetItem | None) -> None:
        choice = row.data(_CHOICE) if row is not None else None
        self.note.setText(choice.detail if choice is not None else "")

    def _take(self) -> None:
        row = self.list.currentItem()
        if row is not None:
            choice = row.data(_CHOICE)
            self.close()
            choice.choose()
