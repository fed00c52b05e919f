"""Which experts a token goes to, and with what weights."""

from __future__ import annotations

from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True)
class RoutingGradient:
    """The gradients of `router_probs` and of `router_weights`, float32 [T, E]; None for what is not given."""

    router_probs: np.ndarray
    router_weights: np.ndarray | None


def route_gradient(
    router_probs: np.ndarray,
    routing: Routing,
    upstream: np.ndarray,
    *,
    normalize_routing_weights: bool = False,
    use_sparse_mixer: bool = False,
    router_weights: np.ndarray | None = None,
) -> RoutingGradient:
    """The gradients of `route`'s arguments from those of its weights, `upstream` [T, k]; the choice is a constant.

    Softmax over all experts, p: dp[e] = p[e] (u[e] - sum of p u). Weights divided by their sum S, from either source:
    (u[j] - sum of w u) / S, which together with the softmax is w[j] (u[j] - sum of w u); nothing where S is zero.
    A row whose weights are NaN gets NaN, wherever its gradient goes.
    """
    logits = router_probs.astype(np.float32)
    none = np.zeros_like(logits)
    if use_sparse_mixer:
        given = None if router_weights is None else none.copy()
        return RoutingGradient(_sparse_mixer_gradient(logits, routing, upstream), given)
    chosen = upstream
    with np.errstate(invalid="ignore", over="ignore"):
        if normalize_routing_weights:
            chosen = upstream - (routing.weights * upstream).sum(axis=-1, keepdims=True)
        if router_weights is not None:
            if normalize_routing_weights:
                source = np.take_along_axis(router_weights.astype(np.float32), routing.indices, axis=-1)
                total = source.sum(axis=-1, keepdims=True)
                chosen = np.where(total == 0, np.float32(0), chosen / np.where(total == 0, 1, total))
            unordered = np.isnan(logits).any(axis=-1, keepdims=True)
            placed = np.where(unordered, np.float32(np.nan), _place(chosen, routing.indices, logits))
            return RoutingGradient(none, placed)
        if normalize_routing_weights:
            result = _place(routing.weights * chosen, routing.indices, logits)
        else:
            shares = softmax(logits) if len(logits) else logits
            result = _place(chosen, routing.indices, logits)
            result = shares * (result - (routing.weights * upstream).sum(axis=-1, keepdims=True))
        unordered = np.isnan(routing.weights).any(axis=-1, keepdims=True)
        return RoutingGradient(np.where(unordered, np.float32(np.nan), result), None)


def _place(values: np.ndarray, indices: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Values [T, k] at the chosen experts of an array of zeros, float32 [T, E]."""
    result = np.zeros_like(logits)
    np.put_along_axis(result, indices, values.astype(np.float32), axis=-1)
    return result


def _sparse_mixer(logits: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The inverse of the sum of each round."""
    weights = np.empty(indices.shape, np.float32)
    for choice, near in enumerate(_rounds(logits, indices)):
        weights[:, choice] = 1 / near.sum(axis=-1)
    return weights


def _sparse_mixer_gradient(logits: np.ndarray, routing: Routing, upstream: np.ndarray) -> np.ndarray:
    """In each round w is the winner's share of a softmax: w (u at the winner - u q), where q are all the shares."""
    result = np.zeros_like(logits)
    for choice, near in enumerate(_rounds(logits, routing.indices)):
        share = routing.weights[:, choice, None]
        steep = share * upstream[:, choice, None]
        winner = np.arange(logits.shape[1]) == routing.indices[:, choice, None]
        result += np.where(winner, steep, np.float32(0)) - steep * (share * near)
    return result


def _rounds(logits: np.ndarray, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The sparse mixer's two rounds, [T, E] each: exp(l - largest) of the logits near the largest, 0 elsewhere.

    The second round leaves the first's winner out.
    """
    rows = np.arange(len(logits))
    excluded = np.zeros(logits.shape, bool)
    for choice in range(indices.shape[1]):
        largest = logits[rows, indices[:, choice], None]
        with np.errstate(invalid="ignore", over="ignore"):
            far = largest - logits > np.float32(2 * JITTER) * np.maximum(np.abs(logits), largest)
            yield np.where(excluded | far, np.float32(0), np.exp(logits - largest))
        excluded[rows, indices[:, choice]] = True
