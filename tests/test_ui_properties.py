"""The properties pane, by gestures on its widgets."""

from pathlib import Path

import numpy as np
import pytest

from ui import library  # before anything of Qt  # noqa: F401

# isort: split
from PySide6.QtCore import QEvent, QPoint, QPointF, Qt
from PySide6.QtGui import QMouseEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QMessageBox

from runtime.graph import ABSENT, Graph, PortRef
from runtime.tensors import Tensor
from ui.app import application
from ui.window import Window

SNIPPETS = Path(__file__).parent.parent / "snippets"
ENOUGH = 10_000
"""Milliseconds, of which a busy machine may need many."""


@pytest.fixture(scope="session")
def qapp_cls():
    return QApplication


@pytest.fixture
def window(qtbot):
    application("light")
    made = Window()
    qtbot.addWidget(made, before_close_func=lambda w: setattr(w.editor, "_changed", False))
    graph = Graph("test")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["tokens", 64]})
    graph.add("com.microsoft.QMoE", "moe", parameters={"k": 2})
    graph.add("MatMul", "first")
    graph.add("Gemm", "second")
    graph.add("Gemm", "third")
    graph.add("com.microsoft.MatMulNBits", "bits")
    codes = np.arange(2 * 8 * 16, dtype=np.uint8).reshape(2, 8, 16)
    graph.add("Initializer", "weights", parameters={"tensor": Tensor.from_array(codes)})
    graph.wire("x.value", "moe.input")
    graph.wire("weights.value", "moe.fc1_experts_weights")
    graph._undo.clear()
    made.editor.show(graph)
    with qtbot.waitActive(made):
        made.show()
        made.activateWindow()
    return made


def pane_of(window):
    return window.panes["Properties"].widget()


def select(window, *ids):
    window.editor.canvas.select(list(ids))
    QTest.qWait(5)
    pane_of(window).parameters.follow()
    return pane_of(window).parameters.rows


def value(window, node, name):
    return window.editor.graph.nodes[node].parameters.get(name, ABSENT)


def write(row, text, end=Qt.Key.Key_Return):
    row.field.setFocus()
    row.field.selectAll()
    QTest.keyClicks(row.field, text)
    if end is not None:
        QTest.keyClick(row.field, end)
    QTest.qWait(30)


def told(qtbot, row, *parts):
    """Waits until all of this stands below the field."""
    qtbot.waitUntil(lambda: row.error.isVisible() and all(part in row.error.text() for part in parts), timeout=ENOUGH)


def nothing_told(qtbot, row):
    """Waits until nothing stands there."""
    qtbot.waitUntil(lambda: not row.error.isVisible(), timeout=ENOUGH)


def undo(window):
    window.editor.undo()
    QTest.qWait(20)


# -- lines ------------------------------------------------------------------------------------------------------------


def test_enter_commits_one_step_that_undo_takes_back(window):
    rows = select(window, "moe")
    write(rows["k"], "4")
    assert value(window, "moe", "k") == 4
    assert window.editor.graph.undo_labels == ["Set moe.k"]
    undo(window)
    assert value(window, "moe", "k") == 2
    assert rows["k"].field.text() == "2" and rows["k"].field.hasFocus()


def test_defaults_are_grey_and_an_empty_field_is_the_default(window):
    rows = select(window, "moe")
    assert rows["expert_weight_bits"].field.currentText() == "0 (operator default: 4)"
    assert rows["swiglu_limit"].field.placeholderText() == "0 (operator default: no limit)"
    assert rows["swiglu_limit"].field.text() == ""
    rows["k"].field.setFocus()
    rows["k"].field.selectAll()
    QTest.keyClick(rows["k"].field, Qt.Key.Key_Delete)
    QTest.keyClick(rows["k"].field, Qt.Key.Key_Return)
    assert value(window, "moe", "k") is ABSENT
    assert rows["k"].field.placeholderText() == "0 (operator default: 1)"
    assert not rows["k"].reset_button.isVisible()


def test_esc_takes_back_what_is_typed_then_goes_to_the_canvas(window):
    rows = select(window, "moe")
    write(rows["k"], "77", end=None)
    QTest.keyClick(rows["k"].field, Qt.Key.Key_Escape)
    assert rows["k"].field.text() == "2" and value(window, "moe", "k") == 2
    QTest.keyClick(rows["k"].field, Qt.Key.Key_Escape)
    assert window.editor.canvas.viewer.hasFocus()
    assert window.editor.graph.undo_labels == []


def test_tab_commits_and_goes_on(window):
    rows = select(window, "moe")
    write(rows["block_size"], "32", end=Qt.Key.Key_Tab)
    assert value(window, "moe", "block_size") == 32
    assert rows["expert_weight_bits"].field.hasFocus()


def test_what_cannot_be_read_is_said_below_the_field_and_not_committed(qtbot, window):
    rows = select(window, "moe")
    write(rows["k"], "four")
    told(qtbot, rows["k"], "Expected a whole number; got 'four'.")
    assert value(window, "moe", "k") == 2 and window.editor.graph.undo_labels == []
    write(rows["k"], "-1")
    told(qtbot, rows["k"], "at least 0")
    QTest.keyClick(rows["k"].field, Qt.Key.Key_Escape)
    nothing_told(qtbot, rows["k"])


def test_findings_and_missing_parameters_stand_below_their_field(qtbot, window):
    rows = select(window, "bits")
    told(qtbot, rows["N"], "not set")
    assert rows["N"].field.placeholderText() == "required"
    assert rows["N"].label.text().endswith("*")
    write(rows["N"], "16")
    nothing_told(qtbot, rows["N"])
    window.editor.set_parameter("moe", "quant_type", "zz")
    rows = select(window, "moe")
    told(qtbot, rows["quant_type"], "one of int, fp4")
    assert rows["quant_type"].field.currentText() == "zz"


def test_documentation_comes_with_the_focus_and_on_hover(window):
    rows = select(window, "moe")
    assert not rows["k"].text.isVisible()
    rows["k"].field.setFocus()
    QTest.qWait(40)
    assert rows["k"].text.isVisible() and "experts chosen for each token" in rows["k"].text.text()
    assert "experts chosen for each token" in rows["k"].label.toolTip()
    rows["block_size"].field.setFocus()
    QTest.qWait(40)
    assert not rows["k"].text.isVisible()


def test_lists_shapes_and_types(qtbot, window):
    rows = select(window, "x")
    assert rows["shape"].field.text() == "tokens, 64"
    write(rows["shape"], "batch, ?, 32")
    assert value(window, "x", "shape") == ["batch", None, 32]
    field = rows["type"].field
    assert field.line.text() == "tensor(float)"
    field.line.setFocus()
    field.line.selectAll()
    QTest.keyClicks(field.line, "float16")
    QTest.keyClick(field.line, Qt.Key.Key_Return)
    assert value(window, "x", "type") == "tensor(float16)" and field.line.text() == "tensor(float16)"
    field.line.selectAll()
    QTest.keyClicks(field.line, "float32")
    QTest.keyClick(field.line, Qt.Key.Key_Return)
    told(qtbot, rows["type"], "spells it 'float'")
    field.setCurrentIndex(field.findText("tensor(int64)"))
    field.activated.emit(field.currentIndex())
    assert value(window, "x", "type") == "tensor(int64)"
    rows = select(window, "moe")
    write(rows["specified_outputs_name"], "mixed")
    assert value(window, "moe", "specified_outputs_name") == ["mixed"]


# -- other fields -----------------------------------------------------------------------------------------------------


def test_check_boxes_have_three_states(window):
    rows = select(window, "moe")
    field = rows["use_sparse_mixer"].field
    field.setFocus()
    assert field.text() == "default: false"
    seen = []
    for _ in range(3):
        QTest.keyClick(field, Qt.Key.Key_Space)
        seen.append(value(window, "moe", "use_sparse_mixer"))
    assert seen == [True, False, ABSENT]
    training = rows["training?"].field
    training.setFocus()
    QTest.keyClick(training, Qt.Key.Key_Space)
    assert value(window, "moe", "training?") is False


def test_choices_are_chosen_with_keys(window):
    rows = select(window, "moe")
    field = rows["activation_type"].field
    field.setFocus()
    assert field.currentText() == "relu"
    QTest.keyClick(field, Qt.Key.Key_Down)
    chosen = value(window, "moe", "activation_type")
    assert chosen is not ABSENT and field.currentText() == chosen
    QTest.mouseClick(rows["activation_type"].reset_button, Qt.MouseButton.LeftButton)
    assert value(window, "moe", "activation_type") is ABSENT and field.currentText() == "relu"


def test_the_override_twin_is_shown_when_set_or_asked_for(window, qtbot):
    rows = select(window, "moe")
    assert "k override" not in rows
    parameters = pane_of(window).parameters
    parameters.show_overrides(True)
    qtbot.waitUntil(lambda: "activation_alpha override" in parameters.rows)
    write(parameters.rows["activation_alpha override"], "0")
    parameters.show_overrides(False)
    qtbot.waitUntil(lambda: "k override" not in parameters.rows)
    assert parameters.rows["activation_alpha override"].field.text() == "0"
    assert window.editor.graph.node_type("moe").to_attributes(window.editor.graph.nodes["moe"].parameters) == {
        "k": 2,
        "activation_alpha": 0.0,
    }


def test_common_parameters_have_the_manuals_names_and_fold(window):
    rows = select(window, "moe")
    common = ["specified_outputs_name", "training?", "lda coeff", "name"]
    assert list(rows)[-4:] == common
    fold = next(b for b in pane_of(window).findChildren(type(rows["k"].reset_button)) if b.text() == "Common")
    QTest.mouseClick(fold, Qt.MouseButton.LeftButton)
    assert not any(rows[name].isVisible() for name in common)


def drag(widget, *moves, release=True):
    def send(kind, x, button, buttons):
        place = QPointF(x, 5)
        glob = QPointF(widget.mapToGlobal(QPoint(int(x), 5)))
        none = Qt.KeyboardModifier.NoModifier
        QApplication.sendEvent(widget, QMouseEvent(kind, place, glob, button, buttons, none))

    left, no = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
    send(QEvent.Type.MouseButtonPress, moves[0], left, left)
    for x in moves[1:]:
        send(QEvent.Type.MouseMove, x, no, left)
        QTest.qWait(2)
    if release:
        send(QEvent.Type.MouseButtonRelease, moves[-1], left, no)


def test_dragging_a_name_is_one_step_and_esc_takes_it_back(window):
    rows = select(window, "moe")
    drag(rows["k"].label, 5, 10, 15, 25, 45)
    assert value(window, "moe", "k") == 12 and window.editor.graph.undo_labels == ["Set moe.k"]
    drag(rows["k"].label, 45, 25, 5)
    assert value(window, "moe", "k") == 2 and len(window.editor.graph.undo_labels) == 2
    undo(window)
    assert value(window, "moe", "k") == 12
    drag(rows["k"].label, 5, 105, release=False)
    assert value(window, "moe", "k") == 37
    QTest.keyClick(rows["k"].label, Qt.Key.Key_Escape)
    assert value(window, "moe", "k") == 12
    drag(rows["k"].label, 105, 5)
    assert value(window, "moe", "k") == 0, "the bound holds"


def test_arrow_keys_step_numbers_as_one_step(window):
    rows = select(window, "moe")
    rows["k"].field.setFocus()
    for _ in range(3):
        QTest.keyClick(rows["k"].field, Qt.Key.Key_Up)
    assert value(window, "moe", "k") == 5 and len(window.editor.graph.undo_labels) == 1
    QTest.keyClick(rows["k"].field, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    QTest.qWait(5)
    assert value(window, "moe", "k") == 2 and rows["k"].field.text() == "2", "Ctrl+Z is the document's"


# -- following --------------------------------------------------------------------------------------------------------


def test_edits_from_elsewhere_do_not_disturb_what_is_typed(window):
    rows = select(window, "moe")
    write(rows["k"], "7", end=None)
    window.editor.set_parameter("moe", "block_size", 64)
    window.editor.set_parameter("moe", "k", 3)
    QTest.qWait(5)
    assert pane_of(window).parameters.rows["k"] is rows["k"], "rows are not made anew"
    assert rows["block_size"].field.text() == "64"
    assert rows["k"].field.text() == "7" and rows["k"].field.hasFocus()
    QTest.keyClick(rows["k"].field, Qt.Key.Key_Return)
    assert value(window, "moe", "k") == 7


def test_a_value_typed_for_one_node_never_reaches_another(window):
    rows = select(window, "second")
    write(rows["alpha"], "9", end=None)
    window.editor.canvas.select(["third"])
    QTest.qWait(30)
    assert value(window, "third", "alpha") is ABSENT
    rows = pane_of(window).parameters.rows
    assert rows["alpha"].field.text() == ""
    write(rows["alpha"], "5", end=None)
    window.editor.edit("Remove third", lambda: window.editor.graph.remove("third"))
    QTest.qWait(30)
    assert all(value(window, id, "alpha") is ABSENT for id in ("second",))
    rows = select(window, "second")
    write(rows["alpha"], "3", end=None)
    other = Graph("other")
    other.add("Gemm", "second")
    window.editor.show(other)
    QTest.qWait(30)
    assert value(window, "second", "alpha") is ABSENT


def test_a_click_on_the_canvas_commits_what_is_typed_to_its_own_node(window):
    rows = select(window, "second")
    write(rows["alpha"], "9", end=None)
    window.editor.canvas.viewer.setFocus()
    window.editor.canvas.select(["third"])
    QTest.qWait(10)
    assert value(window, "second", "alpha") == 9.0 and value(window, "third", "alpha") is ABSENT


def test_commands_take_what_is_being_typed(window, tmp_path, monkeypatch):
    select(window, "moe")
    path = tmp_path / "typed.yaml"
    assert window.save_to(path)
    field = pane_of(window).parameters.rows["k"].field
    field.setFocus()
    field.selectAll()
    QTest.keyClicks(field, "4")
    QTest.keyClick(field, Qt.Key.Key_S, Qt.KeyboardModifier.ControlModifier)
    assert value(window, "moe", "k") == 4 and "k: 4" in path.read_text()
    assert pane_of(window).parameters.rows["k"].field.hasFocus()
    QTest.keyClicks(field, "5")
    asked = []
    answer = QMessageBox.StandardButton.Cancel
    monkeypatch.setattr(QMessageBox, "question", lambda *arguments: asked.append(arguments[2]) or answer)
    assert not window.close() and asked, "what was typed is asked about"


def test_several_nodes_share_their_common_parameters(window):
    window.editor.set_parameter("second", "alpha", 2.0)
    rows = select(window, "second", "third", "first")
    assert list(rows) == ["specified_outputs_name", "training?", "lda coeff", "name"]
    rows = select(window, "second", "third")
    assert rows["alpha"].field.placeholderText() == "several values"
    write(rows["alpha"], "0.5")
    assert value(window, "second", "alpha") == value(window, "third", "alpha") == 0.5
    undo(window)
    assert value(window, "second", "alpha") == 2.0 and value(window, "third", "alpha") is ABSENT
    assert rows["alpha"].field.placeholderText() == "several values"
    rows["alpha"].reset()
    assert value(window, "second", "alpha") is ABSENT


def test_nothing_selected_shows_the_graph(window):
    rows = select(window)
    assert {"name", "doc", "ai.onnx", "com.microsoft"} <= set(rows)
    write(rows["name"], "mine")
    assert window.editor.graph.name == "mine"
    rows["doc"].field.setFocus()
    QTest.keyClicks(rows["doc"].field, "one")
    QTest.keyClick(rows["doc"].field, Qt.Key.Key_Return)
    QTest.keyClicks(rows["doc"].field, "two")
    QTest.keyClick(rows["doc"].field, Qt.Key.Key_Tab)
    assert window.editor.graph.section("info")["doc"] == "one\ntwo"
    assert "newest" in rows["ai.onnx"].text.text() and rows["ai.onnx"].field.placeholderText().isdigit()
    write(rows["ai.onnx"], "17")
    assert window.editor.graph.opsets == {"": 17}


def test_unknown_nodes_and_unknown_parameters_are_shown(window):
    window.editor.edit("Add", lambda: window.editor.graph.add("my.Thing", "thing", parameters={"size": 3, "f": 0.5}))
    rows = select(window, "thing")
    write(rows["size"], "4")
    assert value(window, "thing", "size") == 4
    rows["f"].reset()
    QTest.qWait(5)
    assert "f" not in pane_of(window).parameters.rows


def test_subgraphs_say_that_they_cannot_be_opened(window):
    body = Graph("then")
    body.add("Input", "a")
    window.editor.edit(
        "Add", lambda: window.editor.graph.add("If", "branch", parameters={"then_branch": body, "else_branch": body})
    )
    rows = select(window, "branch")
    assert rows["then_branch"].field.text() == "1 nodes. A subgraph cannot be opened here yet."


def test_alt_enter_goes_to_the_first_field(window):
    select(window, "moe")
    window.editor.canvas.viewer.setFocus()
    QTest.keyClick(window.editor.canvas.viewer, Qt.Key.Key_Return, Qt.KeyboardModifier.AltModifier)
    assert pane_of(window).parameters.rows["activation_alpha"].field.hasFocus()


def test_ports_are_listed_and_lead_to_their_sources(window):
    select(window, "moe")
    view = pane_of(window).inputs
    pane_of(window).tabs.setCurrentWidget(view)
    view.follow()
    text = view.text.toPlainText()
    assert "input required\nexpects T; T is float, float16 or bfloat16\nfloat[tokens, 64] from x.value" in text
    assert "router_probs required" in text and "nothing is connected" in text
    view.text.setFocus()
    QTest.keyClick(view.text, Qt.Key.Key_Tab)
    QTest.keyClick(view.text, Qt.Key.Key_Return)
    assert window.editor.canvas.selected == ["x"]


# -- tensors ----------------------------------------------------------------------------------------------------------


def tensor_tab(window, *ids):
    select(window, *ids)
    pane_of(window).tabs.setCurrentWidget(pane_of(window).tensor)
    QTest.qWait(10)
    return pane_of(window).tensor


def cells(tab):
    model = tab.table.model()
    return [[model.index(r, c).data() for c in range(model.columnCount())] for r in range(model.rowCount())]


def test_a_tensor_shows_statistics_histogram_and_codes(window):
    tab = tensor_tab(window, "weights")
    assert [tab.view_as.itemText(i) for i in range(tab.view_as.count())] == ["values", "4-bit codes"]
    assert tab.view_as.currentText() == "4-bit codes"
    assert "uint8[2, 8, 16], 256 bytes" in tab.facts.text() and "from 0 to 15, mean 7.5" in tab.facts.text()
    assert tab.histogram.counts == (32,) * 16
    assert [sum(strip) for strip in tab.strips.strips] == [256, 256]
    assert tab.strips_title.text() == "Histogram of each expert"
    codes = np.arange(256).reshape(2, 8, 16)
    assert cells(tab)[0] == [str(code) for byte in codes[0, 0] for code in (byte & 15, byte >> 4)]
    QTest.mouseClick(tab.strips, Qt.MouseButton.LeftButton, pos=QPoint(60, tab.strips.height() - 6))
    assert tab.spins[0].value() == 1 and sum(tab.histogram.beside) == 256
    assert cells(tab)[0][:2] == ["0", "8"]
    tab.view_as.setCurrentIndex(0)
    tab.view_as.activated.emit(0)
    assert cells(tab)[0][:2] == ["0", "1"] and "mean 127.5" in tab.facts.text()


def test_tensors_wired_to_a_node_are_shown_with_it(window):
    tab = tensor_tab(window, "moe")
    assert tab.source.owner == "weights" and tab.view_as.currentText() == "4-bit codes"
    rows = select(window, "weights")
    pane_of(window).tabs.setCurrentIndex(0)
    assert rows["tensor"].field.text() == "uint8[2, 8, 16]"
    QTest.mouseClick(rows["tensor"].field, Qt.MouseButton.LeftButton)
    assert pane_of(window).tabs.currentWidget() is tab and tab.source.owner == "weights"
    tab = tensor_tab(window, "first")
    assert tab.source is None and tab.message.isVisible()


def test_numbers_are_replaced_from_files_and_undone(window, tmp_path):
    tab = tensor_tab(window, "weights")
    before = value(window, "weights", "tensor")
    np.save(tmp_path / "one.npy", np.ones((2, 8, 16), np.uint8))
    tab.replace(tmp_path / "one.npy")
    QTest.qWait(10)
    assert value(window, "weights", "tensor").array().sum() == 256 and "50.0% zeros" in tab.facts.text()
    undo(window)
    assert value(window, "weights", "tensor") == before and "mean 7.5" in tab.facts.text()
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 8, 16), np.uint8), b=np.full((2, 8, 16), 2, np.uint8))
    tab.replace(tmp_path / "two.npz")
    assert tab.archive.isVisible() and tab.names.count() == 2
    tab.names.setCurrentIndex(1)
    QTest.mouseClick(tab.take_button, Qt.MouseButton.LeftButton)
    assert value(window, "weights", "tensor").array().max() == 2 and not tab.archive.isVisible()
    told = []
    window.editor.told.connect(told.append)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    tab.replace(tmp_path / "bad.npy")
    assert "cannot be read" in told[-1] and value(window, "weights", "tensor").array().max() == 2


def test_an_array_chosen_for_one_tensor_is_not_given_to_another(window, tmp_path):
    tab = tensor_tab(window, "weights")
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.ones(2))
    tab.replace(tmp_path / "two.npz")
    window.editor.edit("Add", lambda: window.editor.graph.add("Initializer", "empty"))
    tab = tensor_tab(window, "empty")
    assert not tab.archive.isVisible() and tab.message.text().startswith("No numbers yet")
    np.save(tmp_path / "one.npy", np.ones(3, np.float32))
    tab.replace(tmp_path / "one.npy")
    QTest.qWait(10)
    assert value(window, "empty", "tensor").shape == (3,) and cells(tab) == [["1"], ["1"], ["1"]]


def test_the_training_type_is_set_in_the_tensor_tab(window):
    tab = tensor_tab(window, "weights")
    tab.training.setFocus()
    QTest.keyClick(tab.training, Qt.Key.Key_Down)
    assert value(window, "weights", "training_type") == "trainable weight"
    undo(window)
    assert value(window, "weights", "training_type") is ABSENT and tab.training.currentText() == "constant"


def test_large_tensors_are_counted_beside_the_windows_work_and_paged(window, qtbot):
    large = np.zeros((3, 900, 1000), np.float32)
    large[2, 899, 999] = 7
    window.editor.edit(
        "Add", lambda: window.editor.graph.add("Initializer", "large", parameters={"tensor": Tensor.from_array(large)})
    )
    tab = tensor_tab(window, "large")
    assert "Counting" in tab.facts.text() or "from 0 to 7" in tab.facts.text()
    qtbot.waitUntil(lambda: "from 0 to 7" in tab.facts.text())
    assert tab.model.rowCount() == 256 and tab.model.columnCount() == 256
    for _ in range(5):
        QTest.mouseClick(tab.row_pager.forth, Qt.MouseButton.LeftButton)
        QTest.mouseClick(tab.column_pager.forth, Qt.MouseButton.LeftButton)
    tab.spins[0].setValue(2)
    assert cells(tab)[-1][-1] == "7" and tab.model.headerData(0, Qt.Orientation.Vertical) == 768


def test_nothing_is_read_while_the_tab_is_hidden(window):
    select(window, "weights")
    assert pane_of(window).tensor.pages is None


def test_a_tensor_that_is_not_there_says_which_file_is_missing(window):
    from runtime.tensors import AbsentTensor
    from runtime.types import ElementType

    gone = AbsentTensor(ElementType.FLOAT, (2, 2), "0" * 64, "w", "weights.safetensors")
    window.editor.edit("Add", lambda: window.editor.graph.add("Initializer", "gone", parameters={"tensor": gone}))
    tab = tensor_tab(window, "gone")
    assert "weights.safetensors" in tab.message.text() and not tab.table.isVisible()


# -- context help -----------------------------------------------------------------------------------------------------


@pytest.fixture
def helping(window):
    QTest.keyClick(window, Qt.Key.Key_H, Qt.KeyboardModifier.ControlModifier)
    QTest.qWait(20)
    assert window.panes["Context help"].isVisible()
    window.editor.canvas.clean_up()
    window.editor.canvas.fit()
    QTest.qWait(20)
    return window.panes["Context help"].widget()


def hover(window, place):
    """Moves the mouse to a place of the scene, from elsewhere."""
    viewer = window.editor.canvas.viewer
    spot = viewer.mapFromScene(place)
    for x in (3, 1, 0):
        where = QPointF(spot + QPoint(x, 0))
        glob = QPointF(viewer.viewport().mapToGlobal(spot + QPoint(x, 0)))
        no = Qt.MouseButton.NoButton
        move = QMouseEvent(QEvent.Type.MouseMove, where, glob, no, no, Qt.KeyboardModifier.NoModifier)
        QApplication.sendEvent(viewer.viewport(), move)
    QTest.qWait(120)


def test_help_follows_the_mouse_over_nodes_ports_and_wires(window, helping):
    canvas = window.editor.canvas
    hover(window, canvas.item("moe").sceneBoundingRect().center())
    assert helping.heading.text() == "moe"
    text = helping.text.toPlainText()
    assert "Quantized mixture of experts." in text and "router_probs: a required input" in text
    hover(window, canvas.item("moe").port("router_probs", False).centre())
    assert helping.heading.text() == "Input moe.router_probs"
    text = helping.text.toPlainText()
    assert "required" in text and "[tokens, experts]" in text and "nothing is connected" in text
    assert "The router's logits for every token" in text
    pipe = canvas.pipe(PortRef("moe", "input"))
    hover(window, pipe.mapToScene(pipe.path().pointAtPercent(0.5)))
    assert helping.heading.text() == "Wire"
    text = helping.text.toPlainText()
    assert "float[tokens, 64]" in text and "from x.value" in text and "to moe.input" in text


def test_help_can_be_locked_and_follows_edits(window, helping):
    canvas = window.editor.canvas
    hover(window, canvas.item("moe").port("router_probs", False).centre())
    QTest.mouseClick(helping.lock, Qt.MouseButton.LeftButton)
    hover(window, canvas.item("first").sceneBoundingRect().center())
    assert helping.heading.text() == "Input moe.router_probs"
    window.editor.edit("Wire", lambda: window.editor.graph.wire("first.Y", "moe.router_probs"))
    QTest.qWait(150)
    assert "from first.Y" in helping.text.toPlainText()
    QTest.mouseClick(helping.lock, Qt.MouseButton.LeftButton)
    window.editor.canvas.select(["second"])
    QTest.qWait(20)
    assert helping.heading.text() == "second"


def test_help_tells_of_what_is_wrong_with_a_wire(window, helping):
    graph = window.editor.graph

    def change():
        graph.add("Input", "ids", parameters={"type": "tensor(int64)", "shape": [3]})
        graph.wire("ids.value", "second.A")
        graph.wire("x.value", "second.B")

    window.editor.edit("Break", change)
    QTest.qWait(150)
    window.editor.canvas.viewer.wire_hovered.emit("second", "B")
    QTest.qWait(20)
    assert "expected" in helping.text.toPlainText() and "second.B" in helping.text.toPlainText()
    helping.show_type("MatMul")
    QTest.qWait(20)
    assert "Matrix product" in helping.text.toPlainText()
    helping.show_type("no.Such")
    QTest.qWait(20)
    assert "No operator of this name" in helping.text.toPlainText()
    QTest.keyClick(window, Qt.Key.Key_H, Qt.KeyboardModifier.ControlModifier)
    assert not window.panes["Context help"].isVisible()


def test_random_typing_selecting_undoing_and_editing_leave_no_stray_values(window):
    """Every value that reaches the document was typed while its own node was shown; undo takes all of it back."""
    import random

    chance = random.Random(7)
    graph = window.editor.graph
    start = graph.copy()
    nodes = ["moe", "first", "second", "third", "bits", "weights", "x"]
    for _ in range(150):
        rows = pane_of(window).parameters.rows
        row = chance.choice(list(rows.values()))
        match chance.randrange(7):
            case 0:
                window.editor.canvas.select(chance.sample(nodes, chance.choice([0, 1, 1, 1, 2])))
            case 1 | 2 if hasattr(row.field, "placeholderText") and hasattr(row.field, "commit"):
                row.field.setFocus()
                QTest.keyClicks(row.field, chance.choice(["3", "0.5", "x", "-", "tokens"]))
                if chance.random() < 0.6:
                    QTest.keyClick(row.field, chance.choice([Qt.Key.Key_Return, Qt.Key.Key_Tab, Qt.Key.Key_Escape]))
            case 3:
                row.reset()
            case 4:
                window.editor.undo()
            case 5:
                window.editor.redo()
            case _:
                window.editor.set_parameter("second", "alpha", chance.random())
        QTest.qWait(1)
        for id in nodes:
            declared = graph.node_type(id)
            assert all(declared.parameter(name) is not None for name in graph.nodes[id].parameters), id
    window.editor.canvas.viewer.setFocus()
    while graph.undo_labels:
        window.editor.undo()
    assert graph == start


def test_the_theme_can_change_under_the_pane(window):
    rows = select(window, "moe")
    write(rows["k"], "nine", end=Qt.Key.Key_Return)
    window.toggle_theme()
    QTest.qWait(100)
    rows = pane_of(window).parameters.rows
    assert rows["k"].field.text() == "2"
    window.toggle_theme()
