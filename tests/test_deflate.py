"""Deflated bytes: zlib inflates them, and they are the same everywhere."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.snippets.chunks import write_png
from runtime.snippets.deflate import BLOCK, Deflater, cost, deflated, runs

REPETITIVE = st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 400)), max_size=12).map(
    lambda parts: b"".join(part * count for part, count in parts)
)


@given(st.one_of(st.binary(max_size=3000), REPETITIVE))
def test_zlib_inflates_what_was_deflated(data: bytes) -> None:
    assert zlib.decompress(deflated(data)) == data
    stream = Deflater()
    for start in range(0, len(data), 700):
        piece = data[start : start + 700]
        stream.add(piece, runs(piece))
    assert zlib.decompress(stream.finish()) == data


@pytest.mark.parametrize("kind", ["noise", "zeros", "far", "skewed"])
def test_long_pieces_come_back(kind: str) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, 3 * BLOCK, np.uint8)
    if kind == "skewed":  # Fibonacci's numbers make the longest codes
        counts = [1, 1]
        while sum(counts) < 2_000_000:
            counts.append(counts[-1] + counts[-2])
        noise = random.permutation(np.repeat(np.arange(len(counts), dtype=np.uint8), counts))
    data = {
        "noise": noise.tobytes(),
        "zeros": bytes(10 * BLOCK),
        "far": noise[:33000].tobytes() * 3,
        "skewed": noise.tobytes(),
    }[kind]
    stream = Deflater()
    stream.add(data, runs(data))
    assert zlib.decompress(stream.finish()) == data
    assert kind == "skewed" or zlib.decompress(deflated(data)) == data


def test_text_becomes_about_as_short_as_zlib_makes_it() -> None:
    text = "".join(f"  node_{n}:\n    type: MatMul\n    inputs: {{A: node_{n - 1}.Y}}\n" for n in range(500)).encode()
    assert len(deflated(text)) < 1.5 * len(zlib.compress(text, 9))
    assert cost(runs(bytes(1000))) < cost(runs(bytes(range(250)) * 4))


def test_the_bytes_are_the_same_everywhere() -> None:
    """No zlib's, no processor's: what is compared was written down once."""
    text = b"".join(b"%d squared is %d\n" % (n, n * n) for n in range(300))
    assert hashlib.sha256(deflated(text)).hexdigest()[:16] == "b345cc656accb369"
    rows, columns = np.indices((60, 80))
    pixels = np.stack([rows * columns % 7 * 30, rows // 3 * 5, columns // 2], axis=-1).astype(np.uint8)
    assert hashlib.sha256(write_png(pixels, [("a", "b")])).hexdigest()[:16] == "f872ebca483dbe49"
