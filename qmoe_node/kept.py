"""What a forward pass keeps for its backward pass: what the experts' first projections gave, as long as that is little.

To compute it once more is a fifth of both passes, for packed weights have to be unpacked once more as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qmoe_node.layer import Layer, Projection
from qmoe_node.routing import Routing
from runtime.backends.control import kept_values

LITTLE = 0.25
"""Bytes that may be kept of a layer, for each byte of its packed weights."""
READ = ("experts_weights", "scales", "zero_points", "global_scale", "experts_bias")
"""The inputs of a projection, but for what it is applied to."""

Arrays = Mapping[str, np.ndarray]
First = tuple[np.ndarray, np.ndarray | None]
"""What fc1 gave of one expert's tokens, float32 [t, rows], and what fc3 gave, where there is one."""


@dataclass(frozen=True, slots=True)
class Kept:
    """`firsts` by expert, of these tokens, float32 [T, hidden], for the experts that they chose [T, k].

    `projections` are those that gave them, and `read` their inputs: as long as these are here, no others have their
    addresses.
    """

    projections: tuple[Projection, ...]
    read: tuple[np.ndarray, ...]
    tokens: np.ndarray
    chosen: np.ndarray
    firsts: dict[int, First] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """How much memory it takes that nothing else needs."""
        arrays = [array for first in self.firsts.values() for array in first if array is not None]
        return sum(array.nbytes for array in (self.tokens, self.chosen, *arrays))


def keep(layer: Layer, inputs: Arrays, tokens: np.ndarray, routing: Routing) -> Kept | None:
    """Where to put what is kept of a forward pass.

    None where there is no backward pass to come, where it is too much, and where somebody may write into what the
    projections read before the backward pass does.
    """
    values = kept_values()
    if values is None:
        return None
    projections, read = _first(layer), _read(layer, inputs)
    packed = sum(inputs[projection.port("experts_weights")].nbytes for projection in layer.projections)
    if 4 * sum(projection.rows for projection in projections) * routing.indices.size > LITTLE * packed:
        return None
    if not values.is_one_run and any(array.flags.writeable for array in read):
        return None
    kept = values.by_key[_addresses(read)] = Kept(projections, read, tokens, routing.indices)
    return kept


def take(layer: Layer, inputs: Arrays, tokens: np.ndarray, routing: Routing) -> dict[int, First]:
    """What was kept of the same projections with the same tokens and choices, by expert; nothing if there is none."""
    values = kept_values()
    kept = None if values is None else values.by_key.pop(_addresses(_read(layer, inputs)), None)
    if (
        kept is None
        or kept.projections != _first(layer)
        or not np.array_equal(kept.tokens, tokens)
        or not np.array_equal(kept.chosen, routing.indices)
    ):
        return {}
    firsts: dict[int, First] = kept.firsts
    return firsts


def _first(layer: Layer) -> tuple[Projection, ...]:
    return tuple(projection for projection in (layer.fc1, layer.fc3) if projection is not None)


def _read(layer: Layer, inputs: Arrays) -> tuple[np.ndarray, ...]:
    """What the first projections read, but for tokens."""
    ports = [projection.port(what) for projection in _first(layer) for what in READ]
    return tuple(inputs[port] for port in ports if port in inputs)


def _addresses(arrays: tuple[np.ndarray, ...]) -> tuple[object, ...]:
    """What tells arrays apart from all others that are there at the same time, by their memory and how it is read."""
    return tuple(
        (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str) for array in arrays
    )
