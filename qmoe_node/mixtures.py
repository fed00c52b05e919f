"""The experts of a mixture in floats, one at a time, wherever they are; and tokens to try them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from qmoe_node.activations import activate
from qmoe_node.layer import GATED, Settings


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert's weights as MoE has them, float32.

    `fc1` is [fusion inter, hidden], `fc2` [hidden, inter], `fc3`, where gate and linear part are apart, [inter,
    hidden]; biases have a number for each row.
    """

    fc1: np.ndarray
    fc2: np.ndarray
    fc1_bias: np.ndarray | None = None
    fc2_bias: np.ndarray | None = None
    fc3: np.ndarray | None = None
    fc3_bias: np.ndarray | None = None

    def matrices(self) -> dict[str, np.ndarray]:
        """The weights by projection."""
        found = {"fc1": self.fc1, "fc2": self.fc2}
        return found if self.fc3 is None else found | {"fc3": self.fc3}

    def biases(self) -> dict[str, np.ndarray]:
        """The biases there are, by projection."""
        found = {"fc1": self.fc1_bias, "fc2": self.fc2_bias, "fc3": self.fc3_bias}
        return {name: bias for name, bias in found.items() if bias is not None}

    def inner(self, settings: Settings, tokens: np.ndarray) -> np.ndarray:
        """What fc2 is given, float32 [t, inter], for `tokens` float32 [t, hidden]."""
        first = _linear(self.fc1, self.fc1_bias, tokens)
        third = None if self.fc3 is None else _linear(self.fc3, self.fc3_bias, tokens)
        return activate(settings, first, third)

    def output(self, inner: np.ndarray) -> np.ndarray:
        """The expert's output, float32 [t, hidden], from what fc2 is given."""
        return _linear(self.fc2, self.fc2_bias, inner)


def _linear(weights: np.ndarray, bias: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    result = values @ weights.T
    return result if bias is None else result + bias


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Mixture:
    """All experts of a mixture. `expert` reads one; `forget` lets go of what was read, `source` says from where.

    `source` tells these weights from others: work on them that was broken off goes on only if it is the same.
    """

    name: str
    experts: int
    hidden: int
    inter: int
    settings: Settings
    expert: Callable[[int], Expert] = field(repr=False, compare=False)
    source: str = ""
    forget: Callable[[], None] = field(default=_nothing, repr=False, compare=False)

    def parameters(self) -> dict[str, Any]:
        """The parameters of a MoE or QMoE node that say the same."""
        settings = self.settings
        found: dict[str, Any] = {
            "k": settings.k,
            "activation_type": settings.activation_type,
            "normalize_routing_weights": int(settings.normalize_routing_weights),
        }
        if settings.use_sparse_mixer:
            found["use_sparse_mixer"] = 1
        if settings.activation_type in GATED:
            found["swiglu_fusion"] = settings.swiglu_fusion
        if settings.activation_type == "swiglu":
            found |= {"activation_alpha": settings.activation_alpha, "activation_beta": settings.activation_beta}
            if settings.swiglu_limit_after_activation:
                found["swiglu_limit_after_activation"] = 1
            if isfinite(settings.swiglu_limit):
                found["swiglu_limit"] = settings.swiglu_limit
        return found


@dataclass(frozen=True, slots=True)
class Samples:
    """Tokens float32 [tokens, hidden] that a mixture is given, their experts int64 [tokens, k], and mixing weights."""

    tokens: np.ndarray
    experts: np.ndarray
    weights: np.ndarray

    def of(self, expert: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of an expert's tokens, int64 [t], and their weights, float32 [t]."""
        rows, choices = np.nonzero(self.experts == expert)
        return rows, self.weights[rows, choices]
