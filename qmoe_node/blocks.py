"""A mixture-of-experts block of a model: how it routes, where its weights are, what stands beside the experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import numpy as np

from qmoe_node.layer import Settings
from qmoe_node.mixtures import Expert, Mixture


@dataclass(frozen=True, slots=True)
class Routing:
    """From router logits to the experts of a token and their weights.

    "top_k": the k largest logits, weights by softmax over these. "softmax": the same experts, weights by softmax over
    all logits. "sparse_mixer": two experts; each one's weight by softmax over the logits that are near its own
    (within 2 `jitter` of it), the first being left out for the second. "sigmoid": experts by the largest sigmoids plus
    `bias`, in the best `top_groups` of `groups` groups, a group counting its two best; weights are the sigmoids.
    With `normalize`, weights are divided by their sum plus `epsilon`; then they are multiplied by `scale`.
    """

    kind: Literal["top_k", "softmax", "sparse_mixer", "sigmoid"]
    k: int
    normalize: bool = False
    jitter: float = 0.0
    bias: str = ""
    groups: int = 1
    top_groups: int = 1
    epsilon: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Shared:
    """An expert that every token goes through.

    `tensors` are the names of gate and linear part, [inter, hidden], and of the output, [hidden, inter]. `weight`
    [1, hidden], if there is one, weighs its output by sigmoid(x . w).
    """

    tensors: tuple[str, str, str]
    inter: int
    weight: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """One mixture of a model. `router` and `router_bias` are tensors [experts, hidden] and [experts] by name."""

    name: str
    layer: int
    hidden: int
    inter: int
    experts: int
    router: str
    routing: Routing
    expert: Callable[[int], Expert] = field(repr=False, compare=False)
    router_bias: str = ""
    shared: Shared | None = None
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = inf

    @property
    def mixture(self) -> Mixture:
        """Its experts."""
        settings = Settings(
            k=self.routing.k,
            activation_type="swiglu",
            activation_alpha=self.alpha,
            activation_beta=self.beta,
            swiglu_fusion=1,
            swiglu_limit=self.limit,
            normalize_routing_weights=True,
        )
        return Mixture(self.name, self.experts, self.hidden, self.inter, settings, self.expert)


def interleaved(gate: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Rows of gate and linear part in turn, [2 inter, hidden] of two [inter, hidden]; vectors alike."""
    return np.stack([gate, linear], axis=1).reshape(2 * len(gate), *gate.shape[1:])
