"""Maps of the Experts pane: which token went where with which weight, and which experts work together."""

from __future__ import annotations

import math

import numpy as np
from PySide6.QtCore import QEvent, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import QWidget

from runtime.experts import weight_map, without_diagonal
from runtime.heat_maps import shades, shrunk
from runtime.routing import Routing
from ui import theme
from ui.expert_columns import LABELS, RIGHT, Columns

LEAST_TOKENS = 8
REVEALED = 64
"""Tokens that are shown at most around one that is looked for."""
ASIDE = 28
"""Pixels beside rows, for their numbers."""
MOST_PARTNERS = 6
WRAP = Qt.TextFlag.TextWordWrap


class TokenMap(Columns):
    """Tokens downwards, experts to the right; the colour is the mixing weight. The wheel zooms, up and down move."""

    moved = Signal()
    """Other tokens are shown."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.routing: Routing | None = None
        self.first = self.shown = 0
        self._picture = QImage()
        self._pictured: object = None
        self.setAccessibleName("Tokens and experts")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 130)

    def show_routing(self, routing: Routing | None) -> None:
        """Shows where tokens went; what is shown already stays as it is."""
        if routing is self.routing:
            return
        self.routing, self._pictured = routing, None
        self.count = routing.count if routing is not None else 0
        self.first, self.shown = 0, len(routing.experts) if routing is not None else 0
        self.current = min(self.current, self.count - 1)
        self.setAccessibleDescription(f"{self.shown} tokens, {self.count} experts")
        self.moved.emit()
        self.update()

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.routing.experts) if self.routing is not None else 0

    def look_at(self, first: float, shown: float) -> None:
        """Shows `shown` tokens from `first` on."""
        self.shown = int(min(max(shown, LEAST_TOKENS), self.tokens))
        self.first = int(min(max(first, 0), self.tokens - self.shown))
        self.moved.emit()
        self.update()

    def reveal(self, token: int) -> None:
        """Shows a token near the middle, large enough to be seen."""
        self.look_at(token - min(self.shown, REVEALED) // 2, min(self.shown, REVEALED))

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
        painter.drawImage(room, self._draw(room))
        painter.setPen(QPen(theme.colour(look.edge), 1))
        painter.drawRect(room)
        if self.shown < self.tokens:
            painter.setFont(theme.font(10))
            painter.setPen(theme.colour(look.ink))
            text = f"tokens {self.first:,} to {self.first + self.shown - 1:,} of {self.tokens:,}"
            width = painter.fontMetrics().horizontalAdvance(text) + 8
            label = QRectF(room.right() - width, room.top() + 1, width, LABELS)
            painter.fillRect(label, theme.colour(look.background, 220))
            painter.drawText(label, Qt.AlignmentFlag.AlignCenter, text)
        self.paint_marks(painter)

    def _draw(self, room: QRectF) -> QImage:
        """The picture of the tokens that are shown; it is made anew only if that is needed."""
        assert self.routing is not None
        look, ratio = theme.current(), self.devicePixelRatioF()
        rows, columns = max(1, int(room.height() * ratio)), max(1, int(room.width() * ratio))
        wanted = (self.first, self.shown, rows, columns, look.name)
        if wanted != self._pictured:
            weights = weight_map(self.routing, self.first, self.first + self.shown)
            pixels = shades(shrunk(weights, rows, columns), look.background, look.selected)
            height, width, _ = pixels.shape
            image = QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888)
            self._picture, self._pictured = image.copy(), wanted
        return self._picture

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
            case Qt.Key.Key_PageDown:
                self.look_at(self.first + self.shown, self.shown)
            case Qt.Key.Key_PageUp:
                self.look_at(self.first - self.shown, self.shown)
            case Qt.Key.Key_Home:
                self.look_at(0, self.shown)
            case Qt.Key.Key_End:
                self.look_at(self.tokens, self.shown)
            case Qt.Key.Key_Plus | Qt.Key.Key_Equal:
                self.look_at(self.first, self.shown / 2)
            case Qt.Key.Key_Minus:
                self.look_at(self.first, self.shown * 2)
            case _:
                super().keyPressEvent(event)


class PairMap(Columns):
    """How many tokens two experts share, as a square of squares. What an expert shares with itself is left out."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.pairs = np.zeros((0, 0), np.int64)
        self.k = 0
        self._picture = QImage()
        self.setAccessibleName("Tokens that two experts share")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 130)

    def show_pairs(self, pairs: np.ndarray, k: int) -> None:
        """Shows what `runtime.experts.together` tells of tokens with `k` choices each."""
        self.pairs, self.k = pairs, k
        self.count = len(pairs)
        self.current = min(self.current, self.count - 1)
        self._draw()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange):
            self._draw()

    def _draw(self) -> None:
        self._picture = QImage()
        if self.count > 1 and self.k > 1:
            look = theme.current()
            pixels = shades(without_diagonal(self.pairs), look.background, look.selected)
            self._picture = QImage(
                pixels.data, self.count, self.count, 3 * self.count, QImage.Format.Format_RGB888
            ).copy()
        self.update()

    def room(self) -> QRectF:
        """As many whole pixels for each expert as there is room for."""
        free = min(self.width() - ASIDE - 4, self.height() - LABELS - 4)
        cell = free / max(1, self.count)
        side = self.count * (int(cell) if cell >= 1 else cell)
        return QRectF(ASIDE, 3, side, side)

    def expert_beside(self, y: float) -> int:
        """The expert whose row is at y; -1 if there is none."""
        room = self.room()
        if not self.count or not room.top() <= y < room.bottom():
            return -1
        return min(int((y - room.top()) / room.height() * self.count), self.count - 1)

    def told(self, x: float, y: float) -> str:
        one, other = self.expert_beside(y), self.expert_at(x)
        if one < 0 or other < 0 or self._picture.isNull():
            return ""
        tokens, shared = int(self.pairs[one, one]), int(self.pairs[one, other])
        if one == other:
            return f"expert {one}: {tokens:,} tokens"
        return f"experts {one} and {other} share {shared:,} tokens: {shared / max(1, tokens):.1%} of expert {one}'s"

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        expert = self.expert_beside(event.position().y())
        if expert >= 0 and event.position().x() < self.room().right():
            self.chosen.emit(expert)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1}.get(Qt.Key(event.key()))
        if step is None or not self.count:
            super().keyPressEvent(event)
        else:
            self.chosen.emit(min(max(self.current + step, 0), self.count - 1))

    def column(self, expert: int) -> QRectF:
        """An expert's row: what is framed."""
        room = self.room()
        height = room.height() / max(1, self.count)
        return QRectF(room.left(), room.top() + expert * height, room.width() + 1, height)

    def partners(self) -> list[tuple[int, int]]:
        """The experts with whom the chosen one shares most tokens, and how many."""
        if not 0 <= self.current < self.count or self._picture.isNull():
            return []
        row = without_diagonal(self.pairs)[self.current].tolist()
        return sorted(((e, n) for e, n in enumerate(row) if n), key=lambda pair: -pair[1])[:MOST_PARTNERS]

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look, painter = theme.current(), QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        painter.setPen(theme.colour(look.faint))
        painter.setFont(theme.font(12))
        room = self.room()
        if self._picture.isNull():
            text = "Each token chose one expert: no two work together." if self.k == 1 and self.count else ""
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, text)
            self.paint_marks(painter)
            return
        painter.drawImage(room, self._picture)
        painter.setPen(QPen(theme.colour(look.edge), 1))
        painter.drawRect(room)
        self._paint_rows(painter)
        self._paint_words(painter, QRectF(room.right() + 16, 3, self.width() - room.right() - 20, self.height() - 6))
        self.paint_marks(painter)

    def _paint_rows(self, painter: QPainter) -> None:
        """The experts' numbers beside rows and below columns."""
        look, room = theme.current(), self.room()
        cell = room.height() / self.count
        painter.setFont(theme.font(10))
        painter.setPen(theme.colour(look.faint))
        for expert in range(0, self.count, max(1, math.ceil(12 / cell))):
            row = QRectF(0, room.top() + expert * cell - 6, ASIDE - 4, cell + 12)
            painter.drawText(row, RIGHT, str(expert))
        for expert in range(0, self.count, max(1, math.ceil(22 / cell))):
            below = QRectF(room.left() + expert * cell - 10, room.bottom() + 1, cell + 20, LABELS)
            painter.drawText(below, Qt.AlignmentFlag.AlignCenter, str(expert))

    def _paint_words(self, painter: QPainter, room: QRectF) -> None:
        """What the map says of the chosen expert, beside it."""
        partners = self.partners()
        painter.setPen(theme.colour(theme.current().ink))
        painter.setFont(theme.font(12))
        if self.current < 0:
            text = "Choose an expert to see with whom it works."
        elif not partners:
            text = f"Expert {self.current} shares no token with another."
        else:
            text = f"Expert {self.current} shares tokens with\n" + "\n".join(
                f"expert {expert}: {shared:,} ({shared / self.pairs[self.current, self.current]:.1%} of its own)"
                for expert, shared in partners
            )
        painter.drawText(room, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop | WRAP, text)
