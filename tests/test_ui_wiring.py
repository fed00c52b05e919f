"""Inserting and wiring: palette, quick drop, menus, frames, find: by keys, mouse and drops."""

from __future__ import annotations

from typing import Any

import ui.library  # before Qt  # noqa: F401

# isort: split
import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QContextMenuEvent, QDragEnterEvent, QDropEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QInputDialog, QLineEdit, QMenu
from pytestqt.qtbot import QtBot

from runtime import Graph
from runtime.editing import frames_of, nodes_in, probes_of
from runtime.graph import PortRef
from tests.gestures import assert_same, drag, mouse, place_of, wire
from ui import theme
from ui.canvas.frames import FrameItem
from ui.find import FindBar
from ui.menus import NameField
from ui.palette import PalettePane, type_data
from ui.quick_drop import QuickDrop
from ui.window import Window

CONTROL, SHIFT, NONE = (
    Qt.KeyboardModifier.ControlModifier,
    Qt.KeyboardModifier.ShiftModifier,
    Qt.KeyboardModifier.NoModifier,
)


@pytest.fixture
def window(qtbot: QtBot) -> Window:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made = Window()
    qtbot.addWidget(made, before_close_func=lambda w: w.editor.show(Graph()))
    graph = Graph("wiring", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2, 3]}, layout={"position": [0, 0]})
    graph.add("Relu", "relu", layout={"position": [300, 0]})
    graph.add("Output", "y", layout={"position": [700, 0]})
    graph.wire("x.value", "relu.X")
    graph.wire("relu.Y", "y.value")
    made.editor.show(graph)
    made.show()
    made.activateWindow()
    made.editor.canvas.viewer.setFocus()
    qtbot.waitUntil(made.isActiveWindow)
    return made


def press(window: Window, key: Qt.Key, held: Qt.KeyboardModifier = NONE) -> None:
    QTest.keyClick(window.editor.canvas.viewer, key, held)


def quick_drop() -> QuickDrop:
    viewers = [w.editor.canvas.viewer for w in QApplication.topLevelWidgets() if isinstance(w, Window)]
    found = [popup for viewer in viewers for popup in viewer.window().findChildren(QuickDrop) if popup.isVisible()]
    assert len(found) == 1
    return found[0]


def lines(popup: QuickDrop) -> list[str]:
    return [popup.list.item(row).text().split()[0] for row in range(popup.list.count())]


def steps(window: Window) -> int:
    return len(window.editor.graph.undo_labels)


# Quick drop


def test_quick_drop_understands_parameters(window: Window) -> None:
    before = steps(window)
    press(window, Qt.Key.Key_Space, CONTROL)
    QTest.keyClicks(quick_drop().field, "qmoe k=4 bits=4")
    QTest.keyClick(quick_drop().field, Qt.Key.Key_Return)
    (id,) = window.editor.canvas.selected
    state = window.editor.graph.nodes[id]
    assert state.type == "com.microsoft.QMoE"
    assert state.parameters == {"k": 4, "expert_weight_bits": 4}
    assert steps(window) == before + 1
    assert_same(window.editor.canvas)


def test_quick_drop_stays_open_while_something_is_not_understood(window: Window) -> None:
    press(window, Qt.Key.Key_Space, CONTROL)
    popup = quick_drop()
    QTest.keyClicks(popup.field, "qmoe k=four")
    QTest.keyClick(popup.field, Qt.Key.Key_Return)
    assert popup.isVisible() and "whole number" in popup.note.text()
    QTest.keyClick(popup.field, Qt.Key.Key_Escape)
    assert len(window.editor.graph.nodes) == 3


def test_arrows_choose_another_line(window: Window) -> None:
    press(window, Qt.Key.Key_Space, CONTROL)
    popup = quick_drop()
    QTest.keyClicks(popup.field, "relu")
    second = lines(popup)[1]
    QTest.keyClick(popup.field, Qt.Key.Key_Down)
    QTest.keyClick(popup.field, Qt.Key.Key_Return)
    (id,) = window.editor.canvas.selected
    assert window.editor.graph.nodes[id].type.rpartition(".")[2] == second


def test_a_wire_let_go_over_nothing_offers_what_fits_and_wires_it(window: Window) -> None:
    canvas = window.editor.canvas
    drag(canvas, place_of(canvas, "x", "value", True), canvas.viewer.mapFromScene(QPointF(200, 300)))
    popup = quick_drop()
    assert "StringNormalizer" not in lines(popup)
    QTest.keyClicks(popup.field, "tanh")
    QTest.keyClick(popup.field, Qt.Key.Key_Return)
    (id,) = canvas.selected
    assert window.editor.graph.wires[PortRef(id, "input")] == ("x", "value")
    assert window.editor.graph.undo_labels[-1] == "Add Tanh"
    window.editor.undo()
    assert id not in window.editor.graph.nodes
    assert_same(canvas)


def test_backwards_from_an_input_too(window: Window) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    graph.add("MatMul", "product", layout={"position": [300, 300]})
    drag(canvas, place_of(canvas, "product", "B"), canvas.viewer.mapFromScene(QPointF(60, 420)))
    popup = quick_drop()
    QTest.keyClicks(popup.field, "input")
    QTest.keyClick(popup.field, Qt.Key.Key_Return)
    assert graph.nodes[graph.wires[PortRef("product", "B")].node].type == "Input"


# Palette


def palette(window: Window) -> PalettePane:
    pane = window.panes["Palette"].widget()
    assert isinstance(pane, PalettePane)
    return pane


def test_the_palette_lists_families_and_finds(window: Window, qtbot: QtBot) -> None:
    pane = palette(window)
    qtbot.waitUntil(lambda: pane.tree.topLevelItemCount() > 10)
    top = [pane.tree.topLevelItem(i).text(0) for i in range(pane.tree.topLevelItemCount())]  # type: ignore[union-attr]
    assert "Mixture of experts" in top and "Losses" in top
    QTest.keyClicks(pane.field, "qmoe")
    assert pane.tree.topLevelItem(0).text(0) == "QMoE"  # type: ignore[union-attr]


def test_the_palette_follows_the_theme_and_the_operator_sets(window: Window, qtbot: QtBot) -> None:
    pane = window.panes["Palette"].widget()
    assert isinstance(pane, PalettePane)
    qtbot.waitUntil(lambda: pane.tree.topLevelItemCount() > 5)
    row = pane.tree.topLevelItem(2)
    light = row.foreground(0).color()
    window.toggle_theme()
    assert pane.tree.topLevelItem(2) is row and row.foreground(0).color() != light
    window.toggle_theme()
    assert row.foreground(0).color() == light

    def types() -> set[str]:
        families = [pane.tree.topLevelItem(index) for index in range(pane.tree.topLevelItemCount())]
        return {family.child(index).text(0) for family in families for index in range(family.childCount())}

    window.editor.show(Graph("old", opsets={"": 13}))
    assert "HammingWindow" not in types() and "Relu" in types()
    window.editor.show(Graph("new", opsets={"": 21}))
    assert "HammingWindow" in types()


def test_enter_places_beside_the_selection_and_wires_it(window: Window) -> None:
    window.editor.canvas.select(["relu"])
    pane = palette(window)
    QTest.keyClicks(pane.field, "sigmoid")
    QTest.keyClick(pane.field, Qt.Key.Key_Return)
    (id,) = window.editor.canvas.selected
    assert window.editor.graph.wires[PortRef(id, "X")] == ("relu", "Y")


def drop_type(window: Window, name: str, place: QPoint) -> None:
    port = window.editor.canvas.viewer.viewport()
    data, button, copy = type_data(name), Qt.MouseButton.LeftButton, Qt.DropAction.CopyAction
    QApplication.sendEvent(port, QDragEnterEvent(place, copy, data, button, NONE))
    QApplication.sendEvent(port, QDropEvent(QPointF(place), copy, data, button, NONE))


def test_a_type_is_dropped_where_the_mouse_is(window: Window) -> None:
    viewer = window.editor.canvas.viewer
    drop_type(window, "Softmax", viewer.mapFromScene(QPointF(100, 400)))
    (id,) = window.editor.canvas.selected
    x, y = window.editor.graph.nodes[id].layout["position"]
    assert abs(x - 100) < 5 and abs(y - 400) < 60
    drop_type(window, "no.such.Type", QPoint(10, 10))
    assert len(window.editor.graph.nodes) == 4


def test_a_type_dropped_on_a_wire_goes_into_it(window: Window) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    pipe = canvas.pipe(PortRef("y", "value"))
    assert pipe is not None
    middle = pipe.path().pointAtPercent(0.5)
    before = steps(window)
    drop_type(window, "Sigmoid", canvas.viewer.mapFromScene(middle))
    (id,) = canvas.selected
    assert graph.wires[PortRef(id, "X")] == ("relu", "Y") and graph.wires[PortRef("y", "value")] == (id, "Y")
    assert steps(window) == before + 1
    assert_same(canvas)


def test_a_node_that_is_dragged_onto_a_wire_goes_into_it(window: Window) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    graph.add("Tanh", "tanh", layout={"position": [440, 300]})
    pipe = canvas.pipe(PortRef("y", "value"))
    assert pipe is not None
    middle = canvas.viewer.mapFromScene(pipe.path().pointAtPercent(0.5))
    start = place_of(canvas, "tanh")
    drag(canvas, start, QPoint(middle.x() - 20, middle.y()))
    assert graph.wires[PortRef("tanh", "input")] == ("relu", "Y")
    assert graph.wires[PortRef("y", "value")] == ("tanh", "output")
    assert_same(canvas)


# Menus


def menu_at(window: Window, place: QPoint) -> QMenu:
    viewer = window.editor.canvas.viewer
    reason = QContextMenuEvent.Reason.Mouse
    event = QContextMenuEvent(reason, place, viewer.viewport().mapToGlobal(place))
    QApplication.sendEvent(viewer.viewport(), event)
    shown = [w for w in QApplication.topLevelWidgets() if isinstance(w, QMenu) and w.isVisible()]
    assert len(shown) == 1
    return shown[0]


def choose(menu: QMenu, text: str) -> None:
    action = next(action for action in menu.actions() if action.text() == text)
    action.trigger()
    menu.close()


def test_a_port_offers_what_it_needs(window: Window) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    graph.add("Add", "sum", layout={"position": [300, 300]})
    canvas.fit()
    choose(menu_at(window, place_of(canvas, "sum", "A")), "Create constant")
    assert graph.nodes[graph.wires[PortRef("sum", "A")].node].type == "Initializer"
    choose(menu_at(window, place_of(canvas, "sum", "B")), "Create input")
    assert graph.nodes[graph.wires[PortRef("sum", "B")].node].type == "Input"
    choose(menu_at(window, place_of(canvas, "sum", "C", True)), "Create output")
    assert any(source == ("sum", "C") for source in graph.wires.values())
    choose(menu_at(window, place_of(canvas, "relu", "Y", True)), "Probe")
    assert probes_of(graph) == [("relu", "Y")]


def test_a_wire_can_be_cut_probed_and_filled(window: Window) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    pipe = canvas.pipe(PortRef("y", "value"))
    assert pipe is not None
    middle = canvas.viewer.mapFromScene(pipe.path().pointAtPercent(0.5))
    choose(menu_at(window, middle), "Insert a node…")
    popup = quick_drop()
    QTest.keyClicks(popup.field, "erf")
    QTest.keyClick(popup.field, Qt.Key.Key_Return)
    (id,) = canvas.selected
    assert graph.wires[PortRef("y", "value")].node == id
    window.editor.undo()
    choose(menu_at(window, middle), "Cut")
    assert PortRef("y", "value") not in graph.wires


def test_a_node_offers_its_commands_and_the_canvas_its_own(window: Window) -> None:
    canvas = window.editor.canvas
    menu = menu_at(window, place_of(canvas, "relu"))
    assert canvas.selected == ["relu"]
    texts = [action.text() for action in menu.actions()]
    assert {"Rename…", "Duplicate", "Remove", "Bypass", "Frame"} <= set(texts)
    menu.close()
    menu = menu_at(window, QPoint(5, 5))
    assert "Remove broken wires" in [action.text() for action in menu.actions()]
    menu.close()


def test_renaming_in_the_title(window: Window) -> None:
    window.editor.canvas.select(["relu"])
    press(window, Qt.Key.Key_F2)
    field = next(w for w in window.findChildren(QLineEdit) if isinstance(w, NameField))
    QTest.keyClicks(field, "rectifier")
    QTest.keyClick(field, Qt.Key.Key_Return)
    assert "rectifier" in window.editor.graph.nodes and "relu" not in window.editor.graph.nodes
    assert window.editor.canvas.selected == ["rectifier"]
    assert_same(window.editor.canvas)
    said: list[str] = []
    window.editor.told.connect(said.append)
    press(window, Qt.Key.Key_F2)
    field = next(w for w in window.findChildren(QLineEdit) if isinstance(w, NameField) and w.isVisible())
    field.setText("x")
    QTest.keyClick(field, Qt.Key.Key_Return)
    assert "already" in said[-1]


def test_one_name_is_edited_at_a_time_and_where_it_stands(window: Window) -> None:
    canvas = window.editor.canvas

    def fields() -> list[NameField]:
        return [field for field in canvas.viewer.findChildren(NameField) if field.isVisible()]

    for id in ("relu", "x"):
        canvas.select([id])
        press(window, Qt.Key.Key_F2)
    assert [field.text() for field in fields()] == ["x"]
    canvas.viewer.pan(50, 0)
    assert not fields()
    press(window, Qt.Key.Key_F2)
    assert fields()
    window.editor.show(Graph("another"))
    assert not fields()


def test_bypass_bridges_the_gap(window: Window) -> None:
    window.editor.canvas.select(["relu"])
    press(window, Qt.Key.Key_B, CONTROL)
    assert window.editor.graph.wires[PortRef("y", "value")] == ("x", "value")
    assert_same(window.editor.canvas)


def test_selecting_along_wires(window: Window) -> None:
    window.editor.canvas.select(["relu"])
    press(window, Qt.Key.Key_Left, CONTROL | SHIFT)
    assert window.editor.canvas.selected == ["x", "relu"]
    press(window, Qt.Key.Key_Right, CONTROL | SHIFT)
    assert window.editor.canvas.selected == ["x", "relu", "y"]


def test_broken_wires_are_removed_by_keys(window: Window) -> None:
    window.editor.graph.set("x", "type", "tensor(string)")
    press(window, Qt.Key.Key_B, CONTROL | SHIFT)
    assert PortRef("relu", "X") not in window.editor.graph.wires
    assert PortRef("y", "value") in window.editor.graph.wires


def test_the_delete_key_removes_nodes_and_wires(window: Window) -> None:
    canvas = window.editor.canvas
    pipe = canvas.pipe(PortRef("y", "value"))
    assert pipe is not None
    pipe.setSelected(True)
    press(window, Qt.Key.Key_Delete)
    assert PortRef("y", "value") not in window.editor.graph.wires and len(window.editor.graph.nodes) == 3
    press(window, Qt.Key.Key_A, CONTROL)
    press(window, Qt.Key.Key_Delete)
    assert not window.editor.graph.nodes
    window.editor.undo()
    window.editor.undo()
    assert len(window.editor.graph.wires) == 2
    assert_same(canvas)


# Frames and find


def test_a_frame_moves_with_its_nodes(window: Window) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    canvas.select(["relu"])
    press(window, Qt.Key.Key_F, CONTROL | SHIFT)
    (frame,) = frames_of(graph)
    (item,) = [item for item in canvas.viewer.scene().items() if isinstance(item, FrameItem)]
    before = list(graph.nodes["relu"].layout["position"])
    grip = canvas.viewer.mapFromScene(item.scenePos() + QPointF(60, 10))
    drag(canvas, grip, grip + QPoint(50, 80))
    zoom = canvas.viewer.zoom()
    after = graph.nodes["relu"].layout["position"]
    assert after[0] - before[0] == pytest.approx(50 / zoom, abs=2)
    assert after[1] - before[1] == pytest.approx(80 / zoom, abs=2)
    assert graph.undo_labels[-1].startswith("Move")
    corner = canvas.viewer.mapFromScene(item.scenePos() + item.boundingRect().bottomRight() - QPointF(8, 8))
    drag(canvas, corner, corner + QPoint(40, 30))
    assert frames_of(graph)[0].rectangle[2] > frame.rectangle[2] + 20
    item.rename("what it does")
    assert frames_of(graph)[0].title == "what it does"
    for _ in range(4):
        window.editor.undo()
    assert not [item for item in canvas.viewer.scene().items() if isinstance(item, FrameItem)]
    assert_same(canvas)


def test_clean_up_takes_frames_along(window: Window) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    canvas.select(["x", "relu"])
    window.commands["Frame"].trigger()
    canvas.move({"x": (0, 40), "y": (400, 300)})
    (before,) = frames_of(graph)
    assert nodes_in(graph, before) == ["x", "relu"]
    canvas.select([])
    press(window, Qt.Key.Key_U, CONTROL)
    (frame,) = frames_of(graph)
    assert nodes_in(graph, frame) == ["x", "relu"] and frame.rectangle != before.rectangle
    assert graph.undo_labels[-1] == "Clean up"
    window.editor.undo()
    assert frames_of(graph) == [before]


def test_a_frame_has_a_menu_and_keys(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas, graph = window.editor.canvas, window.editor.graph
    canvas.select(["x", "relu"])
    window.commands["Frame"].trigger()
    canvas.fit()
    (item,) = [item for item in canvas.viewer.scene().items() if isinstance(item, FrameItem)]
    title = canvas.viewer.mapFromScene(item.scenePos() + QPointF(60, 10))
    choose(menu_at(window, title), "Green")
    assert frames_of(graph)[0].color == "green"
    monkeypatch.setattr(QInputDialog, "getText", lambda *arguments, **options: ("renamed", True))
    canvas.select(["relu"])
    window.commands["Frame's title…"].trigger()
    assert frames_of(graph)[0].title == "renamed"
    choose(menu_at(window, title), "Remove the frame")
    assert not frames_of(graph)
    window.editor.undo()
    window.commands["Remove the frame"].trigger()
    assert not frames_of(graph)


def test_find_walks_through_what_it_finds(window: Window) -> None:
    press(window, Qt.Key.Key_F, CONTROL)
    bar = window.findChild(FindBar)
    assert bar is not None and bar.isVisible()
    QTest.keyClicks(bar.field, "put")
    assert bar.count.text() == "2 found"
    QTest.keyClick(bar.field, Qt.Key.Key_Return)
    assert window.editor.canvas.selected == ["x"]
    QTest.keyClick(bar.field, Qt.Key.Key_Return)
    assert window.editor.canvas.selected == ["y"]
    QTest.keyClick(bar.field, Qt.Key.Key_Return, SHIFT)
    assert window.editor.canvas.selected == ["x"]
    QTest.keyClick(bar.field, Qt.Key.Key_Escape)
    assert not bar.isVisible()


def test_problems_jump_and_mend(window: Window) -> None:
    graph, canvas = window.editor.graph, window.editor.canvas
    graph.add("Add", "sum", layout={"position": [4000, 300]})
    graph.wire("relu.Y", "sum.A")
    canvas.refresh()
    problems: Any = window.panes["Problems"].widget()
    row = problems.list.topLevelItem(0)
    assert row.text(0) == "sum.B"
    problems.list.itemClicked.emit(row, 0)
    assert canvas.selected == ["sum"]
    assert canvas.viewer.visible().contains(canvas.item("sum").sceneBoundingRect())  # type: ignore[union-attr]
    offer = row.child(0)
    assert "Create a constant" in offer.text(1)
    problems.list.itemClicked.emit(offer, 0)
    assert PortRef("sum", "B") in graph.wires
    assert problems.list.topLevelItemCount() == 0 or problems.list.topLevelItem(0).text(0) != "sum.B"


def test_history_travels(window: Window, qtbot: QtBot) -> None:
    graph = window.editor.graph
    wire(window.editor.canvas, "x.value", "y.value")
    graph.add("Tanh", "tanh")
    history: Any = window.panes["History"].widget()
    qtbot.waitUntil(lambda: history.list.count() == len(graph.undo_labels) + 1)
    history.list.itemClicked.emit(history.list.item(history.list.count() - 2))
    assert "tanh" not in graph.nodes
    qtbot.waitUntil(lambda: history.list.currentRow() == history.list.count() - 2)
    history.list.itemClicked.emit(history.list.item(history.list.count() - 1))
    assert "tanh" in graph.nodes
    assert mouse is not None
