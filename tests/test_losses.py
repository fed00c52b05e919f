"""Losses: their numbers beside formulas in NumPy, and their gradients beside central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime import Session
from runtime.nodes.losses import LOSSES
from tests.gradient_checks import compare, graph_of

EPS = 1e-7


def length(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x * x).sum(-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def binary(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.asarray(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1))


EXPECTED: dict[str, Any] = {
    "MeanSquaredError": lambda y, p: ((y - p) ** 2).mean(-1),
    "MeanAbsoluteError": lambda y, p: np.abs(y - p).mean(-1),
    "MeanAbsolutePercentageError": lambda y, p: 100 * (np.abs(y - p) / np.abs(y)).mean(-1),
    "MeanSquaredLogarithmicError": lambda y, p: ((np.log1p(y) - np.log1p(p)) ** 2).mean(-1),
    "BinaryCrossentropy": binary,
    "CategoricalCrossentropy": lambda y, p: -(y * np.log(p / p.sum(-1, keepdims=True))).sum(-1),
    "Hinge": lambda y, p: np.maximum(1 - y * p, 0).mean(-1),
    "SquaredHinge": lambda y, p: (np.maximum(1 - y * p, 0) ** 2).mean(-1),
    "CategoricalHinge": lambda y, p: np.maximum(((1 - y) * p).max(-1) - (y * p).sum(-1) + 1, 0),
    "Huber": lambda y, p: np.where(np.abs(y - p) <= 1, (y - p) ** 2 / 2, np.abs(y - p) - 0.5).mean(-1),
    "KLDivergence": lambda y, p: (y * np.log(y / p)).sum(-1),
    "LogCosh": lambda y, p: np.log(np.cosh(y - p)).mean(-1),
    "Poisson": lambda y, p: (p - y * np.log(p + EPS)).mean(-1),
    "CosineSimilarity": lambda y, p: -(y / length(y) * p / length(p)).sum(-1),
}


def value(name: str, inputs: dict[str, np.ndarray], **attributes: Any) -> np.ndarray:
    """The loss on both backends, which agree."""
    graph = graph_of(f"qmoe.loss.{name}", inputs, attributes)
    first, second = (Session(graph, backend).forward(inputs)["y0"] for backend in ("numpy", "onnxruntime"))
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-14)
    return np.asarray(first)


@pytest.fixture
def pair() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {"y_pred": rng.uniform(0.05, 0.95, (3, 4)), "y_true": rng.uniform(0.1, 0.9, (3, 4))}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_number_is_that_of_the_formula(name: str, pair: dict[str, np.ndarray]) -> None:
    samples = EXPECTED[name](pair["y_true"], pair["y_pred"])
    np.testing.assert_allclose(value(name, pair), samples.mean(), rtol=1e-9)
    np.testing.assert_allclose(value(name, pair, reduction="sum", weight=2.5), 2.5 * samples.sum(), rtol=1e-9)
    np.testing.assert_allclose(value(name, pair, reduction="none"), samples, rtol=1e-9)
    weights = np.array([1.0, 0.5, 2.0])
    np.testing.assert_allclose(value(name, {**pair, "sample_weight": weights}), (samples * weights).mean(), rtol=1e-9)


def test_targets_of_zero_and_one_stand_for_minus_one_and_one(pair: dict[str, np.ndarray]) -> None:
    pair["y_true"] = np.array([[0.0, 1, 1, 0]] * 3)
    expected = np.maximum(1 - (2 * pair["y_true"] - 1) * pair["y_pred"], 0).mean()
    np.testing.assert_allclose(value("Hinge", pair), expected, rtol=1e-12)


def test_huber_becomes_a_line() -> None:
    inputs = {"y_pred": np.array([[3.0, 0.1]]), "y_true": np.array([[0.0, 0.0]])}
    np.testing.assert_allclose(value("Huber", inputs, delta=0.5), (0.5 * 3 - 0.125 + 0.005) / 2)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_crossentropy_options(logits: bool, smoothing: float, pair: dict[str, np.ndarray]) -> None:
    raw = np.random.default_rng(1).standard_normal((3, 4)) * 3 if logits else pair["y_pred"]
    hot = np.eye(4)[[2, 0, 3]]
    targets = hot * (1 - smoothing) + smoothing / 4
    p = softmax(raw) if logits else raw / raw.sum(-1, keepdims=True)
    expected = -(targets * np.log(p)).sum(-1).mean()
    options = {"from_logits": logits, "label_smoothing": smoothing}
    got = value("CategoricalCrossentropy", {"y_pred": raw, "y_true": hot}, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    if not smoothing:
        sparse = {"y_pred": raw, "y_true": np.array([2, 0, 3])}
        got = value("SparseCategoricalCrossentropy", sparse, from_logits=logits)
        np.testing.assert_allclose(got, expected, rtol=1e-9)
    sigmoid = 1 / (1 + np.exp(-raw)) if logits else raw
    expected = binary(hot * (1 - smoothing) + smoothing / 2, sigmoid).mean()
    got = value("BinaryCrossentropy", {"y_pred": raw, "y_true": hot}, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_crossentropy_of_large_logits_is_finite() -> None:
    inputs = {"y_pred": np.array([[1e4, -1e4]]), "y_true": np.array([[0.0, 1.0]])}
    np.testing.assert_allclose(value("BinaryCrossentropy", inputs, from_logits=True), 1e4)
    np.testing.assert_allclose(value("CategoricalCrossentropy", inputs, from_logits=True), 2e4)


def test_losses_of_routers() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 6))
    p = softmax(logits)
    chosen = np.argsort(-logits, axis=-1)[:, :2]
    share = np.bincount(chosen.ravel(), minlength=6) / 50
    np.testing.assert_allclose(value("LoadBalancing", {"router_logits": logits}, k=2), 6 * (share * p.mean(0)).sum())
    np.testing.assert_allclose(value("LoadBalancing", {"router_logits": np.tile(np.eye(6) * 9, (5, 1))}), 1.0)
    np.testing.assert_allclose(
        value("RouterZ", {"router_logits": logits}), (np.log(np.exp(logits).sum(-1)) ** 2).mean()
    )


@pytest.mark.parametrize("cls", LOSSES)
def test_gradients(cls: Any, pair: dict[str, np.ndarray]) -> None:
    inputs = dict(pair)
    if "router_logits" in {port.name for port in cls.inputs}:
        inputs = {"router_logits": np.random.default_rng(0).standard_normal((5, 4))}
    elif cls.operator.startswith("Sparse"):
        inputs["y_true"] = np.array([0, 3, 1])
    comparison = compare(graph_of(cls.type_name(), inputs, {"weight": 0.5}), inputs)
    assert comparison.slopes < 1e-6
    assert comparison.onnxruntime is not None and comparison.onnxruntime < 1e-12
