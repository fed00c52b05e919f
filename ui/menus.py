"""What a right click offers, on nodes, ports, wires and the empty canvas; the same is in the menu bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from PySide6.QtCore import QPoint, QPointF, QRect, Qt
from PySide6.QtWidgets import QLineEdit, QMenu

from runtime.editing import (
    add_frame,
    add_probe,
    create_at_port,
    probes_of,
    remove_broken_wires,
    remove_nodes,
    remove_probe,
    rename,
)
from runtime.graph import PortRef
from ui.canvas.frames import COLOURS, FrameItem, Frames
from ui.canvas.items import OUT, NodeItem, PipeItem, PortItem
from ui.quick_drop import open_quick_drop
from ui.window import Window


class Menus:
    """Builds a menu for what lies under the mouse, and does what its lines say."""

    def __init__(self, window: Window) -> None:
        self._window, self._editor, self._canvas = window, window.editor, window.editor.canvas
        self._canvas.viewer.menu_wanted.connect(self._pop_up)
        self.frames = Frames(window.editor)
        self.shown: QMenu | None = None

    def _pop_up(self, what: Any, place: Any, corner: Any) -> None:
        menu = self.shown = QMenu(self._canvas.viewer)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        match what:
            case PortItem():
                self._for_port(menu, PortRef(what.node.id, what.name), what.port_type == OUT)
            case PipeItem():
                self._for_wire(menu, what.target(), place)
            case NodeItem():
                if what.id not in self._canvas.selected:
                    self._canvas.select([what.id])
                self._for_nodes(menu)
            case _ if (frame := self.frames.at(place)) is not None:
                self._for_frame(menu, frame)
            case _:
                self._for_canvas(menu, place)
        menu.popup(corner)

    def _add(self, menu: QMenu, text: str, call: Callable[[], object]) -> None:
        menu.addAction(text).triggered.connect(lambda checked=False: call())

    def _for_port(self, menu: QMenu, port: PortRef, is_output: bool) -> None:
        kinds: tuple[Literal["constant", "input", "output"], ...] = ("output",) if is_output else ("constant", "input")
        for kind in kinds:
            self._add(menu, f"Create {kind}", lambda kind=kind: self.create(port, kind))  # type: ignore[misc]
        if is_output:
            self._add(menu, "Add a node here…", lambda: open_quick_drop(self._editor, source=port))
            self._add_probe(menu, port)
        else:
            self._add(menu, "Add a node here…", lambda: open_quick_drop(self._editor, target=port))
            if port in self._editor.graph.wires:
                self._add_probe(menu, self._editor.graph.wires[port])
                self._add(menu, "Cut the wire", lambda: self._cut(port))

    def _for_wire(self, menu: QMenu, target: PortRef, place: QPointF) -> None:
        self._add(menu, "Insert a node…", lambda: open_quick_drop(self._editor, place, into=target))
        self._add_probe(menu, self._editor.graph.wires[target])
        self._add(menu, "Cut", lambda: self._cut(target))

    def _add_probe(self, menu: QMenu, source: PortRef) -> None:
        if source in probes_of(self._editor.graph):
            self._add(menu, "Remove the probe", lambda: self._edit(f"Unprobe {source}", remove_probe, source))
        else:
            self._add(menu, "Probe", lambda: self._edit(f"Probe {source}", add_probe, source))

    def _for_nodes(self, menu: QMenu) -> None:
        for text in ("Rename…", "Duplicate", "Cut", "Copy", "Copy as plain picture"):
            menu.addAction(self._window.commands[text])
        menu.addSeparator()
        for text in ("Run to here", "Bypass", "Remove", "Remove and rewire", "Frame"):
            if text in self._window.commands:
                menu.addAction(self._window.commands[text])
        menu.addSeparator()
        for text in ("Select what feeds it", "Select what it feeds", "Clean up"):
            menu.addAction(self._window.commands[text])

    def _for_frame(self, menu: QMenu, frame: FrameItem) -> None:
        self._add(menu, "Title…", frame.ask_title)
        menu.addSeparator()
        for name in COLOURS:
            self._add(menu, name.capitalize(), lambda name=name: frame.colour(name))  # type: ignore[misc]
        menu.addSeparator()
        self._add(menu, "Remove the frame", frame.remove)

    def _for_canvas(self, menu: QMenu, place: QPointF) -> None:
        self._add(menu, "Add a node…", lambda: open_quick_drop(self._editor, place))
        for text in ("Paste", "Select all", "Clean up", "Remove broken wires", "Fit"):
            menu.addAction(self._window.commands[text])

    # -- what they do -------------------------------------------------------------------------------------------------

    def _edit(self, label: str, change: Callable[..., Any], *arguments: Any) -> None:
        self._editor.edit(label, lambda: change(self._editor.graph, *arguments))

    def _cut(self, target: PortRef) -> None:
        self._editor.edit(f"Cut the wire to {target}", lambda: self._editor.graph.cut(target))

    def create(self, port: PortRef, kind: Literal["constant", "input", "output"]) -> None:
        """Makes a constant, an input or an output at a port, and selects it."""
        made: list[str] = []
        graph = self._editor.graph
        if self._editor.edit(f"Create {kind} at {port}", lambda: made.append(create_at_port(graph, port, kind))):
            self._canvas.select(made)

    def remove_and_rewire(self) -> None:
        """Removes the selected nodes and bridges the gaps."""
        nodes = self._canvas.selected
        if nodes:
            self._edit("Remove and rewire", lambda graph: remove_nodes(graph, nodes, reconnect=True))

    def remove_broken(self) -> None:
        """Cuts all wires with an error at their end."""
        self._canvas.refresh()
        self._edit("Remove broken wires", remove_broken_wires)
        self._canvas.refresh()

    def frame(self) -> None:
        """Puts a comment frame around the selection."""
        nodes = self._canvas.selected
        if nodes:
            self._edit("Frame", lambda graph: add_frame(graph, nodes))
        else:
            self._editor.told.emit("Select the nodes that the frame is to hold.")

    def with_frame(self, call: Callable[[FrameItem], object]) -> None:
        """Does something with the frame around the selection."""
        frame = self.frames.around(self._canvas.selected)
        if frame is not None:
            call(frame)
        else:
            self._editor.told.emit("Select nodes in a frame.")

    def select_along(self, upstream: bool) -> None:
        """Adds to the selection all nodes that feed it, or that it feeds."""
        graph = self._editor.graph
        found, waiting = set(self._canvas.selected), list(self._canvas.selected)
        while waiting:
            id = waiting.pop()
            for source, target in graph.wires_of(id):
                near, far = (target, source) if upstream else (source, target)
                if near.node == id and far.node not in found:
                    found.add(far.node)
                    waiting.append(far.node)
        self._canvas.select(found)

    def rename(self) -> None:
        """Edits the id of the selected node in its title."""
        chosen = self._canvas.selected
        item = self._canvas.item(chosen[0]) if len(chosen) == 1 else None
        if item is None:
            self._editor.told.emit("Select one node to rename.")
            return
        viewer = self._canvas.viewer
        for open_field in viewer.findChildren(NameField):
            open_field.close()
        corner = viewer.mapFromScene(item.scenePos())
        width = max(160, round((item.box.width if item.box else 120) * viewer.zoom()))
        NameField(self._window, chosen[0], QRect(corner, QPoint(corner.x() + width, corner.y() + 26)))


class NameField(QLineEdit):
    """Lies over a node's title; Enter renames it, Esc does not."""

    def __init__(self, window: Window, id: str, place: QRect) -> None:
        super().__init__(id, window.editor.canvas.viewer)
        self._window, self._id = window, id
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setAccessibleName("New name of the node")
        self.setGeometry(place)
        self.selectAll()
        self.show()
        self.setFocus()
        self.returnPressed.connect(self._take)
        self.editingFinished.connect(self.close)
        window.editor.document_changed.connect(self.close)
        window.editor.canvas.viewer.moved_view.connect(self.close)

    def _take(self) -> None:
        new, editor = self.text().strip(), self._window.editor
        if new != self._id and editor.edit(f"Rename {self._id}", lambda: rename(editor.graph, self._id, new)):
            editor.canvas.select([new])
        self.close()
        editor.canvas.viewer.setFocus()

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Escape:
            self.setText(self._id)
            self.close()
            self._window.editor.canvas.viewer.setFocus()
            return
        super().keyPressEvent(event)


def install(window: Window) -> None:
    """Adds the commands to the menu bar, and answers right clicks."""
    menus = Menus(window)
    window.keep(menus)
    for menu, text, call, shortcut in (
        ("Edit", "Rename…", menus.rename, "F2"),
        ("Edit", "Remove and rewire", menus.remove_and_rewire, "Ctrl+Backspace"),
        ("Edit", "Bypass", menus.remove_and_rewire, "Ctrl+B"),
        ("Edit", "Select what feeds it", lambda: menus.select_along(True), "Ctrl+Shift+Left"),
        ("Edit", "Select what it feeds", lambda: menus.select_along(False), "Ctrl+Shift+Right"),
        ("Diagram", "Remove broken wires", menus.remove_broken, "Ctrl+Shift+B"),
        ("Diagram", "Frame", menus.frame, "Ctrl+Shift+F"),
        ("Diagram", "Frame's title…", lambda: menus.with_frame(FrameItem.ask_title), "Shift+F2"),
        ("Diagram", "Remove the frame", lambda: menus.with_frame(FrameItem.remove), None),
    ):
        window.command(menu, text, call, shortcut)
