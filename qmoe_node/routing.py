"""Which experts a token goes to, and with what weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JITTER = 0.01
"""The sparse mixer's epsilon at inference (SparseMixer; Phi-3.5-MoE)."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts chosen for every token, best first: `indices` int64 [T, k], `weights` float32 [T, k]."""

    indices: np.ndarray
    weights: np.ndarray


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(l - max l) / sum over the last axis; a row with NaN or +inf, or of nothing but -inf, becomes NaN."""
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def select(logits: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row of `logits` [T, E], largest first, int64 [T, k]; of equals the lower index."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k]


def normalize(weights: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; a row whose sum is zero becomes zero."""
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.where(total == 0, np.zeros_like(weights), weights / np.where(total == 0, 1, total)))


def route(
    router_probs: np.ndarray,
    k: int,
    *,
    normalize_routing_weights: bool = False,
    use_sparse_mixer: bool = False,
    router_weights: np.ndarray | None = None,
) -> Routing:
    """The k experts with the largest of the logits `router_probs` [T, E], and their mixing weights, in float32.

    A weight is the softmax over all E logits, or the entry of `router_weights` [T, E], at the chosen expert; with
    `normalize_routing_weights` the k weights are divided by their sum. A NaN logit makes its row's weights NaN.
    The sparse mixer (k = 2) has weights of its own, which are not normalised.
    """
    logits = router_probs.astype(np.float32)
    if logits.shape[0] == 0:
        return Routing(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    indices = select(logits, k)
    if use_sparse_mixer:
        weights = _sparse_mixer(logits, indices)
    else:
        source = softmax(logits) if router_weights is None else router_weights.astype(np.float32)
        weights = np.take_along_axis(source, indices, axis=-1)
        if normalize_routing_weights:
            weights = normalize(weights)
    unordered = np.isnan(logits).any(axis=-1, keepdims=True)
    return Routing(indices, np.where(unordered, np.float32(np.nan), weights).astype(np.float32))


def _sparse_mixer(logits: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Two rounds of a softmax over the logits near the largest; the second round leaves the first's winner out."""
    rows = np.arange(len(logits))
    excluded = np.zeros(logits.shape, bool)
    weights = np.empty(indices.shape, np.float32)
    for choice in range(indices.shape[1]):
        largest = logits[rows, indices[:, choice], None]
        with np.errstate(invalid="ignore", over="ignore"):
            far = largest - logits > np.float32(2 * JITTER) * np.maximum(np.abs(logits), largest)
            near = np.where(excluded | far, np.float32(0), np.exp(logits - largest))
        weights[:, choice] = 1 / near.sum(axis=-1)
        excluded[rows, indices[:, choice]] = True
    return weights
