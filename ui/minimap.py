"""The whole document, small, with what is visible of it; a press or a drag moves there."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, Qt, QTimer
from PySide6.QtGui import QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QWidget

from ui import theme
from ui.editor import Editor

WIDTH, HEIGHT, INSET = 190, 120, 6


class MiniMap(QWidget):
    """Lies over a corner of the canvas."""

    def __init__(self, editor: Editor, parent: QWidget) -> None:
        super().__init__(parent)
        self._editor = editor
        self.setFixedSize(WIDTH, HEIGHT)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAccessibleName("Mini map")
        self._later = QTimer(self, singleShot=True, interval=40)
        self._later.timeout.connect(self._look)
        editor.canvas.viewer.moved_view.connect(self._later.start)
        editor.edited.connect(lambda edit: self._later.start())
        editor.document_changed.connect(self._later.start)

    def _look(self) -> None:
        """Shows itself while there is something that is not visible: else it would only cover what is."""
        area, viewer = self._editor.canvas.area(), self._editor.canvas.viewer
        has_room = viewer.width() > 2.5 * WIDTH and viewer.height() > 2.5 * HEIGHT
        self.setVisible(has_room and not area.isEmpty() and not viewer.visible().contains(area))
        self.update()

    def _whole(self) -> QRectF:
        return self._editor.canvas.area().united(self._editor.canvas.viewer.visible())

    def _scale(self, whole: QRectF) -> float:
        return min((WIDTH - 2 * INSET) / max(1.0, whole.width()), (HEIGHT - 2 * INSET) / max(1.0, whole.height()))

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look = theme.current()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(theme.colour(look.edge), 1))
        painter.setBrush(theme.colour(look.box, 225))
        painter.drawRoundedRect(QRectF(0.5, 0.5, WIDTH - 1, HEIGHT - 1), 5, 5)
        whole = self._whole()
        scale = self._scale(whole)
        painter.translate(
            INSET + (WIDTH - 2 * INSET - whole.width() * scale) / 2,
            INSET + (HEIGHT - 2 * INSET - whole.height() * scale) / 2,
        )
        painter.scale(scale, scale)
        painter.translate(-whole.topLeft())
        for id in self._editor.graph.nodes:
            item = self._editor.canvas.item(id)
            if item is not None and item.box is not None:
                fill = look.faint if item.box.pill else look.title(item.box.family)
                fill = look.selected if item.isSelected() else fill
                painter.fillRect(QRectF(item.x(), item.y(), item.box.width, item.box.height), theme.colour(fill))
        pen = QPen(theme.colour(look.selected), 1.5)
        pen.setCosmetic(True)
        painter.setPen(pen)
        painter.setBrush(theme.colour(look.selected, 25))
        painter.drawRect(self._editor.canvas.viewer.visible())
        painter.end()

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        self._go(event.position())

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if event.buttons() & Qt.MouseButton.LeftButton:
            self._go(event.position())

    def _go(self, place: QPointF) -> None:
        whole = self._whole()
        scale = self._scale(whole)
        centre = QPointF(WIDTH / 2, HEIGHT / 2)
        self._editor.canvas.viewer.centre_on(whole.center() + (place - centre) / scale)
