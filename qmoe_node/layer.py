"""One QMoE layer as plain values: what its attributes say and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

GATED = ("swiglu", "geglu")
"""The activations that take a gate and a linear part."""
FLOAT_LAYOUTS = ("float4", "columns", "float8")
"""The layouts of weights that are floats themselves, which a global scale belongs to."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's attributes, with the operator's defaults in place of absent ones.

    `swiglu_limit` is infinite where there is no limit; a NaN limit does not clamp either. A `block_size` of 0 means
    that there are no blocks. `bits` holds the widths of fc1, fc2 and fc3.
    """

    k: int = 1
    activation_type: str = "relu"
    activation_alpha: float = 1.0
    activation_beta: float = 0.0
    swiglu_fusion: int = 0
    swiglu_limit: float = inf
    swiglu_limit_after_activation: bool = False
    normalize_routing_weights: bool = False
    use_sparse_mixer: bool = False
    block_size: int = 0
    quant_type: str = "int"
    weights_prepacked: int = -1
    bits: tuple[int, int, int] = (4, 4, 4)

    @property
    def fusion(self) -> int:
        """How many projections share fc1: 2 for gate and linear part in one tensor, otherwise 1."""
        return 2 if self.activation_type in GATED and self.swiglu_fusion else 1


@dataclass(frozen=True, slots=True)
class Projection:
    """One of the layer's linear maps, y = W x with W of `rows` x `columns` for every expert.

    `layout` says how the weight tensor's bytes are ordered:
    "rows" - row after row, the lowest bits first;
    "interleaved" - 16 / bits rows interleaved, columns permuted within 64 (prepacked 2 and 4 bit integers);
    "float4" - row after row, FP4 codes; "columns" - column after column, FP4 codes (the default of FP4);
    "float8" - one float8e4m3fn each.
    `block_size` is the number of columns that share a scale, `columns` itself where a whole row does; for float8 it
    counts rows too, and 0 means that there are no scales but the expert's global one. `blocks` is the number of
    blocks in a row.
    """

    name: str
    rows: int
    columns: int
    bits: int
    block_size: int
    blocks: int
    layout: str

    def port(self, what: str) -> str:
        """The name of the input that holds `what` ("experts_weights", "scales", "zero_points", ...)."""
        return f"{self.name}_{what}"


@dataclass(frozen=True, slots=True)
class Layer:
    """The geometry of a valid layer. `fc3` is None where there is no third projection."""

    experts: int
    hidden: int
    inter: int
    settings: Settings
    fc1: Projection
    fc2: Projection
    fc3: Projection | None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The projections there are, in order."""
        return (self.fc1, self.fc2) if self.fc3 is None else (self.fc1, self.fc2, self.fc3)
