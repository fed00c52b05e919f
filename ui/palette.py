"""Every node type by family, to be dragged onto the canvas or placed with Enter."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QEvent, QMimeData, Qt, QTimer
from PySide6.QtGui import QBrush, QDrag
from PySide6.QtWidgets import QLineEdit, QTreeWidget, QTreeWidgetItem, QVBoxLayout, QWidget

from runtime import catalog
from runtime.families import FAMILIES
from runtime.graph import PortRef
from runtime.manual import summary
from runtime.node import Node
from runtime.search import search
from ui import theme
from ui.canvas.items import PipeItem
from ui.editor import Editor
from ui.placing import free_place, lone_source, place, recent_types
from ui.window import LEFT, Window

TYPE = "application/x-qmoe-node-type"
_NAME = Qt.ItemDataRole.UserRole
_FAMILY = Qt.ItemDataRole.UserRole + 1


class Tree(QTreeWidget):
    """Families with their types; a drag carries the type's name."""

    def startDrag(self, actions: Qt.DropAction) -> None:  # noqa: N802
        row = self.currentItem()
        if row is not None and row.data(0, _NAME):
            drag = QDrag(self)
            drag.setMimeData(type_data(str(row.data(0, _NAME))))
            drag.exec(Qt.DropAction.CopyAction)


def type_data(name: str) -> QMimeData:
    """A node type as what a drag carries."""
    data = QMimeData()
    data.setData(TYPE, name.encode())
    return data


class PalettePane(QWidget):
    """A search field over the tree. Enter places the marked type beside the selection and wires it if that is plain."""

    title = "Palette"

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.field = QLineEdit()
        self.field.setPlaceholderText("Find a node")
        self.field.setClearButtonEnabled(True)
        self.field.setAccessibleName("Find a node")
        self.tree = Tree()
        self.tree.setHeaderHidden(True)
        self.tree.setDragEnabled(True)
        self.tree.setIndentation(14)
        self.tree.setAccessibleName("Node types")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 0)
        layout.addWidget(self.field)
        layout.addWidget(self.tree)
        self._opsets: dict[str, int] = {}
        self.field.textChanged.connect(self.show_types)
        editor.document_changed.connect(self._follow_document)
        self.field.returnPressed.connect(self._place_first)
        self.tree.itemActivated.connect(self._place)
        # The schemas are read when the window is there already.
        QTimer.singleShot(0, self, lambda: self.show_types(self.field.text()))

    def show_types(self, text: str = "") -> None:
        """Lists all types by family, or those that a text means, best first."""
        self.tree.clear()
        opsets = self._opsets = dict(self._editor.graph.opsets)
        if text.strip():
            for match in search(text, opsets=opsets, limit=60):
                self.tree.addTopLevelItem(self._row(match.node_type))
            first = self.tree.topLevelItem(0)
            if first is not None:
                self.tree.setCurrentItem(first)
            return
        types = catalog.all_types(opsets)
        recent = [found for name in recent_types() if (found := catalog.find(name, opsets)) is not None]
        if recent:
            self._family("Recent", recent, "graph").setExpanded(True)
        for family, label in FAMILIES.items():
            members = sorted((t for t in types if t.family == family), key=lambda t: t.operator.lower())
            if members:
                row = self._family(label, members, family)
                row.setExpanded(family in ("graph", "mixture"))

    def _family(self, label: str, members: list[type[Node]], family: str) -> QTreeWidgetItem:
        row = QTreeWidgetItem([f"{label}"])
        row.setData(0, _FAMILY, family)
        self._colour(row)
        row.setFont(0, theme.font(12, bold=True))
        row.addChildren([self._row(member) for member in members])
        self.tree.addTopLevelItem(row)
        return row

    def _colour(self, row: QTreeWidgetItem) -> None:
        family = row.data(0, _FAMILY)
        if family:
            row.setForeground(0, QBrush(theme.colour(theme.readable(theme.current().title(family)))))

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Families have the colours of the theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            for index in range(self.tree.topLevelItemCount()):
                row = self.tree.topLevelItem(index)
                if row is not None:
                    self._colour(row)

    def _follow_document(self) -> None:
        """Lists the types anew if the document is of other operator sets."""
        if self._opsets != dict(self._editor.graph.opsets):
            self.show_types(self.field.text())

    def _row(self, node_type: type[Node]) -> QTreeWidgetItem:
        row = QTreeWidgetItem([node_type.operator])
        row.setData(0, _NAME, node_type.type_name())
        inputs = ", ".join(port.name for port in node_type.inputs) or "none"
        outputs = ", ".join(port.name for port in node_type.outputs) or "none"
        row.setToolTip(0, f"{node_type.type_name()}\n{summary(node_type)}\nin: {inputs}\nout: {outputs}")
        return row

    def _place(self, row: QTreeWidgetItem) -> None:
        name = row.data(0, _NAME)
        if not name:
            row.setExpanded(not row.isExpanded())
            return
        source = lone_source(self._editor)
        at = free_place(self._editor)
        node_type = catalog.find(str(name), self._editor.graph.opsets)
        if source is not None and (node_type is None or not node_type.inputs or not self._fits(source, str(name))):
            source = None
        place(self._editor, str(name), at, source=source)

    def _fits(self, source: PortRef, name: str) -> bool:
        value = self._editor.graph.checker.type_of(source)
        return any(
            match.node_type.type_name() == name
            for match in search(name, source=value, opsets=self._editor.graph.opsets, limit=3)
        )

    def _place_first(self) -> None:
        row = self.tree.currentItem() or self.tree.topLevelItem(0)
        if row is not None:
            self._place(row)


def install(window: Window) -> None:
    """Adds the pane, and takes types that are dropped on the canvas: on a wire, they go into it."""
    pane = PalettePane(window.editor)
    window.add_pane(pane, LEFT)
    editor, viewer = window.editor, window.editor.canvas.viewer
    accepts = viewer.accepts

    def accepts_types(data: QMimeData) -> bool:
        return bool(data.hasFormat(TYPE)) or accepts(data)

    viewer.accepts = accepts_types

    def dropped(data: Any, at: Any, opens: bool) -> None:
        if data.hasFormat(TYPE):
            name = bytes(data.data(TYPE).data()).decode(errors="replace")
            if catalog.find(name, editor.graph.opsets) is None:
                return
            wires = [item for item in viewer.scene().items(at) if isinstance(item, PipeItem) and item.input_port]
            into = wires[0].target() if wires else None
            if into is None or not place(editor, name, at, into=into):
                place(editor, name, at)

    viewer.data_dropped_at.connect(dropped)

    def find() -> None:
        window.panes["Palette"].show()
        pane.field.setFocus()
        pane.field.selectAll()

    window.command("Insert", "Find in the palette", find, "Ctrl+Shift+P")
