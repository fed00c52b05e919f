"""What a forward pass keeps for its backward pass: what the experts' first projections gave, as long as that is little.

To compute it once more is a sixth of a backward pass, for which packed weights have to be unpacked twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qmoe_node.layer import Layer
from qmoe_node.routing import Routing
from runtime.backends.control import kept_values

LITTLE = 0.25
"""Bytes that may be kept of a layer, for each byte of its packed weights."""

Arrays = Mapping[str, np.ndarray]
First = tuple[np.ndarray, np.ndarray | None]
"""What fc1 gave of one expert's tokens, float32 [t, rows], and what fc3 gave, where there is one."""


@dataclass(frozen=True, slots=True)
class Kept:
    """`firsts` by expert, of these tokens, float32 [T, hidden], for the experts that they chose [T, k]."""

    tokens: np.ndarray
    chosen: np.ndarray
    firsts: dict[int, First] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        arrays = [array for first in self.firsts.values() for array in first if array is not None]
        return sum(array.nbytes for array in (self.tokens, self.chosen, *arrays))


def keep(layer: Layer, inputs: Arrays, tokens: np.ndarray, routing: Routing) -> Kept | None:
    """Where to put what is kept of a forward pass; None where there is no backward pass to come, or it is too much."""
    values = kept_values()
    if values is None:
        return None
    rows = sum(projection.rows for projection in (layer.fc1, layer.fc3) if projection is not None)
    packed = sum(inputs[projection.port("experts_weights")].nbytes for projection in layer.projections)
    if 4 * rows * routing.indices.size > LITTLE * packed:
        return None
    kept = values[_place(inputs)] = Kept(tokens, routing.indices)
    return kept


def take(inputs: Arrays, tokens: np.ndarray, routing: Routing) -> dict[int, First]:
    """What was kept of the same layer with the same tokens and choices, by expert; nothing if there is none."""
    values = kept_values()
    kept = values.pop(_place(inputs), None) if values else None
    if kept is None or not (np.array_equal(kept.tokens, tokens) and np.array_equal(kept.chosen, routing.indices)):
        return {}
    firsts: dict[int, First] = kept.firsts
    return firsts


def _place(inputs: Arrays) -> int:
    """What tells layers of one node, a function or a loop, apart; those that share their weights have other tokens."""
    address: int = inputs["fc1_experts_weights"].__array_interface__["data"][0]
    return address
