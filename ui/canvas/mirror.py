"""The seam between a document and NodeGraphQt: whatever is edited in the document is drawn; gestures become edits.

`Canvas` is all that the rest of the editor knows of NodeGraphQt. The document is the truth: after every gesture on
wires the drawing is made equal to it, and NodeGraphQt's own undo, sessions, clipboard and menus are never used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from NodeGraphQt import BaseNode, NodeGraph
from NodeGraphQt.base.port import Port
from PySide6.QtCore import QObject, QPointF, QRectF, QTimer, Signal

from runtime.drawing.scene import Box, arranged, box_of, port_names, positions, stored_position, worst_findings
from runtime.editing import follow_with_frames, framed_nodes, insert_on_wire
from runtime.errors import Finding, GraphError, Severity
from runtime.graph import Add, Cut, Edit, Graph, PortRef, Remove, Set, Wire
from ui.canvas.items import OUT, NodeItem, PipeItem, PortItem
from ui.canvas.viewer import Viewer

CHECK_AFTER = 60
"""Milliseconds from the last edit to the check of the graph."""


class DocumentNode(BaseNode):
    """NodeGraphQt's handle of a node of the document."""

    __identifier__ = "document"
    NODE_NAME = "node"

    def __init__(self) -> None:
        super().__init__(NodeItem)


class LibraryGraph(NodeGraph):
    """NodeGraphQt's controller, which hears of no gesture: `Canvas` does."""

    def _wire_signals(self) -> None:
        pass

    def _register_context_menu(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Prepared:
    """What takes long about showing a document and needs no window: its findings, its boxes and their places."""

    findings: Sequence[Finding]
    boxes: Mapping[str, Box]
    places: Mapping[str, tuple[float, float]]


def prepare(graph: Graph) -> Prepared:
    """Checks and lays out a document. May be called in any thread, before the document is shown."""
    findings = graph.checker.findings()
    worst = worst_findings(findings)
    graph.checker.take_examined()
    boxes = {id: box_of(graph, id, every_port=True, worst=worst) for id in graph.nodes}
    return Prepared(findings, boxes, positions(graph, boxes))


class Canvas(QObject):
    """Shows one document at a time in `viewer`, and turns gestures into edits of it."""

    selection_changed = Signal(list)
    """The ids of the selected nodes."""
    node_opened = Signal(str)
    """A node was double-clicked."""
    edit_failed = Signal(str)
    """Why a gesture changed nothing."""
    checked = Signal(list)
    """The graph was checked: the findings."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = Viewer()
        self.library = LibraryGraph(self, viewer=self.viewer)
        self.library.set_acyclic(False)
        self.graph = Graph()
        self._end_listening: Callable[[], None] = lambda: None
        self._timer = QTimer(self, singleShot=True, interval=CHECK_AFTER)
        self._timer.timeout.connect(self.refresh)
        self._selected: list[str] = []
        self._severities: dict[tuple[str, str], Severity] = {}
        viewer = self.viewer
        viewer.why_not = self._why_not
        viewer.moved_nodes.connect(self._nodes_moved)
        viewer.connection_changed.connect(self._connections_changed)
        viewer.connection_sliced.connect(self._sliced)
        viewer.insert_node.connect(self._dropped_on_wire)
        viewer.node_double_clicked.connect(self.node_opened)
        viewer.scene().selectionChanged.connect(self._selection_changed)

    # -- the document -------------------------------------------------------------------------------------------------

    def show(self, graph: Graph, prepared: Prepared | None = None) -> None:
        """Draws another document; `prepared` is what `prepare` made of it, if that was done before."""
        prepared = prepared or prepare(graph)
        self._end_listening()
        self._clear()
        self.graph = graph
        self._severities = worst_findings(prepared.findings)
        # Nothing is painted or told before all is there.
        self.viewer.setUpdatesEnabled(False)
        self.viewer.scene().blockSignals(True)
        try:
            for id in graph.nodes:
                self._add(id, prepared.places[id], prepared.boxes[id])
            for target, source in graph.wires.items():
                self._join(source, target)
        finally:
            self.viewer.scene().blockSignals(False)
            self.viewer.setUpdatesEnabled(True)
        self._end_listening = graph.listen(self._hear)
        self.checked.emit(list(prepared.findings))
        self._selection_changed()

    def close(self) -> None:
        """Ends following the document."""
        self._end_listening()
        self._end_listening = lambda: None
        self._timer.stop()
        self._clear()

    def _clear(self) -> None:
        self.viewer.cancel_wire()
        self.viewer.scene().blockSignals(True)
        for pipe in self.viewer.all_pipes():
            if isinstance(pipe, PipeItem):
                pipe.delete()
        for item in self._items().values():
            self.viewer.scene().removeItem(item)
        self.viewer.scene().blockSignals(False)
        for node in self.library.model.nodes.values():
            node._graph = None
            node._view = None
        self.library.model.nodes.clear()
        self.viewer._node_positions.clear()
        self.viewer._prev_selection_nodes, self.viewer._prev_selection_pipes = [], []

    def _items(self) -> dict[str, NodeItem]:
        return {id: node.view for id, node in self.library.model.nodes.items()}

    def item(self, id: str) -> NodeItem | None:
        """The drawing of a node."""
        node = self.library.model.nodes.get(id)
        return node.view if node is not None else None

    # -- document -> drawing ------------------------------------------------------------------------------------------

    def _hear(self, edit: Edit) -> None:
        match edit:
            case Add(node):
                place = stored_position(node) or self._free_place()
                self._add(node.id, place)
            case Remove(id):
                self._remove(id)
            case Wire(source, target):
                self._fit_ports(target.node, source.node)
                if self._pipe(target) is None:
                    self._join(source, target)
            case Cut(target):
                pipe = self._pipe(target)
                source_node = pipe.output_port.node.id if pipe is not None else ""
                self._unjoin(target)
                self._fit_ports(target.node, source_node)
            case Set(node, "layout", "position") if node:
                moved, item = stored_position(self.graph.nodes[node]), self.item(node)
                if item is not None and moved is not None:
                    item.xy_pos = list(moved)
            case Set(node, "parameters") if node:
                self._fit_ports(node)
        if not (isinstance(edit, Set) and edit.is_layout):
            self._timer.start()

    def _add(self, id: str, place: tuple[float, float], box: Box | None = None) -> None:
        node = DocumentNode()
        node.model.id = node.view.id = id
        node.model.name = node.NODE_NAME = id
        node.view.name = id
        node._graph = self.library
        node.model._graph_model = self.library.model
        node.model.pos = list(place)
        self.library.model.nodes[id] = node
        self._give_ports(node, box)
        node.view.setPos(*place)
        self.viewer.scene().addItem(node.view)

    def _give_ports(self, node: DocumentNode, box: Box | None = None) -> None:
        """Shows the node's box, and tells NodeGraphQt of its ports if they are others than before."""
        if box is None:
            box = box_of(self.graph, node.model.id, every_port=True, worst=self._severities)
        if not node.view.show_box(box):
            return
        node._inputs, node._outputs = [], []
        node.model.inputs, node.model.outputs = {}, {}
        sides = (
            (box.inputs, node.view._inputs, node._inputs, node.model.inputs, False),
            (box.outputs, node.view._outputs, node._outputs, node.model.outputs, True),
        )
        for terminals, items, ports, models, is_output in sides:
            for terminal in terminals:
                port = Port(node, items[terminal.port])
                port.model.type_ = items[terminal.port].port_type
                port.model.name = terminal.port
                port.model.multi_connection = is_output
                ports.append(port)
                models[terminal.port] = port.model

    def _remove(self, id: str) -> None:
        item = self.item(id)
        if item is None:
            return
        if self.viewer.is_wiring and self.viewer._start_port in (*item.inputs, *item.outputs):
            self.viewer.cancel_wire()
        for pipe in item.pipes():
            pipe.delete()
        self.viewer.scene().removeItem(item)
        node = self.library.model.nodes.pop(id)
        node._graph = None
        self.viewer._node_positions.pop(item, None)

    def _fit_ports(self, *ids: str) -> None:
        """Shows nodes anew; where ports came or went, their wires are laid again."""
        for id in ids:
            node = self.library.model.nodes.get(id)
            if node is None:
                continue
            before = [p.model.name for p in node._inputs], [p.model.name for p in node._outputs]
            if before != port_names(self.graph, id, every_port=True):
                self._give_ports(node)
                for source, target in self.graph.wires_of(id):
                    other = source.node if target.node == id else target.node
                    self._forget(id, other)
                for source, target in self.graph.wires_of(id):
                    if self._pipe(target) is None:
                        self._join(source, target)

    def _forget(self, id: str, other: str) -> None:
        """Takes the wires between two nodes out of NodeGraphQt's model."""
        for end, far in ((id, other), (other, id)):
            node = self.library.model.nodes.get(end)
            if node is not None:
                for port in (*node._inputs, *node._outputs):
                    port.model.connected_ports.pop(far, None)
        item, far_item = self.item(id), self.item(other)
        if item is not None and far_item is not None:
            for pipe in item.pipes():
                if far_item in (pipe.input_port.node, pipe.output_port.node):
                    pipe.delete()

    def _ends(self, source: PortRef, target: PortRef) -> tuple[PortItem | None, PortItem | None]:
        start, end = self.item(source.node), self.item(target.node)
        return (
            start.port(source.port, True) if start is not None else None,
            end.port(target.port, False) if end is not None else None,
        )

    def _join(self, source: PortRef, target: PortRef) -> None:
        start, end = self._ends(source, target)
        if start is None or end is None:
            return
        models = self.library.model.nodes
        models[source.node].model.outputs[source.port].connected_ports[target.node].append(target.port)
        models[target.node].model.inputs[target.port].connected_ports[source.node].append(source.port)
        pipe = self.viewer.establish_connection(start, end)
        self._dress(pipe)

    def _unjoin(self, target: PortRef) -> None:
        end = self.library.model.nodes.get(target.node)
        model = end.model.inputs.get(target.port) if end is not None else None
        if model is None:
            return
        for other, names in model.connected_ports.items():
            far = self.library.model.nodes.get(other)
            for name in names:
                if far is not None and name in far.model.outputs:
                    ends = far.model.outputs[name].connected_ports
                    if target.port in ends.get(target.node, ()):
                        ends[target.node].remove(target.port)
        model.connected_ports = defaultdict(list)
        pipe = self._pipe(target)
        if pipe is not None:
            pipe.delete()

    def _pipe(self, target: PortRef) -> PipeItem | None:
        item = self.item(target.node)
        port = item.port(target.port, False) if item is not None else None
        return port.connected_pipes[0] if port is not None and port.connected_pipes else None

    def pipe(self, target: PortRef) -> PipeItem | None:
        """The drawing of the wire that ends at an input."""
        return self._pipe(target)

    def _dress(self, pipe: PipeItem) -> None:
        source = PortRef(pipe.output_port.node.id, pipe.output_port.name)
        target = PortRef(pipe.input_port.node.id, pipe.input_port.name)
        broken = self._severities.get((target.node, target.port)) is Severity.ERROR
        pipe.show_value(self.graph.checker.type_of(source), broken)

    def refresh(self) -> None:
        """Checks the graph and shows what was found: types on wires and ports, broken wires, edges of nodes."""
        self._timer.stop()
        self.reconcile()
        self._show_findings()

    def _show_findings(self) -> None:
        findings = self.graph.checker.findings()
        before, self._severities = self._severities, worst_findings(findings)
        changed = self.graph.checker.take_examined()
        changed |= {node for (node, _), _ in before.items() ^ self._severities.items()}
        for id in changed:
            node = self.library.model.nodes.get(id)
            if node is None:
                continue
            box = box_of(self.graph, id, every_port=True, worst=self._severities)
            if box != node.view.box:
                self._fit_ports(id)
                node.view.show_box(box)
            for pipe in node.view.pipes():
                self._dress(pipe)
        self.checked.emit(findings)

    def pipes(self) -> list[PipeItem]:
        """All wires that are drawn."""
        return [
            pipe
            for node in self.library.model.nodes.values()
            for port in node.view._inputs.values()
            for pipe in port.connected_pipes
        ]

    def reconcile(self) -> None:
        """Makes the wires that are drawn those of the document: gestures take some away before they are decided on."""
        if self.viewer.is_wiring:
            return
        wires = self.graph.wires
        drawn: dict[PortRef, PipeItem] = {}
        for pipe in self.pipes():
            target = PortRef(pipe.input_port.node.id, pipe.input_port.name)
            source = PortRef(pipe.output_port.node.id, pipe.output_port.name)
            if wires.get(target) != source or target in drawn:
                pipe.delete()
            else:
                drawn[target] = pipe
        for target, source in wires.items():
            if target not in drawn:
                self._unjoin(target)
                self._join(source, target)

    # -- gestures -> document -----------------------------------------------------------------------------------------

    def edit(self, label: str, change: Callable[[], Any], merge: str = "") -> bool:
        """Makes an edit as one undo step; what stops it is told, and nothing has changed then."""
        made = False
        try:
            with self.graph.transaction(label, merge):
                change()
            made = True
        except GraphError as error:
            self.edit_failed.emit(str(error))
        finally:
            if not made:
                self._put_back()
            self.reconcile()
        return made

    def _put_back(self) -> None:
        """Moves nodes to where the document has them: a gesture moved them, and its edit was not made."""
        for id, item in self._items().items():
            place = stored_position(self.graph.nodes[id])
            if place is not None:
                item.setPos(*place)

    def _why_not(self, start: PortItem, end: PortItem) -> str | None:
        if start.port_type == end.port_type:
            return "A wire goes from an output to an input."
        source, target = (start, end) if start.port_type == OUT else (end, start)
        return self.graph.why_not(PortRef(source.node.id, source.name), PortRef(target.node.id, target.name))

    def _nodes_moved(self, before: Mapping[NodeItem, Sequence[float]]) -> None:
        moved = {item.id: item.xy_pos for item in before if item.id in self.graph.nodes}
        if moved:
            self.move({id: (x, y) for id, (x, y) in moved.items()})

    def move(self, places: Mapping[str, tuple[float, float]], label: str = "", merge: str = "") -> None:
        """Puts nodes at places, in one undo step.

        Nodes that the document gives no place keep the one that they are shown at: a layout made anew without those
        that were moved would be another.
        """
        shown = {
            id: (item.x(), item.y())
            for id, item in self._items().items()
            if id not in places and stored_position(self.graph.nodes[id]) is None
        }

        def change() -> None:
            for id, (x, y) in (shown | dict(places)).items():
                self.graph.set(id, "position", [round(x, 1), round(y, 1)], section="layout")

        count = len(places)
        self.edit(label or (f"Move {next(iter(places))}" if count == 1 else f"Move {count} nodes"), change, merge)

    def _connections_changed(self, disconnected: Iterable[Any], connected: Iterable[Any]) -> None:
        cuts, wires = [self._refs(*pair) for pair in disconnected], [self._refs(*pair) for pair in connected]

        def change() -> None:
            for source, target in cuts:
                if self.graph.wires.get(target) == source:
                    self.graph.cut(target)
            for source, target in wires:
                reason = self.graph.why_not(source, target)
                if reason is not None:
                    raise GraphError(Finding(reason, target.node, target.port, code="wire"))
                self.graph.wire(source, target)

        if cuts or wires:
            source, target = (wires or cuts)[0]
            self.edit(f"Wire {source} to {target}" if wires else f"Cut {source} to {target}", change)
        else:
            self.reconcile()

    @staticmethod
    def _refs(first: PortItem, second: PortItem) -> tuple[PortRef, PortRef]:
        source, target = (first, second) if first.port_type == OUT else (second, first)
        return PortRef(source.node.id, source.name), PortRef(target.node.id, target.name)

    def _sliced(self, pairs: Sequence[Sequence[PortItem]]) -> None:
        targets = [self._refs(*pair)[1] for pair in pairs]
        if targets:

            def change() -> None:
                for target in targets:
                    self.graph.cut(target)

            self.edit(f"Cut {len(targets)} wires", change)

    def _dropped_on_wire(self, pipe: PipeItem, id: str, before: Mapping[NodeItem, Sequence[float]]) -> None:
        target = PortRef(pipe.input_port.node.id, pipe.input_port.name)
        pipe.setSelected(False)

        def change() -> None:
            self._nodes_moved(before)
            if target in self.graph.wires and not self.graph.wires_of(id):
                insert_on_wire(self.graph, id, target)

        self.edit(f"Insert {id} into a wire", change)

    # -- selection and view -------------------------------------------------------------------------------------------

    @property
    def selected(self) -> list[str]:
        """The ids of the selected nodes, in the document's order."""
        return list(self._selected)

    def select(self, ids: Collection[str]) -> None:
        """Selects these nodes and no others."""
        self.viewer.scene().blockSignals(True)
        self.viewer.scene().clearSelection()
        for id in ids:
            item = self.item(id)
            if item is not None:
                item.setSelected(True)
        self.viewer.scene().blockSignals(False)
        self._selection_changed()

    def _selection_changed(self) -> None:
        chosen = {item.id for item in self.viewer.scene().selectedItems() if isinstance(item, NodeItem)}
        ids = [id for id in self.graph.nodes if id in chosen]
        if ids != self._selected:
            self._selected = ids
            self.selection_changed.emit(ids)

    def fit(self, ids: Collection[str] | None = None) -> None:
        """Shows all nodes, or these."""
        self.viewer.fit(self.area(ids))

    def area(self, ids: Collection[str] | None = None) -> QRectF:
        """The rectangle around all nodes, or these."""
        items = self._items()
        return self.viewer._combined_rect([items[id] for id in (items if ids is None else ids) if id in items])

    def reveal(self, id: str) -> None:
        """Selects a node and moves it into view."""
        item = self.item(id)
        if item is None:
            return
        self.select([id])
        if not self.viewer.visible().contains(item.sceneBoundingRect()):
            self.viewer.centre_on(item.sceneBoundingRect().center())

    def clean_up(self, ids: Collection[str] | None = None) -> None:
        """Lays out all nodes, or these, in one undo step."""
        chosen = [id for id in self.graph.nodes if ids is None or id in ids]
        boxes = {id: box_of(self.graph, id, every_port=True) for id in chosen}
        places = arranged(self.graph, boxes)
        if ids is not None and places:
            area = self.area(chosen)
            places = {id: (x + area.left(), y + area.top()) for id, (x, y) in places.items()}

        def change() -> None:
            self.move({}, "Clean up")  # what has no place is written down where it is shown, for the frames around it
            framed = framed_nodes(self.graph)
            self.move(places, "Clean up")
            follow_with_frames(self.graph, framed)

        self.edit("Clean up", change)

    def _free_place(self) -> tuple[float, float]:
        """A place in the middle of what is visible where no node stands."""
        centre = self.viewer.visible().center()
        spot = QPointF(round(centre.x()), round(centre.y()))
        while any(isinstance(item, NodeItem) for item in self.viewer.scene().items(spot)):
            spot += QPointF(24, 24)
        return spot.x(), spot.y()
