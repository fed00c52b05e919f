"""Graphs on the clipboard and in drags: out as picture, text and our own type at once, in from whatever there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QMimeData, QUrl
from PySide6.QtGui import QImage

from runtime.drawing.picture import encoded_picture
from runtime.errors import FileError, Finding, StudioError
from runtime.files import ONNX, PICTURES, YAML, load
from runtime.graph import Graph
from runtime.snippets import dumps, loads
from runtime.snippets.pictures import load_picture
from runtime.snippets.tree import MAXIMUM_BYTES

SNIPPET = "application/x-qmoe-snippet"
"""A picture's bytes under a name of our own: no other program offers to change them."""
PNG = "image/png"
MOST_FILES = 20

_IMAGE = re.compile(r"""<img\b[^>]*\bsrc\s*=\s*["'](file:[^"']+)["']""", re.IGNORECASE)
_BEGINNING = re.compile(r"(?:\s|#[^\n]*\n)*qmoe\s*:")


@dataclass(frozen=True, slots=True)
class Received:
    """Graphs that came in, each with what it came from, and what is worth knowing of them."""

    graphs: tuple[tuple[str, Graph], ...]
    notes: tuple[Finding, ...] = ()
    paths: tuple[Path, ...] = ()


def may_hold_graph(data: QMimeData) -> bool:
    """Whether it is worth looking for a graph: asked with every move of a drag, so nothing is read."""
    if data.hasFormat(SNIPPET) or data.hasFormat(PNG) or data.hasImage():
        return True
    if data.hasUrls() and any(_is_graph(url) for url in data.urls()):
        return True
    if data.hasHtml() and _IMAGE.search(data.html()):
        return True
    return data.hasText() and bool(_BEGINNING.match(data.text()[:4096]))


def _is_graph(url: QUrl) -> bool:
    name = url.path().lower()
    return name.endswith(YAML + PICTURES + ONNX)


def receive(data: QMimeData) -> Received:
    """The graphs in data from the clipboard or a drag. StudioError says in a sentence why there is none.

    Read in the order in which least is lost: our own type, a picture's bytes, files, text, and last the picture as
    Qt holds it, of which only the pixels are left.
    """
    for form in (SNIPPET, PNG):
        if data.hasFormat(form):
            content = bytes(data.data(form).data())
            if form == PNG and data.hasUrls():  # a browser gives both: the file is what was saved
                break
            return _from_picture(content, "the clipboard's picture")
    paths = list(_paths(data))
    if paths:
        return _from_files(paths)
    if data.hasText() and _BEGINNING.match(data.text()[:4096]):
        text = data.text()
        if len(text) > MAXIMUM_BYTES:
            raise FileError("the clipboard's text", "is larger than a snippet may be.")
        return Received((("the clipboard's text", loads(text, path="the clipboard's text")),))
    if data.hasImage():
        return _from_picture(_bmp(QImage(data.imageData())), "the clipboard's picture")
    if data.hasUrls():
        raise StudioError(f"{data.urls()[0].toString()} is not on this computer: save it first, then drop the file.")
    raise StudioError(
        "There is no graph in this: expected a snippet's picture or text, or a .yaml, .png or .onnx file."
    )


def _paths(data: QMimeData) -> Iterator[Path]:
    urls = data.urls() if data.hasUrls() else []
    if not urls and data.hasHtml():
        found = _IMAGE.search(data.html())
        urls = [QUrl(found[1])] if found else []
    for url in urls:
        if url.isLocalFile():
            yield Path(url.toLocalFile())


def _from_files(paths: list[Path]) -> Received:
    if len(paths) > MOST_FILES:
        raise StudioError(f"{len(paths)} files at once are more than the {MOST_FILES} that are taken.")
    notes: list[Finding] = []
    graphs = tuple((path.name, load(path, notes)) for path in paths)
    return Received(graphs, tuple(notes), tuple(paths))


def _from_picture(content: bytes, name: str) -> Received:
    loaded = load_picture(content, path=name)
    return Received(((name, loaded.graph),), loaded.findings)


def _bmp(image: QImage) -> bytes:
    """The pixels of an image as a BMP file, which holds them as they are."""
    content = QByteArray()
    buffer = QBuffer(content)
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.convertToFormat(QImage.Format.Format_RGB888).save(buffer, "BMP")  # type: ignore[call-overload]
    return bytes(content.data())


def offer(graph: Graph, *, theme: str = "light") -> QMimeData:
    """A graph as data for the clipboard or a drag. GraphError if it is too large for a picture."""
    picture = encoded_picture(graph, theme=theme)
    data = QMimeData()
    data.setData(SNIPPET, QByteArray(picture))
    data.setData(PNG, QByteArray(picture))
    image = QImage.fromData(picture)
    data.setImageData(image)
    text, tensors = dumps(graph)
    if not tensors:  # text alone would lack the numbers
        data.setText(text)
    return data
