"""Widgets of the Experts pane: loads as bars, and which token went where with which weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QHelpEvent, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from runtime.drawing.style import blend
from runtime.experts import Loads, weight_map
from runtime.heat_maps import shrunk
from runtime.routing import Routing
from ui import theme

LABELS = 15
LEAST_TOKENS = 8


class _Columns(QWidget):
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

    def _frame_current(self, painter: QPainter) -> None:
        if 0 <= self.current < self.count:
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(theme.colour(theme.current().selected), 1.6))
            painter.drawRect(self.column(self.current).adjusted(0, 0, -1, 0))


class LoadBars(_Columns):
    """A bar for each expert, or for each of two kinds of error; a line at the mean."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.values: tuple[float, ...] = ()
        self.words: tuple[str, ...] = ()
        self.low: frozenset[int] = frozenset()
        self.setAccessibleName("Load of each expert")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 84)

    def show_loads(self, loads: Loads | None) -> None:
        """Shows how many tokens each expert got."""
        counts = loads.counts.tolist() if loads is not None else []
        total = max(1, sum(counts))
        words = tuple(f"expert {e}: {n:,} tokens, {n / total:.1%}" for e, n in enumerate(counts))
        self.show_values([float(n) for n in counts], words, loads.starved if loads is not None else ())

    def show_values(self, values: Sequence[float], words: Sequence[str], low: Sequence[int] = ()) -> None:
        """Shows a number for each expert, with what a tip says of it; those of `low` stand out."""
        self.values, self.words, self.low = tuple(values), tuple(words), frozenset(low)
        self.count = len(self.values)
        self.current = min(self.current, self.count - 1)
        self.update()

    def room(self) -> QRectF:
        return QRectF(self.rect()).adjusted(1, 3, -1, -LABELS)

    def told(self, x: float, y: float) -> str:
        expert = self.expert_at(x)
        return self.words[expert] if expert >= 0 else ""

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look, painter = theme.current(), QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        if not self.values:
            return
        room, most = self.room(), max([v for v in self.values if np.isfinite(v)], default=0.0) or 1.0
        painter.setFont(theme.font(10))
        for expert, value in enumerate(self.values):
            column = self.column(expert)
            gap = 1.0 if column.width() > 4 else 0.0
            share = min(value / most, 1.0)
            fill = look.error if expert in self.low else blend(look.selected, look.background, 0.7)
            height = max(column.height() * share, 1.5 if value else 0.0)
            painter.fillRect(
                QRectF(column.left(), room.bottom() - height, column.width() - gap, height), theme.colour(fill)
            )
            every = max(1, round(22 / max(1.0, column.width())))
            if expert % every == 0:
                painter.setPen(theme.colour(look.error if expert in self.low else look.faint))
                label = QRectF(column.left() - 10, room.bottom() + 1, column.width() + 20, LABELS)
                painter.drawText(label, Qt.AlignmentFlag.AlignCenter, str(expert))
        mean = sum(self.values) / len(self.values)
        y = room.bottom() - room.height() * min(mean / most, 1.0)
        painter.setPen(QPen(theme.colour(look.warning), 1, Qt.PenStyle.DashLine))
        painter.drawLine(QPointF(room.left(), y), QPointF(room.right(), y))
        self._frame_current(painter)


class TokenMap(_Columns):
    """Tokens downwards, experts to the right; the colour is the mixing weight. The wheel zooms, up and down move."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.routing: Routing | None = None
        self.first = self.shown = 0
        self.setAccessibleName("Tokens and experts")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 130)

    def show_routing(self, routing: Routing | None) -> None:
        """Shows where tokens went."""
        self.routing = routing
        self.count = routing.count if routing is not None else 0
        self.first, self.shown = 0, len(routing.experts) if routing is not None else 0
        self.current = min(self.current, self.count - 1)
        self.setAccessibleDescription(f"{self.shown} tokens, {self.count} experts")
        self.update()

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.routing.experts) if self.routing is not None else 0

    def look_at(self, first: float, shown: float) -> None:
        """Shows `shown` tokens from `first` on."""
        self.shown = int(min(max(shown, LEAST_TOKENS), self.tokens))
        self.first = int(min(max(first, 0), self.tokens - self.shown))
        self.update()

    def token_at(self, y: float) -> int:
        """The token at a height; -1 if there is none."""
        room = self.room()
        if not self.shown or not room.top() <= y < room.bottom():
            return -1
        return self.first + int((y - room.top()) / room.height() * self.shown)

    def told(self, x: float, y: float) -> str:
        expert, token = self.expert_at(x), self.token_at(y)
        if self.routing is None or expert < 0 or token < 0:
            return ""
        ranks = np.flatnonzero(self.routing.experts[token] == expert)
        if not ranks.size:
            chosen = ", ".join(map(str, self.routing.experts[token].tolist()))
            return f"token {token} did not choose expert {expert}, but {chosen}"
        weight = float(self.routing.weights[token, ranks[0]])
        return f"token {token}, expert {expert}: weight {weight:.4g}, choice {int(ranks[0]) + 1}"

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look, painter = theme.current(), QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        room = self.room()
        if self.routing is None or not self.tokens:
            return
        ratio = self.devicePixelRatioF()
        weights = weight_map(self.routing, self.first, self.first + self.shown)
        weights = shrunk(weights, max(1, int(room.height() * ratio)), max(1, int(room.width() * ratio)))
        most = float(np.nanmax(weights, initial=0.0)) or 1.0
        share = np.clip(np.nan_to_num(weights / most), 0, 1)[..., None] ** 0.6
        low, high = np.array(look.background, np.float64), np.array(look.selected, np.float64)
        pixels = np.ascontiguousarray(np.rint(low + (high - low) * share).astype(np.uint8))
        height, width, _ = pixels.shape
        painter.drawImage(room, QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888))
        painter.setPen(QPen(theme.colour(look.edge), 1))
        painter.drawRect(room)
        if self.shown < self.tokens:
            painter.setFont(theme.font(10))
            painter.setPen(theme.colour(look.ink))
            text = f"tokens {self.first:,} to {self.first + self.shown - 1:,} of {self.tokens:,}"
            painter.drawText(room.adjusted(4, 2, -4, -2), Qt.AlignmentFlag.AlignRight, text)
        self._frame_current(painter)

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        if not self.tokens:
            return
        token = max(self.token_at(event.position().y()), 0)
        part = (token - self.first) / max(1, self.shown)
        shown = self.shown * 1.0015 ** -event.angleDelta().y()
        shown = min(max(shown, LEAST_TOKENS), self.tokens)
        self.look_at(token - part * shown, shown)
        event.accept()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        page = max(1, self.shown // 4)
        match event.key():
            case Qt.Key.Key_Down:
                self.look_at(self.first + page, self.shown)
            case Qt.Key.Key_Up:
                self.look_at(self.first - page, self.shown)
            case Qt.Key.Key_Plus | Qt.Key.Key_Equal:
                self.look_at(self.first, self.shown / 2)
            case Qt.Key.Key_Minus:
                self.look_at(self.first, self.shown * 2)
            case _:
                super().keyPressEvent(event)
