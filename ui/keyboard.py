"""The canvas without a mouse: arrows walk from node to node, Shift moves them, W draws a wire."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, QPoint, QPointF, Qt
from PySide6.QtGui import QKeyEvent

from runtime.drawing.words import type_text
from runtime.graph import PortRef
from ui.chooser import Choice, Chooser
from ui.window import Window

STEP = 20.0
_WAYS = {
    Qt.Key.Key_Left: QPointF(-1, 0),
    Qt.Key.Key_Right: QPointF(1, 0),
    Qt.Key.Key_Up: QPointF(0, -1),
    Qt.Key.Key_Down: QPointF(0, 1),
}


class Keyboard(QObject):
    """Listens to the canvas's keys."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self._window, self._editor, self._canvas = window, window.editor, window.editor.canvas
        self._canvas.viewer.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Arrows, alone or with Shift."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            way = _WAYS.get(Qt.Key(event.key()))
            held = event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier
            if way is not None and held == Qt.KeyboardModifier.NoModifier:
                self.walk(way)
                return True
            if way is not None and held == Qt.KeyboardModifier.ShiftModifier:
                self.push(way)
                return True
        return super().eventFilter(watched, event)

    def walk(self, way: QPointF) -> None:
        """Selects the nearest node in a direction; along a wire if there is one."""
        chosen = self._canvas.selected
        if not chosen:
            first = next(iter(self._editor.graph.order()), None)
            if first is not None:
                self._canvas.reveal(first)
            return
        here = self._centre(chosen[-1])
        best, least = "", float("inf")
        for id in self._editor.graph.nodes:
            if id in chosen:
                continue
            there = self._centre(id) - here
            along = there.x() * way.x() + there.y() * way.y()
            aside = abs(there.x() * way.y()) + abs(there.y() * way.x())
            if along > 4:
                wired = any(id in (s.node, t.node) for s, t in self._editor.graph.wires_of(chosen[-1]))
                far = along + 2.5 * aside - (200 if wired else 0)
                if far < least:
                    best, least = id, far
        if best:
            self._canvas.reveal(best)

    def _centre(self, id: str) -> QPointF:
        item = self._canvas.item(id)
        return item.sceneBoundingRect().center() if item is not None else QPointF()

    def push(self, way: QPointF) -> None:
        """Moves the selection by a step; pushes one after the other are one undo step."""
        places = {}
        for id in self._canvas.selected:
            item = self._canvas.item(id)
            if item is not None:
                places[id] = (item.x() + STEP * way.x(), item.y() + STEP * way.y())
        if places:
            self._canvas.move(places, merge=f"push {' '.join(places)}")

    # -- wires --------------------------------------------------------------------------------------------------------

    def wire(self) -> None:
        """Asks for an output of the selected node, then for an input that takes it."""
        chosen = self._canvas.selected
        if len(chosen) != 1:
            self._editor.told.emit("Select one node to draw a wire from.")
            return
        item = self._canvas.item(chosen[0])
        ports = [PortRef(chosen[0], port.name) for port in item.outputs] if item is not None else []
        if len(ports) == 1:
            self._ask_target(ports[0])
        elif ports:
            self._pop_up("From which output?", [self._source_choice(port) for port in ports])
        else:
            self._editor.told.emit(f"{chosen[0]} has no outputs.")

    def _source_choice(self, port: PortRef) -> Choice:
        detail = type_text(self._editor.graph.checker.type_of(port))
        return Choice(port.port, detail, lambda: self._ask_target(port))

    def _ask_target(self, source: PortRef) -> None:
        """Lists the inputs that may be wired, free ones first."""
        graph = self._editor.graph
        free: list[Choice] = []
        taken: list[Choice] = []
        for id in graph.nodes:
            item = self._canvas.item(id)
            for port in item.inputs if item is not None else ():
                target = PortRef(id, port.name)
                if graph.wires.get(target) == source or graph.why_not(source, target) is not None:
                    continue
                now = graph.wires.get(target)
                (taken if now else free).append(self._target_choice(source, target, now))
        if free or taken:
            self._pop_up(f"Wire {source} to", [*free, *taken])
        else:
            self._editor.told.emit(f"No input takes the value of {source}.")

    def _target_choice(self, source: PortRef, target: PortRef, now: PortRef | None) -> Choice:
        def connect() -> None:
            self._editor.edit(f"Wire {source} to {target}", lambda: self._editor.graph.wire(source, target))

        node = self._editor.graph.nodes[target.node].type.rpartition(".")[2]
        return Choice(str(target), f"{node}, in place of {now}" if now else node, connect)

    def _pop_up(self, title: str, choices: list[Choice]) -> None:
        viewer = self._canvas.viewer
        item = self._canvas.item(self._canvas.selected[0]) if self._canvas.selected else None
        place = viewer.mapFromScene(item.sceneBoundingRect().topRight()) if item is not None else QPoint(60, 60)
        room = viewer.viewport().rect().adjusted(10, 10, -400, -260)
        place = QPoint(max(10, min(place.x(), room.right())), max(10, min(place.y(), room.bottom())))
        Chooser(title, choices, viewer).pop_up(viewer.viewport().mapToGlobal(place))


def install(window: Window) -> None:
    """Adds the keys, and the command that draws a wire."""
    keyboard = Keyboard(window)
    window.command("Insert", "Wire from the selected node…", keyboard.wire, "W")
