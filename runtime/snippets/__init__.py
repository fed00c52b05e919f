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

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from runtime.atomic import replacing
from runtime.errors import FileError, Finding, GraphError
from runtime.graph import Graph
from runtime.snippets.emit import emit
from runtime.snippets.reading import VERIFIED_AT_LOAD, Reader
from runtime.snippets.tensor_files import read_tensors, stored_type, write_tensors
from runtime.snippets.tree import MAXIMUM_BYTES, Parser
from runtime.snippets.writing import VERSION, Writer
from runtime.tensors import Tensor

__all__ = ["VERIFIED_AT_LOAD", "VERSION", "dumps", "load_yaml", "loads", "save_yaml"]

_TENSORS_LINE = re.compile(rb"^tensors: (.*?)\r?$", re.MULTILINE)


def dumps(
    graph: Graph, tensors_file: str = "tensors.safetensors", *, by_place: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """A graph as YAML text, and the tensors that belong beside it by the names that the text gives them.

    `tensors_file` is what the text calls the file that they lie in. With `by_place` tensors that lie in files are not
    hashed, and two that lie in different places have different names. GraphError names what cannot be written.
    """
    writer = Writer(by_place)
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
    return Reader(Parser(text, path), lambda name: _open_beside(path, name), verify).document()


def save_yaml(graph: Graph, path: str | Path) -> None:
    """Writes a graph as a snippet, and its larger tensors beside it, if they are not there already.

    The tensors go to `<name>.safetensors`, or if another file has that name, to `<name>.<hash>.safetensors`. The file
    that the snippet used before is removed when no other snippet in the folder names it. FileError or GraphError, and
    the old files as they were, if that cannot be done.
    """
    path = _followed(path)
    writer = Writer()
    data = writer.document(graph, "")
    previous = _tensors_named_in(path)
    if writer.tensors:
        data["tensors"] = _write_beside(path, previous, writer.tensors)
    try:
        text = emit(data)
    except ValueError as error:
        raise GraphError(Finding(f"The graph cannot be written to a snippet: {error}.", code="snippet")) from error
    with replacing(path) as file:
        file.write(text.encode())
    if previous and previous != data.get("tensors") and not _is_named(path.parent, previous):
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


def _open_beside(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of the file `name` in a snippet's folder. ValueError if it is not in that folder."""
    if not _is_plain(name):
        raise ValueError(f"expected the plain name of a .safetensors file in the snippet's own folder, found {name!r}.")
    file = path.parent / name
    if not file.exists():
        raise FileError(file, f"is missing; {path} keeps its tensors there.")
    if file.resolve().parent != path.parent.resolve():
        raise ValueError(f"{name!r} is a link out of the snippet's folder, which is not followed.")
    if not file.is_file():
        raise FileError(file, "is no file.")
    return read_tensors(file)


def _is_plain(name: str) -> bool:
    return name.endswith(".safetensors") and not re.search(r"[/\\:\0]|^\.", name)


def _tensors_named_in(path: Path) -> str:
    """The tensor file that the snippet at `path` names, as far as that can be told; empty if none."""
    try:
        match = _TENSORS_LINE.search(path.read_bytes())
        name = yaml.load(match[1], yaml.CSafeLoader) if match else ""
    except (OSError, yaml.YAMLError):
        return ""
    return name if isinstance(name, str) and _is_plain(name) else ""


def _write_beside(path: Path, previous: str, tensors: Mapping[str, Tensor]) -> str:
    """Sees to it that a file beside `path` holds these tensors, and no others, and returns its name.

    A file that does so already is used; one that does not is left alone.
    """
    content = "".join(f"{name}\0{tensor.type}\0{tensor.digest}\0" for name, tensor in sorted(tensors.items()))
    digest = hashlib.sha256(content.encode()).hexdigest()
    candidates = [
        f"{path.stem}.safetensors",
        f"{path.stem}.{digest[:8]}.safetensors",
        f"{path.stem}.{digest}.safetensors",
    ]
    for name in [previous, *candidates]:
        if name and _holds(path, name, tensors):
            return name
    name = next((name for name in candidates if not os.path.lexists(path.with_name(name))), candidates[-1])
    write_tensors(path.with_name(name), tensors)
    return name


def _holds(path: Path, name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the file beside `path` holds these tensors and no others."""
    try:
        stored = _open_beside(path, name)
    except (FileError, ValueError):
        return False
    return {key: tensor.type for key, tensor in stored.items()} == {
        key: stored_type(tensor) for key, tensor in tensors.items()
    } and all(stored[key].digest == tensor.digest for key, tensor in tensors.items())


def _is_named(folder: Path, name: str) -> bool:
    """Whether a snippet in the folder names a file."""
    for snippet in folder.iterdir():
        if snippet.suffix in (".yaml", ".yml"):
            try:
                if name.encode() in snippet.read_bytes():
                    return True
            except OSError:
                return True
    return False
