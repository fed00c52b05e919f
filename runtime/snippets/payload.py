"""What a picture carries: a graph's YAML and its small tensors in one piece of bytes, and those bytes as text.

    {"picture":"<SHA-256>","qmoe":1,"tensors":2960,"yaml":5220}\\n  then the YAML and the tensors, deflated

The header stands in front uncompressed: what follows is known to be bounded before it is inflated, and the length does
not depend on the picture. Its line says which picture the graph belongs to, and how long YAML and tensors are.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from runtime.snippets.chunks import inflate
from runtime.snippets.deflate import deflated
from runtime.tensors import Tensor

VERSION = 1

MAXIMUM_PAYLOAD = 4 << 20
LARGE_PAYLOAD = 1 << 20
"""Bytes that a payload may have, and of which on it is worth a warning."""

MAXIMUM_YAML = 8 << 20
MAXIMUM_INFLATED = 16 << 20
MAXIMUM_VALUES = 400_000
"""Bounds of what a payload may hold: bytes of YAML, bytes altogether, values in the YAML."""

MAXIMUM_TENSOR = 128 << 10
MAXIMUM_TENSORS = 256 << 10
"""Bytes of one tensor and of all together that travel in a picture.

Weights hardly deflate, and each byte costs about 3 bytes of the file: 1.3 as text, the rest since the lowest bits of
the pixels no longer compress. 256 KiB are then a file of about 1 MB.
"""

_HEADER = 1024
_FIELDS = {"picture": str, "qmoe": int, "tensors": int, "yaml": int}


@dataclass(frozen=True, slots=True)
class Payload:
    """A graph's YAML, its tensors in the safetensors form (empty if there are none), and the hash of its picture."""

    yaml: bytes
    tensors: bytes
    picture: str

    @property
    def is_within_bounds(self) -> bool:
        """Whether it can be read again."""
        return len(self.yaml) <= MAXIMUM_YAML and len(self.yaml) + len(self.tensors) <= MAXIMUM_INFLATED


def pack(payload: Payload) -> bytes:
    """A payload as bytes; their number does not depend on which picture it is."""
    header = {
        "picture": payload.picture,
        "qmoe": VERSION,
        "tensors": len(payload.tensors),
        "yaml": len(payload.yaml),
    }
    line = json.dumps(header, separators=(",", ":")).encode() + b"\n"
    return line + _body(payload.yaml, payload.tensors)


@lru_cache(maxsize=1)
def _body(yaml: bytes, tensors: bytes) -> bytes:
    """YAML and tensors, deflated. (A picture is packed several times, of which only the first line differs.)"""
    return deflated(yaml + tensors)


def unpack(data: bytes) -> Payload:
    """The inverse of `pack`; ValueError says what is wrong."""
    if len(data) > MAXIMUM_PAYLOAD:
        raise ValueError(f"it has {len(data):,} bytes; at most {MAXIMUM_PAYLOAD:,} are read")
    line, newline, body = data[:_HEADER].partition(b"\n")
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("it has no header") from error
    if not newline or not isinstance(header, dict) or type(header.get("qmoe")) is not int:
        raise ValueError("it has no header")
    if header["qmoe"] != VERSION:
        raise ValueError(
            f"it has version {header['qmoe']}; this program reads version {VERSION}. Open it with a newer QMoE Studio"
        )
    if any(type(header.get(key)) is not kind for key, kind in _FIELDS.items()):
        raise ValueError("its header lacks an entry")
    yaml, tensors = header["yaml"], header["tensors"]
    if not 0 <= yaml <= MAXIMUM_YAML or not 0 <= tensors <= MAXIMUM_INFLATED - yaml:
        raise ValueError(f"it says that it inflates to {yaml + tensors:,} bytes, which is out of bounds")
    body = inflate(data[len(line) + 1 :], yaml + tensors)
    if len(body) != yaml + tensors:
        raise ValueError("it is shorter than it says")
    return Payload(body[:yaml], body[yaml:], header["picture"])


def to_text(data: bytes) -> str:
    """A payload's bytes as ASCII text with a checksum."""
    return f"1 deflate base64 {hashlib.sha256(data).hexdigest()[:16]} {base64.b64encode(data).decode('ascii')}"


def from_text(text: str) -> bytes:
    """The inverse of `to_text`; line breaks that a program put in are skipped. ValueError says what is wrong."""
    words = text.split(None, 4)
    if words[:3] != ["1", "deflate", "base64"] or len(words) != 5:
        raise ValueError("it is of an unknown form")
    try:
        data = base64.b64decode("".join(words[4].split()), validate=True)
    except ValueError as error:
        raise ValueError("it is damaged: it is not base 64") from error
    if hashlib.sha256(data).hexdigest()[:16] != words[3]:
        raise ValueError("it is damaged: its checksum is wrong")
    return data


def travelling(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that go into a picture: the smallest ones, as long as there is room."""
    chosen: dict[str, Tensor] = {}
    room = MAXIMUM_TENSORS
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].nbytes, item[0])):
        room -= tensor.nbytes
        if tensor.nbytes > MAXIMUM_TENSOR or room < 0:
            break
        chosen[name] = tensor
    return chosen
