"""Weights -> codes, scales and zero points, in the form that QMoE reads: rows or blocks of 2, 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from qmoe_node.packing import default_zero_point, pack
from runtime.errors import Finding, GraphError

Method: TypeAlias = Literal["nearest", "least-squares", "half-quadratic"]
METHODS: tuple[Method, ...] = ("nearest", "least-squares", "half-quadratic")
WIDTHS = (2, 4, 8)
BLOCKS = (0, 16, 32, 64, 128, 256)
"""Columns that share a scale; 0 for a whole row."""
SHARES = np.linspace(0.35, 1.0, 27, dtype=np.float32)
"""Parts of the range that the search of a scale tries."""
ROUNDS, SHRINK, POWER = 20, 10.0, 0.7
"""Of half-quadratic quantization: how often, how strongly, and towards which norm (Badri and Shaji, "HQQ", 2023)."""


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


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [rows, columns] as QMoE has it.

    `codes` uint8 [rows, columns], `scales` float32 [rows, blocks], `zero_points` uint8 [rows, blocks] or None for the
    middle of the codes. A weight is (code - zero point) * scale.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    scheme: Scheme

    def weights(self) -> np.ndarray:
        """The weights that it stands for, float32 [rows, columns]."""
        zeros = default_zero_point(self.scheme.bits) if self.zero_points is None else self.zero_points[..., None]
        blocks = _blocks(self.codes, self.scheme.block_size).astype(np.float32) - zeros
        whole = blocks * self.scales[..., None]
        return np.asarray(whole.reshape(len(self.codes), -1)[:, : self.codes.shape[1]])

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Weights, scales and zero points as the operator's inputs have them, for one expert."""
        bits, by_row = self.scheme.bits, not self.scheme.block_size
        scales = self.scales[:, 0] if by_row else self.scales
        zeros = None
        if self.zero_points is not None:
            zeros = pack(self.zero_points[:, 0] if by_row else self.zero_points, bits)
        return pack(self.codes, bits), scales, zeros


def quantized(weights: np.ndarray, scheme: Scheme) -> Quantized:
    """Quantizes a matrix of floats [rows, columns]. GraphError if some of it is not finite.

    "nearest" is ONNX Runtime's convention: a symmetric block's scale takes its element of the largest size to the
    lowest code, an asymmetric one's takes its range, with zero in it, to all codes; codes are rounded to even.
    "least-squares" takes, of several parts of that range, the one with the least squared error. "half-quadratic" moves
    zero points so that few errors are large.
    """
    weights = np.asarray(weights, np.float32)
    if not np.isfinite(weights).all():
        raise GraphError(Finding("Weights that are not finite cannot be quantized.", code="weights"))
    blocks = _blocks(weights, scheme.block_size)
    if scheme.method == "nearest":
        scales, zeros = _range(blocks, scheme)
    elif scheme.method == "least-squares":
        scales, zeros = _least_squares(blocks, scheme)
    else:
        scales, zeros = _half_quadratic(blocks, scheme)
    codes = _round(blocks, scales, zeros, scheme).astype(np.uint8)
    flat = np.ascontiguousarray(codes.reshape(len(weights), -1)[:, : weights.shape[1]])
    return Quantized(flat, scales, zeros.astype(np.uint8) if scheme.asymmetric else None, scheme)


def _blocks(matrix: np.ndarray, block_size: int) -> np.ndarray:
    """[rows, blocks, block size]; the last block of a row is filled with zeros."""
    size = block_size or matrix.shape[1]
    missing = -matrix.shape[1] % size
    if missing:
        matrix = np.pad(matrix, ((0, 0), (0, missing)))
    return matrix.reshape(len(matrix), -1, size)


def _range(blocks: np.ndarray, scheme: Scheme, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points, float32 [rows, blocks], that take so much of each block's range."""
    most = (1 << scheme.bits) - 1
    if not scheme.asymmetric:
        half = default_zero_point(scheme.bits)
        place = np.abs(blocks).argmax(axis=-1)[..., None]
        largest = np.take_along_axis(blocks, place, axis=-1)[..., 0]
        scales = largest * np.float32(share) / np.float32(-half)
        return scales, np.full(scales.shape, half, np.float32)
    low = np.minimum(blocks.min(axis=-1), 0) * np.float32(share)
    high = np.maximum(blocks.max(axis=-1), 0) * np.float32(share)
    scales = (high - low) / np.float32(most)
    zeros = np.rint(-low / np.where(scales == 0, np.float32(1), scales))
    return scales, np.clip(zeros, 0, most)


def _round(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Codes as floats."""
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    return np.asarray(np.clip(np.rint(blocks / divisor) + zeros[..., None], 0, (1 << scheme.bits) - 1))


def _errors(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme) -> np.ndarray:
    codes = _round(blocks, scales, zeros, scheme)
    apart = (codes - zeros[..., None]) * scales[..., None] - blocks
    return np.asarray(np.einsum("rbc,rbc->rb", apart, apart))


def _least_squares(blocks: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """The best of several parts of the range; then, for its codes, the scale that solves the least squares."""
    scales, zeros = _range(blocks, scheme)
    least = _errors(blocks, scales, zeros, scheme)
    for share in SHARES:
        tried, tried_zeros = _range(blocks, scheme, float(share))
        # A scale's sign says which of the two outermost codes is farther from zero: both are tried.
        for sign in (1.0,) if scheme.asymmetric else (1.0, -1.0):
            candidate = tried * np.float32(sign)
            shifted = _round(blocks, candidate, tried_zeros, scheme) - tried_zeros[..., None]
            squares = np.einsum("rbc,rbc->rb", shifted, shifted)
            products = np.einsum("rbc,rbc->rb", shifted, blocks)
            solved = np.where(squares > 0, products / np.where(squares > 0, squares, 1), candidate).astype(np.float32)
            for one in (candidate, solved):
                errors = _errors(blocks, one, tried_zeros, scheme)
                better = errors < least
                scales, zeros = np.where(better, one, scales), np.where(better, tried_zeros, zeros)
                least = np.where(better, errors, least)
    return scales, zeros


def _half_quadratic(blocks: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Zero points for which the errors are small but for few, found by half-quadratic splitting (HQQ, equations 3-7).

    Zero points are whole in QMoE, so that each step's is rounded; the best of them all by squared error is taken.
    """
    most = (1 << scheme.bits) - 1
    scales, zeros = _range(blocks, scheme)
    best, least = zeros, _errors(blocks, scales, zeros, scheme)
    moving, strength = zeros.copy(), SHRINK
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    for _ in range(ROUNDS):
        codes = np.clip(np.rint(blocks / divisor + moving[..., None]), 0, most)
        apart = blocks - (codes - moving[..., None]) * scales[..., None]
        size = np.abs(apart)
        with np.errstate(divide="ignore"):
            shrunk = np.maximum(size - size ** (POWER - 1) / strength, 0)
        outliers = np.sign(apart) * np.where(size > 0, shrunk, 0)
        moving = (codes - (blocks - outliers) / divisor).mean(axis=-1).astype(np.float32)
        whole = np.clip(np.rint(moving), 0, most)
        errors = _errors(blocks, scales, whole, scheme)
        better = errors < least
        best, least = np.where(better, whole, best), np.where(better, errors, least)
        strength *= 1.01
    return scales, best
