"""The loops over packed weights, compiled by numba: one pass where NumPy takes five. Installed by the extra `fast`.

They compute what `qmoe_node.tiles` does in NumPy, and in its order of columns: of n bytes in a row, the codes in the
lowest bits of all bytes come first, then those in the next bits. Sums are float32.

Importing this module raises ImportError where numba is not installed or does not know the installed NumPy. What is
compiled, within seconds, is kept beside this file, or in the user's cache, for the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from llvmlite import binding
from numba import config, float32, int64, njit, types, uint8, void

from qmoe_node import vectors
from qmoe_node.vectors import dequantize, multiply, sum_blocks

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("NUMBA_DISABLE_JIT is set")

_SOURCE = crc32(Path(vectors.__file__).read_bytes())
"""What is kept for the next time is kept for this text of `vectors`: numba looks at the text of this file only."""
_FEATURES = binding.get_host_cpu_features()
MOST_LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 4
"""Floats in one of the processor's vectors."""
GROUP = 4 if MOST_LANES == 16 else 2
"""Rows that are multiplied together, as many as there are registers for their sums; `project` takes no fewer."""
CODES = types.Array(uint8, 2, "C", readonly=True)
GIVEN = types.Array(float32, 2, "C", readonly=True)
FOUND = types.Array(float32, 2, "C")


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function for the types of a signature."""
    made: Any = njit
    options = {"nogil": True, "error_model": "numpy"}

    def compile(function: Callable[..., Any]) -> Any:
        try:
            return made(signature, cache=True, **options)(function)
        except RuntimeError:  # there is no folder that it may be kept in
            return made(signature, **options)(function)

    return compile


@dataclass(frozen=True, slots=True)
class Loops:
    """The loops for one form of codes. `codes` are uint8 [rows, bytes], `scales` float32 [rows, blocks]; `zeros` are
    uint8 [rows, blocks], not looked at where all are `default_zero`. A block is a whole number of vectors of bytes.

    project(codes, scales, zeros, default_zero, tokens, start, stop, out): columns `start` to `stop`, `GROUP` or more,
    of tokens [t, columns] times the weights' transpose, out [t, rows].
    unpack(codes, scales, zeros, default_zero, out): (code - zero) * scale, out [rows, columns].
    scale_sums(codes, zeros, default_zero, gradient, out): sums over each block of (code - zero) * gradient,
    out [rows, blocks], from the gradient of the weights [rows, columns].
    """

    project: Callable[..., None]
    unpack: Callable[..., None]
    scale_sums: Callable[..., None]


def lanes_for(width: int) -> int:
    """The longest vector of bytes of which `width` bytes are a whole number; 0 if there is none."""
    return next((lanes for lanes in (16, 8, 4) if lanes <= MOST_LANES and width % lanes == 0), 0)


@cache
def loops(bits: int, lanes: int, has_zeros: int) -> Loops:
    """The loops for codes of 2, 4 or 8 bits, in vectors of so many bytes; `has_zeros` is 0 or 1."""
    group, source = GROUP, _SOURCE

    @_compiled(void(CODES, GIVEN, CODES, float32, FOUND))
    def unpack(codes, scales, zeros, default_zero, out):  # type: ignore[no-untyped-def]
        if source < 0:  # never: named here, it is part of what numba keeps its work by
            return
        n, blocks = codes.shape[1], scales.shape[1]
        for row in range(codes.shape[0]):
            own, factors = codes.ctypes.data + row * n, scales.ctypes.data + row * blocks * 4
            offsets, found = zeros.ctypes.data + row * blocks, out.ctypes.data + row * out.shape[1] * 4
            dequantize(bits, lanes, has_zeros, own, factors, offsets, default_zero, blocks, n // blocks, found)

    @_compiled(void(CODES, CODES, float32, GIVEN, FOUND))
    def scale_sums(codes, zeros, default_zero, gradient, out):  # type: ignore[no-untyped-def]
        if source < 0:  # never: named here, it is part of what numba keeps its work by
            return
        n, blocks = codes.shape[1], out.shape[1]
        for row in range(codes.shape[0]):
            own, offsets = codes.ctypes.data + row * n, zeros.ctypes.data + row * blocks
            given, found = gradient.ctypes.data + row * gradient.shape[1] * 4, out.ctypes.data + row * blocks * 4
            sum_blocks(bits, lanes, has_zeros, own, offsets, default_zero, blocks, n // blocks, given, found)

    @_compiled(void(CODES, GIVEN, CODES, float32, GIVEN, int64, int64, FOUND))
    def project(codes, scales, zeros, default_zero, tokens, start, stop, out):  # type: ignore[no-untyped-def]
        if source < 0:  # never: named here, it is part of what numba keeps its work by
            return
        n, blocks, count = codes.shape[1], scales.shape[1], tokens.shape[0]
        width, x_row, y_row = n // blocks, tokens.shape[1] * 4, out.shape[1] * 4
        for first in range(start, stop, group):
            row = min(first, stop - group)  # the last ones may be computed twice
            own, factors = codes.ctypes.data + row * n, scales.ctypes.data + row * blocks * 4
            offsets, zero = zeros.ctypes.data + row * blocks, default_zero
            x, y, left = tokens.ctypes.data, out.ctypes.data + row * 4, count
            while left >= 4:
                multiply(bits, lanes, group, 4, has_zeros, own, factors, offsets, zero, blocks, width, x, y, y_row)
                x, y, left = x + 4 * x_row, y + 4 * y_row, left - 4
            if left == 3:
                multiply(bits, lanes, group, 3, has_zeros, own, factors, offsets, zero, blocks, width, x, y, y_row)
            elif left == 2:
                multiply(bits, lanes, group, 2, has_zeros, own, factors, offsets, zero, blocks, width, x, y, y_row)
            elif left == 1:
                multiply(bits, lanes, group, 1, has_zeros, own, factors, offsets, zero, blocks, width, x, y, y_row)

    return Loops(project, unpack, scale_sums)
