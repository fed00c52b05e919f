"""The strip below a mixture of experts on the canvas: a small bar for each expert's share of the choices."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QPainter, QPen, QPolygonF

from runtime.drawing.canvas import Colour
from runtime.drawing.style import blend
from runtime.experts import STARVED
from ui import theme

HEIGHT = 12.0
GAP = 2.0
"""Between the node's box and its strip."""
NARROW = 2.0
"""Pixels of the screen below which several experts share a bar, the one with the largest load of them."""
NEAR = 0.42
"""Zoom below which there is no line."""
APART = 5.0
"""Pixels of the screen from which on bars have gaps between them."""


def grouped(shares: Sequence[float], most: int) -> list[float]:
    """At most so many bars: the largest share of each of as many groups of neighbours."""
    count = len(shares)
    most = max(1, min(most, count))
    return [max(shares[number * count // most : (number + 1) * count // most]) for number in range(most)]


def paint(
    painter: QPainter, corner: QPointF, shares: Sequence[float], colour: Colour, stale: bool, zoom: float
) -> None:
    """Paints bars below a box with its lower right corner there, the largest as high as the strip; stale ones grey.

    Seen from near, a line is at the mean.
    """
    look, width = theme.current(), corner.x()
    room = QRectF(0.0, corner.y() + GAP, width, HEIGHT)
    fill = look.faint if stale else colour
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(theme.colour(blend(fill, look.background, 0.14)))
    painter.drawRect(room)
    largest = max(shares, default=0.0)
    if largest <= 0:
        return
    bars = grouped(shares, int(width * zoom / NARROW))
    step = width / len(bars)
    gap = 1.0 / zoom if step * zoom >= APART else 0.0
    painter.setBrush(theme.colour(blend(fill, look.background, 0.8)))
    if gap:
        for number, share in enumerate(bars):
            height = HEIGHT * share / largest
            painter.drawRect(QRectF(number * step, room.bottom() - height, step - gap, height))
    else:
        # One outline, so that neighbours leave no seams.
        corners = [room.bottomLeft()]
        for number, share in enumerate(bars):
            y = room.bottom() - HEIGHT * share / largest
            corners += [QPointF(number * step, y), QPointF((number + 1) * step, y)]
        painter.drawPolygon(QPolygonF([*corners, room.bottomRight()]))
    mean = sum(shares) / len(shares)
    if not stale and len(bars) == len(shares):
        painter.setBrush(theme.colour(look.error))
        for number, share in enumerate(shares):
            if share < STARVED * mean:
                painter.drawRect(QRectF(number * step, room.bottom() - 2.0, step - gap, 2.0))
    if zoom < NEAR:
        return
    y = room.bottom() - HEIGHT * mean / largest
    painter.setPen(QPen(theme.colour(look.faint if stale else look.warning), 0.0))
    painter.drawLine(QPointF(room.left(), y), QPointF(room.right(), y))
