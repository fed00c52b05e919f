"""Numbers that tell how good a model is, and how its experts are used."""

from __future__ import annotations

import numpy as np


def accuracy(predictions: np.ndarray, classes: np.ndarray) -> float:
    """How often the largest of `predictions` [samples, classes] is the right class [samples]."""
    return float((predictions.argmax(-1) == classes).mean())


def top_k_accuracy(predictions: np.ndarray, classes: np.ndarray, k: int = 5) -> float:
    """How often the right class [samples] is among the k largest of `predictions` [samples, classes]."""
    right = np.take_along_axis(predictions, classes[..., None], axis=-1)
    return float(((predictions > right).sum(-1) < k).mean())


def mean_squared_error(predictions: np.ndarray, targets: np.ndarray) -> float:
    """The mean of (predictions - targets)^2."""
    return float(np.mean(np.square(predictions.astype(np.float64) - targets)))


def perplexity(cross_entropy: float) -> float:
    """exp of the mean cross-entropy, in nats: as if one chose among so many words."""
    return float(np.exp(cross_entropy))


def expert_load(experts: np.ndarray, count: int) -> np.ndarray:
    """The share of the choices `experts` [tokens, k] that each of `count` experts gets, float64 [count]."""
    return np.bincount(experts.reshape(-1), minlength=count) / max(1, experts.size)


def load_entropy(load: np.ndarray) -> float:
    """The entropy of a load relative to the largest one, that of an even load: 1 if even, 0 if one expert has all."""
    if len(load) < 2:
        return 1.0
    used = load[load > 0]
    return float(-(used * np.log(used)).sum() / np.log(len(load)))
