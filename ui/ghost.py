"""What is about to be inserted, faint at the cursor."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QPainter, QPainterPath, QPen
from PySide6.QtWidgets import QGraphicsItem, QStyleOptionGraphicsItem, QWidget

from runtime.drawing.paint import RADIUS
from runtime.drawing.scene import Scene
from ui import theme

ABOVE_ALL = 100.0


class Ghost(QGraphicsItem):
    """The boxes and wires of a scene, its left upper corner at the item's place. It takes no part in gestures."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._scene = scene
        left, top, right, bottom = scene.bounds()
        self._corner = QPointF(left, top + 6)
        self._area = QRectF(0, 0, right - left, bottom - top).adjusted(-8, -8, 8, 8)
        self.setZValue(ABOVE_ALL)
        self.setOpacity(0.55)
        self.setAcceptedMouseButtons(Qt.MouseButton.NoButton)

    def boundingRect(self) -> QRectF:  # noqa: N802
        return self._area

    def paint(self, painter: QPainter, option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        look = theme.current()
        painter.translate(-self._corner)
        for link in self._scene.links:
            a, b, c, d = link.curve
            path = QPainterPath(QPointF(*a))
            path.cubicTo(*b, *c, *d)
            painter.setPen(QPen(theme.colour(look.wire(link.type)), 2.0))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawPath(path)
        painter.setPen(QPen(theme.colour(look.selected), 1.2, Qt.PenStyle.DashLine))
        for box in self._scene.boxes:
            painter.setBrush(theme.colour(look.terminal if box.pill else look.title(box.family)))
            painter.drawRoundedRect(QRectF(box.x, box.y, box.width, box.height), RADIUS, RADIUS)
        painter.setPen(theme.colour(look.title_ink))
        for box in self._scene.boxes:
            if not box.pill:
                painter.drawText(QPointF(box.x + 10, box.y + 18), box.title)
