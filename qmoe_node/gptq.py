"""Quantization that makes good for each column's error in the columns that follow (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import numpy as np

from qmoe_node.packing import pack, packed_length
from qmoe_node.quantize import CORES, Quantized, Scheme, best_ranges, blocks_of, by_rows
from runtime.errors import Finding, GraphError

DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, added to it (as in the paper)."""
SPAN = 128
"""Columns whose errors are given on at once."""
HEIGHT = 1024
"""Rows that are worked on together: enough for whole vectors, few enough for a cache."""


def moments(tokens: np.ndarray) -> np.ndarray:
    """The mean of x x^T over `tokens` float32 [t, columns], float64 [columns, columns]: the Hessian by a factor."""
    return np.asarray((tokens.T @ tokens).astype(np.float64) / max(1, len(tokens)))


def compensated(weights: np.ndarray, scheme: Scheme, hessian: np.ndarray, workers: int = CORES) -> Quantized:
    """Quantizes weights [rows, columns] so that W x is kept for tokens x with these `moments`.

    Columns go from left to right; a block's scale is found for what its weights are when its first column's turn
    comes. GraphError if weights or moments are not finite.
    """
    weights = np.asarray(weights, np.float32)
    rows, columns = weights.shape
    if not (np.isfinite(weights).all() and np.isfinite(hessian).all()):
        raise GraphError(Finding("Weights or calibration data that are not finite cannot be used.", code="weights"))
    spread = _inverse_factor(hessian)
    size = scheme.block_size or columns
    count = -(-columns // size)
    data = np.empty((rows, packed_length(columns, scheme.bits)), np.uint8)
    scales, zeros = np.empty((rows, count), np.float32), np.empty((rows, count), np.float32)
    span = max(SPAN, scheme.block_size)

    def work(part: slice) -> None:
        moved = np.ascontiguousarray(weights[part].T)
        codes = np.empty(moved.shape, np.uint8)
        if not scheme.block_size:
            scales[part], zeros[part] = best_ranges(weights[part][:, None], scheme)
        for start in range(0, columns, span):
            stop = min(start + span, columns)
            faults = np.empty((stop - start, moved.shape[1]), np.float32)
            for column in range(start, stop):
                block = column // size
                if scheme.block_size and column % size == 0:
                    ahead = blocks_of(np.ascontiguousarray(moved[column : column + size].T), size)
                    found = best_ranges(ahead, scheme)
                    scales[part, block], zeros[part, block] = found[0][:, 0], found[1][:, 0]
                scale, zero, own = scales[part, block], zeros[part, block], moved[column]
                code = np.clip(np.rint(own / np.where(scale == 0, np.float32(1), scale)) + zero, 0, scheme.most)
                codes[column] = code
                fault = (own - (code - zero) * scale) / spread[column, column]
                faults[column - start] = fault
                moved[column + 1 : stop] -= spread[column, column + 1 : stop, None] * fault
            moved[stop:] -= spread[start:stop, stop:].T @ faults
        data[part] = pack(np.ascontiguousarray(codes.T), scheme.bits)

    by_rows(work, rows, HEIGHT, workers)
    return Quantized(data, scales, zeros.astype(np.uint8) if scheme.asymmetric else None, columns, scheme)


def _inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """U with U^T U = H^-1, upper triangular, float32, of the damped Hessian."""
    diagonal = np.diagonal(hessian)
    damped = hessian + np.eye(len(hessian)) * max(DAMPING * float(diagonal.mean()), 1e-12)
    inverse = np.linalg.inv(damped)
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32))
