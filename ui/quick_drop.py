"""Ctrl+Space: type the name of a node, and its parameters if you like, and press Enter."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QEvent, QObject, QPoint, QPointF, Qt
from PySide6.QtGui import QCursor, QIcon, QKeyEvent, QPixmap
from PySide6.QtWidgets import QFrame, QLabel, QLineEdit, QListWidget, QListWidgetItem, QVBoxLayout

from runtime.graph import PortRef
from runtime.manual import summary
from runtime.search import Match, search
from ui import theme
from ui.editor import Editor
from ui.placing import free_place, place, recent_types
from ui.window import Window

WIDTH, ROWS = 460, 9
_MATCH = Qt.ItemDataRole.UserRole
_MOVES = (Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_PageDown)


class QuickDrop(QFrame):
    """Lists node types for what is typed; Enter places the marked one, Esc closes.

    `at` is where in the scene it goes; with `source` or `target`, only what fits that port is listed, and is wired to
    it; `into` is a wire that it goes into.
    """

    def __init__(
        self,
        editor: Editor,
        at: QPointF,
        *,
        source: PortRef | None = None,
        target: PortRef | None = None,
        into: PortRef | None = None,
    ) -> None:
        super().__init__(editor.canvas.viewer, Qt.WindowType.Popup)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._editor, self._at = editor, at
        self._source, self._target, self._into = source, target, into
        self.field = QLineEdit()
        self.field.setAccessibleName("Quick drop")
        self.field.setPlaceholderText("qmoe k=4 bits=4")
        self.list = QListWidget()
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.note = QLabel(wordWrap=True)
        self.note.setMinimumHeight(34)
        self.note.setAlignment(Qt.AlignmentFlag.AlignTop)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        for part in (self.field, self.list, self.note):
            layout.addWidget(part)
        self.setFixedWidth(WIDTH)
        self.field.textChanged.connect(self._search)
        self.list.currentItemChanged.connect(lambda now, before: self._explain(now))
        self.list.itemClicked.connect(lambda row: self.take())
        self.field.installEventFilter(self)
        self._search("")
        self.list.setFixedHeight(22 * ROWS + 6)

    def _search(self, text: str) -> None:
        graph = self._editor.graph
        source = self._source if self._into is None else graph.wires.get(self._into)
        value = graph.checker.type_of(source) if source is not None else None
        reader = graph.node_type(self._target.node) if self._target is not None else None
        target = (reader, self._target.port) if reader is not None and self._target is not None else None
        self.list.clear()
        for match in search(text, source=value, target=target, recent=recent_types(), opsets=graph.opsets):
            row = QListWidgetItem(_title(match))
            row.setIcon(_swatch(match.node_type.family))
            row.setData(_MATCH, match)
            self.list.addItem(row)
        self.list.setCurrentRow(0)
        if not self.list.count():
            self._say("No node is called like that.", is_problem=True)

    def _explain(self, row: QListWidgetItem | None) -> None:
        match = row.data(_MATCH) if row is not None else None
        if isinstance(match, Match):
            self._say(match.problem or summary(match.node_type), is_problem=bool(match.problem))

    def _say(self, text: str, *, is_problem: bool) -> None:
        look = theme.current()
        self.note.setStyleSheet(f"color: {theme.css(look.error if is_problem else look.faint)}")
        self.note.setText(text if len(text) < 180 else text[:179] + "…")

    def take(self) -> None:
        """Places the marked node; while something of the text cannot be understood, it stays open."""
        row = self.list.currentItem()
        match = row.data(_MATCH) if row is not None else None
        if not isinstance(match, Match) or match.problem:
            return
        self.close()
        place(
            self._editor,
            match.node_type.type_name(),
            self._at,
            parameters=match.parameters,
            source=self._source,
            target=self._target,
            into=self._into,
        )

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Keys of the field that move in the list, take a line or close."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            if event.key() in _MOVES:
                self.list.event(event)
                return True
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self.take()
                return True
            if event.key() == Qt.Key.Key_Escape:
                self.close()
                return True
        return super().eventFilter(watched, event)

    def pop_up(self, corner: QPoint) -> None:
        """Shows the list with its corner at a place of the screen, or as near as it fits."""
        self.adjustSize()
        room = self.screen().availableGeometry()
        x = max(room.left(), min(corner.x(), room.right() - self.width()))
        y = max(room.top(), min(corner.y(), room.bottom() - self.height()))
        self.move(x, y)
        self.show()
        self.field.setFocus()


def _title(match: Match) -> str:
    name = match.node_type.operator
    domain = f"   {match.node_type.domain}" if match.node_type.domain else ""
    settings = "  ".join(f"{key}={value}" for key, value in match.parameters.items())
    port = f"   → {match.port}" if match.port else ""
    return f"{name}{domain}{port}   {settings}".rstrip()


def _swatch(family: str) -> QIcon:
    """A square in the family's colour."""
    pixmap = QPixmap(10, 10)
    pixmap.fill(theme.colour(theme.current().title(family)))
    return QIcon(pixmap)


def open_quick_drop(
    editor: Editor,
    at: QPointF | None = None,
    *,
    source: PortRef | None = None,
    target: PortRef | None = None,
    into: PortRef | None = None,
) -> QuickDrop:
    """Opens at a place of the scene: without one, at the cursor if it is over the canvas, else beside the selection."""
    viewer = editor.canvas.viewer
    if at is None:
        cursor = viewer.viewport().mapFromGlobal(QCursor.pos())
        inside = viewer.underMouse() and viewer.viewport().rect().contains(cursor)
        at = viewer.mapToScene(cursor) if inside else free_place(editor)
    popup = QuickDrop(editor, at, source=source, target=target, into=into)
    popup.pop_up(viewer.viewport().mapToGlobal(viewer.mapFromScene(at)))
    return popup


def install(window: Window) -> None:
    """Adds the command, and answers wires that were let go over nothing."""
    editor = window.editor
    window.command("Insert", "Quick drop…", lambda: open_quick_drop(editor), "Ctrl+Space")

    def dropped(node: str, port: str, is_output: bool, at: Any) -> None:
        ref = PortRef(node, port)
        options = {"source": ref} if is_output else {"target": ref}
        open_quick_drop(editor, at, **options)

    editor.canvas.viewer.wire_dropped.connect(dropped)
