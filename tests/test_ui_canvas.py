"""The canvas: gestures become edits, edits are drawn, and the three views of a document never part."""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections.abc import Iterator

import ui.library  # before Qt  # noqa: F401

# isort: split
import pytest
from PySide6.QtCore import QObject, QPoint, QPointF, Qt
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from runtime import Graph
from runtime.errors import Severity
from runtime.graph import PortRef, Set
from tests.gestures import assert_same, click, drag, key, place_of, wire
from ui import theme
from ui.canvas.mirror import Canvas
from ui.library import EditorUnavailable, refuse_broken

CONTROL, SHIFT, ALT = (
    Qt.KeyboardModifier.ControlModifier,
    Qt.KeyboardModifier.ShiftModifier,
    Qt.KeyboardModifier.AltModifier,
)


def small() -> Graph:
    """x -> relu, and a sum that waits for wires."""
    graph = Graph("small", opsets={"": 21})
    for type, id, x, y, parameters in (
        ("Input", "x", 0, 0, {"type": "tensor(float)", "shape": [2, 3]}),
        ("Input", "n", 0, 150, {"type": "tensor(int64)", "shape": [2]}),
        ("Relu", "relu", 250, 0, {}),
        ("Add", "add", 500, 60, {}),
        ("Concat", "join", 500, 250, {"axis": 0}),
        ("Output", "y", 750, 60, {}),
    ):
        graph.add(type, id, parameters=parameters, layout={"position": [x, y]})
    graph.wire("x.value", "relu.X")
    return graph


@pytest.fixture
def canvas(qtbot: QtBot) -> Iterator[Canvas]:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made = Canvas()
    qtbot.addWidget(made.viewer)
    made.viewer.resize(1200, 800)
    made.viewer.show()
    made.show(small())
    made.fit()
    yield made
    made.close()


def test_a_drawn_wire_is_one_undo_step(canvas: Canvas) -> None:
    wire(canvas, "relu.Y", "add.A")
    assert canvas.graph.wires[PortRef("add", "A")] == ("relu", "Y")
    assert_same(canvas)
    assert len(canvas.graph.undo_labels) == 8  # seven made the document
    canvas.graph.undo()
    assert_same(canvas)
    assert PortRef("add", "A") not in canvas.graph.wires


def test_a_wire_may_be_drawn_from_its_end_too(canvas: Canvas) -> None:
    drag(canvas, place_of(canvas, "add", "B"), place_of(canvas, "relu", "Y", True))
    assert canvas.graph.wires[PortRef("add", "B")] == ("relu", "Y")
    assert_same(canvas)


def test_a_wire_to_a_taken_input_replaces_what_is_there(canvas: Canvas) -> None:
    wire(canvas, "relu.Y", "add.A")
    drag(canvas, place_of(canvas, "x", "value", True), place_of(canvas, "add", "A"))
    assert canvas.graph.wires[PortRef("add", "A")] == ("x", "value")
    assert_same(canvas)


def test_a_refused_wire_says_why_and_changes_nothing(canvas: Canvas, qtbot: QtBot) -> None:
    wire(canvas, "relu.Y", "add.A")
    steps, said = len(canvas.graph.undo_labels), []
    canvas.viewer.refused.connect(said.append)
    wire(canvas, "n.value", "add.B")
    assert "int64" in said[-1] or "float" in said[-1]
    wire(canvas, "add.C", "relu.X")
    assert "cycle" in said[-1]
    drag(canvas, place_of(canvas, "x", "value", True), place_of(canvas, "relu", "Y", True))
    assert "from an output to an input" in said[-1]
    assert len(canvas.graph.undo_labels) == steps
    assert canvas.graph.wires[PortRef("relu", "X")] == ("x", "value")
    assert_same(canvas)


def test_a_wire_let_go_over_nothing_asks_for_a_node(canvas: Canvas) -> None:
    asked = []
    canvas.viewer.wire_dropped.connect(lambda *what: asked.append(what))
    drag(canvas, place_of(canvas, "relu", "Y", True), QPoint(30, 700))
    assert [what[:3] for what in asked] == [("relu", "Y", True)]
    assert not canvas.viewer.is_wiring
    assert_same(canvas)


def test_a_wire_taken_off_its_input_is_cut(canvas: Canvas) -> None:
    drag(canvas, place_of(canvas, "relu", "X"), QPoint(100, 700))
    assert PortRef("relu", "X") not in canvas.graph.wires
    assert_same(canvas)
    canvas.graph.undo()
    assert_same(canvas)


def test_escape_ends_a_wire(canvas: Canvas) -> None:
    start = place_of(canvas, "relu", "X")
    click(canvas, start)  # a click takes the wire along until the next
    key(canvas, Qt.Key.Key_Escape)
    assert not canvas.viewer.is_wiring
    assert canvas.graph.wires[PortRef("relu", "X")] == ("x", "value")
    assert_same(canvas)


def test_moving_nodes_is_one_step_and_touches_layout_only(canvas: Canvas) -> None:
    canvas.select(["relu", "add"])
    heard: list[object] = []
    canvas.graph.listen(heard.append)
    start = place_of(canvas, "relu")
    drag(canvas, start, start + QPoint(40, 60))
    assert heard and all(isinstance(edit, Set) and edit.is_layout for edit in heard)
    assert canvas.graph.undo_labels[-1] == "Move 2 nodes"
    assert_same(canvas)
    canvas.graph.undo()
    assert canvas.graph.nodes["relu"].layout["position"] == [250, 0]
    assert_same(canvas)


def test_the_first_move_keeps_all_places_of_a_laid_out_document(canvas: Canvas) -> None:
    graph = small()
    for id in graph.nodes:
        graph.apply(Set(id, "layout", "position", [0, 0]))
        graph.undo()
    bare = Graph.build(
        [type(state)(state.id, state.type, state.parameters) for state in graph.nodes.values()],
        [(source, target) for target, source in graph.wires.items()],
        {"opsets": graph.opsets},
    )
    canvas.show(bare)
    canvas.fit()
    before = {id: canvas.item(id).xy_pos for id in bare.nodes}  # type: ignore[union-attr]
    start = place_of(canvas, "add")
    drag(canvas, start, start + QPoint(30, 30))
    assert len(bare.undo_labels) == 1
    for id, place in before.items():
        kept = bare.nodes[id].layout["position"]
        assert kept == pytest.approx(place, abs=0.06) or id == "add"
    assert_same(canvas)


def test_slicing_cuts_wires_in_one_step(canvas: Canvas) -> None:
    wire(canvas, "relu.Y", "add.A")
    wire(canvas, "add.C", "y.value")
    steps = len(canvas.graph.undo_labels)
    add = canvas.item("add")
    assert add is not None
    left = canvas.viewer.mapFromScene(add.scenePos() + QPointF(-30, -150))
    drag(canvas, left, left + QPoint(0, 400), ALT | SHIFT)
    assert PortRef("add", "A") not in canvas.graph.wires
    assert len(canvas.graph.undo_labels) == steps + 1
    assert_same(canvas)


def test_an_edit_from_elsewhere_is_drawn(canvas: Canvas) -> None:
    graph = canvas.graph
    with graph.transaction("many"):
        id = graph.add("Sigmoid", layout={"position": [300, 300]})
        graph.wire("relu.Y", f"{id}.X")
        graph.wire("relu.Y", "join.inputs.0")
        graph.wire(f"{id}.Y", "join.inputs.1")
    assert_same(canvas)
    canvas.refresh()
    join = canvas.item("join")
    assert join is not None and [port.name for port in join.inputs] == ["inputs.0", "inputs.1", "inputs.2"]
    graph.remove(id)
    assert_same(canvas)
    graph.undo()
    graph.undo()
    assert_same(canvas)


def test_broken_wires_stay_and_are_told(canvas: Canvas) -> None:
    canvas.graph.set("x", "type", "tensor(string)")
    findings = []
    canvas.checked.connect(findings.extend)
    canvas.refresh()
    pipe = canvas.pipe(PortRef("relu", "X"))
    assert pipe is not None and pipe.broken and pipe.pen().style() == Qt.PenStyle.DashLine
    assert any(f.node == "relu" and f.severity is Severity.ERROR for f in findings)
    canvas.graph.undo()
    canvas.refresh()
    pipe = canvas.pipe(PortRef("relu", "X"))
    assert pipe is not None and not pipe.broken


def test_zoom_has_bounds_and_resizing_keeps_it(canvas: Canvas) -> None:
    for _ in range(200):
        canvas.viewer.zoom_by(1.3)
    assert canvas.viewer.zoom() == pytest.approx(4.0, rel=0.01)
    for _ in range(300):
        canvas.viewer.zoom_by(0.7)
    assert canvas.viewer.zoom() == pytest.approx(0.02, rel=0.01)
    canvas.viewer.zoom_to(1.0)
    for size in ((500, 300), (1300, 900), (800, 200), (1200, 800)):
        canvas.viewer.resize(*size)
        assert canvas.viewer.zoom() == pytest.approx(1.0, rel=0.01)


def test_clean_up_of_all_and_of_a_selection_is_one_step(canvas: Canvas) -> None:
    canvas.clean_up()
    assert canvas.graph.undo_labels[-1] == "Clean up"
    assert_same(canvas)
    kept = {id: state.layout["position"] for id, state in canvas.graph.nodes.items()}
    canvas.graph.set("relu", "position", [900, 900], section="layout")
    canvas.clean_up(["relu", "add"])
    moved = {id for id, state in canvas.graph.nodes.items() if state.layout["position"] != kept[id]}
    assert moved <= {"relu", "add"}
    assert_same(canvas)


TYPES = ("Relu", "Add", "Concat", "Split", "com.microsoft.QMoE", "Initializer", "Input", "Output", "no.such.Thing")


@pytest.mark.parametrize("seed", range(5))
def test_random_gestures_never_part_document_library_and_drawing(canvas: Canvas, seed: int) -> None:
    chance = random.Random(seed)
    graph = canvas.graph
    start = graph.copy()
    before = len(graph.undo_labels)
    done = 0
    for step in range(400):
        nodes = list(graph.nodes)
        match chance.choice(
            ["wire", "wire", "wire", "move", "detach", "add", "remove", "undo", "redo", "api", "slice"]
        ):
            case "wire" if nodes:
                ports = [
                    (id, port.name, port.port_type == "out")
                    for id in chance.sample(nodes, min(2, len(nodes)))
                    for port in (*canvas.item(id).inputs, *canvas.item(id).outputs)  # type: ignore[union-attr]
                ]
                if len(ports) > 1:
                    canvas.fit()
                    first, second = chance.sample(ports, 2)
                    drag(canvas, place_of(canvas, *first), place_of(canvas, *second))
            case "move" if nodes:
                place = place_of(canvas, chance.choice(nodes))
                drag(canvas, place, place + QPoint(chance.randint(-80, 80), chance.randint(-80, 80)))
            case "detach" if graph.wires:
                target = chance.choice(list(graph.wires))
                drag(canvas, place_of(canvas, *target), QPoint(chance.randint(0, 1100), chance.randint(0, 700)))
            case "add":
                place = [chance.randint(-200, 900), chance.randint(-200, 600)]
                graph.add(chance.choice(TYPES), layout={"position": place})
            case "remove" if nodes:
                graph.remove(chance.choice(nodes))
            case "undo" if len(graph.undo_labels) > before:
                graph.undo()
            case "redo":
                graph.redo()
            case "api" if nodes:
                outputs = [(id, p.name) for id in nodes for p in canvas.item(id).outputs]  # type: ignore[union-attr]
                inputs = [(id, p.name) for id in nodes for p in canvas.item(id).inputs]  # type: ignore[union-attr]
                if outputs and inputs:
                    source, target = PortRef(*chance.choice(outputs)), PortRef(*chance.choice(inputs))
                    if graph.why_not(source, target) is None:
                        graph.wire(source, target)
            case "slice":
                drag(canvas, QPoint(600, 20), QPoint(chance.randint(300, 900), 780), ALT | SHIFT)
            case _:
                continue
        done += 1
        if step % 7 == 0:
            canvas.refresh()
        assert_same(canvas)
    assert done > 250
    end = graph.copy()
    count = len(graph.undo_labels)
    while len(graph.undo_labels) > before:
        graph.undo()
        assert_same(canvas)
    assert graph == start
    for _ in range(count - before):
        graph.redo()
    canvas.refresh()
    assert_same(canvas)
    assert graph == end


def test_nothing_is_left_behind_by_documents_that_were_closed(canvas: Canvas) -> None:
    canvas.show(small())
    items = len(canvas.viewer.scene().items())
    dead: list[weakref.ref[object]] = []
    for _ in range(200):
        dead.append(weakref.ref(canvas.item("add")))
        dead.append(weakref.ref(canvas.graph))
        canvas.show(small())
    gc.collect()
    assert len(canvas.viewer.scene().items()) == items
    assert sum(ref() is not None for ref in dead) <= 4
    assert len(canvas.library.model.nodes) == len(small().nodes)


def test_a_canvas_that_is_closed_hears_nothing(canvas: Canvas) -> None:
    graph = canvas.graph
    canvas.close()
    graph.add("Relu")
    assert not canvas.library.model.nodes


def test_qt_keeps_count_of_none() -> None:
    """A broken version of PySide6 loses one reference to None in every call that returns nothing."""
    thing = QObject()
    before = sys.getrefcount(None)
    for number in range(1000):
        thing.setObjectName(str(number))
    assert sys.getrefcount(None) > before - 100


def test_versions_that_abort_are_refused() -> None:
    with pytest.raises(EditorUnavailable, match=r"6\.12\.0 ends the process.*pip install"):
        refuse_broken("6.12.0", (3, 11))
    refuse_broken("6.12.0", (3, 12))
    refuse_broken("6.11.3", (3, 11))
