"""One expert's weights, unpacked tile by tile, in the order of columns that is cheapest to unpack.

Codes of 2 and 4 bits lie 4 and 2 to a byte. Put side by side as they are stored, the codes in the lowest bits of all
bytes come first, then those in the next bits: no code has to move past its neighbour. A product with the weights does
not mind if the tokens' columns stand in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qmoe_node.kernel_weights import expert_values, expert_zero_points, scale_values
from qmoe_node.layer import Projection
from qmoe_node.packing import by_block, default_zero_point


class Tiles:
    """The weights of one expert in one projection."""

    def __init__(self, projection: Projection, inputs: Mapping[str, np.ndarray], expert: int) -> None:
        self._projection, self._inputs, self._expert = projection, inputs, expert
        self._in_byte = _in_byte(projection)
        if self._in_byte == 1:
            return
        self._codes = inputs[projection.port("experts_weights")][expert]
        zeros = expert_zero_points(projection, inputs, expert)
        self._zeros = None if zeros is None else zeros.astype(np.int8)[..., None]
        scales = inputs.get(projection.port("scales"))
        shape = (projection.rows, 1, projection.blocks, 1)
        self._scales = None if scales is None else scales[expert].reshape(shape).astype(np.float32)

    def arranged(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [t, columns] with their columns in the order of the tiles'."""
        if self._in_byte == 1:
            return tokens
        return np.ascontiguousarray(_split(tokens, self._in_byte)).reshape(tokens.shape)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Values [t, columns] in the tiles' order with their columns in the layer's."""
        if self._in_byte == 1:
            return values
        parts = values.reshape(len(values), self._in_byte, -1)
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(values.shape)

    def values(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` before scaling, float32 [stop - start, columns]."""
        projection, in_byte = self._projection, self._in_byte
        if in_byte == 1:
            return expert_values(projection, self._inputs, self._expert, start, stop)
        stored = self._codes[start:stop]
        found = np.empty((len(stored), in_byte, projection.blocks, projection.block_size // in_byte), np.float32)
        digits = np.empty(stored.shape, np.uint8)
        signed = digits.view(np.int8).reshape(len(stored), projection.blocks, -1)
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
        if self._in_byte == 1:
            return scale_values(self._projection, self._inputs, self._expert, values, start)
        if self._scales is not None:
            parts = values.reshape(len(values), self._in_byte, self._projection.blocks, -1)
            parts *= self._scales[start : start + len(values)]
        return values

    def weights(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 [stop - start, columns]."""
        return self.scaled(self.values(start, stop), start)

    def block_sums(self, products: np.ndarray) -> np.ndarray:
        """The sum over each block's columns, float32 [rows, blocks], of `products` [rows, columns]."""
        blocks = max(1, self._projection.blocks)
        if self._in_byte == 1:
            sums = np.empty((len(products), blocks), np.float32)
            for part, columns in by_block(products, self._projection.block_size):
                sums[:, columns] = part.sum(axis=-1)
            return sums
        folded = products.reshape(len(products), self._in_byte, -1).sum(axis=1)
        starts = np.arange(0, folded.size, folded.shape[1] // blocks)
        return np.asarray(np.add.reduceat(folded.reshape(-1), starts).reshape(len(products), blocks))


def _in_byte(projection: Projection) -> int:
    """How many columns' codes are taken from a byte apart; 1 if columns stay in their order."""
    if projection.layout != "rows" or projection.bits not in (2, 4) or not projection.block_size:
        return 1
    in_byte = 8 // projection.bits
    is_whole = projection.columns % projection.block_size == 0 and projection.block_size % in_byte == 0
    return in_byte if is_whole else 1


def _split(tokens: np.ndarray, in_byte: int) -> np.ndarray:
    return tokens.reshape(len(tokens), -1, in_byte).swapaxes(1, 2)
