"""The few icons of the tool bar, painted in the theme's colours."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPen, QPixmap, QPolygonF

from ui import theme

SIZE = 16
SCALES = (1, 2, 3)


def _icon(paint: Callable[[QPainter, QColor], None], colour: QColor, off: QColor) -> QIcon:
    icon = QIcon()
    for mode, ink in ((QIcon.Mode.Normal, colour), (QIcon.Mode.Disabled, off)):
        for scale in SCALES:
            pixels = QPixmap(SIZE * scale, SIZE * scale)
            pixels.setDevicePixelRatio(scale)
            pixels.fill(Qt.GlobalColor.transparent)
            painter = QPainter(pixels)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            paint(painter, ink)
            painter.end()
            icon.addPixmap(pixels, mode)
    return icon


def _triangle(painter: QPainter, x: float, width: float) -> None:
    painter.drawPolygon(QPolygonF([QPointF(x, 3), QPointF(x + width, 8), QPointF(x, 13)]))


def run() -> QIcon:
    """An arrow: the graph can run."""

    def paint(painter: QPainter, ink: QColor) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(ink)
        _triangle(painter, 4, 9)

    look = theme.current()
    return _icon(paint, theme.colour(look.ok), theme.colour(look.faint))


def broken() -> QIcon:
    """An arrow that is broken in two: something keeps the graph from running."""

    def paint(painter: QPainter, ink: QColor) -> None:
        painter.setPen(QPen(ink, 1.4))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        left = [QPointF(7, 4.5), QPointF(2.5, 2.5), QPointF(2.5, 13.5), QPointF(7, 11.5)]
        painter.drawPolyline(QPolygonF([*left, QPointF(5.2, 9), QPointF(7.6, 7), QPointF(7, 4.5)]))
        right = [QPointF(10, 5.6), QPointF(14, 8), QPointF(9.4, 10.7), QPointF(8.2, 8.8), QPointF(10.6, 7)]
        painter.drawPolygon(QPolygonF(right))

    look = theme.current()
    return _icon(paint, theme.colour(look.error), theme.colour(look.faint))


def backward() -> QIcon:
    """An arrow to the left: the way back."""

    def paint(painter: QPainter, ink: QColor) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(ink)
        painter.translate(SIZE, 0)
        painter.scale(-1, 1)
        _triangle(painter, 4, 9)

    look = theme.current()
    return _icon(paint, theme.colour(look.selected), theme.colour(look.faint))


def stop() -> QIcon:
    """A square."""

    def paint(painter: QPainter, ink: QColor) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(ink)
        painter.drawRoundedRect(QRectF(3.5, 3.5, 9, 9), 1.5, 1.5)

    look = theme.current()
    return _icon(paint, theme.colour(look.error), theme.colour(look.faint))
