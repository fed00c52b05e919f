"""YAML as a tree of values that know their line and column, read strictly.

Only what a document needs is accepted: mappings with texts as keys, sequences, scalars. No anchors, aliases, tags or
duplicate keys, bounded depth and size. Scalars are read as in YAML 1.2, so that `no`, `1:30` and `012` are texts and
`1e-5` is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from runtime.errors import FileError

MAXIMUM_BYTES = 64 << 20
MAXIMUM_DEPTH = 64
MAXIMUM_NODES = 4_000_000

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
SPECIAL: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")

Tree: TypeAlias = "Scalar | Sequence | Mapping"


@dataclass(slots=True)
class Scalar:
    """A text, number, truth value or null."""

    value: Any
    line: int
    column: int


@dataclass(slots=True)
class Sequence:
    """Values in order."""

    items: list[Tree]
    line: int
    column: int


@dataclass(slots=True)
class Mapping:
    """Values by key, in order."""

    items: dict[str, Tree]
    line: int
    column: int
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)


def plain(tree: Tree) -> Any:
    """The tree as Python's dicts, lists and scalars."""
    match tree:
        case Scalar(value):
            return value
        case Sequence(items):
            return [plain(item) for item in items]
        case Mapping(items):
            return {key: plain(item) for key, item in items.items()}


def scalar(text: str) -> Any:
    """What an unquoted scalar means."""
    if text in SPECIAL:
        return SPECIAL[text]
    first = text[0]
    if first in "+-.0123456789":
        if len(text) < 4000 and INTEGER.fullmatch(text):
            return int(text)
        if FLOAT.fullmatch(text):
            return float(text)
    return text


class Parser:
    """Reads one YAML text; `fail` raises FileError at a place in it."""

    def __init__(self, text: str, path: str | Path, maximum_nodes: int = MAXIMUM_NODES) -> None:
        self.path = path
        self.maximum_nodes = maximum_nodes
        self._text = text
        self._count = 0

    def fail(self, at: Tree | tuple[int, int], message: str) -> NoReturn:
        """FileError that names the file, line and column."""
        line, column = at if isinstance(at, tuple) else (at.line, at.column)
        raise FileError(self.path, message, line=line, column=column)

    def parse(self) -> Tree:
        """The one document in the text."""
        if len(self._text) > MAXIMUM_BYTES:
            raise FileError(self.path, f"is larger than {MAXIMUM_BYTES >> 20} MiB, the most that a snippet may have.")
        events = iter(yaml.parse(self._text, Loader=yaml.CSafeLoader))
        try:
            next(events)  # start of the stream
            if isinstance(next(events), yaml.StreamEndEvent):
                raise FileError(self.path, "is empty; expected a snippet, which begins with 'qmoe: 1'.")
            tree = self._value(next(events), events, 0)
            next(events)  # end of the document
            rest = next(events)
            if not isinstance(rest, yaml.StreamEndEvent):
                self.fail(_place(rest), "a second document begins here; a snippet is one document.")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            problem = " ".join(str(part) for part in (error.problem, error.context) if part)
            if "nesting depth" in problem:  # libyaml reads ahead of what it gives, and has a bound of its own
                self.fail(place, f"is nested more than {MAXIMUM_DEPTH} deep.")
            self.fail(place, f"is not YAML: {problem}.")
        except yaml.reader.ReaderError as error:
            match = UNPRINTABLE.search(self._text)
            place = _line_and_column(self._text, match.start()) if match else (0, 0)
            self.fail(place, f"is not YAML: the character {error.character!r} is not allowed ({error.reason}).")
        except yaml.YAMLError as error:
            raise FileError(self.path, f"is not YAML: {error}.") from error
        return tree

    def _value(self, event: Any, events: Iterator[Any], depth: int) -> Tree:
        line, column = place = _place(event)
        self._count += 1
        if self._count > self.maximum_nodes:
            self.fail(place, f"holds more than {self.maximum_nodes:,} values.")
        if depth > MAXIMUM_DEPTH:
            self.fail(place, f"is nested more than {MAXIMUM_DEPTH} deep.")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self.fail(place, "anchors and aliases (& and *) are not allowed; quote a text that begins like one.")
        if isinstance(event, yaml.ScalarEvent):
            if event.tag is not None:
                self.fail(place, f"tags are not allowed; got {event.tag}.")
            return Scalar(scalar(event.value) if event.implicit[0] else event.value, *place)
        if event.tag is not None:
            self.fail(place, f"tags are not allowed; got {event.tag}.")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                items.append(self._value(event, events, depth + 1))
            return Sequence(items, line, column)
        mapping = Mapping({}, line, column)
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._value(event, events, depth + 1)
            if not isinstance(key, Scalar):
                self.fail(key, "a key must be a text.")
            # Keys are names: a number or `no` before a colon is a text all the same.
            name = event.value
            if name in mapping.items:
                self.fail(key, f"the key {name!r} is here twice; the first is in line {mapping.keys[name][0]}.")
            mapping.keys[name] = (key.line, key.column)
            mapping.items[name] = self._value(next(events), events, depth + 1)
        return mapping


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _line_and_column(text: str, index: int) -> tuple[int, int]:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
