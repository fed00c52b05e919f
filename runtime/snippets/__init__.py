"""Snippets: a graph as YAML, its tensors in a `.safetensors` file beside it.

    qmoe: 1
    name: example
    opsets: {"": 23, com.microsoft: 1}
    tensors: example.safetensors
    nodes:
      x:
        type: Input
        parameters: {type: tensor(float), shape: [tokens, 64]}
      moe:
        type: com.microsoft.QMoE
        parameters: {block_size: 32, k: 2}
        inputs:
          input: x
          router_probs: router.Y
        layout: {position: [320, 80]}

A wire stands with its target and names its source, `node.port`; `node` does if that has one output. Keys that are
unknown here are kept and written back. `runtime.snippets.values` says how tensors, bytes, types and graphs are written.

Saving is atomic: the tensors are written first, to a file of a new name, so that the old pair of files stays whole
until the new YAML takes the old one's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from runtime.atomic import replacing
from runtime.errors import FileError, Finding, GraphError
from runtime.graph import Graph
from runtime.snippets.beside import is_named, open_beside, tensors_named_in, write_beside
from runtime.snippets.emit import emit
from runtime.snippets.reading import VERIFIED_AT_LOAD, Reader
from runtime.snippets.tree import MAXIMUM_BYTES, Parser
from runtime.snippets.writing import VERSION, Writer
from runtime.tensors import Tensor, hash_together

__all__ = ["VERIFIED_AT_LOAD", "VERSION", "dumps", "load_yaml", "loads", "save_yaml"]


def dumps(
    graph: Graph, tensors_file: str = "tensors.safetensors", *, by_place: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """A graph as YAML text, and the tensors that belong beside it by the names that the text gives them.

    `tensors_file` is what the text calls the file that they lie in. With `by_place` tensors that lie in files are not
    hashed, and two that lie in different places have different names. GraphError names what cannot be written.
    """
    writer = Writer(by_place=by_place)
    data = writer.document(graph, tensors_file)
    try:
        return emit(data), writer.tensors
    except ValueError as error:
        raise GraphError(Finding(f"The graph cannot be written to a snippet: {error}.", code="snippet")) from error


def loads(
    text: str, tensors: Mapping[str, Tensor] | None = None, *, path: str | Path = "snippet", verify: bool | None = None
) -> Graph:
    """The graph of a YAML text; the inverse of `dumps`.

    `path` is what errors call the text. `verify` as for `load_yaml`. FileError gives line and column of what is wrong.
    """
    return Reader(Parser(text, path), lambda _: tensors or {}, verify).document()


def load_yaml(path: str | Path, *, verify: bool | None = None) -> Graph:
    """The graph of a snippet's file; its tensors are mapped from the file beside it.

    `verify`: whether the SHA-256 of every tensor is computed and compared. By default it is if the tensors take up to
    VERIFIED_AT_LOAD bytes (256 MiB) together; of a larger file, only names, types, shapes and places are checked.
    FileError says what is wrong: with line and column for the YAML, with names for the tensors.
    """
    path = _followed(path)
    text = _read_text(path)
    return Reader(Parser(text, path), lambda name: open_beside(path, name), verify).document()


def save_yaml(graph: Graph, path: str | Path) -> None:
    """Writes a graph as a snippet, and its larger tensors beside it, if they are not there already.

    The tensors go to `<name>.safetensors`, or if another file has that name, to `<name>.<hash>.safetensors`. The file
    that the snippet used before is removed when no other snippet in the folder names it. FileError or GraphError, and
    the old files as they were, if that cannot be done.
    """
    path = _followed(path)
    tensors = (state.parameters.get("tensor") for state in graph.nodes.values())
    hash_together(tensor for tensor in tensors if isinstance(tensor, Tensor))
    writer = Writer()
    data = writer.document(graph, "")
    previous = tensors_named_in(path)
    if writer.tensors:
        data["tensors"] = write_beside(path, writer.tensors, previous, awaited=writer.awaited)
    try:
        text = emit(data)
    except ValueError as error:
        raise GraphError(Finding(f"The graph cannot be written to a snippet: {error}.", code="snippet")) from error
    with replacing(path) as file:
        file.write(text.encode())
    if previous and previous != data.get("tensors") and not is_named(path.parent, previous):
        with suppress(OSError):  # it may be in use where files in use cannot be removed
            (path.parent / previous).unlink()


def _followed(path: str | Path) -> Path:
    """The file itself where `path` is a link to it: its tensors lie beside the file."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise FileError(path, f"is larger than {MAXIMUM_BYTES >> 20} MiB, the most that a snippet may have.")
        data = path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise FileError(path, "is not UTF-8 text.", line=line, column=column) from error
