"""How far the experts of two mixtures are apart: their weights by blocks, and what they make of the same tokens.

A node type has these numbers computed if it has a function `expert_differences(first, second, own)`. Each of its
arguments is a pair of a mixture's inputs by port, as arrays, and its operator's attributes; `first` and `second` are
the two mixtures with the same values at their inputs, `own` is the second one with what its own graph gives it. It
returns an `ExpertComparison`. GraphError if the two have not the same experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from runtime.routing import Routing

Given: TypeAlias = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]
"""A mixture's inputs by port, and its operator's attributes."""


@dataclass(frozen=True, slots=True)
class ExpertDifference:
    """How far one expert of the second mixture is from that of the first.

    W and W' are the weights of a projection ("fc1", "fc2", "fc3") in floats, E and E' the experts, x and x' what the
    two mixtures are given, w the first one's mixing weights; sums are over the tokens that the first one sends here.

    - `weight_errors`: ||W' - W|| / ||W|| by projection.
    - `output_error`: sqrt(sum w² ||E'(x') - E(x)||² / sum w² ||E(x)||²); None if there is no token.
    - `noise`: the sum of w² ||E'(x') - E(x)||², which makes experts that are used much count much.
    - `block_weight_errors`: by projection, float64 [blocks]: ||W'b - Wb|| / ||Wb|| of a block Wb of columns.
    - `block_output_errors`: by projection, float64 [blocks]: sqrt(sum w² ||(W'b - Wb) zb||² / sum w² ||W z + c||²),
      where z is what the first mixture gives the projection, c its bias, and zb the part of z that meets the block.
    """

    expert: int
    weight_errors: Mapping[str, float]
    output_error: float | None
    noise: float
    block_weight_errors: Mapping[str, np.ndarray] = field(repr=False)
    block_output_errors: Mapping[str, np.ndarray] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExpertComparison:
    """The routing of the first mixture, that of the second in its own graph, columns of a block by projection, and
    the experts' differences, each computed when it is asked for."""

    first: Routing
    second: Routing
    block_sizes: Mapping[str, int]
    experts: Iterator[ExpertDifference]


@dataclass(frozen=True, slots=True)
class MixtureDifference:
    """How far a mixture of the second graph is from that of the first: nodes `first` and `second`.

    `tokens` [experts] and `tokens_second` are how many tokens each expert gets in its own graph, `weights` the sums of
    the first one's mixing weights. Of `token_count` tokens, `changed_tokens` go to another set of experts in the second
    graph; `changed_choices` of `choices` choices of the first are not among those of the second.
    """

    first: str
    second: str
    experts: tuple[ExpertDifference, ...]
    block_sizes: Mapping[str, int]
    tokens: np.ndarray
    tokens_second: np.ndarray
    weights: np.ndarray
    token_count: int
    changed_tokens: int
    choices: int
    changed_choices: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Each expert's part of the sum of all experts' noise; 0 where there is none."""
        total = sum(expert.noise for expert in self.experts)
        return tuple(expert.noise / total if total else 0.0 for expert in self.experts)

    def block_weight_errors(self, projection: str) -> np.ndarray:
        """Relative errors of weights, float64 [experts, blocks of columns]."""
        return np.stack([expert.block_weight_errors[projection] for expert in self.experts])

    def block_output_errors(self, projection: str) -> np.ndarray:
        """Relative errors of a projection's outputs that each block makes, float64 [experts, blocks of columns]."""
        return np.stack([expert.block_output_errors[projection] for expert in self.experts])


def mixture_difference(
    first: str, second: str, found: ExpertComparison, experts: tuple[ExpertDifference, ...]
) -> MixtureDifference:
    """What a comparison of experts comes to, with the tokens that changed their experts."""
    mine, its = found.first, found.second
    chosen = np.zeros((len(mine.experts), max(mine.count, its.count)), bool)
    other = chosen.copy()
    np.put_along_axis(chosen, mine.experts, True, axis=1)
    np.put_along_axis(other, its.experts, True, axis=1)
    return MixtureDifference(
        first,
        second,
        experts,
        dict(found.block_sizes),
        mine.tokens_per_expert(),
        its.tokens_per_expert(),
        np.bincount(mine.experts.ravel(), mine.weights.ravel().astype(np.float64), minlength=mine.count),
        len(mine.experts),
        int(np.count_nonzero((chosen != other).any(axis=1))),
        mine.experts.size,
        int(np.count_nonzero(chosen & ~other)),
    )
