"""Folders of model weights as Hugging Face writes them: a configuration, and tensors in one or many files, mapped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import FileError
from runtime.snippets.tensor_files import read_tensors
from runtime.tensors import Tensor
from runtime.types import ElementType

CONFIGURATION, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LARGEST_JSON = 64 << 20
_MISSING = f"is not there, but {INDEX} names it."
FLOATS = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16, ElementType.DOUBLE)


class Checkpoint:
    """The tensors of a folder by name. Nothing of them is read before it is asked for, and then only what is asked for.

    FileError names the file, the tensor, what was expected and what came.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileError(self.folder, f"expected a folder with {CONFIGURATION} and .safetensors files.")
        self.configuration = _read_json(self.folder / CONFIGURATION)
        self._files: dict[str, dict[str, Tensor]] = {}
        self._read: list[Tensor] = []

    @property
    def family(self) -> str:
        """What the configuration calls the model's family."""
        return str(self.setting("model_type", str))

    def setting(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of the configuration. FileError if it is not there and has no default, or is of another kind."""
        value = self.configuration.get(name)
        value = default if value is None else value
        kinds = kind if isinstance(kind, tuple) else (kind,)
        good = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        if not good:
            words = " or ".join(known.__name__ for known in kinds)
            found = "it is not there" if value is None else f"{value!r} came"
            raise FileError(self.folder / CONFIGURATION, f"{name}: expected {words}; {found}.")
        return value

    def size(self, name: str, *others: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
        """A size of the configuration: a whole number from 1 to `most`, under the first of the names that is there."""
        names = [known for known in (name, *others) if self.configuration.get(known) is not None]
        name = names[0] if names else name
        value = int(self.setting(name, int, default))
        if value < 1:
            raise FileError(self.folder / CONFIGURATION, f"{name}: expected a size of at least 1; {value} came.")
        if value > most:
            shown = str(value) if value < 1 << 63 else "a longer number"
            raise FileError(self.folder / CONFIGURATION, f"{name}: expected a size of at most {most}; {shown} came.")
        return value

    def number(self, name: str, default: float) -> float:
        """A number of the configuration that a float can hold."""
        value = self.setting(name, (float, int), default)
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise FileError(self.folder / CONFIGURATION, f"{name}: expected a finite number; {found} came.")
        return found

    @cached_property
    def places(self) -> Mapping[str, str]:
        """The names of the tensors, and of the file that each is in."""
        index = self.folder / INDEX
        if index.exists():
            listed = _read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
                raise FileError(index, "weight_map: expected a mapping of tensors to files.")
            for file in listed.values():
                if Path(file).name != file or not file.endswith(".safetensors"):
                    raise FileError(index, f"weight_map: {file!r} is no .safetensors file of this folder.")
            return dict(listed)
        found = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if SINGLE in found:
            found = [SINGLE]
        if not found:
            raise FileError(self.folder, "holds no .safetensors file.")
        return {name: file for file in found for name in self._tensors_of(file)}

    @cached_property
    def identity(self) -> str:
        """What tells these weights from others, as far as the files' sizes and times do."""
        facts = []
        for file in sorted({*self.places.values(), CONFIGURATION}):
            try:
                status = (self.folder / file).stat()
            except OSError as error:
                raise FileError(self.folder / file, _MISSING) from error
            facts.append((file, status.st_size, status.st_mtime_ns))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def forget(self) -> None:
        """Lets go of the memory of what was read since; it is read again where it is looked at again."""
        read, self._read = self._read, []
        for tensor in read:
            tensor.release()

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names of the tensors that begin so."""
        return (name for name in self.places if name.startswith(prefix))

    def tensor(self, name: str, shape: tuple[int, ...], elements: tuple[ElementType, ...] = FLOATS) -> Tensor:
        """A tensor that has this shape and one of these element types, mapped."""
        if name not in self.places:
            raise FileError(self.folder, f"lacks the tensor {name}, {list(shape)}.")
        file = self.places[name]
        tensor = self._tensors_of(file).get(name)
        if tensor is None:
            raise FileError(self.folder / file, f"lacks the tensor {name}, which {INDEX} says is there.")
        if tensor.element not in elements or tensor.shape != shape:
            kinds = " or ".join(str(element) for element in elements)
            text = f"{name}: expected {kinds} {list(shape)}; {tensor.element} {list(tensor.shape)} came."
            raise FileError(self.folder / file, text)
        self._read.append(tensor)
        return tensor

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """All numbers of a tensor of floats, float32 of this shape."""
        return self.tensor(name, shape).array().astype(np.float32)

    def part(self, name: str, shape: tuple[int, ...], index: int) -> np.ndarray:
        """What a tensor of floats has at one index of its first axis, float32 of `shape[1:]`: only that is read."""
        return np.asarray(self.tensor(name, shape).array()[index]).astype(np.float32)

    def _tensors_of(self, file: str) -> dict[str, Tensor]:
        if file not in self._files:
            path = self.folder / file
            if not path.is_file():
                raise FileError(path, _MISSING)
            self._files[file] = read_tensors(path)
        return self._files[file]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise FileError(path, f"has more than {LARGEST_JSON >> 20} MiB; that is no configuration.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise FileError(path, "expected a JSON object.")
    return found
