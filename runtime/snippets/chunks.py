"""PNG files as chunks: reading them within bounds, their texts, and writing pixels and texts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.snippets.deflate import Deflater, cost, runs

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAXIMUM_FILE = 64 << 20
MAXIMUM_CHUNKS = 4096
MAXIMUM_TEXT = 8 << 20
"""Bytes that the texts of one keyword may have together once they are inflated; nothing after them is looked at."""

STRIP = 16
"""Rows that are compressed at a time."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk; `is_sound` says whether its checksum fits."""

    kind: bytes
    data: bytes
    is_sound: bool = True


@dataclass(frozen=True, slots=True)
class Chunks:
    """The whole chunks of a file in order. `broken` says why there are no more, or is empty if the file is complete."""

    items: tuple[Chunk, ...]
    broken: str = ""

    def of(self, *kinds: bytes) -> list[Chunk]:
        """The chunks of some kinds."""
        return [chunk for chunk in self.items if chunk.kind in kinds]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        header = self.items[0].data
        return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")

    @property
    def row_bits(self) -> int:
        """Bits of one row of pixels."""
        depth, colour = self.items[0].data[8:10]
        return self.size[0] * depth * _SAMPLES.get(colour, 1)


_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a tEXt, zTXt or iTXt chunk; `problem` says why it cannot be read, or is empty."""

    kind: bytes
    value: str
    problem: str = ""


class TooLong(ValueError):
    """Something is longer than what is read."""

    def __init__(self, most: int) -> None:
        super().__init__(f"it is longer than {most:,} bytes")


def read_chunks(data: bytes) -> Chunks:
    """The chunks of a PNG file. ValueError if it is none: size, signature, or first chunk are wrong.

    A chunk with a wrong checksum is marked as such. Nothing is inflated or decoded.
    """
    if len(data) > MAXIMUM_FILE:
        raise ValueError(f"it is larger than {MAXIMUM_FILE >> 20} MiB")
    if not data.startswith(SIGNATURE):
        raise ValueError("it has no PNG signature")
    chunks: list[Chunk] = []
    position = len(SIGNATURE)
    broken = "the end is missing"
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if not kind.isalpha():
            broken = f"there is no chunk at byte {position}"
            break
        if length > len(data) - position - 12:
            broken = f"it ends within the chunk {kind.decode('ascii')}"
            break
        if len(chunks) == MAXIMUM_CHUNKS:
            raise ValueError(f"it has more than {MAXIMUM_CHUNKS:,} chunks")
        end = position + 8 + length
        content = data[position + 8 : end]
        checksum = zlib.crc32(content, zlib.crc32(kind))
        chunks.append(Chunk(kind, content, data[end : end + 4] == checksum.to_bytes(4, "big")))
        position = end + 4
        if kind == b"IEND":
            broken = ""
            break
    if not chunks or chunks[0].kind != b"IHDR" or len(chunks[0].data) != 13 or not chunks[0].is_sound:
        raise ValueError("it does not begin with a whole header")
    return Chunks(tuple(chunks), broken)


def text_chunks(chunks: Chunks, keyword: str) -> Iterator[Text]:
    """The texts under a keyword: of tEXt chunks first, then of zTXt and iTXt, compressed or not."""
    room = MAXIMUM_TEXT
    start = keyword.encode("latin-1") + b"\0"
    for kind in (b"tEXt", b"zTXt", b"iTXt"):
        for chunk in chunks.of(kind):
            if not chunk.data.startswith(start):
                continue
            if room <= 0:
                return
            try:
                value = _text(chunk, chunk.data[len(start) :], room)
            except TooLong as error:
                room = 0
                yield Text(kind, "", f"{error}")
            except ValueError as error:
                yield Text(kind, "", f"{error}")
            else:
                room -= len(value)
                yield Text(kind, value)


def _text(chunk: Chunk, rest: bytes, room: int) -> str:
    """What follows the keyword, decoded. ValueError if that cannot be done, TooLong if it takes more than `room`."""
    if not chunk.is_sound:
        raise ValueError("its checksum is wrong")
    if len(rest) > room:
        raise TooLong(room)
    if chunk.kind == b"tEXt":
        return rest.decode("latin-1")
    if chunk.kind == b"zTXt":
        if rest[:1] != b"\0":
            raise ValueError("it is compressed by an unknown method")
        return inflate(rest[1:], room).decode("latin-1")
    flag, method, tail = rest[:1], rest[1:2], rest[2:]
    _, first, tail = tail.partition(b"\0")  # the language
    _, second, tail = tail.partition(b"\0")  # the keyword in that language
    if flag not in (b"\0", b"\1") or not first or not second or (flag == b"\1" and method != b"\0"):
        raise ValueError("it is no iTXt chunk")
    return (inflate(tail, room) if flag == b"\1" else tail).decode()


def inflate(data: bytes, most: int) -> bytes:
    """What zlib compressed; TooLong if that is more than `most` bytes, ValueError if it is not one whole stream."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError("its compressed data is damaged") from error
    if len(found) > most:
        raise TooLong(most)
    if not stream.eof or stream.unused_data:
        raise ValueError("its compressed data is not whole")
    return found


def chunk_bytes(kind: bytes, data: bytes) -> bytes:
    """One chunk as it stands in a file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big")


def write_png(pixels: np.ndarray, texts: Sequence[tuple[str, str]] = ()) -> bytes:
    """A PNG file of pixels, uint8 [height, width, 3], with texts (keyword and Latin-1 text) ahead of them.

    There are no chunks but IHDR, tEXt, IDAT and IEND: nothing that makes a program change colours. The same pixels and
    texts give the same bytes, everywhere.
    """
    height, width, _ = pixels.shape
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    parts = [SIGNATURE, chunk_bytes(b"IHDR", header)]
    for keyword, text in texts:
        parts.append(chunk_bytes(b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")))
    parts += [chunk_bytes(b"IDAT", _compressed(pixels.reshape(height, 3 * width))), chunk_bytes(b"IEND", b"")]
    return b"".join(parts)


def _compressed(rows: np.ndarray) -> bytes:
    """Rows of bytes, deflated; some rows at a time are filtered by the filter that suits them best."""
    stream = Deflater()
    for start in range(0, len(rows), STRIP):
        strip = rows[start : start + STRIP]
        above = rows[start - 1 : start + len(strip) - 1] if start else np.vstack([rows[:1] * 0, strip[:-1]])
        filtered = [_filtered(strip, above, kind) for kind in range(3)]
        tokens = [runs(data) for data in filtered]
        costs = [cost(found) for found in tokens]
        best = costs.index(min(costs))
        stream.add(filtered[best], tokens[best])
    return stream.finish()


def _filtered(rows: np.ndarray, above: np.ndarray, kind: int) -> bytes:
    """Rows with PNG's filter 0 (none), 1 (less the pixel to the left) or 2 (less the one above)."""
    left = np.zeros_like(rows)
    left[:, 3:] = rows[:, :-3]
    found = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    found[:, 0] = kind
    found[:, 1:] = rows - (0, left, above)[kind]
    return found.tobytes()
