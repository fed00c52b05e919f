"""Tiles whose loops are compiled, where numba is installed and a layer is large enough to be worth it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from qmoe_node.attributes import PROJECTIONS
from qmoe_node.checks import examine
from qmoe_node.kernel_weights import expert_zero_points
from qmoe_node.layer import Projection
from qmoe_node.packing import default_zero_point
from qmoe_node.tiles import PackedTiles, StoredTiles, Tiles, codes_in_byte, expert_scales
from runtime.types import ValueType

WORTH_COMPILED = 1 << 21
"""Weights of all experts in a projection from which on loading compiled loops pays: it takes a quarter of a second."""
WORTH_A_CALL = 1 << 21
"""Weights of one expert from which on what is saved is more than what a call from Python costs."""
WORTH_LOADING = 1 << 24
"""Weights of a layer from which on loading compiled loops pays for a session."""
MANY, MANY_OF_BYTES = 24, 256
"""Tokens of an expert, on average, up to which compiled loops beat ONNX Runtime's: of fewer bits, and of 8 bits."""
MANY_FOR_PARTS = 7
"""The same where a block has fewer bytes than the processor's vectors have numbers."""
COLUMNS_FOR_ZERO_POINTS = 3
"""Columns of a block, for each such token, that make up for loading its zero point."""
FEW, FEW_OF_LARGE = 0.5, 0.3
"""Tokens of an expert, on average, from which on they do, of fewer bits: of small and of large experts."""
LARGE = 1 << 22
"""Bytes of one expert's first weights from which on it is a large one."""
FEW_FOR_A_LANE = 3
"""Tokens, for each number in a vector, up to which unpacking and multiplying at once is faster than one by one."""
LINE = 64
"""Bytes in a line of the cache."""
FEWEST_ROWS = 8
"""Rows that the compiled loops take at least."""


@cache
def is_installed() -> bool:
    """Whether there is numba: to look costs nothing, and to load it a quarter of a second."""
    return find_spec("numba") is not None


@cache
def compiled_loops() -> ModuleType | None:
    """`qmoe_node.compiled`; None where numba is not installed or, which a RuntimeWarning tells, does not load."""
    if not is_installed():
        return None
    try:
        from qmoe_node import compiled
    except (ImportError, OSError) as error:
        text = f"numba is installed, but does not load: {error}. QMoE runs without it, and is slower."
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None
    return compiled


def can_compile(projection: Projection) -> bool:
    """Whether there are compiled loops for these weights."""
    in_byte = codes_in_byte(projection)
    if not in_byte or projection.rows < FEWEST_ROWS or projection.block_size // in_byte % 4:
        return False
    return is_installed()


def why_compiled(inputs: Mapping[str, ValueType], attributes: Mapping[str, Any]) -> str:
    """Why a QMoE node with inputs of these types is better computed here than by ONNX Runtime; empty if it is not."""
    layer, _ = examine("QMoE", inputs, attributes)
    if layer is None:
        return ""
    weights = sum(projection.rows * projection.columns for projection in layer.projections)
    if weights < WORTH_A_CALL or weights * layer.experts < WORTH_LOADING:
        return ""
    if not all(can_compile(projection) for projection in layer.projections):
        return ""
    return "compiled loops are faster there for all but very few or many tokens"


def is_best_at(shapes: Mapping[str, Sequence[int]], attributes: Mapping[str, Any]) -> bool:
    """Whether that is so for inputs of these shapes, by port.

    ONNX Runtime's kernel is slow where experts have a few tokens each. One alone it multiplies with packed weights as
    fast as memory gives them, but not those of 8 bits; and for many its products are the faster ones. Where experts
    have less than one token on average, some already have two: how soon that costs more than the calls here depends on
    the experts' size.
    """
    experts = shapes["router_probs"][-1]
    choices = math.prod(shapes["input"][:-1]) * int(attributes.get("k") or 1)
    own = [f"{fc}_expert_weight_bits" for fc in PROJECTIONS if f"{fc}_experts_weights" in shapes]
    widths = [attributes.get(name, attributes.get("expert_weight_bits", 4)) for name in own]
    if 8 in widths:
        return 0 < choices <= MANY_OF_BYTES * experts and compiled_loops() is not None
    is_large = math.prod(shapes["fc1_experts_weights"][1:]) >= LARGE
    if not (FEW_OF_LARGE if is_large else FEW) * experts <= choices <= MANY * experts:
        return False
    found = compiled_loops()
    if found is None:
        return False
    block_size, most = int(attributes.get("block_size") or 0), float(MANY)
    if block_size:
        if block_size * min(widths) // 8 < found.MOST_LANES:
            most = MANY_FOR_PARTS
        if any(f"{fc}_zero_points" in shapes for fc in PROJECTIONS):
            most = min(most, block_size / COLUMNS_FOR_ZERO_POINTS)
    return choices <= most * experts


def tiles_of(projection: Projection, inputs: Mapping[str, np.ndarray], expert: int, at_once: int = 1) -> Tiles:
    """One expert's weights; `at_once` as in `kernel_weights.tiles`."""
    if not codes_in_byte(projection):
        return StoredTiles(projection, inputs, expert, at_once)
    weights = len(inputs[projection.port("experts_weights")]) * projection.rows * projection.columns
    is_compiled = weights >= WORTH_COMPILED and can_compile(projection) and compiled_loops() is not None
    return (CompiledTiles if is_compiled else PackedTiles)(projection, inputs, expert, at_once)


class CompiledTiles(Tiles):
    """Weights in whole blocks and bytes, with compiled loops."""

    def __init__(self, projection: Projection, inputs: Mapping[str, np.ndarray], expert: int, at_once: int = 1) -> None:
        super().__init__(projection, inputs, expert, at_once)
        found = compiled_loops()
        assert found is not None
        rows = projection.rows
        self._codes = np.ascontiguousarray(inputs[projection.port("experts_weights")][expert]).reshape(rows, -1)
        zeros = expert_zero_points(projection, inputs, expert)
        self._zeros = np.zeros((rows, 0), np.uint8) if zeros is None else np.ascontiguousarray(zeros)
        self._default_zero = np.float32(default_zero_point(projection.bits))
        scales = expert_scales(projection, inputs, expert)
        if scales is None:
            scales = np.ones((rows, projection.blocks), np.float32)
        self._scales = np.ascontiguousarray(scales)
        lanes = found.lanes_for(projection.block_size // self._in_byte)
        self._loops = found.loops(projection.bits, lanes, int(zeros is not None))
        self.few = FEW_FOR_A_LANE * lanes
        """Tokens up to which `project_rows` is the fastest way."""

    def arranged(self, tokens: np.ndarray) -> np.ndarray:
        found = _aligned(tokens.shape)
        parts = tokens.reshape(len(tokens), -1, self._in_byte)
        found.reshape(len(tokens), self._in_byte, -1)[...] = parts.swapaxes(1, 2)
        return found

    def project(self, tokens: np.ndarray) -> np.ndarray:
        if len(tokens) > self.few:
            return super().project(tokens)
        result = np.empty((len(tokens), self._projection.rows), np.float32)
        self.project_rows(self.arranged(tokens), 0, self._projection.rows, result)
        return result

    def project_rows(self, tokens: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
        """Columns `start` to `stop` (`FEWEST_ROWS` at least) of W x into out [t, rows], of tokens that are arranged."""
        if tokens.shape[1] != self._projection.columns or out.shape != (len(tokens), self._projection.rows):
            raise ValueError(f"tokens {tokens.shape} and results {out.shape} do not fit {self._projection}")
        self._loops.project(self._codes, self._scales, self._zeros, self._default_zero, tokens, start, stop, out)

    def weights(self, start: int, stop: int) -> np.ndarray:
        rows, found = slice(start, stop), self._room[: stop - start]
        self._loops.unpack(self._codes[rows], self._scales[rows], self._zeros[rows], self._default_zero, found)
        return found

    def scale_sums(self, start: int, gradient: np.ndarray) -> np.ndarray:
        rows = slice(start, start + len(gradient))
        sums = np.empty((len(gradient), self._projection.blocks), np.float32)
        self._loops.scale_sums(self._codes[rows], self._zeros[rows], self._default_zero, gradient, sums)
        return sums

    @cached_property
    def _room(self) -> np.ndarray:
        """What tiles are unpacked into."""
        return np.empty((self.height, self._projection.columns), np.float32)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Room for float32 that starts with a line of the cache: vectors that lie in two of them are read twice."""
    size = 4 * math.prod(shape)
    room = np.empty(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size].view(np.float32).reshape(shape)
