"""What a run is given: checked against the declared types before any kernel sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from runtime.errors import Finding, GraphError
from runtime.tensors import Tensor
from runtime.types import ElementType, MapType, OptionalType, SequenceType, TensorType, ValueType, format_shape

Symbols: TypeAlias = dict[str, tuple[int, str]]
"""By name of a dimension: its size in this run, and the input that said so."""
Check: TypeAlias = Callable[[Any, Symbols], Any]

_MISSING = object()


def signature(names: Iterable[str], given: Any) -> tuple[Any, ...] | None:
    """What `Acceptor` and `Guard` look at, but for strings, where a run is given arrays alone, one for each name."""
    if type(given) is not dict:
        return None
    found: list[Any] = []
    for name in names:
        value = given.get(name)
        if type(value) is not np.ndarray:
            return None
        found += (value.dtype, value.shape)
    return tuple(found) if len(found) == 2 * len(given) else None


class Acceptor:
    """Checks the inputs of a run. `types` by input name; those in `optional` may be left out."""

    def __init__(self, types: Mapping[str, ValueType], optional: Iterable[str] = ()) -> None:
        self._checks = [(name, make_check(name, type)) for name, type in types.items()]
        self._names = frozenset(types)
        self._optional = frozenset(optional)

    def accept(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values as kernels take them. GraphError names each input that is missing, unknown or of a wrong type."""
        values: dict[str, Any] = {}
        symbols: Symbols = {}
        try:
            for name, check in self._checks:
                value = given.get(name, _MISSING)
                if value is not _MISSING:
                    values[name] = check(value, symbols)
                elif name not in self._optional:
                    raise KeyError(name)
            if len(values) != len(given):
                raise KeyError
        except (KeyError, GraphError):
            raise GraphError(self._everything_wrong(given)) from None
        return values

    def _everything_wrong(self, given: Mapping[str, Any]) -> list[Finding]:
        findings: list[Finding] = []
        symbols: Symbols = {}
        known = ", ".join(sorted(self._names)) or "none"
        for name, check in self._checks:
            if name not in given:
                if name not in self._optional:
                    findings.append(Finding("This input is missing.", name, code="missing-input"))
                continue
            try:
                check(given[name], symbols)
            except GraphError as error:
                findings.extend(error.findings)
        findings += [
            Finding("The graph has no such input.", str(name), remedy=f"Its inputs: {known}.", code="surplus-input")
            for name in given
            if name not in self._names
        ]
        return findings


def make_check(name: str, type: ValueType) -> Check:
    """A function that takes a value of one input and returns it as kernels want it, or raises GraphError."""
    match type:
        case TensorType(sparse=True):
            raise GraphError(
                Finding("Sparse tensors cannot be given to a run.", name, remedy="Use a dense input.", code="type")
            )
        case TensorType(element, shape):
            return _tensor_check(name, type, element, shape)
        case SequenceType(of):
            return _sequence_check(name, of)
        case OptionalType(of):
            inner = make_check(name, of)
            return lambda value, symbols: None if value is None else inner(value, symbols)
        case MapType():
            return _map_check(name)


def _tensor_check(name: str, type: TensorType, element: ElementType | None, shape: tuple[Any, ...] | None) -> Check:
    dtype = None if element is None else element.dtype
    strings = element is ElementType.STRING
    rank = -1 if shape is None else len(shape)
    fixed = [(axis, size) for axis, size in enumerate(shape or ()) if isinstance(size, int)]
    symbolic = [(axis, size) for axis, size in enumerate(shape or ()) if isinstance(size, str)]

    def check(value: Any, symbols: Symbols) -> np.ndarray:
        if not isinstance(value, np.ndarray):
            value = _as_array(name, value, element)
        if strings and value.dtype.kind in "OUST":
            value = Tensor.from_array(value).array()
        elif value.dtype is not dtype and dtype is not None and value.dtype != dtype:
            expected = "strings" if strings else f"{element} ({dtype})"
            raise _wrong(name, f"The elements must be {expected}; {value.dtype} came.", "type")
        if rank < 0:
            return value
        sizes = value.shape
        if len(sizes) != rank:
            raise _wrong(
                name, f"A tensor of shape {format_shape(type.shape)} is expected; {list(sizes)} came.", "shape"
            )
        for axis, size in fixed:
            if sizes[axis] != size:
                raise _wrong(name, f"Dimension {axis} must be {size}; {sizes[axis]} came, in {list(sizes)}.", "shape")
        for axis, symbol in symbolic:
            size, origin = symbols.setdefault(symbol, (sizes[axis], name))
            if size != sizes[axis]:
                where = "an earlier dimension of it" if origin == name else f"input {origin}"
                raise _wrong(name, f"Dimension {axis}, {symbol!r}, is {size} in {where}; {sizes[axis]} came.", "shape")
        return value

    return check


def _sequence_check(name: str, of: ValueType) -> Check:
    inner = make_check(name, of)

    def check(value: Any, symbols: Symbols) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise _wrong(name, f"A list is expected; {type(value).__name__} came.", "type")
        return [inner(item, {}) for item in value]  # the elements of a sequence may differ in shape

    return check


def _map_check(name: str) -> Check:
    def check(value: Any, symbols: Symbols) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong(name, f"A dictionary is expected; {type(value).__name__} came.", "type")
        return value

    return check


def _as_array(name: str, value: Any, element: ElementType | None) -> np.ndarray:
    """NumPy scalars keep their type; Python numbers and lists of them take the input's, if no fraction is lost."""
    array = np.asarray(value)
    if array.dtype == object and element is not ElementType.STRING:
        raise _wrong(name, f"An array is expected; {type(value).__name__} came.", "type")
    if element is None or element is ElementType.STRING or isinstance(value, np.generic):
        return array
    fits = array.size == 0 or array.dtype.kind in ("biuf" if element.is_float else "b" if element.bits == 1 else "biu")
    if not fits or hasattr(value, "__array__"):
        return array  # the check of the element type says what is wrong
    try:
        return np.asarray(value, element.dtype)
    except OverflowError as error:
        raise _wrong(name, f"A number does not fit {element}: {error}.", "type") from None


def _wrong(name: str, message: str, code: str) -> GraphError:
    return GraphError(Finding(message, name, code=code))
