"""One expert's weights, unpacked tile by tile, in the order of columns that is cheapest to unpack.

Codes of 2 and 4 bits lie 4 and 2 to a byte. Put side by side as they are stored, the codes in the lowest bits of all
bytes come first, then those in the next bits: no code has to move past its neighbour. A product with the weights does
not mind if the tokens' columns stand in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qmoe_node.kernel_weights import expert_values, expert_zero_points, scale_values, tile_height
from qmoe_node.layer import Projection
from qmoe_node.packing import by_block, default_zero_point

LONG = 64
"""Columns of a block from which on one scale is multiplied with all of them at once."""


class Tiles:
    """The weights of one expert in one projection, as long as they lie in whole blocks and bytes; others as they are.

    What `values`, `scaled` and `weights` return is overwritten by the next call of `values` or `weights`: memory that
    is taken anew for each tile costs more than what is computed in it.
    """

    def __init__(self, projection: Projection, inputs: Mapping[str, np.ndarray], expert: int) -> None:
        self._projection, self._inputs, self._expert = projection, inputs, expert
        self._in_byte = _in_byte(projection)
        if not self._in_byte:
            return
        self._codes = inputs[projection.port("experts_weights")][expert]
        self._width = projection.block_size // self._in_byte
        height = min(tile_height(projection), projection.rows)
        zeros = expert_zero_points(projection, inputs, expert)
        # Differences of codes of 8 bits need one bit more.
        self._digits = np.empty((height, projection.blocks, self._width), "int16" if projection.bits == 8 else "uint8")
        self._signed = self._digits if projection.bits == 8 else self._digits.view(np.int8)
        self._zeros = None if zeros is None else zeros.astype(self._signed.dtype)[..., None]
        scales = inputs.get(projection.port("scales"))
        shape = (projection.rows, projection.blocks)
        self._scales = None if scales is None else scales[expert].reshape(shape).astype(np.float32, copy=False)
        self._values = np.empty((height, self._in_byte, projection.blocks, self._width), np.float32)

    def arranged(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [t, columns] with their columns in the order of the tiles'."""
        if self._in_byte <= 1:
            return tokens
        return np.ascontiguousarray(_split(tokens, self._in_byte)).reshape(tokens.shape)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Values [t, columns] in the tiles' order with their columns in the layer's."""
        if self._in_byte <= 1:
            return values
        parts = values.reshape(len(values), self._in_byte, -1)
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(values.shape)

    def values(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` before scaling, float32 [stop - start, columns]."""
        projection, in_byte = self._projection, self._in_byte
        if not in_byte:
            return expert_values(projection, self._inputs, self._expert, start, stop)
        stored = self._codes[start:stop].reshape(stop - start, projection.blocks, self._width)
        found, digits, signed = (room[: len(stored)] for room in (self._values, self._digits, self._signed))
        zeros = default_zero_point(projection.bits) if self._zeros is None else self._zeros[start:stop]
        for place in range(in_byte):
            np.right_shift(stored, projection.bits * place, out=digits)
            if place < in_byte - 1:
                np.bitwise_and(digits, (1 << projection.bits) - 1, out=digits)
            np.subtract(signed, zeros, out=signed)
            found[:, place] = signed
        return found.reshape(len(stored), projection.columns)

    def scaled(self, values: np.ndarray, start: int) -> np.ndarray:
        """What `values` gave for the rows from `start` on, scaled in place."""
        if not self._in_byte:
            return scale_values(self._projection, self._inputs, self._expert, values, start)
        if self._scales is not None:
            scales = self._scales[start : start + len(values)]
            if self._width >= LONG:
                values.reshape(len(values), self._in_byte, -1, self._width)[...] *= scales[:, None, :, None]
            else:
                repeated = np.repeat(scales, self._width, axis=1)
                values.reshape(len(values), self._in_byte, -1)[...] *= repeated[:, None]
        return values

    def weights(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, columns]."""
        return self.scaled(self.values(start, stop), start)

    def block_sums(self, products: np.ndarray) -> np.ndarray:
        """The sum over each block's columns, float32 [rows, blocks], of `products` [rows, columns]."""
        blocks = max(1, self._projection.blocks)
        if not self._in_byte:
            sums = np.empty((len(products), blocks), np.float32)
            for part, columns in by_block(products, self._projection.block_size):
                sums[:, columns] = part.sum(axis=-1)
            return sums
        # A product with ones is several times as fast as a sum over so short an axis.
        sums = products.reshape(-1, self._width) @ np.ones(self._width, np.float32)
        return np.asarray(sums.reshape(len(products), self._in_byte, blocks).sum(axis=1))


def _in_byte(projection: Projection) -> int:
    """How many columns' codes are taken from a byte; 0 where blocks are not whole, or other layouts hold them."""
    if projection.layout != "rows" or projection.bits not in (2, 4, 8) or not projection.block_size:
        return 0
    in_byte = 8 // projection.bits
    is_whole = projection.columns % projection.block_size == 0 and projection.block_size % in_byte == 0
    return in_byte if is_whole else 0


def _split(tokens: np.ndarray, in_byte: int) -> np.ndarray:
    return tokens.reshape(len(tokens), -1, in_byte).swapaxes(1, 2)
