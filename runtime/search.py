"""Finding a node type by a few letters, with parameters: what stands behind a quick drop.

`qmoe k=4 bits=4 block=32` finds com.microsoft.QMoE and sets k, expert_weight_bits and block_size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from runtime import catalog
from runtime.families import FAMILIES
from runtime.manual import summary
from runtime.node import OVERRIDE, Node, Parameter
from runtime.types import ValueType, kind_of

SYNONYMS = {
    "add": "Add",
    "plus": "Add",
    "minus": "Sub",
    "subtract": "Sub",
    "multiply": "Mul",
    "times": "Mul",
    "divide": "Div",
    "matrix": "MatMul",
    "dot": "MatMul",
    "dense": "Gemm",
    "linear": "Gemm",
    "fully connected": "Gemm",
    "silu": "Swish",
    "view": "Reshape",
    "permute": "Transpose",
    "embedding": "Gather",
    "lookup": "Gather",
    "rms norm": "SimplifiedLayerNormalization",
    "weight": "Initializer",
    "parameter": "Initializer",
    "experts": "com.microsoft.QMoE",
    "convert": "Cast",
    "type": "Cast",
    "maximum": "Max",
    "minimum": "Min",
    "average": "ReduceMean",
    "mean": "ReduceMean",
    "sum": "ReduceSum",
    "concatenate": "Concat",
    "quantize": "QuantizeLinear",
    "dequantize": "DequantizeLinear",
    "cross entropy": "qmoe.loss.SparseCategoricalCrossentropy",
}
"""What other libraries call operators, or what they do."""

_HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SETTING = re.compile(r"([^\s=]+)=(\S*)")


@dataclass(frozen=True, slots=True)
class Match:
    """A node type that was found: with what its parameters are to be, and what of the text could not be understood.

    `port` is the input or output that a wire would be drawn to, where one was given.
    """

    node_type: type[Node]
    score: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    port: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    node_type: type[Node]
    name: str
    full: str
    initials: str
    words: str


@lru_cache(maxsize=8)
def _index(opsets: tuple[tuple[str, int], ...]) -> tuple[_Entry, ...]:
    """Every node type with the texts that it is found by."""
    entries = []
    for node_type in catalog.all_types(dict(opsets)):
        humps = _HUMPS.findall(node_type.operator)
        about = f"{summary(node_type)} {FAMILIES.get(node_type.family, '')}".lower()
        entries.append(
            _Entry(
                node_type,
                node_type.operator.lower(),
                node_type.type_name().lower(),
                "".join(hump[0] for hump in humps).lower(),
                f"{' '.join(humps).lower()} {about}",
            )
        )
    return tuple(entries)


def search(
    text: str,
    *,
    source: ValueType | None = None,
    target: tuple[type[Node], str] | None = None,
    recent: Sequence[str] = (),
    opsets: Mapping[str, int] | None = None,
    limit: int = 30,
) -> list[Match]:
    """The node types that a text means, best first.

    `source` is the type of a value that the node is to take: types without an input for it are left out. `target` is
    an input (node type and port) that it is to feed. `recent` are type names that come first among equals.
    """
    wanted = " ".join(_SETTING.sub(" ", text).lower().split())
    settings = _SETTING.findall(text)
    found = []
    for entry in _index(tuple(sorted((opsets or {}).items()))):
        score = _score(entry, wanted)
        if score <= 0:
            continue
        port = ""
        if source is not None:
            port = _input_for(entry.node_type, source)
        elif target is not None:
            port = _output_for(entry.node_type, *target)
        if (source is not None or target is not None) and not port:
            continue
        name = entry.node_type.type_name()
        if name in recent:
            score += 0.2 - 0.01 * recent.index(name)
        found.append((score, entry.node_type, port))
    found.sort(key=lambda item: (-item[0], len(item[1].operator), item[1].operator))
    return [_match(node_type, score, port, settings) for score, node_type, port in found[:limit]]


def _score(entry: _Entry, wanted: str) -> float:
    """How well a type fits the words, 0 if not at all."""
    if not wanted:
        return 0.1
    domain = 0.0 if "." in entry.full else 0.05
    if SYNONYMS.get(wanted, "").lower() == entry.full:
        return 9.0
    if wanted in (entry.name, entry.full):
        return 10 + domain
    joined = wanted.replace(" ", "")
    if entry.name.startswith(joined):
        return 8 - 0.01 * len(entry.name) + domain
    if len(joined) > 1 and entry.initials.startswith(joined):
        return 7 - 0.01 * len(entry.name) + domain
    if joined in entry.full:
        return 5 - 0.01 * len(entry.name) + domain
    words = wanted.split()
    if all(word in entry.words for word in words):
        humps = entry.words.split()[: len(entry.initials)]
        beginnings = sum(any(hump.startswith(word) for hump in humps) for word in words)
        return 2 + beginnings + domain - 0.01 * len(entry.name)
    return 1 - 0.02 * len(entry.name) if len(joined) > 2 and _is_subsequence(joined, entry.name) else 0.0


def _is_subsequence(text: str, name: str) -> bool:
    letters: Iterator[str] = iter(name)
    return name[:1] == text[:1] and all(letter in letters for letter in text)


def _input_for(node_type: type[Node], value: ValueType) -> str:
    """The first input that takes a value of this type."""
    kind = kind_of(value)
    for port in node_type.inputs:
        kinds = node_type.type_constraints.get(port.type, (port.type,))
        if "?" in kind or kind in kinds or not node_type.is_operator:
            return f"{port.name}.0" if port.variadic else port.name
    return ""


def _output_for(node_type: type[Node], reader: type[Node], port: str) -> str:
    """The first output that an input may be fed with."""
    declared = reader.input_port(port)
    if declared is None:
        return ""
    taken = set(reader.type_constraints.get(declared.type, (declared.type,)))
    for output in node_type.outputs:
        given = node_type.type_constraints.get(output.type, (output.type,))
        if not node_type.is_operator or not reader.is_operator or taken & set(given):
            return f"{output.name}.0" if output.variadic else output.name
    return ""


def _match(node_type: type[Node], score: float, port: str, settings: Sequence[tuple[str, str]]) -> Match:
    parameters: dict[str, Any] = {}
    problems = []
    for name, text in settings:
        declared = parameter_of(node_type, name)
        if isinstance(declared, str):
            problems.append(declared)
            continue
        try:
            parameters[declared.name] = read_value(declared, text)
        except ValueError as error:
            problems.append(f"{declared.name}: {error}")
    return Match(node_type, score, parameters, " ".join(problems), port)


def parameter_of(node_type: type[Node], name: str) -> Parameter | str:
    """The parameter that a name means: its own, or as much of it as no other has; else why there is none."""
    plain = [parameter for parameter in node_type.parameters if not parameter.name.endswith(OVERRIDE)]
    wanted = name.lower()
    for fits in (
        [p for p in plain if p.name.lower() == wanted],
        [p for p in plain if p.name.lower().startswith(wanted)],
        [p for p in plain if wanted in re.split(r"[_ ]", p.name.lower())],
        [p for p in plain if wanted in p.name.lower()],
    ):
        shortest = min(fits, key=lambda p: len(p.name), default=None)
        if shortest is not None and all(shortest.name in p.name for p in fits):
            return shortest  # expert_weight_bits before fc1_expert_weight_bits
        if fits:
            return f"{name} may be {', '.join(p.name for p in fits[:4])}."
    return f"{node_type.operator} has no parameter {name}."


def read_value(parameter: Parameter, text: str) -> Any:
    """The value of a parameter that a text means. ValueError says what was expected."""
    if parameter.choices:
        fits = [choice for choice in parameter.choices if str(choice).lower() == text.lower()]
        if not fits:
            raise ValueError(f"expected one of {', '.join(map(str, parameter.choices))}.")
        return fits[0]
    value: Any
    try:
        match parameter.kind:
            case "int":
                value = int(text)
            case "float":
                value = float(text)
            case "bool":
                value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
            case "str":
                return text
            case "ints" | "shape":
                value = [int(n) if re.fullmatch(r"-?\d+", n) else n for n in text.strip("[]()").split(",") if n]
                if parameter.kind == "ints" and not all(isinstance(n, int) for n in value):
                    raise ValueError
            case "floats":
                value = [float(n) for n in text.strip("[]()").split(",") if n]
            case "strings":
                value = [part for part in text.strip("[]()").split(",") if part]
            case _:
                raise ValueError
    except (ValueError, KeyError):
        raise ValueError(f"expected {_WORDS.get(parameter.kind, parameter.kind)}, not {text!r}.") from None
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not isinstance(number, bool):
            if parameter.minimum is not None and number < parameter.minimum:
                raise ValueError(f"expected at least {parameter.minimum:g}.")
            if parameter.maximum is not None and number > parameter.maximum:
                raise ValueError(f"expected at most {parameter.maximum:g}.")
    return value


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "ints": "whole numbers, as 1,2,3",
    "floats": "numbers, as 0.5,1",
}
