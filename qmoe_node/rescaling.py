"""Factors for the columns of weights, so that those that matter are rounded more finely (AWQ, arXiv 2306.00978)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from qmoe_node.quantize import Scheme, quantized

POWERS = np.linspace(0, 1, 11)
"""Of the columns' mean size, tried as factors; 0 leaves them as they are."""
ROWS = 512
"""Rows that the search looks at, at most, evenly spread."""
SMALLEST = 1e-4
"""Least mean size of a column, as a part of the largest."""


def column_factors(cases: Iterable[tuple[np.ndarray, np.ndarray]], scheme: Scheme) -> np.ndarray:
    """Factors f float32 [columns] with which W f, rounded, and x / f give W x best.

    `cases` are weights [rows, columns] with their tokens [t, columns]; all get the same factors, a power of the
    columns' mean size (section 3.2 there). Ones if nothing is better, or without tokens.
    """
    parts = [(weights[:: -(-len(weights) // ROWS)], tokens) for weights, tokens in cases if len(tokens)]
    if not parts:
        return np.ones(0, np.float32)
    sizes = np.mean([np.abs(tokens).mean(axis=0) for _, tokens in parts], axis=0)
    sizes = np.maximum(sizes, SMALLEST * max(float(sizes.max()), 1e-30))
    plain = replace(scheme, method="nearest")
    best, least = np.ones(len(sizes), np.float32), np.inf
    for power in POWERS:
        factors = sizes**power
        factors = (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
        error = 0.0
        for weights, tokens in parts:
            apart = quantized(weights * factors, plain).weights() / factors - weights
            error += float(np.square(tokens @ apart.T).mean())
        if error < least:
            best, least = factors, error
    return best
