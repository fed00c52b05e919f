"""The Training pane: the plan in the document, a run with its curves, pause, stop, and the best weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# isort: split
import numpy as np
import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

import runtime
from runtime import Graph
from runtime.arrays import write_arrays
from runtime.errors import GraphError
from runtime.training.plan import Plan, plan_of, set_plan, settings_of
from runtime.worker import Worker
from ui import theme
from ui.curves import Curves
from ui.training import TrainingPane
from ui.window import Window

SNIPPETS = Path(__file__).resolve().parents[1] / "snippets"
ENOUGH = 40_000


@pytest.fixture
def window(qtbot: QtBot) -> Iterator[Window]:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made = Window(SNIPPETS / "digits_moe_quantized.yaml")
    qtbot.addWidget(made, before_close_func=lambda w: w.isVisible() and w.editor.show(Graph()))
    made.show()
    set_plan(made.editor.graph, Plan(epochs=3, batch_size=60, rate=2e-3))
    made.show_pane("Training")
    yield made
    pane_of(made).close()


def pane_of(window: Window) -> TrainingPane:
    found = window.panes["Training"].widget()
    assert isinstance(found, TrainingPane)
    return found


def press(button: object) -> None:
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)  # type: ignore[call-overload]


# The plan


def test_the_plan_is_edited_field_by_field_and_stays_in_the_file(window: Window, tmp_path: Path) -> None:
    pane, graph = pane_of(window), window.editor.graph
    QTest.qWait(5)
    epochs = pane.plan.numbers["epochs"]
    assert epochs.value() == 3
    epochs.setFocus()
    epochs.selectAll()
    QTest.keyClicks(epochs, "7")
    QTest.keyClick(epochs, Qt.Key.Key_Return)
    assert plan_of(graph)[0].epochs == 7
    box = pane.plan.choices["optimizer"]
    assert not pane.plan.numbers["momentum"].isVisibleTo(pane)
    box.setFocus()
    QTest.keyClicks(box, "S")
    box.activated.emit(box.currentIndex())
    QTest.qWait(5)
    assert plan_of(graph)[0].optimizer == "SGD" and pane.plan.numbers["momentum"].isVisibleTo(pane)
    pane.plan.losses.setFocus()
    QTest.keyClicks(pane.plan.losses, "loss=1 balance_loss=0.01")
    QTest.keyClick(pane.plan.losses, Qt.Key.Key_Return)
    assert plan_of(graph)[0].losses == {"loss": 1.0, "balance_loss": 0.01}
    assert window.save_to(tmp_path / "planned.yaml")
    assert plan_of(runtime.load(tmp_path / "planned.yaml"))[0] == plan_of(graph)[0]
    window.editor.undo()
    QTest.qWait(5)
    assert plan_of(graph)[0].losses == {} and pane.plan.losses.text() == ""
    pane.plan.losses.setFocus()
    QTest.keyClicks(pane.plan.losses, "loss=much")
    QTest.keyClick(pane.plan.losses, Qt.Key.Key_Return)
    assert "expected an output and its weight" in pane.message.text()


def test_the_wheel_over_the_plan_changes_nothing(window: Window) -> None:
    plan, before = pane_of(window).plan, plan_of(window.editor.graph)[0]
    for field in (*plan.choices.values(), *plan.numbers.values()):
        place = QPointF(10, 8)
        turn, button = QPoint(0, -120), Qt.MouseButton.NoButton
        keys, phase = Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase
        at = QPointF(field.mapToGlobal(place.toPoint()))
        event = QWheelEvent(place, at, QPoint(), turn, button, keys, phase, False)
        QApplication.sendEvent(field, event)
        assert not field.hasFocus() and not event.isAccepted(), "it is for the pane behind"
    assert plan_of(window.editor.graph)[0] == before
    assert [box.currentText() for box in plan.choices.values()] == [before.optimizer, before.schedule]


def test_a_plan_that_is_none_is_told_and_the_rest_is_taken() -> None:
    graph = Graph()
    stored = {"epochs": 0, "batch_size": 2.5, "rate": 0.1, "colour": 1, "data": "/etc/passwd", "optimizer": "Magic"}
    graph.set("", "training", stored, section="layout")
    plan, wrong = plan_of(graph)
    assert plan == Plan(rate=0.1) and len(wrong) == 5
    with pytest.raises(GraphError, match="learning|rate"):
        set_plan(graph, Plan(rate=-1.0))
    assert graph.section("layout")["training"] == stored
    with pytest.raises(GraphError, match="no scalar output"):
        settings_of(graph, Plan(), 10)


# A run


def test_a_run_shows_its_losses_and_leaves_its_weights(window: Window, qtbot: QtBot) -> None:
    pane, graph = pane_of(window), window.editor.graph
    before = graph.nodes["fc1_scales"].parameters["tensor"]
    steps = len(graph.undo_labels)
    press(pane.start)
    assert pane.is_busy and not pane.start.isEnabled()
    qtbot.waitUntil(lambda: "Trained 3 epochs" in pane.message.text(), timeout=ENOUGH)
    assert pane.epochs.topLevelItemCount() == 3
    assert len(pane.loss.lines["loss"]) == 15 and len(pane.norm.lines["gradient norm"]) == 15
    losses = [y for _, y in pane.loss.lines["loss"]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert any(name.startswith("validation") for name in pane.loss.lines)
    assert graph.undo_labels[-1].startswith("Take the weights of epoch") and len(graph.undo_labels) == steps + 1
    assert graph.nodes["fc1_scales"].parameters["tensor"] != before
    assert not pane.is_busy and pane.start.isEnabled()
    window.editor.undo()
    assert graph.nodes["fc1_scales"].parameters["tensor"] == before
    press(pane.best)
    qtbot.waitUntil(lambda: graph.nodes["fc1_scales"].parameters["tensor"] != before, timeout=ENOUGH)


def test_pause_go_on_and_stop(window: Window, qtbot: QtBot) -> None:
    pane, graph = pane_of(window), window.editor.graph
    set_plan(graph, Plan(epochs=100_000, batch_size=60))
    press(pane.start)
    qtbot.waitUntil(lambda: pane.epochs.topLevelItemCount() >= 2, timeout=ENOUGH)
    press(pane.pause)
    qtbot.waitUntil(lambda: pane.message.text() == "Paused." and pane.pause.text() == "Go on", timeout=ENOUGH)
    step = pane.progress.value()
    QTest.qWait(200)
    assert pane.progress.value() == step
    before = graph.nodes["fc1_scales"].parameters["tensor"]
    press(pane.best)
    qtbot.waitUntil(lambda: graph.nodes["fc1_scales"].parameters["tensor"] != before, timeout=ENOUGH)
    press(pane.pause)
    qtbot.waitUntil(lambda: pane.progress.value() > step, timeout=ENOUGH)
    window.editor.edit("while it trains", lambda: graph.set("", "doc", "edited", section="info"))
    press(pane.halt)
    qtbot.waitUntil(lambda: "Stopped." in pane.message.text(), timeout=ENOUGH)
    assert not pane.is_busy and pane.start.isEnabled()


def test_weights_that_no_longer_fit_are_named(window: Window, qtbot: QtBot) -> None:
    pane, graph = pane_of(window), window.editor.graph
    press(pane.start)
    graph.cut("classifier.C")  # the run has begun, and nothing of it is told before events are handled
    graph.remove("classifier_bias")
    qtbot.waitUntil(lambda: "Trained" in pane.message.text(), timeout=ENOUGH)
    assert "classifier_bias" in pane.message.text()


def test_what_cannot_be_trained_is_told(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    pane, graph = pane_of(window), window.editor.graph
    write_arrays(tmp_path / "half.npz", {"x": np.zeros((4, 64), np.float32)})
    pane.plan.take_file(tmp_path / "half.npz")
    press(pane.start)
    assert "has no array y" in pane.message.text() and not pane.is_busy
    pane.plan.take_file(tmp_path / "none.npz")
    assert "not there" in pane.message.text()
    write_arrays(tmp_path / "wrong.npz", {"x": np.zeros((4, 9), np.float32), "y": np.zeros(4, np.int64)})
    pane.plan.take_file(tmp_path / "wrong.npz")
    set_plan(graph, Plan(epochs=1, validation=0.0))
    press(pane.start)
    qtbot.waitUntil(lambda: "failed" in pane.message.text(), timeout=ENOUGH)
    assert "64" in pane.message.text()
    graph.cut("moe.input")
    press(pane.start)
    assert "keep" in pane.message.text()


def test_a_crash_of_the_process_is_told(window: Window, qtbot: QtBot) -> None:
    pane = pane_of(window)
    set_plan(window.editor.graph, Plan(epochs=100_000, batch_size=60))
    press(pane.start)
    qtbot.waitUntil(lambda: pane.epochs.topLevelItemCount() >= 1, timeout=ENOUGH)
    worker = pane._worker
    assert isinstance(worker, Worker) and worker.process_id is not None
    import os
    import signal

    os.kill(worker.process_id, signal.SIGKILL)
    qtbot.waitUntil(lambda: "failed" in pane.message.text(), timeout=ENOUGH)
    assert "SIGKILL" in pane.message.text() and pane.start.isEnabled()


def test_another_document_or_the_end_of_the_window_ends_the_training(window: Window, qtbot: QtBot) -> None:
    pane = pane_of(window)
    set_plan(window.editor.graph, Plan(epochs=100_000, batch_size=60))
    press(pane.start)
    qtbot.waitUntil(lambda: pane.epochs.topLevelItemCount() >= 1, timeout=ENOUGH)
    window.editor.show(Graph())
    worker = pane._worker
    assert worker is not None
    qtbot.waitUntil(lambda: not worker.is_busy, timeout=ENOUGH)
    number = worker.process_id
    window.close()
    assert number is None or not Path(f"/proc/{number}/exe").exists()


# Curves


def test_curves_thin_out_and_tell_their_numbers(qtbot: QtBot) -> None:
    curves = Curves("Loss")
    qtbot.addWidget(curves)
    curves.resize(400, 200)
    curves.show()
    curves.grab()
    for step in range(20_000):
        curves.add("loss", step, 1000.0 / (step + 1))
    curves.add("validation", 5.0, float("nan"))
    assert len(curves.lines["loss"]) <= 4001 and curves.lines["loss"][0] == (0, 1000.0)
    assert curves.is_logarithmic
    assert "loss: " in curves.told(200) and curves.grab().size() == curves.size() * curves.devicePixelRatio()
    curves.clear()
    assert curves.told(QPoint(3, 3).x()) == ""
