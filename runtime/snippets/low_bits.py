"""Bytes in the lowest bits of a picture's samples, and the hash of what people see of it.

A picture looks the same with them, and they stay when a program drops the texts of a file. Samples are R, G and B of
the pixels, rows first; a byte takes eight of them, its highest bit first. In front stand a magic, the length and a
CRC-32.
"""

from __future__ import annotations

import hashlib
import zlib

import numpy as np

MAGIC = b"QMoE\x00px\x01"
HEAD = len(MAGIC) + 8

STRIP = 1 << 22
"""Samples that are looked at a time."""


def samples_needed(length: int) -> int:
    """Samples, three a pixel, that `length` bytes take."""
    return 8 * (HEAD + length)


def embed(pixels: np.ndarray, data: bytes) -> np.ndarray:
    """A copy of pixels, uint8 [height, width, 3], with `data` in it. ValueError if the picture is too small for it."""
    if pixels.size < samples_needed(len(data)):
        raise ValueError(f"{len(data):,} bytes need {samples_needed(len(data)):,} samples; there are {pixels.size:,}")
    whole = MAGIC + len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data
    bits = np.unpackbits(np.frombuffer(whole, np.uint8))
    copy = np.ascontiguousarray(pixels).copy()
    samples = copy.reshape(-1)
    samples[: bits.size] = (samples[: bits.size] & 0xFE) | bits
    return copy


def extract(pixels: np.ndarray, most: int) -> bytes | None:
    """What `embed` put into pixels, up to `most` bytes; None if nothing is there. ValueError if it is damaged."""
    samples = pixels.reshape(-1)
    head = _bytes(samples[: 8 * HEAD])
    if not head.startswith(MAGIC):
        return None
    length = int.from_bytes(head[-8:-4], "little")
    if length > most or samples_needed(length) > samples.size:
        raise ValueError("it is damaged: its length is wrong")
    data = _bytes(samples[8 * HEAD : samples_needed(length)])
    if zlib.crc32(data).to_bytes(4, "little") != head[-4:]:
        raise ValueError("it is damaged: its checksum is wrong")
    return data


def _bytes(samples: np.ndarray) -> bytes:
    return np.packbits(samples & 1).tobytes()


def picture_digest(pixels: np.ndarray) -> str:
    """SHA-256 of width, height and samples of pixels, uint8 [height, width, 3], without the samples' lowest bits."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(width.to_bytes(4, "little") + height.to_bytes(4, "little"))
    samples = np.ascontiguousarray(pixels).reshape(-1)
    for start in range(0, samples.size, STRIP):
        digest.update((samples[start : start + STRIP] & 0xFE).data)
    return digest.hexdigest()
