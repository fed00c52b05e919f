"""What a person does with mouse and keys on a canvas, as events that Qt cannot tell from theirs."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QPoint, QPointF, Qt
from PySide6.QtGui import QMouseEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from runtime.drawing.scene import scene_of
from runtime.graph import PortRef
from ui.canvas.items import PortItem
from ui.canvas.mirror import Canvas

LEFT, NONE = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier


def place_of(canvas: Canvas, node: str, port: str = "", is_output: bool = False) -> QPoint:
    """Where a port's dot, or the title of a node, is on the canvas's widget."""
    item = canvas.item(node)
    assert item is not None, node
    if not port:
        return canvas.viewer.mapFromScene(item.scenePos() + QPointF(14, 8))
    found = item.port(port, is_output)
    assert isinstance(found, PortItem), (node, port)
    return canvas.viewer.mapFromScene(found.centre())


def mouse(canvas: Canvas, kind: QEvent.Type, place: QPoint, held: Qt.MouseButton, keys: Qt.KeyboardModifier) -> None:
    """One event of the mouse; `held` is the button that goes down, is down, or goes up."""
    port = canvas.viewer.viewport()
    button = Qt.MouseButton.NoButton if kind == QEvent.Type.MouseMove else held
    buttons = Qt.MouseButton.NoButton if kind == QEvent.Type.MouseButtonRelease else held
    event = QMouseEvent(kind, QPointF(place), QPointF(port.mapToGlobal(place)), button, buttons, keys)
    QApplication.sendEvent(port, event)


def drag(
    canvas: Canvas, start: QPoint, end: QPoint, keys: Qt.KeyboardModifier = NONE, button: Qt.MouseButton = LEFT
) -> None:
    """Presses at `start`, moves in a few steps, lets go at `end`."""
    mouse(canvas, QEvent.Type.MouseMove, start, Qt.MouseButton.NoButton, keys)
    mouse(canvas, QEvent.Type.MouseButtonPress, start, button, keys)
    for step in (0.1, 0.4, 0.8, 1.0):
        mouse(canvas, QEvent.Type.MouseMove, start + (end - start) * step, button, keys)
    mouse(canvas, QEvent.Type.MouseButtonRelease, end, button, keys)


def click(canvas: Canvas, place: QPoint, keys: Qt.KeyboardModifier = NONE) -> None:
    """Presses and lets go."""
    mouse(canvas, QEvent.Type.MouseMove, place, Qt.MouseButton.NoButton, keys)
    mouse(canvas, QEvent.Type.MouseButtonPress, place, LEFT, keys)
    mouse(canvas, QEvent.Type.MouseButtonRelease, place, LEFT, keys)


def wire(canvas: Canvas, source: str, target: str) -> None:
    """Draws a wire from `node.output` to `node.input`."""
    start, end = PortRef.parse(source), PortRef.parse(target)
    drag(canvas, place_of(canvas, *start, is_output=True), place_of(canvas, *end))


def key(canvas: Canvas, code: Qt.Key, keys: Qt.KeyboardModifier = NONE) -> None:
    """Presses a key on the canvas."""
    QTest.keyClick(canvas.viewer, code, keys)


def assert_same(canvas: Canvas) -> None:
    """What is drawn, what NodeGraphQt has in its model, and the document are the same nodes, ports and wires."""
    graph, library = canvas.graph, canvas.library.model
    assert set(library.nodes) == set(graph.nodes)
    drawn = sorted(
        (p.output_port.node.id, p.output_port.name, p.input_port.node.id, p.input_port.name)
        for p in canvas.viewer.all_pipes()
    )
    wires = sorted((*source, *target) for target, source in graph.wires.items())
    assert drawn == wires
    modelled = sorted(
        (other, name, id, port)
        for id, node in library.nodes.items()
        for port, model in node.model.inputs.items()
        for other, names in model.connected_ports.items()
        for name in names
    )
    assert modelled == wires
    backwards = sorted(
        (id, port, other, name)
        for id, node in library.nodes.items()
        for port, model in node.model.outputs.items()
        for other, names in model.connected_ports.items()
        for name in names
    )
    assert backwards == wires
    boxes = {box.id: box for box in scene_of(graph, every_port=True).boxes}
    for id, node in library.nodes.items():
        item = node.view
        assert item.scene() is canvas.viewer.scene()
        assert [port.name for port in item.inputs] == [t.port for t in boxes[id].inputs], id
        assert [port.name for port in item.outputs] == [t.port for t in boxes[id].outputs], id
        stored = graph.nodes[id].layout.get("position")
        if stored is not None:
            assert item.xy_pos == pytest_approx(stored), id


def pytest_approx(place: object) -> object:
    """Positions are kept to a tenth of a pixel."""
    import pytest

    return pytest.approx(place, abs=0.06)
