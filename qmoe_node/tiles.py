"""One expert's weights, unpacked tile by tile, in the order of columns that is cheapest to unpack.

Codes of 2 and 4 bits lie 4 and 2 to a byte. Put side by side as they are stored, the codes in the lowest bits of all
bytes come first, then those in the next bits: no code has to move past its neighbour. A product with the weights does
not mind if the tokens' columns stand in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from qmoe_node.kernel_weights import expert_values, expert_zero_points, scale_values, tile_height, tiles
from qmoe_node.layer import Projection
from qmoe_node.packing import by_block, default_zero_point

LONG = 64
"""Columns of a block from which on one scale is multiplied with all of them at once."""


class Tiles(ABC):
    """The weights of one expert in one projection, a tile of rows at a time.

    What `weights` returns may be overwritten by the next call: memory that is taken anew for each tile costs more than
    what is computed in it. `at_once` as in `kernel_weights.tiles`.
    """

    def __init__(self, projection: Projection, inputs: Mapping[str, np.ndarray], expert: int, at_once: int = 1) -> None:
        self._projection, self._inputs, self._expert = projection, inputs, expert
        self._in_byte = codes_in_byte(projection)
        self.height = min(tile_height(projection, at_once), projection.rows)
        """The rows of a tile, at most."""

    @abstractmethod
    def weights(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, columns]."""

    @abstractmethod
    def scale_sums(self, start: int, gradient: np.ndarray) -> np.ndarray:
        """The gradients of the scales of the rows from `start` on, float32 [rows, blocks], from their weights'.

        `gradient` [rows, columns] may be overwritten. Weights of the same rows are best asked for right after it.
        """

    def arranged(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [t, columns] with their columns in the order of the tiles', in memory without gaps."""
        if self._in_byte <= 1:
            return np.ascontiguousarray(tokens)
        parts = tokens.reshape(len(tokens), -1, self._in_byte)
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(tokens.shape)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Values [t, columns] in the tiles' order with their columns in the layer's."""
        if self._in_byte <= 1:
            return values
        parts = values.reshape(len(values), self._in_byte, -1)
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(values.shape)

    def project(self, tokens: np.ndarray) -> np.ndarray:
        """W x, float32 [t, rows], of tokens float32 [t, columns] in the layer's order of columns."""
        # Weights on the left: with few tokens up to twice as fast as tokens on the left.
        transposed = np.ascontiguousarray(self.arranged(tokens).T)
        products = np.empty((self._projection.rows, len(tokens)), np.float32)
        for start, stop in tiles(self._projection):
            np.matmul(self.weights(start, stop), transposed, out=products[start:stop])
        return products.T


class StoredTiles(Tiles):
    """Weights in any layout, in the layer's order of columns."""

    _last: tuple[int, np.ndarray] | None = None

    def weights(self, start: int, stop: int) -> np.ndarray:
        values, self._last = self._values(start, stop), None
        return scale_values(self._projection, self._inputs, self._expert, values, start)

    def scale_sums(self, start: int, gradient: np.ndarray) -> np.ndarray:
        gradient *= self._values(start, start + len(gradient))
        sums = np.empty((len(gradient), max(1, self._projection.blocks)), np.float32)
        for part, columns in by_block(gradient, self._projection.block_size):
            sums[:, columns] = part.sum(axis=-1)
        return sums

    def _values(self, start: int, stop: int) -> np.ndarray:
        """Rows before scaling, float32 [stop - start, columns]; the same rows once more cost nothing until scaled."""
        if self._last is None or self._last[0] != start or len(self._last[1]) != stop - start:
            self._last = start, expert_values(self._projection, self._inputs, self._expert, start, stop)
        return self._last[1]


class PackedTiles(Tiles):
    """Integers in whole blocks and bytes, in the order of this module."""

    _last: tuple[int, np.ndarray] | None = None

    def __init__(self, projection: Projection, inputs: Mapping[str, np.ndarray], expert: int, at_once: int = 1) -> None:
        super().__init__(projection, inputs, expert, at_once)
        self._codes = inputs[projection.port("experts_weights")][expert]
        self._width = projection.block_size // self._in_byte
        height = self.height
        zeros = expert_zero_points(projection, inputs, expert)
        # Differences of codes of 8 bits need one bit more.
        self._digits = np.empty((height, projection.blocks, self._width), "int16" if projection.bits == 8 else "uint8")
        self._signed = self._digits if projection.bits == 8 else self._digits.view(np.int8)
        self._zeros = None if zeros is None else zeros.astype(self._signed.dtype)[..., None]
        self._scales = expert_scales(projection, inputs, expert)
        self._room = np.empty((height, self._in_byte, projection.blocks, self._width), np.float32)

    def weights(self, start: int, stop: int) -> np.ndarray:
        values, self._last = self._values(start, stop), None
        if self._scales is not None:
            scales = self._scales[start : start + len(values)]
            if self._width >= LONG:
                values.reshape(len(values), self._in_byte, -1, self._width)[...] *= scales[:, None, :, None]
            else:
                repeated = np.repeat(scales, self._width, axis=1)
                values.reshape(len(values), self._in_byte, -1)[...] *= repeated[:, None]
        return values

    def scale_sums(self, start: int, gradient: np.ndarray) -> np.ndarray:
        gradient *= self._values(start, start + len(gradient))
        # A product with ones is several times as fast as a sum over so short an axis.
        sums = gradient.reshape(-1, self._width) @ np.ones(self._width, np.float32)
        return np.asarray(sums.reshape(len(gradient), self._in_byte, -1).sum(axis=1))

    def _values(self, start: int, stop: int) -> np.ndarray:
        """Rows before scaling, float32 [stop - start, columns]; the same rows once more cost nothing until scaled."""
        if self._last is None or self._last[0] != start or len(self._last[1]) != stop - start:
            self._last = start, self._unpacked(start, stop)
        return self._last[1]

    def _unpacked(self, start: int, stop: int) -> np.ndarray:
        projection = self._projection
        stored = self._codes[start:stop].reshape(stop - start, projection.blocks, self._width)
        found, digits, signed = (room[: len(stored)] for room in (self._room, self._digits, self._signed))
        zeros = default_zero_point(projection.bits) if self._zeros is None else self._zeros[start:stop]
        for place in range(self._in_byte):
            np.right_shift(stored, projection.bits * place, out=digits)
            if place < self._in_byte - 1:
                np.bitwise_and(digits, (1 << projection.bits) - 1, out=digits)
            np.subtract(signed, zeros, out=signed)
            found[:, place] = signed
        return found.reshape(len(stored), projection.columns)


def codes_in_byte(projection: Projection) -> int:
    """How many columns' codes are taken from a byte; 0 where blocks are not whole, or other layouts hold them."""
    if projection.layout != "rows" or projection.bits not in (2, 4, 8) or not projection.block_size:
        return 0
    in_byte = 8 // projection.bits
    is_whole = projection.columns % projection.block_size == 0 and projection.block_size % in_byte == 0
    return in_byte if is_whole else 0


def expert_scales(projection: Projection, inputs: Mapping[str, np.ndarray], expert: int) -> np.ndarray | None:
    """One expert's scales, float32 [rows, blocks]; None if there are none."""
    scales = inputs.get(projection.port("scales"))
    shape = (projection.rows, projection.blocks)
    return None if scales is None else scales[expert].reshape(shape).astype(np.float32, copy=False)
