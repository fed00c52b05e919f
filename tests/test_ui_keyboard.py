"""The canvas without a mouse."""

from __future__ import annotations

import ui.library  # before Qt  # noqa: F401

# isort: split
import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from runtime import Graph
from runtime.graph import PortRef
from tests.gestures import assert_same
from ui import theme
from ui.chooser import Chooser
from ui.window import Window

SHIFT, CONTROL = Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.ControlModifier


@pytest.fixture
def window(qtbot: QtBot) -> Window:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made = Window()
    qtbot.addWidget(made, before_close_func=lambda w: w.editor.show(Graph()))
    graph = Graph("keys", opsets={"": 21})
    for type, id, x, y in (
        ("Input", "x", 0, 0),
        ("Split", "split", 200, 0),
        ("Add", "add", 450, 0),
        ("Relu", "relu", 200, 300),
    ):
        graph.add(type, id, layout={"position": [x, y]})
    graph.set("x", "type", "tensor(float)")
    graph.set("split", "num_outputs", 2)
    made.editor.show(graph)
    made.show()
    made.activateWindow()
    made.editor.canvas.viewer.setFocus()
    return made


def press(window: Window, *keys: Qt.Key, held: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
    for key in keys:
        QTest.keyClick(window.editor.canvas.viewer, key, held)


def chooser(window: Window) -> Chooser:
    found = [widget for widget in QApplication.topLevelWidgets() if isinstance(widget, Chooser) and widget.isVisible()]
    assert len(found) == 1
    return found[0]


def test_arrows_walk_and_push(window: Window) -> None:
    canvas = window.editor.canvas
    press(window, Qt.Key.Key_Right)
    assert canvas.selected == ["x"]
    press(window, Qt.Key.Key_Right, Qt.Key.Key_Right)
    assert canvas.selected == ["add"]
    press(window, Qt.Key.Key_Left, Qt.Key.Key_Down)
    assert canvas.selected == ["relu"]
    steps = len(window.editor.graph.undo_labels)
    press(window, Qt.Key.Key_Down, Qt.Key.Key_Down, Qt.Key.Key_Right, held=SHIFT)
    assert window.editor.graph.nodes["relu"].layout["position"] == [220, 340]
    assert len(window.editor.graph.undo_labels) == steps + 1
    press(window, Qt.Key.Key_Z, held=CONTROL)
    assert window.editor.graph.nodes["relu"].layout["position"] == [200, 300]
    assert_same(canvas)


def test_a_wire_is_drawn_with_keys_alone(window: Window) -> None:
    graph = window.editor.graph
    press(window, Qt.Key.Key_Right, Qt.Key.Key_W)  # x has one output: its targets are asked for at once
    QTest.keyClicks(chooser(window).field, "split")
    QTest.keyClick(chooser(window).field, Qt.Key.Key_Return)
    assert graph.wires[PortRef("split", "input")] == ("x", "value")
    press(window, Qt.Key.Key_Right, Qt.Key.Key_W)
    QTest.keyClick(chooser(window).field, Qt.Key.Key_Down)
    QTest.keyClick(chooser(window).field, Qt.Key.Key_Return)
    QTest.keyClicks(chooser(window).field, "add.b")
    QTest.keyClick(chooser(window).field, Qt.Key.Key_Return)
    assert graph.wires[PortRef("add", "B")] == ("split", "outputs.1")
    assert_same(window.editor.canvas)


def test_escape_closes_the_list_and_changes_nothing(window: Window) -> None:
    press(window, Qt.Key.Key_Right, Qt.Key.Key_W)
    steps = len(window.editor.graph.undo_labels)
    QTest.keyClick(chooser(window).field, Qt.Key.Key_Escape)
    assert not any(isinstance(w, Chooser) and w.isVisible() for w in QApplication.topLevelWidgets())
    assert len(window.editor.graph.undo_labels) == steps


def test_inputs_that_cannot_take_the_value_are_not_offered(window: Window) -> None:
    graph = window.editor.graph
    graph.add("Add", "before")
    graph.wire("before.C", "split.input")
    window.editor.canvas.select(["split"])
    press(window, Qt.Key.Key_W)
    QTest.keyClick(chooser(window).field, Qt.Key.Key_Return)
    texts = [chooser(window).list.item(row).text() for row in range(chooser(window).list.count())]
    assert "before.A" not in texts and "add.A" in texts


def test_every_pane_takes_the_keys_and_gives_them_back(window: Window) -> None:
    viewer = window.editor.canvas.viewer
    for title, pane in window.panes.items():
        window.show_pane(title)
        focused = QApplication.focusWidget()
        assert pane.has_focus and focused is not None, title
        assert focused is not pane.widget() or focused.focusPolicy() != Qt.FocusPolicy.NoFocus, title
        QTest.keyClick(focused, Qt.Key.Key_Escape)
        assert viewer.hasFocus(), title


def test_keys_go_from_pane_to_pane_and_back_to_the_canvas(window: Window) -> None:
    viewer, seen = window.editor.canvas.viewer, []
    for _ in range(8):
        QTest.keyClick(QApplication.focusWidget(), Qt.Key.Key_F6, CONTROL)
        seen += [title for title, pane in window.panes.items() if pane.has_focus]
        if viewer.hasFocus():
            break
    assert viewer.hasFocus() and {"Palette", "Properties", "Problems"} <= set(seen)
    QTest.keyClick(viewer, Qt.Key.Key_F6, CONTROL | SHIFT)
    assert window.panes[seen[-1]].has_focus


def test_a_pane_that_is_chosen_in_the_menu_comes_to_the_front_with_the_keys(window: Window) -> None:
    window.panes["Problems"].show()
    window.panes["History"].action.trigger()  # it has a tab already, behind Problems
    assert window.panes["History"].isVisible() and window.panes["History"].has_focus
    assert window.panes["History"].action.isChecked()
    window.panes["History"].action.trigger()
    assert not window.panes["History"].is_listed and not window.panes["History"].action.isChecked()
