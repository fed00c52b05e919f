"""Running from the window: forward, backward, crashes, stopping, and what is shown of a run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import ui.library  # before Qt

# isort: split
import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

import runtime
import ui.running
from runtime import Graph, Tensor, catalog
from runtime.arrays import write_arrays
from runtime.editing import add_probe, probes_of
from runtime.feeds import Source, set_source, sizes_of, source_of
from runtime.graph import PortRef
from runtime.worker import Worker
from tests.gestures import click, place_of
from ui import theme
from ui.feeding import FeedingPane
from ui.overlays import Overlays
from ui.probes import ProbesPane
from ui.window import Window
from ui.wire_tip import WireTips

ROOT = Path(__file__).resolve().parents[1]
ENOUGH = 60_000
"""Milliseconds for a process to start on a busy machine."""


def chain(size: int = 3) -> Graph:
    """x -> relu -> square -> mean -> loss, and y beside it."""
    graph = Graph("chain", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["N", size]}, layout={"position": [0, 0]})
    graph.add("Initializer", "w", parameters={"tensor": Tensor.from_array(np.ones(size, np.float32))})
    graph.set("w", "training_type", "trainable weight")
    graph.add("Mul", "scaled", layout={"position": [300, 0]})
    graph.add("Relu", "relu", layout={"position": [500, 0]})
    graph.add("ReduceMean", "mean", parameters={"keepdims": 0}, layout={"position": [700, 0]})
    graph.add("Output", "y", layout={"position": [900, 100]})
    graph.add("Output", "loss", layout={"position": [900, 0]})
    for source, target in (
        ("x.value", "scaled.A"),
        ("w.value", "scaled.B"),
        ("scaled.C", "relu.X"),
        ("relu.Y", "mean.data"),
        ("relu.Y", "y.value"),
        ("mean.reduced", "loss.value"),
    ):
        graph.wire(source, target)
    set_source(graph, "x", Source(values=[[1, -2, 3], [4, 5, -6]]))
    return graph


@pytest.fixture
def window(qtbot: QtBot) -> Iterator[Window]:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made = Window()
    qtbot.addWidget(made, before_close_func=lambda w: w.isVisible() and w.editor.show(Graph()))
    made.editor.show(chain())
    made.show()
    made.activateWindow()
    made.editor.canvas.viewer.setFocus()
    qtbot.waitUntil(made.isActiveWindow)
    yield made
    made.runner.close()


def part(window: Window, kind: type) -> object:
    return next(kept for kept in window._kept if isinstance(kept, kind))


def press(window: Window, key: Qt.Key, held: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
    QTest.keyClick(window.editor.canvas.viewer, key, held)


def run(window: Window, qtbot: QtBot, key: Qt.Key = Qt.Key.Key_F5) -> None:
    """Presses a key that runs the graph, and waits for the end of the run."""
    with qtbot.waitSignal(window.runner.finished, timeout=ENOUGH):
        press(window, key)


def probes(window: Window) -> ProbesPane:
    found = window.panes["Probes"].widget()
    assert isinstance(found, ProbesPane)
    QTest.qWait(5)
    return found


def rows(pane: ProbesPane) -> dict[str, list[str]]:
    """The lines of the list by group and name."""
    tree = pane.list
    found = {}
    for number in range(tree.topLevelItemCount()):
        group = tree.topLevelItem(number)
        assert group is not None
        for index in range(group.childCount()):
            row = group.child(index)
            found[f"{group.text(0)}: {row.text(0)}"] = [row.text(column) for column in range(1, 6)]
    return found


# Forward


def test_f5_runs_the_graph_and_the_window_goes_on_meanwhile(window: Window, qtbot: QtBot) -> None:
    with qtbot.waitSignal(window.runner.finished, timeout=ENOUGH):
        press(window, Qt.Key.Key_F5)
        assert window.runner.is_busy and not window.commands["Run"].isEnabled()
        assert window.commands["Stop"].isEnabled()
        window.editor.edit("while it runs", lambda: window.editor.graph.set("", "doc", "edited", section="info"))
    assert window.editor.graph.section("info")["doc"] == "edited"
    result = window.runner.result
    assert result is not None
    np.testing.assert_array_equal(result.outputs["y"], [[1, 0, 3], [4, 5, 0]])
    assert "forward" in window._say.text() and "first run" in window._say.text()
    run(window, qtbot)
    assert "first run" not in window._say.text()
    item = window.editor.canvas.item("relu")
    assert item is not None and "s" in item.badge


def test_both_backends_give_the_same(window: Window, qtbot: QtBot) -> None:
    found = []
    for backend in ("onnxruntime", "numpy"):
        window.commands[f"On {backend}"].trigger()
        assert window.runner.backend == backend
        run(window, qtbot)
        assert window.runner.result is not None
        found.append(window.runner.result.outputs["loss"])
    assert found[0] == pytest.approx(found[1])


def test_a_broken_graph_breaks_the_button_which_then_shows_the_problems(window: Window, qtbot: QtBot) -> None:
    window.panes["History"].show()
    window.editor.graph.cut("mean.data")
    window.editor.canvas.refresh()
    assert "Errors" in window.commands["Run"].toolTip()
    press(window, Qt.Key.Key_F5)
    assert not window.runner.is_busy and window.panes["Problems"].isVisible()
    assert "1 error keeps" in window._say.text()
    window.editor.undo()
    window.editor.canvas.refresh()
    assert "Run forward" in window.commands["Run"].toolTip()


def test_run_to_here_runs_what_the_node_needs_even_if_the_rest_is_broken(window: Window, qtbot: QtBot) -> None:
    window.editor.graph.cut("loss.value")
    window.editor.canvas.refresh()
    assert window.editor.errors
    window.editor.canvas.select(["relu"])
    with qtbot.waitSignal(window.runner.finished, timeout=ENOUGH):
        press(window, Qt.Key.Key_F5, Qt.KeyboardModifier.ControlModifier)
    result = window.runner.result
    assert result is not None and not result.outputs
    np.testing.assert_array_equal(result.probes["relu.Y"], [[1, 0, 3], [4, 5, 0]])
    assert "selected" in window._say.text()


# Failures


@pytest.fixture
def troubled(window: Window, monkeypatch: pytest.MonkeyPatch, qtbot: QtBot) -> Iterator[Window]:
    from tests import trouble_nodes

    catalog.register(trouble_nodes.Trouble)
    monkeypatch.setattr(ui.running, "Worker", functools.partial(Worker, preload=["tests.trouble_nodes"]))
    other = Window()
    qtbot.addWidget(other, before_close_func=lambda w: w.editor.show(Graph()))
    graph = chain()
    graph.cut("relu.X")
    graph.add("test.trouble.Trouble", "trouble")
    graph.wire("scaled.C", "trouble.X")
    graph.wire("trouble.Y", "relu.X")
    other.editor.show(graph)
    other.show()
    yield other
    other.runner.close()
    catalog.unregister(trouble_nodes.Trouble)


def problems(window: Window) -> list[str]:
    tree = window.panes["Problems"].widget().list  # type: ignore[attr-defined]
    return [f"{row.text(0)}: {row.text(1)}" for row in map(tree.topLevelItem, range(tree.topLevelItemCount()))]


def test_a_crash_costs_the_run_and_is_told_with_the_node(troubled: Window, qtbot: QtBot) -> None:
    window = troubled
    window.editor.set_parameter("trouble", "how", "abort")
    window.runner.forward()
    qtbot.waitUntil(lambda: not window.runner.is_busy, timeout=ENOUGH)
    qtbot.waitUntil(lambda: any("SIGABRT" in line for line in problems(window)), timeout=ENOUGH)
    assert [line for line in problems(window) if line.startswith("trouble: ")]
    assert window.editor.canvas.selected == ["trouble"]
    window.editor.set_parameter("trouble", "how", "")
    with qtbot.waitSignal(window.runner.finished, timeout=ENOUGH):
        window.runner.forward()
    assert not [line for line in problems(window) if "SIGABRT" in line]


def test_stop_ends_a_run_that_does_not_end(troubled: Window, qtbot: QtBot) -> None:
    window = troubled
    window.editor.set_parameter("trouble", "how", "sleep")
    window.runner.forward()
    qtbot.waitUntil(
        lambda: window.runner.progress is not None and window.runner.progress.node == "trouble", timeout=ENOUGH
    )
    window.commands["Stop"].trigger()
    qtbot.waitUntil(lambda: window._say.text() == "Stopped.", timeout=ENOUGH)
    assert window.commands["Run"].isEnabled()


def test_numbers_that_are_not_finite_name_the_first_node(window: Window, qtbot: QtBot) -> None:
    graph = window.editor.graph
    graph.cut("relu.X")
    graph.add("Log", "log")
    graph.wire("scaled.C", "log.input")
    graph.wire("log.output", "relu.X")
    window.commands["Stop at NaN or infinity"].trigger()
    press(window, Qt.Key.Key_F5)
    qtbot.waitUntil(lambda: any(line.startswith("log") and "NaN" in line for line in problems(window)), timeout=ENOUGH)


def test_an_input_without_values_is_told(window: Window, tmp_path: Path) -> None:
    window.editor.edit("", lambda: set_source(window.editor.graph, "x", Source(file="none.npz")))
    press(window, Qt.Key.Key_F5)
    assert any(line.startswith("x.value") and "no file yet" in line for line in problems(window))


def test_another_document_ends_the_run_and_forgets_its_values(window: Window, qtbot: QtBot) -> None:
    run(window, qtbot)
    press(window, Qt.Key.Key_F5)
    window.editor.show(chain(3))
    assert window.runner.result is None
    qtbot.waitUntil(window.commands["Run"].isEnabled, timeout=ENOUGH)
    assert window.runner.result is None
    run(window, qtbot)
    assert window.runner.result is not None


def test_closing_the_window_ends_the_process(window: Window, qtbot: QtBot) -> None:
    run(window, qtbot)
    number = window.runner.worker.process_id
    assert number is not None
    window.editor.show(Graph())
    window.close()
    qtbot.waitUntil(lambda: not Path(f"/proc/{number}").exists() if Path("/proc").exists() else True, timeout=5000)


# Values


def test_probes_stay_in_the_file_and_show_their_values(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    window.editor.canvas.select(["relu"])
    press(window, Qt.Key.Key_P)
    assert probes_of(window.editor.graph) == [PortRef("relu", "Y")]
    item = window.editor.canvas.item("relu")
    pane = probes(window)
    assert item is not None and item.probes == {"Y": 1}
    run(window, qtbot)
    found = rows(probes(window))
    assert found["Probes: 1  relu.Y"] == ["float [2, 3]", "0", "2.167", "5", ""]
    assert found["Outputs: loss"][0] == "float []"
    window.show_pane("Probes")
    while pane.chosen is None or pane.chosen.group != "Probes":
        QTest.keyClick(pane.list, Qt.Key.Key_Down)
    model = pane.value.model
    assert [model.data(model.index(1, column)) for column in range(3)] == ["4", "5", "0"]
    assert pane.value.map.told(pane.value.map.room().center().toPoint()).startswith("[")
    assert sum(pane.value.histogram.counts) == 6
    assert window.save_to(tmp_path / "probed.yaml")
    assert probes_of(runtime.load(tmp_path / "probed.yaml")) == [PortRef("relu", "Y")]
    QTest.keyClick(pane.list, Qt.Key.Key_Delete)
    assert not probes_of(window.editor.graph)
    window.editor.undo()
    assert probes_of(window.editor.graph)


def test_values_downstream_of_an_edit_are_stale_and_no_others(window: Window, qtbot: QtBot) -> None:
    run(window, qtbot)
    runner = window.runner
    window.editor.canvas.move({"x": (5.0, 5.0)})
    assert not runner.is_stale
    window.editor.set_parameter("mean", "noop_with_empty_axes", 1)
    assert runner.is_stale_at(PortRef("mean", "reduced")) and not runner.is_stale_at(PortRef("relu", "Y"))
    tips = part(window, WireTips)
    assert isinstance(tips, WireTips)
    assert "before the last edit" in tips.told(PortRef("loss", "value"))[0]
    assert "before the last edit" not in tips.told(PortRef("y", "value"))[0]
    window.editor.undo()
    run(window, qtbot)
    assert not runner.is_stale
    with window.editor.graph.transaction("rows"):
        set_source(window.editor.graph, "x", Source(values=[[1, 1, 1]]))
    assert runner.is_stale_at(PortRef("relu", "Y"))


def test_a_wire_tells_its_values_when_the_mouse_rests_on_it(window: Window, qtbot: QtBot) -> None:
    tips = part(window, WireTips)
    assert isinstance(tips, WireTips)
    assert "F5" in tips.told(PortRef("relu", "X"))[0]
    run(window, qtbot)
    canvas = window.editor.canvas
    pipe = canvas.pipe(PortRef("relu", "X"))
    assert pipe is not None
    middle = canvas.viewer.mapFromScene(pipe.path().pointAtPercent(0.5))
    QTest.mouseMove(canvas.viewer.viewport(), middle)
    qtbot.waitUntil(tips.tip.isVisible, timeout=3000)
    text = tips.tip.text.text()
    assert "scaled.C" in text and "float [2, 3]" in text and "-6 to 5" in text
    assert len(tips.tip.line.points) == 6
    click(canvas, place_of(canvas, "mean"))
    qtbot.waitUntil(lambda: not tips.tip.isVisible(), timeout=3000)


# Backward


def test_f6_goes_back_and_probes_show_gradients(window: Window, qtbot: QtBot) -> None:
    add_probe(window.editor.graph, "relu.Y")
    run(window, qtbot, Qt.Key.Key_F6)
    result = window.runner.result
    assert result is not None and "backward" in window._say.text()
    np.testing.assert_allclose(result.gradients["w"], [5 / 6, 5 / 6, 3 / 6], rtol=1e-6)
    np.testing.assert_allclose(result.gradient_probes["relu.Y"], np.full((2, 3), 1 / 6), rtol=1e-6)
    found = rows(probes(window))
    assert found["Gradients: w"][0] == "float [3]" and "Gradients: relu.Y" in found


def test_the_overlays_tint_by_time_and_by_gradient(window: Window, qtbot: QtBot) -> None:
    press(window, Qt.Key.Key_3, Qt.KeyboardModifier.AltModifier)
    assert "F6" in window._say.text()
    run(window, qtbot, Qt.Key.Key_F6)
    overlays, item = part(window, Overlays), window.editor.canvas.item("mean")
    assert isinstance(overlays, Overlays) and overlays.shown == "gradient"
    assert item is not None and item.badge == "gradient 1" and item.tint == pytest.approx(1.0)
    relu = window.editor.canvas.item("relu")
    assert relu is not None and relu.badge == "gradient 0.17" and relu.tint is not None and relu.tint < 1
    press(window, Qt.Key.Key_2, Qt.KeyboardModifier.AltModifier)
    tints = [window.editor.canvas.item(id).tint for id in ("relu", "mean", "scaled")]  # type: ignore[union-attr]
    assert max(t for t in tints if t is not None) == pytest.approx(1.0)
    press(window, Qt.Key.Key_1, Qt.KeyboardModifier.AltModifier)
    assert item.tint is None


def test_an_overlay_without_gradients_says_what_to_do_and_keeps_the_times(window: Window, qtbot: QtBot) -> None:
    run(window, qtbot, Qt.Key.Key_F6)
    item = window.editor.canvas.item("relu")
    assert item is not None and "back" in item.badge
    press(window, Qt.Key.Key_3, Qt.KeyboardModifier.AltModifier)
    assert "once more" in window._say.text() and "back" in item.badge and item.tint is None
    run(window, qtbot, Qt.Key.Key_F6)
    assert item.badge.startswith("gradient") and item.tint is not None


def test_without_a_scalar_all_outputs_of_floats_count(window: Window, qtbot: QtBot) -> None:
    window.editor.graph.cut("loss.value")
    window.editor.graph.remove("loss")
    run(window, qtbot, Qt.Key.Key_F6)
    result = window.runner.result
    assert result is not None
    np.testing.assert_allclose(result.gradients["w"], [5, 5, 3])


# Inputs


def feeding(window: Window) -> FeedingPane:
    window.panes["Run inputs"].show()
    QTest.qWait(80)
    found = window.panes["Run inputs"].widget()
    assert isinstance(found, FeedingPane)
    return found


def write(row: object, text: str) -> None:
    field = row.text  # type: ignore[attr-defined]
    field.setFocus()
    field.selectAll()
    QTest.keyClicks(field, text)
    QTest.keyClick(field, Qt.Key.Key_Return)


def test_numbers_can_be_typed_for_an_input(window: Window, qtbot: QtBot) -> None:
    row = feeding(window).rows["x"]
    assert "float[N, 3]" in row.title.text() and row.kind.currentText() == "typed"
    write(row, "[[1, 2, 2]]")
    assert source_of(window.editor.graph, "x").values == [[1, 2, 2]] or source_of(window.editor.graph, "x").values == (
        (1, 2, 2),
    )
    run(window, qtbot)
    assert window.runner.result is not None
    np.testing.assert_array_equal(window.runner.result.outputs["y"], [[1, 2, 2]])
    write(row, "[[1, 2")
    assert row.problem.isVisible() and "no numbers" in row.problem.text()
    window.editor.undo()
    QTest.qWait(80)
    assert row.text.text() == "[[1, -2, 3], [4, 5, -6]]"


def test_a_file_beside_the_document_stays_with_it(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    write_arrays(folder / "data.npz", {"x": np.full((4, 3), 2, np.float32)})
    write_arrays(tmp_path / "far.npz", {"x": np.full((1, 3), 9, np.float32)})
    assert window.save_to(folder / "graph.yaml")
    row = feeding(window).rows["x"]
    row.kind.setCurrentIndex(1)
    row.kind.activated.emit(1)
    write(row, "data.npz")
    assert source_of(window.editor.graph, "x") == Source(file="data.npz")
    run(window, qtbot)
    assert window.runner.result is not None and window.runner.result.outputs["y"].shape == (4, 3)
    write(row, str(tmp_path / "far.npz"))
    assert row.problem.isVisible() and source_of(window.editor.graph, "x") == Source(file="data.npz")
    run(window, qtbot)
    assert window.runner.result.outputs["y"].tolist() == [[9, 9, 9]]
    write(row, "nowhere.npz")
    assert "not there" in row.problem.text()


def test_open_dimensions_have_sizes(window: Window, qtbot: QtBot) -> None:
    pane = feeding(window)
    pane.rows["x"].kind.setCurrentIndex(0)
    pane.rows["x"].kind.activated.emit(0)
    spin = pane.spins["N"]
    spin.setFocus()
    spin.selectAll()
    QTest.keyClicks(spin, "17")
    QTest.keyClick(spin, Qt.Key.Key_Return)
    assert sizes_of(window.editor.graph) == {"N": 17}
    run(window, qtbot)
    assert window.runner.result is not None and window.runner.result.outputs["y"].shape == (17, 3)


def test_the_shipped_digits_run_on_their_own_data(window: Window, qtbot: QtBot) -> None:
    assert window.open(ROOT / "snippets" / "digits_moe.yaml")
    run(window, qtbot)
    result = window.runner.result
    assert result is not None and result.outputs["logits"].shape == (360, 10)
    assert result.routings["moe"].experts.shape == (360, 2)
