"""Copy, paste and drop: by the clipboard and by real drop events, each one undo step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ui.library  # before Qt  # noqa: F401

# isort: split
import numpy as np
import pytest
from PIL import Image
from PySide6.QtCore import QByteArray, QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QFileDialog, QMessageBox
from pytestqt.qtbot import QtBot

from runtime import Graph
from runtime.drawing.picture import save_picture
from runtime.files import save
from runtime.snippets import dumps
from runtime.snippets.pictures import load_picture
from tests.gestures import assert_same
from ui import theme
from ui.ghost import Ghost
from ui.transfer import SNIPPET, offer, receive
from ui.window import Window

CONTROL, NONE = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.NoModifier


def pair() -> Graph:
    """x -> relu -> y."""
    graph = Graph("pair", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2]}, layout={"position": [0, 0]})
    graph.add("Relu", "relu", layout={"position": [200, 0]})
    graph.add("Output", "y", layout={"position": [400, 0]})
    graph.wire("x.value", "relu.X")
    graph.wire("relu.Y", "y.value")
    return graph


@pytest.fixture
def window(qtbot: QtBot) -> Iterator[Window]:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    theme.apply(application, "light")
    made = Window()
    qtbot.addWidget(made, before_close_func=lambda w: w.editor.show(Graph()))
    made.editor.show(pair())
    made.show()
    made.activateWindow()
    made.editor.canvas.viewer.setFocus()
    QApplication.clipboard().clear()
    yield made
    QApplication.clipboard().clear()


def press(window: Window, key: Qt.Key, keys: Qt.KeyboardModifier = CONTROL) -> None:
    QTest.keyClick(window.editor.canvas.viewer, key, keys)


def files(*paths: Path) -> QMimeData:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    return data


def drop(window: Window, data: QMimeData, place: QPoint, keys: Qt.KeyboardModifier = NONE) -> bool:
    """Drags data in and lets it go; whether it was taken."""
    port = window.editor.canvas.viewer.viewport()
    button, action = Qt.MouseButton.LeftButton, Qt.DropAction.CopyAction
    enter = QDragEnterEvent(place, action, data, button, keys)
    QApplication.sendEvent(port, enter)
    if not enter.isAccepted():
        return False
    assert any(isinstance(item, Ghost) for item in window.editor.canvas.viewer.scene().items())
    event = QDropEvent(QPointF(place), action, data, button, keys)
    QApplication.sendEvent(port, event)
    assert not any(isinstance(item, Ghost) for item in window.editor.canvas.viewer.scene().items())
    return event.isAccepted()


def test_copy_and_paste_by_keys_is_one_step(window: Window) -> None:
    canvas = window.editor.canvas
    canvas.select(["x", "relu"])
    press(window, Qt.Key.Key_C)
    steps = len(window.editor.graph.undo_labels)
    press(window, Qt.Key.Key_V)
    assert len(window.editor.graph.undo_labels) == steps + 1
    assert set(canvas.selected) == {"x_1", "relu_1"}
    assert window.editor.graph.wires[("relu_1", "X")] == ("x_1", "value")
    assert_same(canvas)
    press(window, Qt.Key.Key_Z)
    assert len(window.editor.graph.nodes) == 3


def test_the_clipboard_holds_a_picture_that_is_a_snippet(window: Window) -> None:
    window.editor.canvas.select(["x", "relu"])
    press(window, Qt.Key.Key_C)
    data = QApplication.clipboard().mimeData()
    loaded = load_picture(bytes(data.data("image/png").data()))
    assert set(loaded.graph.nodes) == {"x", "relu"} and not loaded.changed
    assert data.text().startswith("qmoe: 1")


def test_an_empty_clipboard_is_told(window: Window) -> None:
    QApplication.clipboard().clear()
    press(window, Qt.Key.Key_V)
    assert "clipboard is empty" in window._say.text() and len(window.editor.graph.nodes) == 3


def test_cut_takes_away_and_can_be_undone(window: Window) -> None:
    window.editor.canvas.select(["relu"])
    press(window, Qt.Key.Key_X)
    assert "relu" not in window.editor.graph.nodes
    press(window, Qt.Key.Key_Z)
    assert "relu" in window.editor.graph.nodes and len(window.editor.graph.wires) == 2


def test_duplicate_keeps_what_feeds_the_original(window: Window) -> None:
    window.editor.canvas.select(["relu"])
    press(window, Qt.Key.Key_D)
    assert window.editor.graph.wires[("relu_1", "X")] == ("x", "value")
    assert window.editor.canvas.selected == ["relu_1"]


def test_a_plain_picture_carries_nothing(window: Window) -> None:
    press(window, Qt.Key.Key_C, CONTROL | Qt.KeyboardModifier.ShiftModifier)
    data = QApplication.clipboard().mimeData()
    assert data.hasImage() and not data.hasFormat(SNIPPET)
    before = len(window.editor.graph.nodes)
    press(window, Qt.Key.Key_V)
    assert len(window.editor.graph.nodes) == before


@pytest.mark.parametrize("form", [SNIPPET, "image/png", "image", "text"])
def test_any_form_alone_can_be_pasted(window: Window, form: str) -> None:
    whole = offer(pair())
    data = QMimeData()
    if form == "image":  # what a system leaves that keeps pixels only
        data.setImageData(QImage.fromData(whole.data("image/png")))
    elif form == "text":
        data.setText(whole.text())
    else:
        data.setData(form, whole.data(form))
    assert set(receive(data).graphs[0][1].nodes) == {"x", "relu", "y"}
    QApplication.clipboard().setMimeData(data)
    press(window, Qt.Key.Key_V)
    assert len(window.editor.graph.nodes) == 6
    assert_same(window.editor.canvas)


@pytest.mark.parametrize("ending", ["png", "yaml", "onnx"])
def test_a_dropped_file_is_inserted_at_the_cursor_as_one_step(window: Window, tmp_path: Path, ending: str) -> None:
    save(pair(), tmp_path / f"pair.{ending}")
    canvas, place = window.editor.canvas, QPoint(300, 200)
    steps, expected = len(window.editor.graph.undo_labels), canvas.viewer.mapToScene(place)
    assert drop(window, files(tmp_path / f"pair.{ending}"), place)
    assert len(window.editor.graph.undo_labels) == steps + 1
    assert len(canvas.selected) == 3 and len(window.editor.graph.nodes) == 6
    corner = canvas.area(canvas.selected).topLeft()
    assert abs(corner.x() - expected.x()) < 40 and abs(corner.y() - expected.y()) < 40
    assert_same(canvas)
    press(window, Qt.Key.Key_Z)
    assert len(window.editor.graph.nodes) == 3


def test_with_ctrl_a_dropped_file_is_opened(window: Window, tmp_path: Path) -> None:
    other = Graph("other", opsets={"": 21})
    other.add("Sigmoid", "only")
    save_picture(other, tmp_path / "other.png")
    assert drop(window, files(tmp_path / "other.png"), QPoint(50, 50), CONTROL)
    assert list(window.editor.graph.nodes) == ["only"]
    assert window.editor.path == tmp_path / "other.png" and not window.editor.is_changed


def test_several_files_are_one_step(window: Window, tmp_path: Path) -> None:
    save(pair(), tmp_path / "a.yaml")
    save(pair(), tmp_path / "b.png")
    steps = len(window.editor.graph.undo_labels)
    assert drop(window, files(tmp_path / "a.yaml", tmp_path / "b.png"), QPoint(100, 100))
    assert len(window.editor.graph.nodes) == 9 and len(window.editor.graph.undo_labels) == steps + 1


def test_a_picture_that_was_painted_on_loads_and_says_so(window: Window, tmp_path: Path) -> None:
    save_picture(pair(), tmp_path / "p.png")
    image = Image.open(tmp_path / "p.png")
    image.load()
    pixels = np.asarray(image).copy()
    pixels[40:60, 40:60] = 128
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for name, text in image.info.items():
        texts.add_text(name, text)
    Image.fromarray(pixels).save(tmp_path / "p.png", pnginfo=texts)
    said: list[str] = []
    window.editor.told.connect(said.append)
    assert drop(window, files(tmp_path / "p.png"), QPoint(100, 100))
    assert len(window.editor.graph.nodes) == 6
    assert any("changed" in text for text in said)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken", b"qmoe: [", b"\x00" * 500])
@pytest.mark.parametrize("ending", ["png", "yaml", "onnx"])
def test_broken_files_change_nothing_and_say_why(window: Window, tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"broken.{ending}"
    path.write_bytes(content)
    said: list[str] = []
    window.editor.told.connect(said.append)
    before = window.editor.graph.copy()
    drop(window, files(path), QPoint(100, 100))
    assert window.editor.graph.nodes.keys() >= before.nodes.keys()
    if content or ending != "onnx":  # no bytes are a model with nothing in it
        assert any("broken" in text for text in said), said


def test_what_holds_no_graph_is_refused_or_explained(window: Window) -> None:
    text = QMimeData()
    text.setText("just words")
    assert not drop(window, text, QPoint(10, 10))
    far = QMimeData()
    far.setUrls([QUrl("https://example.org/graph.png")])
    said: list[str] = []
    window.editor.told.connect(said.append)
    drop(window, far, QPoint(10, 10))
    assert any("save it first" in text for text in said)


def test_an_image_in_a_page_is_found(tmp_path: Path) -> None:
    save_picture(pair(), tmp_path / "in page.png")
    data = QMimeData()
    data.setHtml(f'<p><img alt="a" src="{QUrl.fromLocalFile(str(tmp_path / "in page.png")).toString()}"></p>')
    assert set(receive(data).graphs[0][1].nodes) == {"x", "relu", "y"}


def test_a_drag_that_leaves_takes_its_ghost_along(window: Window, tmp_path: Path) -> None:
    save(pair(), tmp_path / "pair.yaml")
    viewer = window.editor.canvas.viewer
    data = files(tmp_path / "pair.yaml")
    enter = QDragEnterEvent(QPoint(9, 9), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, NONE)
    QApplication.sendEvent(viewer.viewport(), enter)
    assert any(isinstance(item, Ghost) for item in viewer.scene().items())
    QApplication.sendEvent(viewer.viewport(), QDragLeaveEvent())
    assert not any(isinstance(item, Ghost) for item in viewer.scene().items())
    assert len(window.editor.graph.nodes) == 3


def test_opening_something_else_asks_about_changes(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str] = []

    def question(*arguments: object) -> QMessageBox.StandardButton:
        answers.append(str(arguments[2]))
        return QMessageBox.StandardButton.Cancel

    monkeypatch.setattr(QMessageBox, "question", question)
    window.editor.graph.add("Relu")
    window.new()
    assert len(window.editor.graph.nodes) == 4 and "Save the changes" in answers[0]
    assert dumps(window.editor.graph)[0].count("type: Relu") == 2
    assert QByteArray(b"x").data() == b"x"


# Files


def test_saving_and_opening_keeps_the_document(window: Window, tmp_path: Path) -> None:
    for ending in ("yaml", "png", "onnx"):
        path = tmp_path / f"kept.{ending}"
        assert window.save_to(path) and not window.isWindowModified()
        before = window.editor.graph.copy()
        window.editor.show(Graph())
        assert window.open(path)
        assert set(window.editor.graph.nodes) == set(before.nodes)
        assert len(window.editor.graph.wires) == len(before.wires)
        assert_same(window.editor.canvas)


def test_a_file_that_cannot_be_opened_leaves_the_document_and_says_why(window: Window, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("qmoe: 1\nnodes:\n  x: {type: [}\n")
    assert not window.open(tmp_path / "bad.yaml")
    assert "bad.yaml:3" in window.opening.label.text() and window.opening.isVisible()
    assert set(window.editor.graph.nodes) == {"x", "relu", "y"}
    assert not window.open(tmp_path / "none.yaml")
    assert "no such file" in window.opening.label.text()
    window.opening.button.click()
    assert not window.opening.isVisible()


def test_a_disk_that_is_full_loses_nothing(window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.yaml"
    assert window.save_to(path)
    before = path.read_bytes()
    window.editor.graph.add("Neg")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert not window.save_to(path)
    assert path.read_bytes() == before and window.isWindowModified()
    assert "No space left" in window.opening.label.text()


def test_a_large_file_is_read_while_the_window_goes_on(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    graph = Graph("large", opsets={"": 21})
    source = f"{graph.add('Input', 'x', parameters={'type': 'tensor(float)', 'shape': [4]})}.value"
    for number in range(5000):
        graph.add("Relu", f"relu_{number}")
        graph.wire(source, f"relu_{number}.X")
        source = f"relu_{number}.Y"
    save(graph, tmp_path / "large.onnx")
    assert not window.open(tmp_path / "large.onnx")
    assert window.opening.isVisible() and len(window.editor.graph.nodes) == 3
    qtbot.waitUntil(lambda: len(window.editor.graph.nodes) > 5000, timeout=60_000)
    assert not window.opening.isVisible() and window.editor.path == tmp_path / "large.onnx"
    window.open(tmp_path / "large.onnx")
    window.opening.button.click()  # cancelled: what was read is forgotten
    window.editor.show(pair())
    qtbot.wait(3000)
    assert len(window.editor.graph.nodes) == 3


def long_chain(path: Path) -> Path:
    """A file that is large enough to be read in a thread."""
    graph = Graph("large", opsets={"": 21})
    source = f"{graph.add('Input', 'x', parameters={'type': 'tensor(float)', 'shape': [4]})}.value"
    for number in range(3500):
        graph.add("Relu", f"relu_number_{number}")
        graph.wire(source, f"relu_number_{number}.X")
        source = f"relu_number_{number}.Y"
    save(graph, path)
    return path


def test_edits_made_while_a_large_file_is_read_are_not_lost(
    window: Window, qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def question(*arguments: object) -> QMessageBox.StandardButton:
        asked.append(str(arguments[2]))
        return QMessageBox.StandardButton.Cancel

    monkeypatch.setattr(QMessageBox, "question", question)
    window.open(long_chain(tmp_path / "large.onnx"))
    assert window.opening.isVisible()
    window.editor.graph.add("Neg", "precious")
    qtbot.waitUntil(lambda: bool(asked), timeout=60_000)
    assert "precious" in window.editor.graph.nodes and not window.opening.isVisible()


def test_another_document_ends_the_reading_of_a_large_file(window: Window, qtbot: QtBot, tmp_path: Path) -> None:
    save(pair(), tmp_path / "small.yaml")
    window.open(long_chain(tmp_path / "large.onnx"))
    assert window.open(tmp_path / "small.yaml") and not window.opening.isVisible()
    qtbot.wait(2500)
    assert window.editor.path == tmp_path / "small.yaml"


def test_save_as_suggests_the_name_and_completes_it(
    window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suggested: list[str] = []

    def choose(*arguments: object, **options: object) -> tuple[str, str]:
        suggested.append(str(arguments[2]))
        return str(tmp_path / "second"), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", choose)
    assert window.save_to(tmp_path / "first.yaml")
    assert window.ask_save() and window.editor.path == tmp_path / "second.yaml"
    assert suggested == [str(tmp_path / "first.yaml")]
    before = (tmp_path / "second.yaml").read_bytes()
    window.editor.graph.add("Neg")
    monkeypatch.setattr(QMessageBox, "question", lambda *arguments: QMessageBox.StandardButton.Cancel)
    assert not window.ask_save() and (tmp_path / "second.yaml").read_bytes() == before


def test_types_that_nobody_knows_are_kept(window: Window, tmp_path: Path) -> None:
    graph = pair()
    graph.add("of.tomorrow.Thing", "thing", parameters={"speed": 3})
    graph.wire("x.value", "thing.input.0")
    save(graph, tmp_path / "new.yaml")
    assert window.open(tmp_path / "new.yaml")
    item = window.editor.canvas.item("thing")
    assert item is not None and item.box is not None and not item.box.known
    assert any(finding.node == "thing" and finding.code == "unknown-type" for finding in window.editor.findings)
    window.editor.graph.set("relu", "name", "renamed")
    assert window.save_to(tmp_path / "new.yaml")
    assert "speed: 3" in (tmp_path / "new.yaml").read_text()
