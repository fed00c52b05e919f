"""The file of tensors in a snippet's folder: how it is found, named, written, and told to be no longer needed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import yaml

from runtime.errors import FileError
from runtime.snippets.tensor_files import read_tensors, stored_type, write_tensors
from runtime.tensors import Tensor

_TENSORS_LINE = re.compile(rb"^tensors: (.*?)\r?$", re.MULTILINE)


def open_beside(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of the file `name` in a snippet's folder. ValueError if it is not in that folder."""
    require_plain(name)
    file = path.parent / name
    if not file.exists():
        raise FileError(file, f"is missing; {path} keeps its tensors there.")
    if file.resolve().parent != path.parent.resolve():
        raise ValueError(f"{name!r} is a link out of the snippet's folder, which is not followed.")
    if not file.is_file():
        raise FileError(file, "is no file.")
    return read_tensors(file)


def require_plain(name: str) -> None:
    """ValueError if a name leads out of a folder."""
    if not is_plain(name):
        raise ValueError(f"expected the plain name of a .safetensors file in the snippet's own folder, found {name!r}.")


def is_plain(name: str) -> bool:
    return name.endswith(".safetensors") and not re.search(r"[/\\:\0]|^\.", name)


def tensors_named_in(path: Path) -> str:
    """The tensor file that the snippet at `path` names, as far as that can be told; empty if none."""
    try:
        match = _TENSORS_LINE.search(path.read_bytes())
        name = yaml.load(match[1], yaml.CSafeLoader) if match else ""
    except (OSError, yaml.YAMLError):
        return ""
    return name if isinstance(name, str) and is_plain(name) else ""


def write_beside(
    path: Path,
    tensors: Mapping[str, Tensor],
    previous: str = "",
    *,
    awaited: Collection[str] = (),
    may_hold_more: bool = False,
) -> str:
    """Sees to it that a file beside `path` holds these tensors, and unless it may, no others, and returns its name.

    A file that does so already is used, `previous` first; one that does not is left alone. No file gets a name in
    `awaited`: it is another one's that is missing.
    """
    content = "".join(f"{name}\0{tensor.type}\0{tensor.digest}\0" for name, tensor in sorted(tensors.items()))
    digest = hashlib.sha256(content.encode()).hexdigest()
    candidates = [
        f"{path.stem}.safetensors",
        f"{path.stem}.{digest[:8]}.safetensors",
        f"{path.stem}.{digest}.safetensors",
    ]
    for name in [previous, *candidates]:
        if name and _holds(path, name, tensors, may_hold_more):
            return name
    free = [name for name in candidates if name not in awaited and not os.path.lexists(path.with_name(name))]
    name = free[0] if free else candidates[-1]
    write_tensors(path.with_name(name), tensors)
    return name


def _holds(path: Path, name: str, tensors: Mapping[str, Tensor], may_hold_more: bool) -> bool:
    """Whether the file beside `path` holds these tensors and no others, or perhaps others."""
    try:
        stored = open_beside(path, name)
    except (FileError, ValueError):
        return False
    if may_hold_more:
        stored = {key: tensor for key, tensor in stored.items() if key in tensors}
    return {key: tensor.type for key, tensor in stored.items()} == {
        key: stored_type(tensor) for key, tensor in tensors.items()
    } and all(stored[key].digest == tensor.digest for key, tensor in tensors.items())


def is_named(folder: Path, name: str) -> bool:
    """Whether a snippet in the folder, YAML or picture, names a file."""
    from runtime.snippets.pictures import names_file

    for snippet in folder.iterdir():
        if snippet.suffix.lower() == ".png" and names_file(snippet, name):
            return True
        if snippet.suffix in (".yaml", ".yml"):
            try:
                if name.encode() in snippet.read_bytes():
                    return True
            except OSError:
                return True
    return False
