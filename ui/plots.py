"""Small plots: a histogram, and a strip of colour for each of several."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QPoint, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QHelpEvent, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from runtime.drawing.style import blend
from runtime.drawing.words import number_text
from ui import theme

LABELS = 16
"""Pixels for the line of numbers below a plot."""


class Histogram(QWidget):
    """Bars of equal width from `low` to `high`, or one for each code."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.counts: tuple[int, ...] = ()
        self.beside: tuple[int, ...] = ()
        self.low: float | int | None = None
        self.high: float | int | None = None
        self.by_code = False
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Histogram")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(240, 96)

    def show_counts(
        self, counts: Sequence[int], low: float | int | None, high: float | int | None, by_code: bool = False
    ) -> None:
        """Shows counts; an empty sequence shows nothing."""
        self.counts, self.low, self.high, self.by_code = tuple(counts), low, high, by_code
        self.beside = ()
        self.setAccessibleDescription(f"{sum(self.counts)} values from {low} to {high}" if counts else "")
        self.update()

    def show_beside(self, counts: Sequence[int]) -> None:
        """Draws the counts of a part as a line over the bars, each scaled to its own height."""
        self.beside = tuple(counts)
        self.update()

    def bar(self, index: int) -> QRectF:
        """Where a bar stands."""
        return self._bar(self.counts, index)

    def _room(self) -> QRectF:
        return QRectF(self.rect()).adjusted(1, 3, -1, -LABELS)

    def _bar(self, counts: Sequence[int], index: int) -> QRectF:
        room = self._room()
        width = room.width() / max(1, len(counts))
        height = room.height() * counts[index] / max(1, max(counts))
        if counts[index]:
            height = max(height, 1.5)
        gap = 1.0 if width > 4 else 0.0
        return QRectF(room.left() + index * width, room.bottom() - height, width - gap, height)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look = theme.current()
        painter = QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        painter.setFont(theme.font(10))
        painter.setPen(theme.colour(look.faint))
        if not self.counts:
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, "no histogram")
            return
        fill = theme.colour(blend(look.selected, look.background, 0.65))
        for index in range(len(self.counts)):
            painter.fillRect(self.bar(index), fill)
        room = self._room()
        painter.setPen(QPen(theme.colour(look.edge), 1))
        painter.drawLine(room.bottomLeft(), room.bottomRight())
        if self.beside:
            painter.setPen(QPen(theme.colour(look.warning), 1.6))
            tops = [self._bar(self.beside, index) for index in range(len(self.beside))]
            painter.drawPolyline([end for top in tops for end in (top.topLeft(), top.topRight())])
        painter.setPen(theme.colour(look.faint))
        below = QRectF(self.rect()).adjusted(2, self.height() - LABELS, -2, 0)
        if self.low is not None and self.high is not None:
            sides = ((Qt.AlignmentFlag.AlignLeft, self.low), (Qt.AlignmentFlag.AlignRight, self.high))
            for side, number in sides:
                painter.drawText(below, side | Qt.AlignmentFlag.AlignVCenter, _short(number))
            if self.low < 0 < self.high and not self.by_code:
                place = room.left() + room.width() * (-self.low) / (self.high - self.low)
                painter.setPen(QPen(theme.colour(look.faint), 1, Qt.PenStyle.DotLine))
                painter.drawLine(QPointF(place, room.top()), QPointF(place, room.bottom()))

    def told(self, x: float) -> str:
        """What the bar at a place says."""
        if not self.counts or self.low is None or self.high is None:
            return ""
        room = self._room()
        index = min(max(int((x - room.left()) / room.width() * len(self.counts)), 0), len(self.counts) - 1)
        share = f"{self.counts[index]:,} of {sum(self.counts):,}"
        if self.by_code:
            return f"code {index}: {share}" if self.low == 0 else f"bar {index + 1} of {len(self.counts)}: {share}"
        width = (self.high - self.low) / len(self.counts)
        return f"{_short(self.low + index * width)} to {_short(self.low + (index + 1) * width)}: {share}"

    def event(self, event: QEvent) -> bool:
        """Tips tell the count of a bar."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.told(event.pos().x()), self)
            return True
        return super().event(event)


class Strips(QWidget):
    """A histogram for each slice, as a strip whose colour is the share; a click or the arrow keys choose one."""

    chosen = Signal(int)
    """A slice was chosen."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.strips: tuple[tuple[int, ...], ...] = ()
        self.current = -1
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Histogram of each slice")

    def show_strips(self, strips: Sequence[Sequence[int]]) -> None:
        """Shows a histogram for each slice."""
        self.strips = tuple(tuple(strip) for strip in strips)
        self.current = -1
        row = 14 if len(self.strips) <= 8 else max(2, 112 // max(1, len(self.strips)))
        self.setFixedHeight(row * len(self.strips) + 4 if strips else 0)
        self.setVisible(bool(strips))
        self.update()

    def choose(self, index: int) -> None:
        """Marks a slice and tells of it."""
        if self.strips:
            self.current = min(max(index, 0), len(self.strips) - 1)
            self.update()
            self.chosen.emit(self.current)

    def strip_at(self, y: float) -> int:
        """The slice at a height."""
        return int((y - 2) / max(1.0, (self.height() - 4) / max(1, len(self.strips))))

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look = theme.current()
        painter = QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        height = (self.height() - 4) / max(1, len(self.strips))
        painter.setFont(theme.font(9))
        aside = 22 if height >= 10 else 0
        for row, strip in enumerate(self.strips):
            most, width = max(1, max(strip)), (self.width() - 4 - aside) / max(1, len(strip))
            for column, number in enumerate(strip):
                if number:
                    share = 0.12 + 0.88 * (number / most) ** 0.5
                    fill = theme.colour(blend(look.selected, look.background, share))
                    painter.fillRect(
                        QRectF(2 + aside + column * width, 2 + row * height, width + 0.5, max(1.0, height - 1)), fill
                    )
            if aside:
                painter.setPen(theme.colour(look.warning if row == self.current else look.faint))
                place = QRectF(0, 2 + row * height, aside - 4, height)
                painter.drawText(place, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, str(row))
        if 0 <= self.current < len(self.strips):
            painter.setPen(QPen(theme.colour(look.warning), 1.4))
            painter.drawRect(QRectF(1 + aside, 1.5 + self.current * height, self.width() - 3 - aside, height))
        if self.hasFocus():
            painter.setPen(QPen(theme.colour(look.selected), 1))
            painter.drawRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5))

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        self.choose(self.strip_at(event.position().y()))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1}.get(Qt.Key(event.key()))
        if step is None:
            super().keyPressEvent(event)
        else:
            self.choose(self.current + step)

    def event(self, event: QEvent) -> bool:
        """Tips tell which slice a strip is."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip and self.strips:
            self._tell(event.pos(), event.globalPos())
            return True
        return super().event(event)

    def _tell(self, place: QPoint, where: QPoint) -> None:
        index = min(max(self.strip_at(place.y()), 0), len(self.strips) - 1)
        QToolTip.showText(where, f"slice {index}: {sum(self.strips[index]):,} values", self)


def _short(number: float) -> str:
    return number_text(float(f"{number:.4g}") if isinstance(number, float) else number)
