"""Pictures that carry their graph: pixels in, a PNG file out, and back from whatever other programs made of it.

The graph is in a file twice: as text ahead of the pixels, which is read first, and in the lowest bits of the pixels,
which stay when a program drops texts. Each copy has a checksum, and says which picture it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtime.atomic import replacing
from runtime.attributes import Typed
from runtime.errors import FileError, Finding, GraphError, Severity
from runtime.graph import Graph
from runtime.snippets import low_bits, payload, raster
from runtime.snippets.beside import open_beside, require_plain, write_beside
from runtime.snippets.chunks import MAXIMUM_FILE, Chunks, read_chunks, text_chunks, write_png
from runtime.snippets.emit import emit
from runtime.snippets.payload import MAXIMUM_PAYLOAD, MAXIMUM_VALUES, Payload
from runtime.snippets.reading import Reader
from runtime.snippets.tensor_files import parse_tensors, tensor_bytes
from runtime.snippets.tree import Parser
from runtime.snippets.writing import Writer
from runtime.tensors import AbsentTensor, Tensor

KEYWORD = "qmoe.snippet"
"""Keyword of the text that holds the graph."""

ABOUT = "A QMoE Studio snippet: this picture holds the graph that it shows."

INSIDE = "here"
"""What the YAML in a picture calls the tensors that came along."""

MAXIMUM_TEXTS = 4
"""Copies that are tried; a picture has one."""

TensorsBeside = Callable[[str], Mapping[str, Tensor]]

_SEND = "Ask for the file as it was saved, sent as a file or an archive rather than as a picture."


@dataclass(frozen=True, slots=True)
class Content:
    """What of a graph goes into a picture, and the tensors that are too large for it, by name."""

    payload: Payload
    left_out: dict[str, Tensor]
    findings: tuple[Finding, ...]

    @property
    def samples(self) -> int:
        """Samples, three a pixel, that a picture must have to hold it."""
        return low_bits.samples_needed(len(payload.pack(self.payload)))


@dataclass(frozen=True, slots=True)
class LoadedPicture:
    """A graph from a picture, and what is worth knowing.

    `changed`: the pixels are not, or not surely, those that were saved. `source`: which copy the graph came from.
    """

    graph: Graph
    findings: tuple[Finding, ...]
    changed: bool
    source: Literal["text", "pixels"]


class PictureTooSmall(ValueError):
    """A picture has too few pixels for its graph; `samples` says how many samples, three a pixel, it must have."""

    def __init__(self, samples: int, given: int) -> None:
        self.samples = samples
        super().__init__(f"the graph needs a picture of {samples:,} samples; this one has {given:,}")


# -- writing ----------------------------------------------------------------------------------------------------------


def content_of(graph: Graph, files: Mapping[str, str] | None = None) -> Content:
    """What a picture of a graph is to hold. GraphError if it cannot be written, or is too large for any picture.

    Tensors that are too large are named with type, shape, SHA-256 and the file that they lie in: the one in `files` by
    the tensor's name, or else the .safetensors file that they were loaded from, or else `tensors.safetensors`.
    """
    writer = Writer()
    writer.document(graph, INSIDE)
    inside = payload.travelling(writer.tensors)
    left_out = {name: tensor for name, tensor in writer.tensors.items() if name not in inside}
    writer = Writer({name: (files or {}).get(name) or _home(tensor) for name, tensor in left_out.items()})
    document = writer.document(graph, INSIDE)
    if not inside:
        document.pop("tensors", None)
    try:
        text = emit(document)
    except ValueError as error:
        raise GraphError(Finding(f"The graph cannot be written to a picture: {error}.", code="snippet")) from error
    content = Payload(text.encode(), tensor_bytes(inside) if inside else b"", "0" * 64)
    size = len(payload.pack(content))
    if size > MAXIMUM_PAYLOAD or not content.is_within_bounds or _has_too_many_values(text):
        raise GraphError(
            Finding(
                f"The graph is too large for a picture: it would carry {size:,} bytes, and {len(text):,} characters of "
                f"YAML; at most {MAXIMUM_PAYLOAD:,} bytes and {MAXIMUM_VALUES:,} values are read again.",
                remedy="Save it as a .yaml snippet, or save a part of it.",
                code="snippet",
            )
        )
    return Content(content, left_out, tuple(_about_size(size)))


def encode_picture(graph: Graph, pixels: np.ndarray) -> tuple[bytes, tuple[Finding, ...]]:
    """A PNG file that shows `pixels`, uint8 [height, width, 3], and carries the graph, and what is worth knowing of it.

    GraphError if the graph cannot be written. PictureTooSmall if there are too few pixels for it; ValueError if there
    are too many to be read again.
    """
    content = content_of(graph)
    return encode_content(content, pixels), content.findings


def write_picture(graph: Graph, path: str | Path, draw: Callable[[int], np.ndarray]) -> tuple[Finding, ...]:
    """Writes a picture that carries a graph to a file, and the tensors that are too large for it beside it.

    `draw` is given how many samples the picture must have at least, three a pixel, and returns its pixels, uint8
    [height, width, 3]. Returns what is worth knowing. FileError or GraphError, and the old file as it was, if it cannot
    be written.
    """
    path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    content = content_of(graph)
    folder = path.absolute().parent
    elsewhere = {
        name: tensor
        for name, tensor in content.left_out.items()
        if tensor.file is None or tensor.file.absolute().parent != folder or tensor.file.suffix != ".safetensors"
    }
    if elsewhere:
        awaited = {tensor.location for _, _, tensor in absent_tensors(graph)}
        file = write_beside(path, elsewhere, awaited=awaited, may_hold_more=True)
        content = content_of(graph, dict.fromkeys(elsewhere, file))
    data = encode_content(content, draw(content.samples))
    with replacing(path) as stream:
        stream.write(data)
    return content.findings


def encode_content(content: Content, pixels: np.ndarray) -> bytes:
    """A PNG file that shows `pixels`, uint8 [height, width, 3], and carries `content`, both as text and in the pixels.

    PictureTooSmall if there are fewer than `content.samples` samples; ValueError if there are too many to be read
    again.
    """
    height, width, _ = pixels.shape
    if pixels.size < content.samples:
        raise PictureTooSmall(content.samples, pixels.size)
    raster.check_size(width, height)
    packed = payload.pack(Payload(content.payload.yaml, content.payload.tensors, low_bits.picture_digest(pixels)))
    texts = [(KEYWORD, payload.to_text(packed)), ("Software", "QMoE Studio"), ("Description", ABOUT)]
    return write_png(low_bits.embed(pixels, packed), texts)


def _home(tensor: Tensor) -> str:
    """The plain name of the file that a tensor lies in."""
    file = tensor.file
    return file.name if file is not None and file.suffix == ".safetensors" else "tensors.safetensors"


def _has_too_many_values(text: str) -> bool:
    if len(text) < 2 * MAXIMUM_VALUES:  # a value takes two characters at least
        return False
    try:
        Parser(text, "snippet", MAXIMUM_VALUES).parse()
    except FileError:
        return True
    return False


def _about_size(size: int) -> Iterator[Finding]:
    if size > payload.LARGE_PAYLOAD:
        yield Finding(
            f"The picture carries {size:,} bytes, more than many programs keep.",
            severity=Severity.WARNING,
            remedy="Save a .yaml snippet beside it.",
            code="large-picture",
        )


# -- reading ----------------------------------------------------------------------------------------------------------


def load_picture(source: str | Path | bytes, *, path: str | Path = "picture") -> LoadedPicture:
    """The graph in a picture: a PNG, BMP or lossless WebP file, or its bytes.

    `path` is what errors call bytes. Tensors that did not come along are taken from the file of the name that the
    picture gives, in the picture's own folder, if their SHA-256 is right; others are absent, and a finding asks for
    them. FileError says what is wrong with a file that holds no graph, or none that can be read.
    """
    if isinstance(source, bytes):
        data, path = source, Path(path)
        beside: TensorsBeside = _nothing_beside
    else:
        path = Path(source).resolve() if Path(source).is_symlink() else Path(source)
        data = read_picture(path)
        folder = path

        def beside(name: str) -> Mapping[str, Tensor]:
            return open_beside(folder, name)

    return _load(data, path, beside)


def read_picture(path: Path) -> bytes:
    """The bytes of a picture's file. FileError if it is too large or cannot be read."""
    try:
        if path.stat().st_size > MAXIMUM_FILE:
            raise FileError(path, f"is larger than {MAXIMUM_FILE >> 20} MiB, the most that a picture may have.")
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}.") from error


def _load(data: bytes, path: Path, beside: TensorsBeside) -> LoadedPicture:
    found = _Found.of(data, path)
    copy = found.text or found.hidden
    if copy is None:
        raise FileError(path, found.why_none(), code="" if found.is_damaged else "no-graph")
    graph = _graph(copy, path, beside)
    changed = found.digest != copy.picture
    findings = [*found.findings(changed), *(tensor.finding(node, key) for node, key, tensor in absent_tensors(graph))]
    return LoadedPicture(graph, tuple(findings), changed, "text" if found.text else "pixels")


@dataclass(slots=True)
class _Found:
    """What a file holds: the copies of the payload, the hash of its pixels, and what is wrong with each of them."""

    text: Payload | None = None
    hidden: Payload | None = None
    digest: str = ""
    text_problem: str = ""
    hidden_problem: str = ""
    pixels_problem: str = ""
    broken: str = ""

    @classmethod
    def of(cls, data: bytes, path: Path) -> _Found:
        """FileError if the file is no picture that could hold a graph."""
        found = cls()
        decode: Callable[[], np.ndarray]
        try:
            match raster.kind_of(data):
                case "png":
                    chunks = read_chunks(data)
                    raster.check_size(*chunks.size)
                    found.broken = chunks.broken
                    found._read_texts(chunks)
                    decode = lambda: raster.png_pixels(chunks)  # noqa: E731
                case "bmp":
                    decode = lambda: raster.bmp_pixels(data)  # noqa: E731
                case "webp":
                    decode = lambda: raster.webp_pixels(data)  # noqa: E731
                case "jpeg":
                    raise FileError(
                        path,
                        f"is a JPEG picture: that form changes pixels and drops the graph. {_SEND}",
                        code="picture",
                    )
                case _:
                    raise FileError(path, "is no picture of a known form; expected PNG, BMP or lossless WebP.")
        except ValueError as error:
            raise FileError(path, f"is no picture that can be read: {error}.") from error
        try:
            found._read_pixels(decode())
        except ValueError as error:
            found.pixels_problem = f"{error}"
        return found

    def _read_texts(self, chunks: Chunks) -> None:
        for text in islice(text_chunks(chunks, KEYWORD), MAXIMUM_TEXTS):
            try:
                if text.problem:
                    raise ValueError(text.problem)
                self.text = payload.unpack(payload.from_text(text.value))
                return
            except ValueError as error:
                self.text_problem = self.text_problem or f"{error}"

    def _read_pixels(self, pixels: np.ndarray) -> None:
        self.digest = low_bits.picture_digest(pixels)
        try:
            data = low_bits.extract(pixels, MAXIMUM_PAYLOAD)
            if data is not None:
                self.hidden = payload.unpack(data)
        except ValueError as error:
            self.hidden_problem = f"{error}"

    @property
    def is_damaged(self) -> bool:
        """Whether something is wrong with what is there."""
        return bool(self.text_problem or self.hidden_problem or self.pixels_problem)

    def why_none(self) -> str:
        """Why there is no graph, and what to do."""
        known = []
        if self.text_problem:
            known.append(f"the text that should hold it cannot be used: {self.text_problem}")
        if self.hidden_problem:
            known.append(f"the copy in the pixels cannot be used: {self.hidden_problem}")
        if self.pixels_problem:
            known.append(self.pixels_problem)
        if known:
            return f"holds no graph that can be read ({'; '.join(known)}). {_SEND}"
        return (
            "holds no graph. If it had one, a program dropped it: by making a JPEG of it, resizing it, reducing its "
            f"colours, or taking a screenshot. {_SEND}"
        )

    def findings(self, changed: bool) -> Iterator[Finding]:
        """What is worth knowing of a file whose graph was found."""
        if self.pixels_problem:
            message = f"The graph is whole, but whether the picture shows it cannot be told: {self.pixels_problem}."
            yield Finding(message, severity=Severity.WARNING, code="picture-damaged")
        elif changed:
            yield Finding(
                "The picture was changed after it was saved: the graph may not be what it shows.",
                severity=Severity.WARNING,
                code="picture-changed",
            )
        if self.text is None and self.text_problem:
            message = f"The graph comes from the pixels, since its copy as text cannot be used: {self.text_problem}."
            yield Finding(message, severity=Severity.WARNING, code="picture-damaged")
        if self.text is not None and self.hidden is None and not changed:
            reason = self.hidden_problem or "it is not there"
            message = f"The graph comes from the text; its copy in the pixels cannot be used: {reason}."
            yield Finding(message, severity=Severity.NOTE, code="picture-damaged")


def _graph(found: Payload, path: Path, beside: TensorsBeside) -> Graph:
    """The graph of a payload. FileError says what is wrong with it."""
    try:
        text = found.yaml.decode()
    except UnicodeDecodeError as error:
        raise FileError(path, "holds a graph that is not UTF-8 text.") from error

    def open_tensors(name: str) -> Mapping[str, Tensor]:
        if name == INSIDE:
            return parse_tensors(np.frombuffer(found.tensors, np.uint8), path)
        return beside(name)

    return Reader(Parser(text, path, MAXIMUM_VALUES), open_tensors, True).document()


def _nothing_beside(name: str) -> Mapping[str, Tensor]:
    require_plain(name)
    raise FileError(name, "is missing.")


def absent_tensors(graph: Graph, node: str = "") -> Iterator[tuple[str, str, AbsentTensor]]:
    """The tensors of a graph whose elements are missing, with node and parameter, subgraphs included."""
    for id, state in graph.nodes.items():
        for section in (state.parameters, state.layout, state.extra):
            for key, value in section.items():
                for tensor in _absent_in(value):
                    yield node or id, key, tensor
    for name in ("info", "functions", "layout", "extra"):
        for key, value in graph.section(name).items():
            for tensor in _absent_in(value):
                yield node, key, tensor


def _absent_in(value: Any) -> Iterator[AbsentTensor]:
    match value:
        case AbsentTensor():
            yield value
        case Graph():
            for _, _, tensor in absent_tensors(value):
                yield tensor
        case Typed():
            yield from _absent_in(value.value)
        case Mapping():
            for item in value.values():
                yield from _absent_in(item)
        case list() | tuple():
            for item in value:
                yield from _absent_in(item)


def names_file(path: Path, name: str) -> bool:
    """Whether the picture at `path` names a file of tensors; True if that cannot be told."""
    try:
        found = _Found.of(read_picture(path), path)
    except FileError:
        return False
    copy = found.text or found.hidden
    return copy is not None and name.encode() in copy.yaml
