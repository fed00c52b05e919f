"""The Experts pane: what a run shows of a mixture, an expert's tokens, the error against float weights."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import ui.library  # before Qt  # noqa: F401

# isort: split
import numpy as np
import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from runtime import Graph, load, save
from runtime.experts import tokens_of
from runtime.jobs import Result
from runtime.routing import Routing
from runtime.twins import remember_twin
from ui import theme
from ui.canvas.load_strip import grouped
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
    assert pane.model.rowCount() == len(listed)
    assert [pane.model.index(0, column).data() for column in range(3)] == [
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
    assert "3 of 4 starved: 1, 2, 3" in pane.words.text() and pane.bars.low == {1, 2, 3}
    place = pane.bars.column(2).center()
    assert pane.bars.told(place.x(), place.y()) == "expert 2 is starved: 0 tokens"
    pane.choose(1)
    assert "starved" in pane.about.text()


def test_an_edit_leaves_the_map_where_it_is_and_marks_what_is_stale(window: Window) -> None:
    routing = Routing(np.zeros((4000, 1), np.int64), np.ones((4000, 1), np.float32), 8)
    give(window, routing)
    pane, item = pane_of(window), window.editor.canvas.item("moe")
    pane.map.look_at(1000, 100)
    assert (pane.slide.value(), pane.slide.maximum(), pane.slide.isVisible()) == (1000, 3900, True)
    assert item is not None and not item.loads_are_stale
    window.editor.set_parameter("moe", "k", 1)
    QTest.qWait(10)
    assert (pane.map.first, pane.map.shown) == (1000, 100)
    assert "before the last edit" in pane.words.text() and item.loads and item.loads_are_stale
    pane.slide.setValue(2000)
    assert pane.map.first == 2000
    QTest.keyClick(pane.map, Qt.Key.Key_End)
    assert pane.slide.value() == 3900
    give(window, Routing(np.zeros((9, 1), np.int64), np.ones((9, 1), np.float32), 8))
    assert (pane.map.first, pane.map.shown) == (0, 9) and not pane.slide.isVisible()


def test_enter_on_a_token_shows_it_in_the_map(window: Window) -> None:
    random = np.random.default_rng(0)
    give(window, Routing(random.integers(0, 8, (5000, 1)), random.random((5000, 1)).astype(np.float32), 8))
    pane = pane_of(window)
    pane.choose(3)
    pane.tabs.setCurrentIndex(1)
    pane.list.setFocus()
    pane.list.setCurrentIndex(pane.model.index(4, 0))
    QTest.keyClick(pane.list, Qt.Key.Key_Return)
    token = pane.model.token(4)
    assert pane.tabs.currentIndex() == 0 and pane.map.shown == 64
    assert pane.map.first <= token < pane.map.first + 64


def test_experts_that_work_together_are_told(window: Window) -> None:
    experts = np.array([[0, 1]] * 30 + [[2, 3]] * 10 + [[0, 2]] * 5)
    give(window, Routing(experts, np.full((45, 2), 0.5, np.float32), 4))
    pane = pane_of(window)
    pane.tabs.setCurrentWidget(pane.pairs)
    room = pane.pairs.room()
    place = QPointF(room.left() + room.width() * 0.3, room.top() + room.height() * 0.1)
    assert pane.pairs.told(place.x(), place.y()) == "experts 0 and 1 share 30 tokens: 85.7% of expert 0's"
    QTest.mouseClick(pane.pairs, Qt.MouseButton.LeftButton, pos=place.toPoint())
    assert "Expert 0" in pane.about.text() and pane.pairs.partners() == [(1, 30), (2, 5)]
    QTest.keyClick(pane.pairs, Qt.Key.Key_Down)
    assert "Expert 1" in pane.about.text() and pane.pairs.partners() == [(0, 30)]
    give(window, Routing(experts[:, :1], np.ones((45, 1), np.float32), 4))
    assert pane.pairs.partners() == [] and not pane.pairs.grab().isNull()


def test_weights_are_compared_with_those_of_a_float_file(window: Window, qtbot: QtBot) -> None:
    pane = pane_of(window)

    def compare(name: str) -> None:
        pane.compare_with(SNIPPETS / name)
        qtbot.waitUntil(lambda: not pane.comparisons.is_busy, timeout=ENOUGH)
        QTest.qWait(10)

    compare("digits_moe_float.yaml")
    assert len(pane.errors.errors) == 8 and set(pane.errors.errors[0]) == {"fc1", "fc2"}
    assert all(0.2 < error < 0.6 for errors in pane.errors.errors for error in errors.values())
    place = pane.errors.column(2).center()
    assert "dB" in pane.errors.told(place.x(), place.y())
    # No run is needed for what is said of an expert's weights.
    QTest.mouseClick(pane.errors, Qt.MouseButton.LeftButton, pos=place.toPoint())
    assert "Expert 2" in pane.about.text() and "fc1 scales" in pane.about.text() and "dB" in pane.about.text()
    window.editor.set_parameter("moe", "block_size", 0)
    QTest.qWait(10)
    assert pane.errors.stale and "before the last edit" in pane.errors.said and pane.compare.text() == "Compare again"
    pane.compare.click()
    qtbot.waitUntil(lambda: not pane.comparisons.is_busy, timeout=ENOUGH)
    QTest.qWait(10)
    assert not pane.errors.stale and not pane.errors.errors, "without blocks, the scales have the wrong shape"
    compare("qwen3_moe_block.yaml")
    assert "No float twin" in pane.errors.said
    compare("nothing.yaml")
    assert "nothing.yaml" in pane.errors.said and not pane.errors.errors


def test_a_float_node_in_the_same_graph_is_found_when_errors_are_looked_at(window: Window, qtbot: QtBot) -> None:
    graph, floats = window.editor.graph, load(SNIPPETS / "digits_moe_float.yaml")
    graph.add("com.microsoft.MoE", "float_moe", parameters=dict(floats.nodes["moe"].parameters))
    for port in ("fc1_experts_weights", "fc2_experts_weights"):
        graph.add("Initializer", f"float_{port}", parameters=dict(floats.nodes[port].parameters))
        graph.wire(f"float_{port}.value", f"float_moe.{port}")
    pane = pane_of(window)
    pane.tabs.setCurrentWidget(pane.errors)
    qtbot.waitUntil(lambda: len(pane.errors.errors) == 8, timeout=ENOUGH)
    assert "this graph" in pane.errors.said


def test_a_comparison_can_be_stopped(window: Window, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def errors(*_: object) -> Iterator[dict[str, float]]:
        while True:
            yield {"fc1": 0.5}
            go.wait(0.01)

    monkeypatch.setattr("ui.comparing.find_twin", lambda *_: "moe")
    monkeypatch.setattr("ui.comparing.twin_errors", errors)
    pane = pane_of(window)
    pane.compare_with(None)
    qtbot.waitUntil(lambda: "of 8 experts" in pane.errors.said and len(pane.errors.errors) > 2, timeout=ENOUGH)
    assert pane.compare.text() == "Stop comparing"
    pane.compare.click()
    QTest.qWait(10)
    assert not pane.comparisons.is_busy and pane.compare.text() == "Compare with float…" and not pane.errors.errors
    pane.compare_with(None)
    window.editor.show(Graph())
    QTest.qWait(10)
    assert not pane.comparisons.is_busy and not pane.compare.isEnabled()


def test_a_comparison_that_fails_says_so(window: Window, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr("ui.comparing.find_twin", fail)
    pane = pane_of(window)
    pane.compare_with(None)
    qtbot.waitUntil(lambda: "MemoryError" in pane.errors.said, timeout=ENOUGH)
    assert pane.compare.isEnabled() and pane.compare.text() == "Compare with float…"


def test_errors_that_are_not_finite_are_painted(window: Window) -> None:
    pane = pane_of(window)
    pane.tabs.setCurrentWidget(pane.errors)
    pane.errors.show_errors([{"fc1": float("nan"), "fc2": 0.0}, {"fc1": float("inf"), "fc2": 0.3}])
    assert not pane.errors.grab().isNull()
    assert pane.errors.words(0) == "expert 0: fc1 not finite, fc2 equal"


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("zoom", [0.2, 0.5, 1.5])
def test_the_strip_is_painted_at_all_zooms(window: Window, zoom: float, stale: bool) -> None:
    item = window.editor.canvas.item("moe")
    assert item is not None
    for loads in ((), (0.0, 0.0), (1.0,), tuple(np.random.default_rng(0).dirichlet(np.ones(128)).tolist())):
        item.loads, item.loads_are_stale = loads, stale
        window.editor.canvas.viewer.zoom_to(zoom)
        assert not window.editor.canvas.viewer.grab().isNull()


def test_bars_that_share_a_place_show_the_largest() -> None:
    assert grouped([0.1, 0.4, 0.2, 0.3], 2) == [0.4, 0.3]
    assert grouped([0.1, 0.4, 0.2], 2) == [0.1, 0.4]
    assert grouped([0.1, 0.4], 9) == [0.1, 0.4] and grouped([0.1, 0.4], 0) == [0.4]


def test_floats_that_a_node_remembers_are_compared_with_at_once(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    for name in ("digits_moe.yaml", "digits_moe.safetensors", "digits_moe_float.yaml", "digits_moe_float.safetensors"):
        shutil.copy(SNIPPETS / name, tmp_path)
    graph = load(tmp_path / "digits_moe.yaml")
    remember_twin(graph, "moe", tmp_path / "digits_moe_float.yaml", "moe", tmp_path / "digits_moe.yaml")
    save(graph, tmp_path / "digits_moe.yaml")
    window.editor.open(tmp_path / "digits_moe.yaml")
    pane = pane_of(window)
    pane.compare.click()
    qtbot.waitUntil(lambda: len(pane.errors.errors) == 8 and not pane.comparisons.is_busy, timeout=ENOUGH)
    QTest.qWait(10)
    assert "digits_moe_float.yaml" in pane.errors.said
