"""A matrix as a picture, and what the number under the mouse is."""

from __future__ import annotations

import numpy as np
from PySide6.QtCore import QEvent, QPoint, QRectF, QSize, Qt
from PySide6.QtGui import QHelpEvent, QImage, QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from runtime.drawing.words import number_text
from runtime.heat_maps import heat_map, shrunk
from ui import theme

LARGEST_CELL = 22.0
ASIDE = 1.0


class HeatMap(QWidget):
    """Rows downwards, columns to the right, as large as there is room; where there is none, a pixel stands for many."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.matrix = np.zeros((0, 0), np.float32)
        self._image = QImage()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName("Heat map")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(320, 140)

    def show_matrix(self, matrix: np.ndarray) -> None:
        """Shows a matrix [rows, columns]."""
        self.matrix = matrix
        self.setAccessibleDescription(f"{matrix.shape[0]} rows, {matrix.shape[1]} columns" if matrix.size else "empty")
        self._draw()

    def _draw(self) -> None:
        self._image = QImage()
        if self.matrix.size:
            ratio = self.devicePixelRatioF()
            rows, columns = max(1, int(self.height() * ratio)), max(1, int(self.width() * ratio))
            pixels = np.ascontiguousarray(heat_map(shrunk(self.matrix, rows, columns)))
            height, width, _ = pixels.shape
            self._image = QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
        self.update()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        self._draw()

    def room(self) -> QRectF:
        """Where the picture is."""
        if not self.matrix.size:
            return QRectF()
        rows, columns = self.matrix.shape
        width = min(self.width() - 2 * ASIDE, columns * LARGEST_CELL)
        height = min(self.height() - 2 * ASIDE, rows * LARGEST_CELL)
        return QRectF(ASIDE, ASIDE, width, height)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look, painter = theme.current(), QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        if self._image.isNull():
            painter.setPen(theme.colour(look.faint))
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, "no elements")
            return
        painter.drawImage(self.room(), self._image)
        painter.setPen(QPen(theme.colour(look.edge), 1))
        painter.drawRect(self.room())

    def told(self, place: QPoint) -> str:
        """What stands at a place."""
        room = self.room()
        if not room.contains(place):
            return ""
        rows, columns = self.matrix.shape
        row = min(int((place.y() - room.top()) / room.height() * rows), rows - 1)
        column = min(int((place.x() - room.left()) / room.width() * columns), columns - 1)
        return f"[{row}, {column}]: {number_text(self.matrix[row, column].item())}"

    def event(self, event: QEvent) -> bool:
        """Tips tell the number."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.told(event.pos()), self)
            return True
        return super().event(event)
