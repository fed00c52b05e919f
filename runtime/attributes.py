"""Attribute values whose ONNX kind their Python value does not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Typed:
    """A value with the ONNX attribute kind that it has ("ints", "float", "ref", ...)."""

    kind: str
    value: Any
