"""What bars and maps of experts have in common: a column for each expert, of which one is chosen."""

from __future__ import annotations

from collections.abc import Collection

from PySide6.QtCore import QEvent, QRectF, Qt, Signal
from PySide6.QtGui import QHelpEvent, QKeyEvent, QMouseEvent, QPainter, QPen
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from ui import theme

LABELS = 15
"""Pixels for the line of numbers below."""
BOTTOM = Qt.AlignmentFlag.AlignBottom
RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class Columns(QWidget):
    """Something with a column for each expert, of which one may be chosen by a click or with the arrow keys."""

    chosen = Signal(int)
    """An expert was chosen."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.count = 0
        self.current = -1
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)

    def room(self) -> QRectF:
        """Where the columns are."""
        return QRectF(self.rect()).adjusted(1, 1, -1, -1)

    def column(self, expert: int) -> QRectF:
        """An expert's column."""
        room = self.room()
        width = room.width() / max(1, self.count)
        return QRectF(room.left() + expert * width, room.top(), width, room.height())

    def expert_at(self, x: float) -> int:
        """The expert whose column is at x; -1 if there is none."""
        room = self.room()
        if not self.count or not room.left() <= x < room.right():
            return -1
        return min(int((x - room.left()) / room.width() * self.count), self.count - 1)

    def mark(self, expert: int) -> None:
        """Shows that an expert is chosen."""
        self.current = expert if 0 <= expert < self.count else -1
        self.update()

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        expert = self.expert_at(event.position().x())
        if expert >= 0:
            self.chosen.emit(expert)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        step = {Qt.Key.Key_Right: 1, Qt.Key.Key_Left: -1}.get(Qt.Key(event.key()))
        if step is None or not self.count:
            super().keyPressEvent(event)
        else:
            self.chosen.emit(min(max(self.current + step, 0), self.count - 1))

    def told(self, x: float, y: float) -> str:
        """What stands at a place."""
        raise NotImplementedError

    def event(self, event: QEvent) -> bool:
        """Tips tell what stands there."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.told(event.pos().x(), event.pos().y()), self)
            return True
        return super().event(event)

    def paint_numbers(self, painter: QPainter, low: Collection[int] = ()) -> None:
        """The experts' numbers below their columns, as many as there is room for."""
        look, room = theme.current(), self.room()
        every = max(1, round(22 / max(1.0, room.width() / max(1, self.count))))
        painter.setFont(theme.font(10))
        for expert in range(0, self.count, every):
            column = self.column(expert)
            painter.setPen(theme.colour(look.error if expert in low else look.faint))
            label = QRectF(column.left() - 10, room.bottom() + 1, column.width() + 20, LABELS)
            painter.drawText(label, Qt.AlignmentFlag.AlignCenter, str(expert))

    def paint_marks(self, painter: QPainter) -> None:
        """A frame around the chosen expert's column, and one around all while this has the keys."""
        look = theme.current()
        painter.setBrush(Qt.BrushStyle.NoBrush)
        if 0 <= self.current < self.count:
            painter.setPen(QPen(theme.colour(look.selected), 1.6))
            painter.drawRect(self.column(self.current).adjusted(0, 0, -1, 0))
        if self.hasFocus():
            painter.setPen(QPen(theme.colour(look.selected), 1))
            painter.drawRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5))
