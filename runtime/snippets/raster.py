"""Picture files -> pixels, within bounds: the header is looked at before anything is decoded."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np

from runtime.snippets.chunks import SIGNATURE, Chunks, chunk_bytes

MAXIMUM_SIDE = 8192
MAXIMUM_PIXELS = 40_000_000

RATIO = 1040
"""No deflated data inflates to more than about this many times its length."""

Kind = Literal["png", "bmp", "webp", "jpeg", ""]


def kind_of(data: bytes) -> Kind:
    """What a file is by its first bytes; empty if something else."""
    if data.startswith(SIGNATURE):
        return "png"
    if data.startswith(b"BM"):
        return "bmp"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return "jpeg" if data.startswith(b"\xff\xd8\xff") else ""


def check_size(width: int, height: int) -> None:
    """ValueError if a picture is empty or too large."""
    if not (0 < width <= MAXIMUM_SIDE and 0 < height <= MAXIMUM_SIDE and width * height <= MAXIMUM_PIXELS):
        raise ValueError(
            f"the picture has {width:,} x {height:,} pixels; at most {MAXIMUM_SIDE:,} a side and "
            f"{MAXIMUM_PIXELS // 1_000_000} million altogether are read"
        )


def png_pixels(chunks: Chunks) -> np.ndarray:
    """The pixels of a PNG file, uint8 [height, width, 3]; ValueError if they cannot be decoded.

    Only the chunks that make up the pixels are looked at, and transparency is left out.
    """
    check_size(*chunks.size)
    needed = chunks.of(b"IHDR", b"PLTE", b"IDAT")
    if not all(chunk.is_sound for chunk in needed):
        raise ValueError("the pixels are damaged: a checksum is wrong")
    if chunks.broken:
        raise ValueError(f"the file is cut short or damaged: {chunks.broken}")
    if RATIO * sum(len(chunk.data) for chunk in chunks.of(b"IDAT")) < chunks.size[1] * chunks.row_bits // 8:
        raise ValueError("the pixels are not whole")
    parts = [chunk_bytes(chunk.kind, chunk.data) for chunk in needed]
    return _decoded(b"".join([SIGNATURE, *parts, chunk_bytes(b"IEND", b"")]), "PNG")


def bmp_pixels(data: bytes) -> np.ndarray:
    """The pixels of a BMP file, uint8 [height, width, 3]; ValueError if they cannot be decoded."""
    bytes_each = 2 if int.from_bytes(data[14:18], "little") == 12 else 4  # of width and height, by the header's length
    width, height = (
        int.from_bytes(data[start : start + bytes_each], "little", signed=bytes_each == 4)
        for start in (18, 18 + bytes_each)
    )
    check_size(width, abs(height))  # negative: rows from the top
    return _decoded(data, "BMP")


def webp_pixels(data: bytes) -> np.ndarray:
    """The pixels of a lossless WebP file, uint8 [height, width, 3]; ValueError if they cannot be decoded."""
    kind = data[12:16]
    if kind == b"VP8 ":
        raise ValueError("the picture is a lossy WebP, in which pixels do not keep what they carry")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8X":
        if data[20:21] and data[20] & 2:
            raise ValueError("the picture is animated")
        check_size(int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    else:
        raise ValueError("the header is damaged")
    return _decoded(data, "WEBP")


def _decoded(data: bytes, form: str) -> np.ndarray:
    """What Pillow makes of a file. ValueError if it cannot."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[form]) as image:
            check_size(*image.size)
            image.load()
            if image.mode.startswith("I"):  # 16 bits of grey
                grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError as error:
        raise ValueError("there is not enough memory for the pixels") from error
    except Exception as error:  # a decoder of others' making: what it does not expect may end in any error
        raise ValueError(f"the pixels cannot be decoded ({error})") from error
