"""Where the values of a graph's inputs come from when it is run: a file, numbers that were typed, or made-up ones.

In a document, an Input node's `layout` says it: `source: {file: digits.npz}`, `source: {values: [1, 2]}` or
`source: {seed: 3}`; without it, values are made up. The graph's `layout` has the sizes of its symbolic dimensions:
`sizes: {N: 16}`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from runtime.arrays import FORMS, read_arrays
from runtime.atomic import replacing
from runtime.errors import FileError, Finding, GraphError
from runtime.graph import ABSENT, Graph, PortRef
from runtime.guard import input_names
from runtime.types import ElementType, TensorType, ValueType

DEFAULT_SIZE = 8
"""What a symbolic dimension of a made-up input is, unless something else is said."""
MOST_TYPED = 4096
"""Numbers that a document may hold for an input; more belong into a file."""
LARGEST_SIZE = 2**31 - 1
BROUGHT_ALONG = 64 << 20
"""Bytes of a file of inputs up to which it follows a document into another folder."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the values of one input come from: `file`, relative to the document; `values`; or random ones by `seed`.

    `values` are a number or nested lists of numbers; a number alone fills the input's whole shape.
    """

    file: str = ""
    values: Any = None
    seed: int = 0

    @property
    def kind(self) -> str:
        """`file`, `values` or `random`."""
        return "file" if self.file else "values" if self.values is not None else "random"

    @property
    def is_inside(self) -> bool:
        """Whether `file` names a file of arrays beside the document or below, on every system."""
        path = PurePosixPath(self.file)
        return (
            path.suffix.lower() in FORMS
            and not path.is_absolute()
            and ".." not in path.parts
            and "\\" not in self.file
            and not PureWindowsPath(self.file).drive
            and "\0" not in self.file
        )

    def place(self, folder: Path) -> Path:
        """The file. GraphError if a link leads out of the document's folder."""
        path = (folder / self.file).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise GraphError(Finding(f"{self.file} leads out of the document's folder.", code="input"))
        return path


def source_of(graph: Graph, id: str) -> Source:
    """Where an Input node's values come from. GraphError if its layout says it in no known way."""
    stored = graph.nodes[id].layout.get("source")
    if stored is None:
        return Source()
    if not isinstance(stored, Mapping) or len(stored) != 1:
        raise _wrong(id, stored)
    ((kind, value),) = stored.items()
    if kind == "file" and isinstance(value, str) and Source(file=value).is_inside:
        return Source(file=value)
    if kind == "values" and _count(value) <= MOST_TYPED:
        return Source(values=value)
    if kind == "seed" and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Source(seed=value)
    raise _wrong(id, stored)


def set_source(graph: Graph, id: str, source: Source) -> None:
    """Stores where an input's values come from. GraphError if `file` is not beside the document or below."""
    stored: Any = ABSENT
    if source.file:
        stored = {"file": source.file}
    elif source.values is not None:
        stored = {"values": source.values}
    elif source.seed:
        stored = {"seed": source.seed}
    with graph.transaction(f"Set the values of {id}"):
        graph.set(id, "source", stored, section="layout")
        source_of(graph, id)


def bring_along(graph: Graph, before: Path | None, folder: Path) -> tuple[list[str], list[str]]:
    """Copies the files that inputs name from the folder that the document was in to that which it is in now.

    Returns the names of those that were copied, and of those that are not there: large ones are not copied. A file that
    is there already stays. FileError if one cannot be written.
    """
    copied: list[str] = []
    missing: list[str] = []
    for id, state in graph.nodes.items():
        try:
            source = source_of(graph, id) if state.type == "Input" else Source()
            if not source.file or source.place(folder).exists():
                continue
            old = None if before is None else source.place(before)
        except GraphError:
            continue
        new = folder / source.file
        if old is None or not old.is_file() or old.stat().st_size > BROUGHT_ALONG or not new.parent.is_dir():
            missing.append(source.file)
            continue
        with old.open("rb") as given, replacing(new) as file:
            shutil.copyfileobj(given, file)
        copied.append(source.file)
    return sorted(copied), sorted(set(missing))


def sizes_of(graph: Graph) -> dict[str, int]:
    """The sizes that are chosen for symbolic dimensions; what is no size is left out."""
    stored = graph.section("layout").get("sizes")
    if not isinstance(stored, Mapping):
        return {}
    return {
        str(name): size
        for name, size in stored.items()
        if isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= LARGEST_SIZE
    }


def set_size(graph: Graph, name: str, size: int, merge: str = "") -> None:
    """Chooses the size of a symbolic dimension."""
    sizes = sizes_of(graph) | {name: size}
    with graph.transaction(f"Set {name} to {size}", merge):
        graph.set("", "sizes", {n: s for n, s in sizes.items() if s != DEFAULT_SIZE} or ABSENT, section="layout")


def symbols_of(graph: Graph) -> list[str]:
    """The symbolic dimensions of the inputs, in the inputs' order."""
    types = [graph.checker.type_of(PortRef(id, "value")) for id in input_names(graph)]
    sizes = (size for type_ in types if isinstance(type_, TensorType) for size in type_.shape or ())
    return list(dict.fromkeys(size for size in sizes if isinstance(size, str)))


def feeds_of(graph: Graph, folder: Path | None = None, files: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Values for all inputs of a graph, by the names under which a run wants them.

    `folder` is the document's; `files` are others by an Input node's id, which go before what the document says.
    GraphError names an input whose values cannot be had; FileError a file that cannot be read.
    """
    names, chosen = input_names(graph), dict(files or {})
    types = {name: graph.checker.type_of(PortRef(id, "value")) for id, name in names.items()}
    sources = {id: source_of(graph, id) for id in names}
    read: dict[Path, dict[str, np.ndarray]] = {}
    given: dict[str, Any] = {}
    for id, name in names.items():
        path = chosen.get(id) or _place(id, sources[id], folder)
        if path is not None:
            if path not in read:
                read[path] = read_arrays(path)
            given[name] = retyped(_one_of(path, read[path], name), types[name])
    sizes = sizes_of(graph) | learned_sizes(types, given)  # a file's sizes are what they are
    for id, name in names.items():
        if name not in given and sources[id].kind == "values":
            given[name] = _typed(id, sources[id].values, types[name], sizes)
    by_seed: dict[int, dict[str, ValueType]] = {}
    for id, name in names.items():
        if name not in given:
            by_seed.setdefault(sources[id].seed, {})[name] = types[name]
    made = [generated(group, given, sizes, seed) for seed, group in by_seed.items()]
    values = given | {name: value for group in made for name, value in group.items()}
    return {name: values[name] for name in names.values()}


# -- kinds of sources -------------------------------------------------------------------------------------------------


def generated(
    types: Mapping[str, ValueType], given: Mapping[str, Any], sizes: Mapping[str, int], seed: int
) -> dict[str, Any]:
    """Made-up values for inputs that are not given: the same for the same seed.

    Floats have a standard normal distribution, other numbers are 0 or 1. A symbolic dimension is as long as in a given
    value, else as `sizes` says, else DEFAULT_SIZE.
    """
    chosen = learned_sizes(types, given) | dict(sizes)
    generator = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for name, type_ in types.items():
        if name not in given:
            values[name] = _random(generator, *_whole(name, type_, chosen), name)
    return values


def learned_sizes(types: Mapping[str, ValueType], given: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that given values have for symbolic dimensions."""
    sizes: dict[str, int] = {}
    for name, value in given.items():
        type_ = types.get(name)
        if isinstance(type_, TensorType) and type_.shape and hasattr(value, "shape"):
            pairs = zip(type_.shape, value.shape, strict=False)
            sizes = {size: number for size, number in pairs if isinstance(size, str)} | sizes
    return sizes


def retyped(value: np.ndarray, wanted: ValueType | None) -> np.ndarray:
    """Bytes as NumPy's files hold bfloat16 and the like, read as what the input wants."""
    dtype = kept_type(value.dtype, wanted)
    return value if dtype == value.dtype else value.view(dtype)


def kept_type(stored: np.dtype, wanted: ValueType | None) -> np.dtype:
    """The type of what is in a NumPy file: the input's own, where files have no name for that but its bytes."""
    if isinstance(wanted, TensorType) and wanted.element is not None and stored.kind == "V":
        dtype = wanted.element.dtype
        if dtype.itemsize == stored.itemsize:
            return dtype
    return stored


def _whole(name: str, type_: ValueType, sizes: Mapping[str, int]) -> tuple[ElementType, tuple[int, ...]]:
    if not isinstance(type_, TensorType) or type_.element is None or type_.shape is None:
        text = f"an input of type {type_} cannot be made up."
        raise GraphError.at(name, "", text, "Give its values (--input on the command line).", "input")
    shape = tuple(size if isinstance(size, int) else sizes.get(str(size), DEFAULT_SIZE) for size in type_.shape)
    return type_.element, shape


def _random(generator: np.random.Generator, element: ElementType, shape: tuple[int, ...], name: str) -> np.ndarray:
    if element is ElementType.STRING:
        text = "a tensor of strings cannot be made up."
        raise GraphError.at(name, "", text, "Give its values (--input on the command line).", "input")
    try:
        if element.is_float or element.dtype.kind == "c":
            return np.asarray(generator.standard_normal(shape, np.float32)).astype(element.dtype)
        return generator.integers(0, 2, shape).astype(bool if element is ElementType.BOOL else element.dtype)
    except (MemoryError, ValueError) as error:  # ValueError: more elements than an array can have
        sizes = " x ".join(map(str, shape))
        raise GraphError.at(
            name, "", f"{sizes} elements do not fit into memory.", "Choose smaller ones (--size).", "size"
        ) from error


def _typed(id: str, values: Any, type_: ValueType, sizes: Mapping[str, int]) -> np.ndarray:
    """Numbers that were typed, as the input wants them."""
    if not isinstance(type_, TensorType) or type_.element is None:
        raise GraphError.at(id, "value", f"values cannot be typed for an input of type {type_}.", code="input")
    wanted = object if type_.element is ElementType.STRING else type_.element.dtype
    try:
        array = np.asarray(values, object) if wanted is object else np.asarray(values)
        if array.dtype.kind in "OUS" and wanted is not object:
            raise ValueError("rows have different lengths, or there is something else than numbers")
        whole = array.astype(wanted)
        whole_numbers = array.dtype.kind in "iuf" and not type_.element.is_float and wanted is not object
        if whole_numbers and not np.array_equal(whole.astype(array.dtype), array):
            raise ValueError(f"{type_.element} cannot hold all of the numbers")
    except (ValueError, TypeError, OverflowError) as error:
        raise GraphError.at(id, "value", f"the values do not make a tensor: {error}.", code="input") from error
    if whole.ndim == 0 and type_.shape:
        _, shape = _whole(id, type_, sizes)
        return np.full(shape, whole)
    return whole


def _one_of(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name in arrays:
        return arrays[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise FileError(path, f"holds {', '.join(arrays) or 'nothing'}; expected {name}.")


def _place(id: str, source: Source, folder: Path | None) -> Path | None:
    if not source.file:
        return None
    if folder is None:
        text = f"its values are in {source.file}, beside the document; but that is in no file yet."
        raise GraphError.at(id, "value", text, "Save the document, or choose the file anew.", "input")
    return source.place(folder)


def _count(values: Any, depth: int = 0) -> float:
    """How many numbers or texts there are in nested lists; infinite if there is anything else."""
    if isinstance(values, str | bool | int | float):
        return 1
    if isinstance(values, list | tuple) and depth < 16:
        return sum(_count(item, depth + 1) for item in values) if len(values) <= MOST_TYPED else math.inf
    return math.inf


def _wrong(id: str, stored: Any) -> GraphError:
    text = f"its values are said to come from {str(stored)[:80]}, which is no source."
    remedy = f"Say file: a name ({', '.join(FORMS)}), values: up to {MOST_TYPED} numbers, or seed: a number."
    return GraphError(Finding(text, id, "value", remedy=remedy, code="input"))
