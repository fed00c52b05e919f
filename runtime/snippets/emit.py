"""Plain data -> YAML text, always in the same form: what changes a value changes its lines and no others.

Short collections stand on one line; long ones and `Block`s take a line for every entry. The text reads the same in
YAML 1.1 and 1.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from runtime.snippets.tree import MAXIMUM_DEPTH, scalar

WIDTH = 120
LONGEST_KEY = 900
"""A key longer than this needs a question mark before it: YAML ends its search for the colon after 1,024."""

_PLAIN = re.compile(r"[A-Za-z_$/(][\w$./()?+=\-]*( [\w$/(][\w$./()?+=\-]*)*", re.ASCII)
_OTHER_WORDS = frozenset({"yes", "no", "on", "off"})
_ESCAPED = re.compile(r'[\x00-\x1f"\\\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]')
_LITERAL = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]*")
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


class Block(dict[str, Any]):
    """A mapping that takes a line for every entry, however short it is."""


def emit(data: Block) -> str:
    """The text of a document of mappings, lists, texts, numbers, truth values and None."""
    return "\n".join(_mapping(data, 0, 0)) + "\n"


def _mapping(data: dict[str, Any], indent: int, depth: int) -> Iterator[str]:
    for key, value in data.items():
        text = _text(key)
        if len(text) > LONGEST_KEY:
            yield " " * indent + f"? {text}"
            text = ""
        yield from _entry(" " * indent + text + ":", value, indent, depth)


def _list(items: list[Any], indent: int, depth: int) -> Iterator[str]:
    if all(isinstance(item, int | float) for item in items):
        yield from _filled(items, indent)
        return
    for item in items:
        yield from _entry(" " * indent + "-", item, indent, depth)


def _entry(head: str, value: Any, indent: int, depth: int) -> Iterator[str]:
    """The lines of a value behind its key or dash."""
    if depth >= MAXIMUM_DEPTH:
        raise ValueError(f"it is nested more than {MAXIMUM_DEPTH} deep")
    if isinstance(value, str) and _is_literal(value):
        yield f"{head} {'|' if value.endswith(chr(10)) else '|-'}"
        for line in value.removesuffix("\n").split("\n"):
            yield " " * (indent + 2) + line if line else ""
        return
    if not isinstance(value, dict | list) or not value:
        yield f"{head} {_flow(value, depth + 1)}"
        return
    if not _has_block(value):
        line = f"{head} {_flow(value, depth + 1)}"
        if len(line) <= WIDTH:
            yield line
            return
    yield head
    if isinstance(value, dict):
        yield from _mapping(value, indent + 2, depth + 1)
    else:
        yield from _list(value, indent + 2, depth + 1)


def _has_block(value: Any) -> bool:
    """Whether a value holds what cannot stand on one line."""
    if isinstance(value, Block):
        return True
    if isinstance(value, dict):
        return any(map(_has_block, value.values()))
    if isinstance(value, list):
        return any(map(_has_block, value))
    return isinstance(value, str) and _is_literal(value)


def _filled(items: list[Any], indent: int) -> Iterator[str]:
    """Numbers, as many on a line as fit."""
    line = " " * indent + "["
    for index, item in enumerate(items):
        piece = _flow(item, 0) + ("]" if index == len(items) - 1 else ",")
        if len(line) + 1 + len(piece) > WIDTH:
            yield line
            line = " " * indent
        line += piece if line.endswith("[") or not line.strip() else f" {piece}"
    yield line


def _flow(value: Any, depth: int) -> str:
    """A value on one line."""
    if depth > MAXIMUM_DEPTH:
        raise ValueError(f"it is nested more than {MAXIMUM_DEPTH} deep")
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _number(value)
        case str():
            return _text(value)
        case list():
            return "[" + ", ".join(_flow(item, depth + 1) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{_flow_key(key)}: {_flow(item, depth + 1)}" for key, item in value.items()) + "}"
    raise TypeError(f"not plain data: {value!r}")


def _flow_key(key: str) -> str:
    text = _text(key)
    return f"? {text} " if len(text) > LONGEST_KEY else text


def _number(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    mantissa, e, exponent = repr(value).partition("e")
    return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else repr(value)


def _text(text: str) -> str:
    """A text, quoted unless every reader of YAML takes it for a text as it is."""
    if _PLAIN.fullmatch(text) and text.lower() not in _OTHER_WORDS and isinstance(scalar(text), str):
        return text
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _is_literal(text: str) -> bool:
    """Whether a text of several lines can stand as it is, indented, with one line break at its end or none."""
    return (
        "\n" in text
        and text[0] not in " \n"
        and not text.endswith(("\n\n", " "))
        and " \n" not in text
        and _LITERAL.fullmatch(text) is not None
    )
