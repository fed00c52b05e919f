"""Weights -> codes, scales and zero points, in the form that QMoE reads: rows or blocks of 2, 4 or 8 bits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from qmoe_node.packing import default_zero_point, dequantize, pack, packed_length, unpack
from runtime.errors import Finding, GraphError

Method: TypeAlias = Literal["nearest", "onnxruntime", "least-squares", "half-quadratic"]
METHODS: tuple[Method, ...] = ("nearest", "onnxruntime", "least-squares", "half-quadratic")
WIDTHS = (2, 4, 8)
BLOCKS = (0, 16, 32, 64, 128, 256)
"""Columns that share a scale; 0 for a whole row."""
SHARES = np.linspace(0.35, 1.0, 14, dtype=np.float32)
"""Parts of the range that the search of a scale tries."""
ROUNDS, SHRINK, POWER = 20, 2.0, 0.7
"""Of half-quadratic quantization: how often, how strongly, and towards which norm (Badri and Shaji, "HQQ", 2023)."""
TILE = 1 << 18
"""Weights that are worked on at once: few enough for a core's cache, enough for threads not to wait for each other."""
LONG = 512
"""Elements of a block from which on NumPy finds its extremes fast by itself."""
ORDINARY = 20
"""Powers of two by which weights may be larger or smaller than 1 so that their squares have good sums in float32."""
CORES = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are quantized. `asymmetric` gives each block a zero point of its own."""

    bits: int = 4
    block_size: int = 32
    asymmetric: bool = False
    method: Method = "nearest"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bits", self.bits, WIDTHS),
            ("block_size", self.block_size, BLOCKS),
            ("method", self.method, METHODS),
        ):
            if value not in known:
                expected = ", ".join(map(str, known))
                raise GraphError(Finding(f"{name}: expected one of {expected}; {value} came.", code="option"))
        if self.method == "half-quadratic" and not self.asymmetric:
            text = "The half-quadratic method looks for zero points: it needs asymmetric quantization."
            raise GraphError(Finding(text, code="option"))
        if self.method == "onnxruntime" and not self.block_size:
            text = "ONNX Runtime's quantizer knows blocks only: it needs a block_size."
            raise GraphError(Finding(text, code="option"))

    @property
    def most(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix of so many `columns` as QMoE has it.

    `data` uint8 [rows, bytes] holds the codes, `scales` are float32 [rows, blocks], `zero_points` uint8 [rows, blocks]
    or None for the middle of the codes. A weight is (code - zero point) * scale.
    """

    data: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    columns: int
    scheme: Scheme

    def codes(self) -> np.ndarray:
        """uint8 [rows, columns]."""
        return unpack(self.data, self.scheme.bits, self.columns)

    def weights(self, rows: slice = slice(None)) -> np.ndarray:
        """The weights that it stands for, or some of their rows, float32 [rows, columns]."""
        zeros = None if self.zero_points is None else self.zero_points[rows]
        bits, block_size = self.scheme.bits, self.scheme.block_size or self.columns
        return dequantize(self.data[rows], self.scales[rows], zeros, bits, self.columns, block_size)

    def error(self, weights: np.ndarray, workers: int = CORES) -> float:
        """||Q - W|| / ||W||, W being `weights` [rows, columns] and Q these; 0 if both are 0."""
        sums: list[tuple[float, float]] = []
        # Squares of very large and very small weights are none that float32 has: all are seen from their own size. A
        # power of two changes no digit, and is taken in two halves, each of which float32 has.
        largest = max(float(weights.max(initial=0)), -float(weights.min(initial=0)))
        exponent = -math.frexp(largest)[1]
        halves = np.float32(2.0 ** (exponent // 2)), np.float32(2.0 ** (exponent - exponent // 2))

        def work(part: slice) -> None:
            wanted, found = weights[part].ravel(), self.weights(part).ravel()
            if abs(exponent) > ORDINARY:
                wanted, found = (values * halves[0] * halves[1] for values in (wanted, found))
            apart = found - wanted
            sums.append((float(np.dot(apart, apart)), float(np.dot(wanted, wanted))))

        by_rows(work, len(weights), max(1, TILE // max(1, self.columns)), workers)
        apart, size = (math.fsum(part) for part in zip(*sums, strict=True)) if sums else (0.0, 0.0)
        return math.sqrt(apart / size) if size else math.inf if apart else 0.0

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Weights, scales and zero points as the operator's inputs have them, for one expert."""
        bits, by_row = self.scheme.bits, not self.scheme.block_size
        scales = self.scales[:, 0] if by_row else self.scales
        zeros = None
        if self.zero_points is not None:
            zeros = pack(self.zero_points[:, 0] if by_row else self.zero_points, bits)
        return self.data, scales, zeros


def quantized(weights: np.ndarray, scheme: Scheme, workers: int = CORES) -> Quantized:
    """Quantizes a matrix of floats [rows, columns], rows apart by `workers`. GraphError if some of it is not finite.

    "nearest" is ONNX Runtime's convention: a symmetric block's scale takes its (first) element of the largest size to
    the lowest code, an asymmetric one's takes its range, with zero in it, to all codes; w / scale is rounded to even.
    "onnxruntime" gives the bytes of ONNX Runtime's own quantizer of MatMulNBits, which differ in ties: of two elements
    of one size the negative one counts, w * (1 / scale) is rounded, and halves go up. "least-squares" takes, of
    several parts of the range, the one with the least squared error. "half-quadratic" moves scales and zero points
    so that few errors are large.
    """
    weights = np.asarray(weights, np.float32)
    rows, columns = weights.shape
    blocks = -(-columns // scheme.block_size) if scheme.block_size else 1
    data = np.empty((rows, packed_length(columns, scheme.bits)), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = np.empty((rows, blocks), np.uint8) if scheme.asymmetric else None

    def work(part: slice) -> None:
        tile = blocks_of(weights[part], scheme.block_size)
        codes, scales[part], found = _quantize(tile, scheme)
        data[part] = pack(codes.reshape(len(codes), -1)[:, :columns], scheme.bits)
        if zeros is not None:
            zeros[part] = found

    by_rows(work, rows, max(1, TILE // max(1, columns)), workers)
    return Quantized(data, scales, zeros, columns, scheme)


def by_rows(work: Callable[[slice], None], rows: int, height: int, workers: int) -> None:
    """Calls `work` for all rows, so many at once, on several threads if there is enough of it."""
    parts = [slice(start, min(start + height, rows)) for start in range(0, rows, height)]
    if workers == 1 or len(parts) < 2:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, parts))


def blocks_of(matrix: np.ndarray, block_size: int) -> np.ndarray:
    """[rows, blocks, block size] of [rows, columns]; the last block of a row is filled with zeros."""
    size = block_size or matrix.shape[1]
    missing = -matrix.shape[1] % size
    if missing:
        matrix = np.pad(matrix, ((0, 0), (0, missing)))
    return matrix.reshape(len(matrix), matrix.shape[1] // max(1, size), size)


def _quantize(blocks: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes uint8 like the blocks, scales and zero points float32 [rows, blocks]."""
    scales, zeros = ranges(blocks, scheme)
    if not np.isfinite(scales).all():
        raise GraphError(Finding("Weights that are not finite cannot be quantized.", code="weights"))
    if scheme.method == "onnxruntime":
        return _round_up(blocks, scales, zeros, scheme), scales, zeros
    with np.errstate(over="ignore", invalid="ignore"):  # squares of what is very large are none: no error is less
        if scheme.method == "least-squares":
            scales, zeros = best_ranges(blocks, scheme)
        elif scheme.method == "half-quadratic":
            scales, zeros = _half_quadratic(blocks, scheme)
    return rounded(blocks, scales, zeros, scheme).astype(np.uint8), scales, zeros


def ranges(blocks: np.ndarray, scheme: Scheme, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points, float32 [rows, blocks], that take so much of each block's range.

    A block with something that is not finite has no finite scale.
    """
    if not blocks.shape[-1]:
        return np.zeros(blocks.shape[:-1], np.float32), np.zeros(blocks.shape[:-1], np.float32)
    low, high = _extremes(blocks)
    if not scheme.asymmetric:
        half = default_zero_point(scheme.bits)
        largest = np.where(high > -low, high, low)
        if scheme.method != "onnxruntime":
            tied = np.nonzero((high == -low) & (high > 0))
            if tied[0].size:
                place = np.abs(blocks[tied]).argmax(axis=-1)[:, None]
                largest[tied] = np.take_along_axis(blocks[tied], place, axis=-1)[:, 0]
        scales = largest * np.float32(share) / np.float32(-half)
        return scales, np.full(scales.shape, half, np.float32)
    low = np.minimum(low, 0) * np.float32(share)
    high = np.maximum(high, 0) * np.float32(share)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (high - low) / np.float32(scheme.most)
        zeros = -low / np.where(scales == 0, np.float32(1), scales)
        zeros = _half_up(zeros) if scheme.method == "onnxruntime" else np.rint(zeros)
    return scales, np.clip(zeros, 0, scheme.most)


def _extremes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest element of each block."""
    size = blocks.shape[-1]
    if size % 4 or size > LONG:
        return blocks.min(axis=-1), blocks.max(axis=-1)
    # NumPy is slow along short axes. Across them, whole vectors are compared; four numbers move at once, for speed.
    quads = np.ascontiguousarray(blocks).view(np.complex128).reshape(-1, size // 4)
    across = np.ascontiguousarray(quads.T).view(np.float32)
    low, high = across.min(axis=0).reshape(-1, 4), across.max(axis=0).reshape(-1, 4)
    low = np.minimum(np.minimum(low[:, 0], low[:, 1]), np.minimum(low[:, 2], low[:, 3]))
    high = np.maximum(np.maximum(high[:, 0], high[:, 1]), np.maximum(high[:, 2], high[:, 3]))
    return low.reshape(blocks.shape[:-1]), high.reshape(blocks.shape[:-1])


def rounded(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The codes nearest to w / scale + zero point, as floats."""
    codes = np.divide(blocks, np.where(scales == 0, np.float32(1), scales)[..., None])
    np.rint(codes, out=codes)
    codes += zeros[..., None]
    return np.clip(codes, 0, scheme.most, out=codes)


def _round_up(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The codes of ONNX Runtime's quantizer."""
    with np.errstate(over="ignore", invalid="ignore"):
        inverse = np.float32(1) / np.where(scales == 0, np.float32(np.inf), scales)
        inverse = np.where(np.isfinite(inverse), inverse, np.float32(0))  # of a scale near 0 there is none
        codes = blocks * inverse[..., None] + zeros[..., None]
    return np.clip(_half_up(codes), 0, scheme.most).astype(np.uint8)


def _half_up(values: np.ndarray) -> np.ndarray:
    """To the nearest whole number, halves up: C's roundf on what is not negative."""
    low = np.floor(values)
    return np.asarray(low + (values - low >= 0.5))


def errors(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The sum of squared errors of each block, [rows, blocks]."""
    apart = rounded(blocks, scales, zeros, scheme)
    apart -= zeros[..., None]
    apart *= scales[..., None]
    apart -= blocks
    return np.asarray(np.einsum("rbc,rbc->rb", apart, apart))


def best_ranges(blocks: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points with a small squared error, float32 [rows, blocks].

    Several parts of the range are tried, and for the codes that each gives the scale that solves the least squares.
    """
    scales, zeros = ranges(blocks, scheme)
    whole, least = scales, errors(blocks, scales, zeros, scheme)
    for share in SHARES:
        if scheme.asymmetric:
            tried, tried_zeros = ranges(blocks, scheme, float(share))
        else:
            tried, tried_zeros = whole * share, zeros
        # A scale's sign says which of the two outermost codes is farther from zero: both are tried.
        for sign in (1.0,) if scheme.asymmetric else (1.0, -1.0):
            candidate = tried * np.float32(sign)
            shifted = rounded(blocks, candidate, tried_zeros, scheme) - tried_zeros[..., None]
            for one in (candidate, _fitted(shifted, blocks, candidate)):
                found = errors(blocks, one, tried_zeros, scheme)
                better = found < least
                scales, zeros = np.where(better, one, scales), np.where(better, tried_zeros, zeros)
                least = np.where(better, found, least)
    return scales, zeros


def _half_quadratic(blocks: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points for which the errors are small but for few, by half-quadratic splitting (HQQ).

    In turn, the errors' outliers are found by shrinking (equation 4 there), and scale and zero point are fitted to what
    is left: the zero point as its mean (equation 7), the scale, which HQQ leaves alone, by least squares, because zero
    points are whole in QMoE. The best of all rounds by squared error is taken.
    """
    scales, zeros = ranges(blocks, scheme)
    least = errors(blocks, scales, zeros, scheme)
    scale, zero, strength = scales, zeros, SHRINK
    unit = np.abs(blocks).mean(axis=-1, keepdims=True) + np.float32(1e-30)
    for _ in range(ROUNDS):
        divisor = np.where(scale == 0, np.float32(1), scale)[..., None]
        codes = rounded(blocks, scale, zero, scheme)
        apart = (blocks - (codes - zero[..., None]) * scale[..., None]) / unit
        size = np.abs(apart)
        with np.errstate(divide="ignore"):
            shrunk = np.maximum(size - size ** (POWER - 1) / strength, 0)
        target = blocks - np.sign(apart) * np.where(size > 0, shrunk, 0) * unit
        zero = np.clip(np.rint((codes - target / divisor).mean(axis=-1)), 0, scheme.most).astype(np.float32)
        scale = _fitted(codes - zero[..., None], target, scale)
        found = errors(blocks, scale, zero, scheme)
        better = found < least
        scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
        least = np.where(better, found, least)
        strength *= 1.01
    return scales, zeros


def _fitted(shifted: np.ndarray, target: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """The scales by which codes less zero points are nearest to a target, in the least squares."""
    squares = np.einsum("rbc,rbc->rb", shifted, shifted)
    products = np.einsum("rbc,rbc->rb", shifted, target)
    return np.where(squares > 0, products / np.where(squares > 0, squares, 1), otherwise).astype(np.float32)
