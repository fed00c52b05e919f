"""Bytes deflated (RFC 1950, 1951) to the same bytes everywhere: what zlib makes of them depends on whose zlib it is."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

BLOCK = 1 << 16
"""Tokens that share their codes."""
WINDOW, LONGEST = 32768, 258
LONGEST_CODE = 15
END = 256

_EXTRA_OF_LENGTH = np.array([0] * 8 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4 + [0], np.int64)
_BASE_OF_LENGTH = np.concatenate([3 + np.cumsum(np.r_[0, 1 << _EXTRA_OF_LENGTH[:-2]]), [258]]).astype(np.int64)
_EXTRA_OF_DISTANCE = np.maximum(np.arange(30) // 2 - 1, 0).astype(np.int64)
_BASE_OF_DISTANCE = (1 + np.cumsum(np.r_[0, 1 << _EXTRA_OF_DISTANCE[:-1]])).astype(np.int64)
_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)

Tokens: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Lengths and distances, int64: a length of 0 is a literal, whose byte stands for its distance."""


def deflated(data: bytes) -> bytes:
    """`data` as zlib's stream."""
    stream = Deflater()
    stream.add(data, _repeats(data))
    return stream.finish()


class Deflater:
    """zlib's stream, made piece by piece."""

    def __init__(self) -> None:
        self._writer = _Writer()
        self._checksum = 1

    def add(self, data: bytes, tokens: Tokens) -> None:
        """The next piece, and the tokens that it was made into."""
        self._checksum = zlib.adler32(data, self._checksum)
        for start in range(0, len(tokens[0]), BLOCK):
            self._writer.block((tokens[0][start : start + BLOCK], tokens[1][start : start + BLOCK]))

    def finish(self) -> bytes:
        """The whole stream."""
        nothing = np.empty(0, np.int64)
        self._writer.block((nothing, nothing), last=True)
        return b"\x78\x9c" + self._writer.bytes() + self._checksum.to_bytes(4, "big")


def cost(tokens: Tokens) -> int:
    """About how many bits tokens take."""
    symbols, _, extra = _symbols(tokens)
    counts = np.bincount(symbols, minlength=286)
    return int((counts * _code_lengths(counts, LONGEST_CODE)).sum() + extra.sum())


# -- tokens -----------------------------------------------------------------------------------------------------------


def runs(data: bytes) -> Tokens:
    """A byte and how often it comes again, over and over: quick, and does for filtered pixels."""
    flat = np.frombuffer(data, np.uint8)
    if not flat.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    again = np.diff(np.r_[starts, flat.size]) - 1
    whole, rest = again // LONGEST, again % LONGEST
    single = np.where(rest < 3, rest, 0)
    tokens = 1 + whole + np.where(rest < 3, rest, 1)
    run = np.repeat(np.arange(len(starts)), tokens)
    place = np.arange(len(run)) - np.repeat(np.cumsum(tokens) - tokens, tokens)
    lengths = np.where((place > 0) & (place <= whole[run]), LONGEST, 0)
    lengths = np.where((place > whole[run]) & (single[run] == 0), rest[run], lengths)
    distances = np.where(lengths > 0, 1, flat[starts][run].astype(np.int64))
    return lengths.astype(np.int64), distances


def _repeats(data: bytes) -> Tokens:
    """Literals, and what was there up to 32 KiB before, by the last place where the same four bytes began."""
    lengths: list[int] = []
    distances: list[int] = []
    last: dict[bytes, int] = {}
    at, size = 0, len(data)
    while at < size:
        key = data[at : at + 4]
        before = last.get(key, -1)
        last[key] = at
        if before < 0 or at - before > WINDOW or len(key) < 4:
            lengths.append(0)
            distances.append(data[at])
            at += 1
            continue
        length, most = 4, min(LONGEST, size - at)
        while length < most and data[before + length] == data[at + length]:
            length += 1
        lengths.append(length)
        distances.append(at - before)
        for inner in range(at + 1, min(at + length, size - 3)):
            last[data[inner : inner + 4]] = inner
        at += length
    return np.array(lengths, np.int64), np.array(distances, np.int64)


def _symbols(tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each token its symbol, the number of its length's code, and how many bits that and the distance take more."""
    lengths, distances = tokens
    is_match = lengths > 0
    code = np.where(is_match, np.searchsorted(_BASE_OF_LENGTH, lengths, "right") - 1, 0)
    extra = np.where(is_match, _EXTRA_OF_LENGTH[code] + 1, 0)
    return np.where(is_match, 257 + code, distances), code, extra


# -- codes ------------------------------------------------------------------------------------------------------------


def _code_lengths(counts: np.ndarray, most: int) -> np.ndarray:
    """Huffman's code lengths of symbols that come so often, of at most `most` bits; 0 for what does not come."""
    counts = counts.copy()
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.int64)
    if len(used) == 1:
        lengths[used] = 1
    while len(used) > 1:
        heap: list[tuple[int, int, tuple[int, ...]]] = [(int(counts[s]), int(s), (int(s),)) for s in used]
        heapq.heapify(heap)
        lengths[:] = 0
        number = len(counts)
        while len(heap) > 1:
            first, second = heapq.heappop(heap), heapq.heappop(heap)
            symbols = first[2] + second[2]
            lengths[list(symbols)] += 1
            heapq.heappush(heap, (first[0] + second[0], number, symbols))
            number += 1
        if lengths.max() <= most:
            break
        counts[used] = counts[used] // 2 + 1  # flatter: rare symbols get shorter codes
    return lengths


def _codes(lengths: np.ndarray) -> np.ndarray:
    """The codes that belong to code lengths (RFC 1951, 3.2.2), their bits in the order in which they are written."""
    codes = np.zeros(len(lengths), np.int64)
    code = 0
    for length in range(1, LONGEST_CODE + 1):
        code <<= 1
        for symbol in np.flatnonzero(lengths == length):
            codes[symbol] = int(f"{code:0{length}b}"[::-1], 2)
            code += 1
    return codes


def _packed_lengths(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Code lengths as (symbol, extra bits, their number): runs are told by their length (RFC 1951, 3.2.7)."""
    packed: list[tuple[int, int, int]] = []
    at = 0
    while at < len(lengths):
        value, stop = lengths[at], at
        while stop < len(lengths) and lengths[stop] == value:
            stop += 1
        count = stop - at
        if value == 0 and count >= 3:
            count = min(count, 138)
            packed.append((17, count - 3, 3) if count < 11 else (18, count - 11, 7))
        elif value and count >= 4:
            count = min(count, 7)
            packed += [(value, 0, 0), (16, count - 4, 2)]
        else:
            count = 1
            packed.append((value, 0, 0))
        at += count
    return packed


class _Writer:
    """Bits, the lowest first."""

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._widths: list[np.ndarray] = []

    def block(self, tokens: Tokens, *, last: bool = False) -> None:
        """A block with codes of its own."""
        lengths, distances = tokens
        is_match = lengths > 0
        symbols, code, _ = _symbols(tokens)
        far = np.where(is_match, np.searchsorted(_BASE_OF_DISTANCE, distances, "right") - 1, 0)
        symbol_lengths = _code_lengths(np.bincount(np.r_[symbols, END], minlength=286), LONGEST_CODE)
        distance_lengths = _code_lengths(np.bincount(far[is_match], minlength=30), LONGEST_CODE)
        if not distance_lengths.any():
            distance_lengths[0] = 1
        self._head(symbol_lengths, distance_lengths, last=last)
        symbol_codes, distance_codes = _codes(symbol_lengths), _codes(distance_lengths)
        more, farther = lengths - _BASE_OF_LENGTH[code], distances - _BASE_OF_DISTANCE[far]
        values = np.stack([symbol_codes[symbols], more, distance_codes[far], farther])
        widths = np.stack(
            [symbol_lengths[symbols], _EXTRA_OF_LENGTH[code], distance_lengths[far], _EXTRA_OF_DISTANCE[far]]
        )
        widths[1:, ~is_match] = 0
        self._write(values.T.reshape(-1), widths.T.reshape(-1))
        self._write([symbol_codes[END]], [symbol_lengths[END]])

    def _head(self, symbols: np.ndarray, distances: np.ndarray, *, last: bool) -> None:
        count, far = max(257, int(np.flatnonzero(symbols)[-1]) + 1), int(np.flatnonzero(distances)[-1]) + 1
        packed = _packed_lengths([*symbols[:count].tolist(), *distances[:far].tolist()])
        lengths = _code_lengths(np.bincount([symbol for symbol, _, _ in packed], minlength=19), 7)
        codes = _codes(lengths)
        told = [int(lengths[symbol]) for symbol in _ORDER]
        while len(told) > 4 and not told[-1]:
            told.pop()
        self._write([int(last), 2, count - 257, far - 1, len(told) - 4], [1, 2, 5, 5, 4])
        self._write(told, [3] * len(told))
        for symbol, extra, width in packed:
            self._write([codes[symbol], extra], [lengths[symbol], width])

    def _write(self, values: Sequence[int] | np.ndarray, widths: Sequence[int] | np.ndarray) -> None:
        self._values.append(np.asarray(values, np.int64))
        self._widths.append(np.asarray(widths, np.int64))

    def bytes(self) -> bytes:
        """All that was written."""
        values, widths = np.concatenate(self._values), np.concatenate(self._widths)
        values, widths = values[widths > 0], widths[widths > 0]
        pieces = []
        bits = np.empty(0, np.uint8)
        for start in range(0, len(values), BLOCK):
            value, width = values[start : start + BLOCK], widths[start : start + BLOCK]
            inner = np.arange(int(width.sum())) - np.repeat(np.cumsum(width) - width, width)
            bits = np.r_[bits, (np.repeat(value, width) >> inner & 1).astype(np.uint8)]
            whole = len(bits) // 8 * 8
            pieces.append(np.packbits(bits[:whole], bitorder="little").tobytes())
            bits = bits[whole:]
        pieces.append(np.packbits(bits, bitorder="little").tobytes())
        return b"".join(pieces)
