"""Broken and hostile pictures in great number: each must load or be refused, quickly and within memory."""

from __future__ import annotations

import io
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import perf_counter

import numpy as np

from runtime.errors import FileError, GraphError
from runtime.snippets import payload
from runtime.snippets.chunks import SIGNATURE, Chunk, chunk_bytes, read_chunks, text_chunks
from runtime.snippets.payload import Payload
from runtime.snippets.pictures import KEYWORD, load_picture

SLOW = 5.0
"""Seconds after which a load counts as a failure."""

HEAVY = 1 << 30
"""Bytes by which one load may raise the memory that the process takes."""

BOMB = 20 << 20
"""Bytes that the compressed data of a bomb inflates to."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that did not end as it should: which mutation it came from, what happened, and its bytes."""

    number: int
    mutation: str
    problem: str
    data: bytes


@dataclass(slots=True)
class Report:
    """How the files ended: how many were loaded and how many refused, by mutation; the slowest load; memory."""

    loaded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0
    growth: int = 0


def fuzz(
    files: Sequence[bytes], count: int, seed: int = 0, progress: Callable[[int], None] = lambda number: None
) -> Report:
    """Loads `count` mutations of pictures. Equal arguments give equal mutations; `progress` is given each number.

    A failure is any error but FileError and GraphError, a load that takes more than SLOW seconds, or one that takes
    more than HEAVY bytes. FileError if one of the files is no picture with a graph to begin with.
    """
    sources = [source for data in files for source in _forms(data)]
    report = Report()
    began = perf_counter()
    before = at_start = _peak()
    for number in range(count):
        generator = random.Random(f"{seed} {number}")
        mutation = generator.choice(MUTATIONS)
        data = mutation(generator.choice(sources), generator)
        name = mutation.__name__.strip("_")
        start = perf_counter()
        problem = ""
        try:
            load_picture(data)
            report.loaded[name] += 1
        except (FileError, GraphError):
            report.refused[name] += 1
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        seconds = perf_counter() - start
        after = _peak()
        if seconds > SLOW:
            problem = problem or f"took {seconds:.1f} s"
        if after - before > HEAVY:
            problem = problem or f"took {after - before >> 20:,} MiB"
        if problem:
            report.failures.append(Failure(number, name, problem, data))
        before = after
        report.slowest = max(report.slowest, seconds)
        progress(number)
    report.seconds = perf_counter() - began
    report.growth = before - at_start
    return report


def _peak() -> int:
    """The most memory that the process has taken so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forms(data: bytes) -> list[bytes]:
    """A picture, and what it is as BMP and as lossless WebP. FileError if it does not load."""
    from PIL import Image

    load_picture(data)
    forms = [data] * 4  # most mutations are of PNG files
    with Image.open(io.BytesIO(data)) as image:
        for form, options in (("BMP", {}), ("WEBP", {"lossless": True})):
            file = io.BytesIO()
            image.convert("RGB").save(file, form, **options)
            forms.append(file.getvalue())
    return forms


# -- mutations --------------------------------------------------------------------------------------------------------


def _bits(data: bytes, generator: random.Random) -> bytes:
    """A few bits flipped."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8, 64))):
        position = generator.randrange(min(len(data), generator.choice((64, 4096, len(data)))))
        changed[position] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _cut(data: bytes, generator: random.Random) -> bytes:
    """The end, or a piece within, is missing, or there is one too many."""
    start, end = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    return generator.choice((data[:start], data[:start] + data[end:], data[:end] + data[start:]))


def _splice(data: bytes, generator: random.Random) -> bytes:
    """Chunks are missing, repeated, in another order, or have other contents."""
    chunks = _chunks(data)
    if not chunks:
        return _cut(data, generator)
    for _ in range(generator.randint(1, 3)):
        first, second = generator.randrange(len(chunks)), generator.randrange(len(chunks))
        match generator.randrange(4):
            case 0:
                chunks.insert(first, chunks[second])
            case 1:
                chunks[first], chunks[second] = chunks[second], chunks[first]
            case 2:
                chunks[first] = Chunk(chunks[second].kind, chunks[first].data)
            case 3 if len(chunks) > 1:
                del chunks[first]
    return _joined(chunks)


def _lengths(data: bytes, generator: random.Random) -> bytes:
    """A chunk says that it is longer or shorter than it is."""
    chunks = _chunks(data)
    if not chunks:
        return _numbers(data, generator)
    position = len(SIGNATURE)
    for chunk in chunks[: generator.randrange(len(chunks))]:
        position += 12 + len(chunk.data)
    return data[:position] + _number(generator).to_bytes(4, "big") + data[position + 4 :]


def _numbers(data: bytes, generator: random.Random) -> bytes:
    """Numbers of a header, such as width and height, are others; checksums fit."""
    chunks = _chunks(data)
    if not chunks:
        position = generator.randrange(min(64, len(data)))
        return data[:position] + _number(generator).to_bytes(4, "little") + data[position + 4 :]
    header = bytearray(chunks[0].data)
    for _ in range(generator.randint(1, 2)):
        if generator.random() < 0.7:
            start = generator.choice((0, 4))
            header[start : start + 4] = _number(generator).to_bytes(4, "big")
        else:
            header[generator.randrange(8, 13)] = generator.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return _joined([Chunk(b"IHDR", bytes(header)), *chunks[1:]])


def _contents(data: bytes, generator: random.Random) -> bytes:
    """The contents of a chunk are damaged, but its checksum fits."""
    chunks = _chunks(data)
    if not chunks:
        return _bits(data, generator)
    index = generator.randrange(len(chunks))
    if chunks[index].data:
        mutation = generator.choice((_bits, _cut))
        chunks[index] = Chunk(chunks[index].kind, mutation(chunks[index].data, generator))
    return _joined(chunks)


def _bomb(data: bytes, generator: random.Random) -> bytes:
    """Compressed data that inflates to far more than a graph or a picture takes."""
    chunks = _chunks(data)
    if not chunks:
        return _numbers(data, generator)
    keyword = KEYWORD.encode()
    match generator.randrange(4):
        case 0:
            text = Chunk(b"zTXt", keyword + b"\0\0" + _inflating())
        case 1:
            text = Chunk(b"iTXt", keyword + b"\0\1\0\0\0" + _inflating())
        case 2:
            line = b'{"picture":"","qmoe":1,"tensors":%d,"yaml":%d}\n' % (
                _number(generator),
                generator.choice((9, 1 << 23)),
            )
            text = Chunk(b"tEXt", keyword + b"\0" + payload.to_text(line + _inflating()).encode())
        case _:
            size = generator.choice((64, 64, 2600, 8192)).to_bytes(4, "big") * 2
            header = Chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))
            return _joined([header, Chunk(b"IDAT", _inflating()), Chunk(b"IEND", b"")])
    kept = [chunk for chunk in chunks[1:] if not chunk.data.startswith(keyword + b"\0")]
    return _joined([chunks[0], *[text] * generator.choice((1, 1, 9)), *kept])


def _yaml(data: bytes, generator: random.Random) -> bytes:
    """The YAML is another one; all checksums fit."""
    found = _payload(data)
    if found is None:
        return _contents(data, generator)
    lines = found.yaml.decode().splitlines(keepends=True)
    for _ in range(generator.choice((1, 1, 2, 5))):
        index = generator.randrange(len(lines))
        match generator.randrange(5):
            case 0:
                lines[index] = lines[generator.randrange(len(lines))]
            case 1:
                lines[index] = ""
            case 2:
                lines[index] = "  " * generator.randrange(3) + lines[index].lstrip()
            case 3:
                lines[index] = lines[index].rstrip("\n") + generator.choice(_HOSTILE) + "\n"
            case 4:
                place = generator.randrange(len(lines[index]) + 1)
                lines[index] = lines[index][:place] + generator.choice(_HOSTILE) + lines[index][place + 1 :]
    return _with(data, Payload("".join(lines).encode(), found.tensors, found.picture))


def _tensors(data: bytes, generator: random.Random) -> bytes:
    """The tensors' header tells lies, or their bytes are others; all checksums fit."""
    found = _payload(data)
    if found is None or len(found.tensors) < 10:
        return _contents(data, generator)
    if generator.random() < 0.3:
        return _with(data, Payload(found.yaml, _cut(found.tensors, generator), found.picture))
    length = int.from_bytes(found.tensors[:8], "little")
    header = found.tensors[8 : 8 + length]
    if generator.random() < 0.5:
        entries = json.loads(header)
        entry = entries[generator.choice(list(entries))]
        key = generator.choice(list(entry))
        entry[key] = generator.choice(
            [None, -1, "F64", "U8", [], [1 << 47] * 99, [0, _number(generator)], [_number(generator), 0], {}, [1.5]]
        )
        header = json.dumps(entries).encode()
    else:
        header = _bits(header, generator)
    told = len(header) if generator.random() < 0.7 else _number(generator)
    tensors = told.to_bytes(8, "little") + header + found.tensors[8 + length :]
    return _with(data, Payload(found.yaml, tensors, found.picture))


def _lies(data: bytes, generator: random.Random) -> bytes:
    """The payload is damaged before its checksum is computed."""
    found = _payload(data)
    if found is None:
        return _contents(data, generator)
    packed = payload.pack(found)
    if generator.random() < 0.5:
        line, _, body = packed.partition(b"\n")
        header = json.loads(line)
        header[generator.choice(list(header))] = generator.choice([-1, _number(generator), None, "x", [], 1e300, True])
        packed = json.dumps(header).encode() + b"\n" + body
    else:
        packed = generator.choice((_bits, _cut))(packed, generator)
    return _with_text(data, payload.to_text(packed))


MUTATIONS = (_bits, _cut, _splice, _lengths, _numbers, _contents, _bomb, _yaml, _tensors, _lies)

_HOSTILE = (
    *(
        "[",
        "{",
        "[[",
        "]",
        "}",
        ":",
        ": ",
        "- ",
        "&a ",
        "*a",
        "|",
        ">",
        "'",
        '"',
        "#",
        "\t",
        "\x00",
        "\ufffe",
        "\u2028",
        "é",
    ),
    *("!!python/object:os.system ", "$tensor: float", "$graph: {nodes: {}}", "$as: ints", "$type: tensor(", "$$", "~"),
    *("9" * 5000, "1e999", ".nan", "-1", "[" * 70, "{a: " * 70, "---", "...", "nodes:", "inputs: {X: x}", "sha256: 00"),
    *("../../etc/passwd", "file: ../x.safetensors", "name: x, file: a.safetensors"),
    *("shape: [281474976710655, 281474976710655]", "shape: [" + "9, " * 100 + "9]"),
)


def _number(generator: random.Random) -> int:
    edge = 1 << generator.choice((0, 7, 8, 13, 15, 16, 24, 31))
    return generator.choice((0, edge - 1, edge, edge + 1, generator.randrange(1 << 32))) & 0xFFFFFFFF


@lru_cache(1)
def _inflating() -> bytes:
    return zlib.compress(bytes(BOMB), 9)


def _chunks(data: bytes) -> list[Chunk]:
    return list(read_chunks(data).items) if data.startswith(SIGNATURE) else []


def _joined(chunks: Sequence[Chunk]) -> bytes:
    return SIGNATURE + b"".join(chunk_bytes(chunk.kind, chunk.data) for chunk in chunks)


def _payload(data: bytes) -> Payload | None:
    """What the text of a picture holds."""
    if not data.startswith(SIGNATURE):
        return None
    return _unpacked(data)


@lru_cache(8)
def _unpacked(data: bytes) -> Payload | None:
    for text in text_chunks(read_chunks(data), KEYWORD):
        return payload.unpack(payload.from_text(text.value))
    return None


def _with(data: bytes, changed: Payload) -> bytes:
    return _with_text(data, payload.to_text(payload.pack(changed)))


def _with_text(data: bytes, text: str) -> bytes:
    """A picture with another text, and with pixels that hold nothing, so that the text alone counts."""
    chunks = _chunks(data)
    told = Chunk(b"tEXt", KEYWORD.encode() + b"\0" + text.encode())
    blank = zlib.compress(np.zeros((4, 13), np.uint8).tobytes())
    header = Chunk(b"IHDR", (4).to_bytes(4, "big") * 2 + chunks[0].data[8:])
    return _joined([header, told, Chunk(b"IDAT", blank), Chunk(b"IEND", b"")])
