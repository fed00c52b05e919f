"""The Experts pane: what a run shows of a mixture, an expert's tokens, the error against float weights."""

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

from runtime import Graph
from runtime.experts import tokens_of
from runtime.jobs import Result
from runtime.routing import Routing
from ui import theme
from ui.experts import ExpertsPane
from ui.window import Window

SNIPPETS = Path(__file__).resolve().parents[1] / "snippets"
ENOUGH = 60_000


@pytest.fixture
def window(qtbot: QtBot) -> Iterator[Window]:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made = Window(SNIPPETS / "digits_moe_quantized.yaml")
    qtbot.addWidget(made, before_close_func=lambda w: w.editor.show(Graph()))
    made.show()
    made.show_pane("Experts")
    yield made
    made.runner.close()


def pane_of(window: Window) -> ExpertsPane:
    found = window.panes["Experts"].widget()
    assert isinstance(found, ExpertsPane)
    QTest.qWait(10)
    return found


def give(window: Window, routing: Routing) -> None:
    """What a run with that routing would bring."""
    window.runner.result = Result({}, routings={"moe": routing})
    window.runner.finished.emit(window.runner.result)
    QTest.qWait(10)


def test_a_run_fills_the_pane_and_the_strip_on_the_node(window: Window, qtbot: QtBot) -> None:
    pane = pane_of(window)
    assert pane.node.currentText() == "moe" and "F5" in pane.words.text()
    with qtbot.waitSignal(window.runner.finished, timeout=ENOUGH):
        window.commands["Run"].trigger()
    QTest.qWait(20)
    result, item = window.runner.result, window.editor.canvas.item("moe")
    assert result is not None and item is not None
    counts = result.routings["moe"].tokens_per_expert()
    assert pane.bars.values == tuple(counts.tolist())
    assert item.loads == pytest.approx(tuple(counts / counts.sum()))
    assert pane.map.tokens == 360 and "360 tokens, 2 experts each" in pane.words.text()
    window.editor.set_parameter("moe", "k", 1)
    QTest.qWait(20)
    assert "before the last edit" in pane.words.text()
    window.editor.show(Graph())
    QTest.qWait(20)
    assert pane.bars.values == () and "no QMoE" in pane.words.text()


def test_a_click_on_an_expert_lists_its_tokens(window: Window, qtbot: QtBot) -> None:
    random = np.random.default_rng(0)
    experts = np.array([random.permutation(8)[:2] for _ in range(5000)])
    routing = Routing(experts, random.random((5000, 2)).astype(np.float32), 8)
    give(window, routing)
    pane = pane_of(window)
    QTest.mouseClick(pane.bars, Qt.MouseButton.LeftButton, pos=pane.bars.column(5).center().toPoint())
    listed = tokens_of(routing, 5)
    assert "Expert 5" in pane.about.text() and f"{len(listed):,} tokens" in pane.about.text()
    assert pane.list.rowCount() == 500
    first = [pane.list.item(0, column) for column in range(3)]
    assert [cell.text() for cell in first if cell] == [
        f"{listed[0]['token']:,}",
        str(listed[0]["rank"] + 1),
        f"{listed[0]['weight']:.4g}",
    ]
    assert pane.map.current == 5
    QTest.keyClick(pane.bars, Qt.Key.Key_Right)
    assert "Expert 6" in pane.about.text()
    QTest.mouseClick(pane.map, Qt.MouseButton.LeftButton, pos=pane.map.column(2).center().toPoint())
    assert "Expert 2" in pane.about.text()


def test_the_map_zooms_into_tokens_and_tells_them(window: Window) -> None:
    experts = np.tile(np.array([[0, 3], [1, 2]]), (2000, 1))
    give(window, Routing(experts, np.full((4000, 2), 0.5, np.float32), 8))
    view = pane_of(window).map
    place = view.room().center()
    turn = QWheelEvent(
        place,
        view.mapToGlobal(place),
        QPoint(),
        QPoint(0, 2400),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    before = view.token_at(place.y())
    QApplication.sendEvent(view, turn)
    assert view.shown < 200 and abs(view.token_at(place.y()) - before) <= 2
    for _ in range(60):
        QTest.keyClick(view, Qt.Key.Key_Plus)
    assert view.shown == 8
    QTest.keyClick(view, Qt.Key.Key_Down)
    view.look_at(0, 8)
    corner = view.room().topLeft() + QPointF(1, 1)
    assert view.told(corner.x(), corner.y()) == "token 0, expert 0: weight 0.5, choice 1"
    other = view.column(5).center()
    assert "did not choose expert 5, but" in view.told(other.x(), other.y())
    view.grab()


@pytest.mark.parametrize(("count", "tokens"), [(1, 0), (128, 5000), (8, 1)])
def test_layers_of_all_sizes_are_painted(window: Window, count: int, tokens: int) -> None:
    random = np.random.default_rng(1)
    experts = random.integers(0, count, (tokens, 1))
    give(window, Routing(experts, np.ones((tokens, 1), np.float32), count))
    for look in ("dark", "light"):
        application = QApplication.instance()
        assert isinstance(application, QApplication)
        theme.apply(application, look)
        assert not window.grab().isNull()
    assert len(pane_of(window).bars.values) == count


def test_starved_experts_are_named(window: Window) -> None:
    give(window, Routing(np.zeros((50, 1), np.int64), np.ones((50, 1)), 4))
    pane = pane_of(window)
    assert "starved: 1, 2, 3" in pane.words.text() and pane.bars.low == {1, 2, 3}


def test_weights_are_compared_with_those_of_a_float_file(window: Window, qtbot: QtBot) -> None:
    pane = pane_of(window)
    pane.compare_with(SNIPPETS / "digits_moe_float.yaml")
    qtbot.waitUntil(lambda: len(pane.errors.values) == 8, timeout=ENOUGH)
    assert all(0.2 < value < 0.6 for value in pane.errors.values)
    assert "dB" in pane.errors.told(pane.errors.column(2).center().x(), 5)
    pane.compare_with(SNIPPETS / "qwen3_moe_block.yaml")
    qtbot.waitUntil(lambda: "No float twin" in pane.words.text(), timeout=ENOUGH)
    pane.compare_with(SNIPPETS / "nothing.yaml")
    qtbot.waitUntil(lambda: "nothing.yaml" in pane.words.text(), timeout=ENOUGH)
