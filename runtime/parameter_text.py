"""Values of parameters as a person types them: `0.5`, `[1, 2]`, `tokens, 64`; and back, or a sentence of what is wrong.

An empty text stands for no value at all, so an empty text as a value is written `""`, an empty list `[]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

import numpy as np

from runtime.attributes import Typed, kind_of_value
from runtime.drawing.words import value_text
from runtime.graph import ABSENT
from runtime.node import Node, Parameter
from runtime.types import MapType, OptionalType, SequenceType, TensorType, parse_type

TYPED_KINDS = frozenset({"int", "float", "str", "ints", "floats", "strings", "shape", "type"})
"""The kinds of parameters that can be typed."""
LEAST_INTEGER, MOST_INTEGER = -(1 << 63), (1 << 63) - 1


def parameters_of(node_type: type[Node] | None, values: dict[str, Any]) -> list[Parameter]:
    """The parameters of a node: those that its type declares, then what it has beyond them."""
    declared = list(node_type.parameters) if node_type is not None else []
    known = {parameter.name for parameter in declared}
    return declared + [
        Parameter(kind_of_value(value) or "other", name=name, attribute=name)
        for name, value in values.items()
        if name not in known
    ]


def default_of(parameter: Parameter) -> Any:
    """What the operator does without the parameter; None if nothing says."""
    if parameter.means_default is not None or parameter.operator_default is not None:
        return parameter.operator_default
    return parameter.default


def default_text(parameter: Parameter) -> str:
    """What to show in the place of a value that is not set: `0 (operator default: 4)`."""
    if parameter.required:
        return "required"
    if parameter.means_default is not None:
        return f"{_told(parameter.default)} (operator default: {_told(parameter.operator_default)})"
    default = default_of(parameter)
    if default is None:
        return "not set"
    if isinstance(default, str | list | tuple) and not default:
        return "empty"
    return _told(default)


def _told(value: Any) -> str:
    if value == inf:
        return "no limit"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _number(value) if isinstance(value, float) else value_text(value)


def range_text(parameter: Parameter) -> str:
    """The bounds of a parameter in words; empty if it has none."""
    least, most = parameter.minimum, parameter.maximum
    if least is not None and most is not None:
        return f"from {least:g} to {most:g}"
    return f"at least {least:g}" if least is not None else f"at most {most:g}" if most is not None else ""


def write(value: Any) -> str:
    """The text that `read` turns into the value; for values that cannot be typed, a few words."""
    if value is ABSENT or value is None:
        return ""
    match value:
        case bool():
            return "true" if value else "false"
        case float() | np.floating():
            return _number(float(value))
        case str():
            return _text(value)
        case TensorType() | SequenceType() | OptionalType() | MapType():
            return str(value)
        case list() | tuple() if not value:
            return "[]"
        case list() | tuple() if all(isinstance(item, str) for item in value) and not all(map(_is_plain, value)):
            return json.dumps(list(value), ensure_ascii=False)
        case list() | tuple() if all(
            item is None or isinstance(item, str | int | float | np.number) for item in value
        ) and not isinstance(value, Typed):
            return ", ".join("?" if item is None else item if isinstance(item, str) else write(item) for item in value)
    return str(value) if isinstance(value, int | np.integer) else value_text(value)


def _number(value: float) -> str:
    text = repr(float(value))
    return text[:-2] if text.endswith(".0") else text


def _is_plain(text: str) -> bool:
    return bool(text) and text == text.strip() and text.isprintable() and not set(text) & set(',"[]')


def _text(text: str) -> str:
    is_plain = text and text == text.strip() and text.isprintable() and not text.startswith('"')
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def read(text: str, parameter: Parameter) -> Any:
    """The value that a text stands for; ABSENT for an empty one. ValueError says in a sentence what is wrong."""
    text = text.strip()
    if not text:
        return ABSENT
    match parameter.kind:
        case "int":
            return _in_range(_integer(text), parameter)
        case "float":
            return _in_range(_float(text), parameter)
        case "str":
            return _quoted(text) if text.startswith('"') else text
        case "ints":
            return [_integer(item) for item in _items(text)]
        case "floats":
            return [_float(item) for item in _items(text)]
        case "strings":
            return _strings(text)
        case "shape":
            return [_dimension(item) for item in _items(text)]
        case "type":
            return parse_type(text)
        case "bool":
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            raise ValueError("Expected true or false.")
    raise ValueError(f"A parameter of kind {parameter.kind} cannot be typed.")


def _integer(text: str) -> int:
    try:
        value = int(text, 0) if text[:1] != "0" or text[1:2] in "xXbBoO" else int(text)
    except ValueError:
        raise ValueError(f"Expected a whole number; got {text!r}.") from None
    if not LEAST_INTEGER <= value <= MOST_INTEGER:
        raise ValueError(f"{text} does not fit into 64 bits.")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    if re.fullmatch(r"[+-]?\d+,\d+", text):
        raise ValueError(f"Write {text.replace(',', '.')}: the decimal mark is a point.")
    raise ValueError(f"Expected a number; got {text!r}.")


def _in_range(value: Any, parameter: Parameter) -> Any:
    if parameter.choices and value not in parameter.choices:
        raise ValueError(f"Expected one of {', '.join(map(str, parameter.choices))}; got {value}.")
    low = parameter.minimum is not None and value < parameter.minimum
    high = parameter.maximum is not None and value > parameter.maximum
    if low or high:
        raise ValueError(f"Expected a number of {range_text(parameter)}; got {_told(value)}.")
    return value


def _quoted(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"A text in quotes is written as in JSON: {error}.") from None
    if not isinstance(value, str):
        raise ValueError("Expected a text.")
    return value


def _items(text: str) -> list[str]:
    if text.startswith("[") != text.endswith("]"):
        raise ValueError("A bracket is missing.")
    inner = text[1:-1] if text.startswith("[") else text
    items = [item.strip() for item in inner.split(",")] if inner.strip() else []
    if items and not items[-1]:
        items.pop()  # a comma at the end
    if not all(items):
        raise ValueError("There is nothing between two commas.")
    return items


def _strings(text: str) -> list[str]:
    if text.startswith("[") and '"' in text:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ValueError(f"A list in brackets is written as in JSON: {error}.") from None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        raise ValueError("Expected a list of texts.")
    return _items(text)


def _dimension(text: str) -> int | str | None:
    if text == "?":
        return None
    if re.fullmatch(r"-?\d+", text):
        if int(text) < 0:
            raise ValueError(f"A dimension is not negative; got {text}. Write ? for one that is not known.")
        return int(text)
    if not re.fullmatch(r"[A-Za-z_][\w.\- +*/()]*", text):
        raise ValueError(f"Expected a whole number, a name or ?; got {text!r}.")
    return text


def stepped(value: float, parameter: Parameter, steps: float) -> float | int:
    """A number so many steps further, within its bounds: steps of 1, for fractions of a tenth of the leading digit."""
    result: float | int
    if parameter.kind == "int":
        result = int(value) + (round(steps) or (1 if steps > 0 else -1 if steps < 0 else 0))
    else:
        size = 0.01 if not value or not isfinite(value) else 10.0 ** (np.floor(np.log10(abs(value))) - 1)
        start = value if isfinite(value) else 0.0
        result = float(f"{start + steps * size:.6g}")
    least = parameter.minimum if parameter.minimum is not None else -inf
    most = parameter.maximum if parameter.maximum is not None else inf
    bounded = min(max(result, least), most)
    return int(bounded) if parameter.kind == "int" else float(bounded)


def common(values: Sequence[Any]) -> tuple[Any, bool]:
    """The value that all share, and whether they do; ABSENT otherwise."""
    from runtime.graph import same

    first = values[0]
    agree = all((first is ABSENT) == (value is ABSENT) and (first is value or same(first, value)) for value in values)
    return (first if agree else ABSENT), agree
