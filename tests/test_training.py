"""Training: optimizers beside their formulas, runs that resume to the last bit, steps that leave as files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from runtime import Graph, GraphError, Session, Tensor
from runtime.arrays import read_arrays
from runtime.drawing import axes
from runtime.errors import FileError
from runtime.files import load
from runtime.routing import given_to, routing_of
from runtime.shipped import snippets_folder
from runtime.training import curve, fillers, metrics
from runtime.training.evaluation import Metric
from runtime.training.export import save_step
from runtime.training.optimizers import SGD, Adam, AdamW
from runtime.training.runner import StepRunner
from runtime.training.schedules import Schedule
from runtime.training.step import training_step, update_step
from runtime.training.trainer import Settings, Trainer

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 6)).astype(np.float32)
Y = ((X[:, 0] + X[:, 1] ** 2 > 0.7).astype(np.int64) + (X[:, 2] > 0.5)).astype(np.int64)
DATA = {"x": X, "y": Y}


def classifier(**parameters: Any) -> Graph:
    """Two layers and a cross-entropy, with seeded weights."""
    random = np.random.default_rng(1)
    graph = Graph("classifier", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["samples", 6]})
    graph.add("Input", "y", parameters={"type": "tensor(int64)", "shape": ["samples"]})
    for id, shape in (("w1", (6, 16)), ("b1", (16,)), ("w2", (16, 3)), ("b2", (3,))):
        numbers = fillers.glorot_uniform(random, shape) if len(shape) > 1 else np.zeros(shape)
        tensor = Tensor.from_array(numbers.astype(np.float32))
        graph.add("Initializer", id, parameters={"tensor": tensor, "training_type": "trainable weight", **parameters})
    graph.add("Gemm", "first")
    graph.add("Tanh", "tanh")
    graph.add("Gemm", "second")
    graph.add("qmoe.loss.SparseCategoricalCrossentropy", "entropy", parameters={"from_logits": True})
    graph.add("Output", "loss")
    graph.add("Output", "logits")
    for source, target in (
        ("x.value", "first.A"),
        ("w1.value", "first.B"),
        ("b1.value", "first.C"),
        ("first.Y", "tanh.input"),
        ("tanh.output", "second.A"),
        ("w2.value", "second.B"),
        ("b2.value", "second.C"),
        ("second.Y", "entropy.y_pred"),
        ("y.value", "entropy.y_true"),
        ("entropy.loss", "loss.value"),
        ("second.Y", "logits.value"),
    ):
        graph.wire(source, target)
    return graph


def weights(graph: Graph) -> dict[str, np.ndarray]:
    return {id: s.parameters["tensor"].array() for id, s in graph.nodes.items() if s.type == "Initializer"}


# Optimizers, beside the same formulas in NumPy and float64


def by_formula(optimizer: Any, w: np.ndarray, slopes: list[np.ndarray], rate: float) -> np.ndarray:
    """Where a weight goes, given its gradients: torch.optim's documented algorithms."""
    w, v, m, s = w.astype(float), 0.0, 0.0, 0.0
    for t, g in enumerate(slopes, 1):
        g = g.astype(float)
        if isinstance(optimizer, AdamW):
            w = w - rate * optimizer.weight_decay * w
        else:
            g = g + optimizer.weight_decay * w
        if isinstance(optimizer, SGD):
            v = optimizer.momentum * v + g
            w = w - rate * (g + optimizer.momentum * v if optimizer.nesterov else v)
            continue
        m = optimizer.beta1 * m + (1 - optimizer.beta1) * g
        s = optimizer.beta2 * s + (1 - optimizer.beta2) * g * g
        w = w - rate * (m / (1 - optimizer.beta1**t)) / (np.sqrt(s / (1 - optimizer.beta2**t)) + optimizer.epsilon)
    return np.asarray(w)


def linear() -> Graph:
    """loss = sum(w x): the gradient of w is x, whatever w is."""
    graph = Graph("linear", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [4]})
    start = Tensor.from_array(np.array([1, -2, 0.5, 3], np.float32))
    graph.add("Initializer", "w", parameters={"tensor": start, "training_type": "trainable weight"})
    graph.add("Mul", "product")
    graph.add("ReduceSum", "sum", parameters={"keepdims": 0})
    graph.add("Output", "loss")
    for source, target in (
        ("x.value", "product.A"),
        ("w.value", "product.B"),
        ("product.C", "sum.data"),
        ("sum.reduced", "loss.value"),
    ):
        graph.wire(source, target)
    return graph


OPTIMIZERS = [
    SGD(),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    Adam(),
    Adam(beta1=0.8, beta2=0.9, weight_decay=0.1),
    AdamW(weight_decay=0.2),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_optimizers_follow_their_formulas(optimizer: Any, backend: Any) -> None:
    slopes = [np.random.default_rng(i).standard_normal(4).astype(np.float32) for i in range(6)]
    runner = StepRunner(training_step(linear(), {"loss": 1.0}, optimizer), backend)
    assert runner.is_whole == (backend == "onnxruntime")
    for slope in slopes:
        runner.run({"x": slope}, 0.05)
    expected = by_formula(optimizer, np.array([1, -2, 0.5, 3]), slopes, 0.05)
    np.testing.assert_allclose(runner.weights()["w"], expected, rtol=2e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("optimizer", [Adam(), AdamW(weight_decay=0)])
def test_epsilon_counts_where_weights_have_16_bits(optimizer: Any, dtype: Any) -> None:
    """It is less than the least float16, and what is divided by it is zero for experts without tokens."""
    graph = Graph(opsets={"": 21})
    weight = {"tensor": Tensor.from_array(np.ones(3, dtype)), "training_type": "trainable weight"}
    graph.add("Initializer", "w", parameters=weight)
    graph.add("Output", "y")
    graph.wire("w.value", "y.value")
    runner = StepRunner(update_step(graph, optimizer))
    for _ in range(3):
        runner.run({"gradient.w": np.asarray([0, 1, -1], dtype)}, 1 / 32)
    np.testing.assert_allclose(runner.carried()["w"].astype(float), [1, 1 - 3 / 32, 1 + 3 / 32], rtol=0.01)


def test_clipping_scales_all_gradients_together() -> None:
    slope = np.array([3, 0, 4, 0], np.float32)
    for limit, factor in ((1.0, 0.2), (10.0, 1.0)):
        runner = StepRunner(training_step(linear(), {"loss": 1.0}, SGD(), clip_norm=limit))
        assert runner.run({"x": slope}, 1.0)["gradient_norm"] == pytest.approx(5)
        np.testing.assert_allclose(runner.weights()["w"], np.array([1, -2, 0.5, 3]) - factor * slope, rtol=1e-5)


def test_accumulated_gradients_count_as_their_mean() -> None:
    slopes = [np.random.default_rng(i).standard_normal(4).astype(np.float32) for i in range(4)]
    runner = StepRunner(training_step(linear(), {"loss": 1.0}, Adam(), accumulate=2))
    for index, slope in enumerate(slopes):
        before = runner.weights()["w"]
        runner.run({"x": slope}, 0.1, apply=index % 2 == 1)
        assert np.array_equal(runner.weights()["w"], before) == (index % 2 == 0)
    means = [(slopes[0] + slopes[1]) / 2, (slopes[2] + slopes[3]) / 2]
    expected = by_formula(Adam(), np.array([1, -2, 0.5, 3]), means, 0.1)
    np.testing.assert_allclose(runner.weights()["w"], expected, rtol=2e-6)


def test_the_last_gradients_of_an_epoch_are_averaged_over_as_many_as_they_are() -> None:
    graph = linear()
    graph.set("x", "shape", ["samples", 4])
    options = Settings(optimizer=SGD(), schedule=Schedule(1.0), epochs=1, batch_size=1, accumulate=2, shuffle=False)
    slopes = np.array([[1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 5, 0]], np.float32)
    trained = Trainer(graph, {"x": slopes}, options).run()
    np.testing.assert_allclose(weights(trained)["w"], np.array([1, -2, 0.5, 3]) - [0.5, 1.5, 5, 0], rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_scalars_stay_scalars(accumulate: int) -> None:
    graph = linear()
    one = {"tensor": Tensor.from_array(np.float32(2)), "training_type": "trainable weight"}
    graph.add("Initializer", "factor", parameters=one)
    graph.add("Mul", "scaled")
    for source, target in (("x.value", "scaled.A"), ("factor.value", "scaled.B")):
        graph.wire(source, target)
    graph.cut("product.A")
    graph.wire("scaled.C", "product.A")
    runner = StepRunner(training_step(graph, {"loss": 1.0}, Adam(), accumulate=accumulate, average=0.5))
    for apply in (False, True, True):
        runner.run({"x": np.ones(4, np.float32)}, 0.1, apply)
    runner.restore(runner.carried())
    assert {runner.carried()[name].shape for name in ("step", "factor", "average.factor")} == {()}


def test_the_coefficient_is_for_previous_nodes_only() -> None:
    """A weight of the node itself has the gradient that `Session.backward` gives it."""
    graph = classifier()
    graph.set("second", "lda coeff", 0.25)
    session = Session(graph, threads=1)
    session.forward(DATA)
    expected = session.backward({"loss": 1.0})
    runner = StepRunner(training_step(graph, {"loss": 1.0}, SGD()), threads=1)
    before = runner.weights()
    runner.run(DATA, 1.0)
    for name, weight in runner.weights().items():
        np.testing.assert_allclose(before[name] - weight, expected[name], atol=1e-6)


@pytest.mark.parametrize(
    ("id", "name"), [("x", "learning_rate"), ("w", "step"), ("w", "learning_rate"), ("loss", "step"), ("x", "apply")]
)
def test_names_that_a_step_has_itself_are_refused(id: str, name: str) -> None:
    graph = linear()
    graph.set(id, "name", name)
    with pytest.raises(GraphError, match=f"^{name}: A training step has a tensor of its own by this name"):
        training_step(graph, {name if id == "loss" else "loss": 1.0}, SGD(), accumulate=2)


def test_other_outputs_may_have_the_names_of_a_step() -> None:
    graph = linear()
    for name in ("total_loss", "gradient_norm", "step"):
        graph.add("Output", name)
        graph.wire("product.C", f"{name}.value")
    runner = StepRunner(training_step(graph, {"loss": 1.0}, SGD()))
    assert runner.run({"x": np.ones(4, np.float32)}, 0.1)["gradient_norm"] == pytest.approx(2)


def test_averages_follow_the_weights() -> None:
    runner = StepRunner(training_step(linear(), {"loss": 1.0}, SGD(), average=0.75))
    average = np.array([1, -2, 0.5, 3])
    for index in range(3):
        runner.run({"x": np.full(4, index + 1.0, np.float32)}, 0.5)
        average = 0.75 * average + 0.25 * runner.weights()["w"]
    np.testing.assert_allclose(runner.carried()["average.w"], average, rtol=1e-6)


def test_regularizers_add_to_the_loss() -> None:
    graph = linear()
    graph.set("w", "l1", 0.5)
    graph.set("w", "l2", 0.25)
    runner = StepRunner(training_step(graph, {"loss": 2.0}, SGD()))
    w, x = np.array([1, -2, 0.5, 3]), np.array([1, 2, 3, 4], np.float32)
    losses = runner.run({"x": x}, 1.0)
    assert losses["loss"] == pytest.approx(float((w * x).sum()))
    assert losses["total_loss"] == pytest.approx(
        2 * float((w * x).sum()) + 0.5 * np.abs(w).sum() + 0.25 * (w * w).sum()
    )
    np.testing.assert_allclose(runner.weights()["w"], w - (2 * x + 0.5 * np.sign(w) + 0.5 * w), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"kind": "linear", "steps": 4, "end": 0.2}, [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ({"kind": "cosine", "steps": 4}, [1, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2, 0, 0]),
        ({"kind": "step", "every": 2, "factor": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"kind": "exponential", "factor": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ({"kind": "linear", "steps": 2, "warm_up": 2}, [0.5, 1, 1, 0.5, 0, 0]),
    ],
)
def test_schedules(options: dict[str, Any], expected: list[float]) -> None:
    schedule = Schedule(1.0, **options)
    np.testing.assert_allclose([schedule(step) for step in range(6)], expected, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(nesterov=True),
        lambda: Adam(beta1=1.0),
        lambda: AdamW(weight_decay=-1),
        lambda: Schedule(kind="sudden"),
        lambda: Schedule(kind="cosine"),
        lambda: Settings(epochs=0),
        lambda: Settings(validation=1.0),
        lambda: Settings(clip_norm=0.0),
        lambda: Trainer(classifier(), {"x": X}),
        lambda: Trainer(classifier(), {"x": X, "y": Y[:5]}),
        lambda: Trainer(classifier(training_type="frozen weight"), DATA),
        lambda: Trainer(classifier(), DATA, Settings(losses={"logits": 1.0})),
        lambda: Trainer(classifier(), DATA, Settings(losses={"lost": 1.0})),
        lambda: Trainer(classifier(), DATA, resume=True),
        lambda: Settings(patience=2),
        lambda: Schedule(rate=np.inf),
        lambda: Schedule(kind="step", factor=np.nan),
        lambda: Trainer(classifier(), {"x": X, "y": Y[0]}),
    ],
)
def test_wrong_options_are_refused(make: Any) -> None:
    with pytest.raises(GraphError):
        make()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X[:, :4]}, "x: Dimension 1 must be 6; 4 came"),
        ({"x": X.astype(np.float64)}, "x: The elements must be tensor"),
        ({"y": Y.astype(np.int32)}, "y: The elements must be"),
        ({"y": Y[:, None]}, "y: A tensor of shape"),
        ({"y": Y[0]}, "y is a single number"),
    ],
)
def test_data_of_other_types_are_refused_before_training(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(GraphError) as error:
        Trainer(classifier(), {**DATA, **changed})
    assert message.replace("tensor", "") in str(error.value).replace("tensor", "")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("mse:logits:y", r"two arrays of the same shape; logits is \[24, 3\], y \[24\]"),
        ("perplexity:logits", "expected one number"),
        ("accuracy:loss:y", "as many classes as samples"),
        ("top-2:logits:far", "expected classes from 0 to 2; far has others"),
    ],
)
def test_metrics_say_what_does_not_fit(metric: str, message: str) -> None:
    data = {**DATA, "far": Y + 5}
    with pytest.raises(GraphError, match=message):
        Trainer(classifier(), data, settings(epochs=1, metrics=[Metric.parse(metric)])).run()


def test_gradients_that_are_no_numbers_stop_the_run() -> None:
    """The loss does not show what has become of the weights before the next step."""
    graph = linear()
    graph.set("w", "tensor", Tensor.from_array(np.zeros((1, 4), np.float32)))
    graph.set("x", "shape", ["samples", 4])
    graph.add("Sqrt", "root")
    graph.cut("sum.data")
    graph.wire("product.C", "root.X")
    graph.wire("root.Y", "sum.data")
    with pytest.raises(GraphError, match="The length of the gradients is"):
        Trainer(graph, {"x": np.ones((8, 4), np.float32)}, Settings(epochs=1)).run()


def test_logs_are_json_even_if_numbers_are_not(tmp_path: Path) -> None:
    data = {**DATA, "x": X.copy()}
    data["x"][-1, 1] = np.nan
    trainer = Trainer(classifier(), data, settings(epochs=2), folder=tmp_path)
    trainer.run()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=pytest.fail)["validation loss"] for line in lines]
    assert found == [None, None] and np.isnan(trainer.history[0]["validation loss"])
    curve.save_curve(tmp_path / "curve.png", trainer.history, ["loss", "validation loss"])


# First values, and metrics


@pytest.mark.parametrize(
    "name", ["glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal"]
)
def test_fillers_have_the_variance_they_promise(name: str) -> None:
    variance = {"glorot": 2 / 500, "he": 2 / 400, "lecun": 1 / 400}[name.partition("_")[0]]
    numbers = fillers.FILLERS[name](np.random.default_rng(0), (400, 100))
    assert numbers.var() == pytest.approx(variance, rel=0.03) and abs(numbers.mean()) < 1e-3
    turned = fillers.FILLERS[name](np.random.default_rng(0), (100, 400), transposed=True)
    assert turned.var() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 4)])
def test_orthogonal_matrices(shape: tuple[int, ...]) -> None:
    matrices = fillers.orthogonal(np.random.default_rng(0), shape).reshape(-1, *shape[-2:])
    for matrix in matrices:
        small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(small, np.eye(len(small)), atol=1e-12)


def test_metrics() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    classes = np.array([1, 1, 0])
    assert metrics.accuracy(scores, classes) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(scores, classes, 2) == pytest.approx(2 / 3)
    assert metrics.mean_squared_error(np.ones(4), np.full(4, 3.0)) == 4
    assert metrics.perplexity(np.log(7)) == pytest.approx(7)
    load = metrics.expert_load(np.array([[0, 1], [0, 2]]), 4)
    np.testing.assert_allclose(load, [0.5, 0.25, 0.25, 0])
    assert metrics.load_entropy(load) == pytest.approx(0.75)
    assert metrics.load_entropy(np.full(8, 1 / 8)) == pytest.approx(1)


# The loop

METRICS = [Metric.parse(t) for t in ("accuracy:logits:y", "top-2:logits:y", "mse:logits:wished", "perplexity:loss")]


def test_what_is_held_back_is_measured_with_constants_where_kernels_need_them() -> None:
    """ONNX Runtime's MatMulNBits with integer products takes scales that are inputs for zeros."""
    random = np.random.default_rng(0)
    graph = Graph(opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["batch", 64]})
    tensors = {"B": random.integers(0, 255, (8, 2, 16)).astype(np.uint8), "scales": np.full((8, 2), 0.1, np.float32)}
    for port, array in tensors.items():
        graph.add("Initializer", port, parameters={"tensor": Tensor.from_array(array)})
    graph.set("scales", "training_type", "trainable weight")
    parameters = {"K": 64, "N": 8, "bits": 4, "block_size": 32, "accuracy_level": 4}
    graph.add("com.microsoft.MatMulNBits", "product", parameters=parameters)
    for source, port in (("x", "A"), ("B", "B"), ("scales", "scales")):
        graph.wire(f"{source}.value", f"product.{port}")
    graph.add("ReduceL2", "length", parameters={"keepdims": 0})
    graph.wire("product.Y", "length.data")
    graph.add("Output", "loss")
    graph.wire("length.reduced", "loss.value")
    data = {"x": random.standard_normal((16, 64)).astype(np.float32)}
    trainer = Trainer(graph, data, Settings(losses={"loss": 1.0}, epochs=1, batch_size=8, validation=0.5))
    found = Session(trainer.run()).forward({"x": data["x"][8:]})["loss"]
    assert trainer.history[0]["validation loss"] == pytest.approx(found)


def test_metrics_of_what_is_held_back_are_those_of_a_session() -> None:
    wished = RNG.standard_normal((120, 3)).astype(np.float32)
    trainer = Trainer(classifier(), {**DATA, "wished": wished}, settings(epochs=3, metrics=METRICS))
    reached = []
    for _ in range(3):
        trainer.settings = replace(trainer.settings, epochs=trainer.epoch + 1)
        trainer.run()
        reached.append(trainer._current())
    graph = classifier()
    for id, array in reached[-1].items():
        graph.set(id, "tensor", Tensor.from_array(array))
    results = Session(graph).forward({name: array[96:] for name, array in DATA.items()})
    scores, classes, last = results["logits"], Y[96:], trainer.history[-1]
    right = np.take_along_axis(scores, classes[:, None], 1)
    assert last["validation accuracy:logits:y"] == pytest.approx((scores.argmax(1) == classes).mean())
    assert last["validation top-2:logits:y"] == pytest.approx(((scores > right).sum(1) < 2).mean())
    assert last["validation mse:logits:wished"] == pytest.approx(((scores - wished[96:]) ** 2).mean(), rel=1e-5)
    assert last["validation perplexity:loss"] == pytest.approx(np.exp(results["loss"]), rel=1e-5)


def test_without_samples_held_back_metrics_are_of_all() -> None:
    trainer = Trainer(classifier(), DATA, settings(validation=0, epochs=1, metrics=METRICS[:1]))
    graph = trainer.run()
    logits = Session(graph).forward(DATA)["logits"]
    assert trainer.history[0]["accuracy:logits:y"] == pytest.approx((logits.argmax(1) == Y).mean())


def test_one_hot_targets_count_as_classes() -> None:
    data = {**DATA, "one_hot": np.eye(3)[Y]}
    metrics_ = [Metric("accuracy", "logits", "y"), Metric("accuracy", "logits", "one_hot")]
    trainer = Trainer(classifier(), data, settings(epochs=1, metrics=metrics_))
    trainer.run()
    assert trainer.history[0][f"validation {metrics_[0]}"] == trainer.history[0][f"validation {metrics_[1]}"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("accuracy", "is no metric"),
        ("accuracy:logits", "is no metric"),
        ("top-0:logits:y", "is no metric"),
        ("perplexity:loss:y", "is no metric"),
        ("f1:logits:y", "is no metric"),
        ("accuracy:scores:y", "no output of the graph"),
        ("accuracy:logits:labels", "no data for this input"),
        ("accuracy:loss:y", "expected [samples, classes]"),
    ],
)
def test_metrics_that_cannot_be_measured(text: str, word: str) -> None:
    with pytest.raises(GraphError, match=re.escape(word)):
        Trainer(classifier(), DATA, settings(metrics=[Metric.parse(text)])).run()


def test_every_epoch_tells_the_load_of_the_experts(tmp_path: Path) -> None:
    folder = snippets_folder()
    data = read_arrays(folder / "digits.npz")
    images, digits = data["images"][:256].astype(np.float32) / 16, data["digits"][:256].astype(np.int64)
    options = settings(epochs=2, validation=0.5, losses={"loss": 1.0})
    trainer = Trainer(load(folder / "digits_moe.yaml"), {"x": images, "y": digits}, options, folder=tmp_path)
    graph = trainer.run()
    load_of, entropy = trainer.loads[-1]["moe"], trainer.history[-1]["entropy of moe"]
    assert sum(load_of) == pytest.approx(1) and entropy == pytest.approx(metrics.load_entropy(np.array(load_of)))
    if trainer.history[-1]["validation loss"] < trainer.history[0]["validation loss"]:  # then they are the best weights
        session = Session(graph, "numpy")
        session.forward({"x": images[128:], "y": digits[128:]}, probes=given_to(graph, "moe"))
        counts = routing_of(graph, "moe", session.last_run.probes).tokens_per_expert()
        np.testing.assert_allclose(load_of, counts / counts.sum(), atol=0.02)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["expert_load"]["moe"] for line in lines] == [loads["moe"] for loads in trainer.loads]
    again = Trainer(load(folder / "digits_moe.yaml"), {"x": images, "y": digits}, options, folder=tmp_path, resume=True)
    assert again.loads == trainer.loads


def settings(**options: Any) -> Settings:
    return Settings(
        **{"epochs": 4, "batch_size": 32, "validation": 0.2, "schedule": Schedule(1e-2), "seed": 5, **options}
    )


def test_training_makes_the_loss_fall_and_keeps_the_best_weights() -> None:
    trainer = Trainer(classifier(), DATA, settings(epochs=30))
    reports = []
    graph = trainer.run(reports.append)
    first, last = trainer.history[0]["loss"], trainer.history[-1]["loss"]
    assert last < first / 2
    assert len(reports) == 30 * 3 and reports[-1].step == reports[-1].steps == 90
    held_back = {name: array[96:] for name, array in DATA.items()}
    best = min(entry["validation loss"] for entry in trainer.history)
    assert float(Session(graph).forward(held_back)["loss"]) == pytest.approx(best, rel=1e-5)


def test_both_backends_train_alike() -> None:
    histories = []
    for backend in ("onnxruntime", "numpy"):
        trainer = Trainer(classifier(), DATA, settings(), backend=backend)
        trainer.run()
        histories.append([entry["loss"] for entry in trainer.history])
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-4)


def test_training_stops_when_validation_gets_no_better() -> None:
    trainer = Trainer(classifier(), DATA, settings(epochs=200, patience=3, schedule=Schedule(0.5)))
    trainer.run()
    losses = [entry["validation total_loss"] for entry in trainer.history]
    assert len(losses) == int(np.argmin(losses)) + 4 < 200


def test_a_loss_that_is_no_number_any_more_stops_the_run() -> None:
    data = {**DATA, "x": X.copy()}
    data["x"][3, 1] = np.nan
    with pytest.raises(GraphError, match="The loss is nan at step"):
        Trainer(classifier(), data, settings()).run()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_repeats_and_resumes_to_the_last_bit(tmp_path: Path, accumulate: int) -> None:
    options = settings(epochs=6, average=0.9, accumulate=accumulate)
    whole = Trainer(classifier(), DATA, options, folder=tmp_path / "whole", threads=1)
    expected = weights(whole.run())
    part = Trainer(classifier(), DATA, replace(options, epochs=2), folder=tmp_path / "part", threads=1)
    part.run()
    again = Trainer(classifier(), DATA, options, folder=tmp_path / "part", resume=True, threads=1)
    assert again.epoch == 2
    got = weights(again.run())
    assert {name: array.tobytes() for name, array in got.items()} == {n: a.tobytes() for n, a in expected.items()}
    assert again.history == whole.history
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "part")
    ]
    assert [{**line, "seconds": 0} for line in logs[0]] == [{**line, "seconds": 0} for line in logs[1]]
    with pytest.raises(FileError, match="is there already"):
        Trainer(classifier(), DATA, settings(), folder=tmp_path / "part")
    with pytest.raises(FileError, match="other settings"):
        Trainer(classifier(), DATA, settings(batch_size=8), folder=tmp_path / "part", resume=True)
    with pytest.raises(FileError, match="other data"):
        Trainer(classifier(), {**DATA, "x": X + 1}, options, folder=tmp_path / "part", resume=True)


PROGRAM = """
import sys
from pathlib import Path
from tests.test_training import DATA, Trainer, classifier, settings
trainer = Trainer(classifier(), DATA, settings(epochs=400), folder=sys.argv[1], resume="resume" in sys.argv, threads=1)
graph = trainer.run()
Path(sys.argv[1], "end").write_bytes(graph.nodes["w1"].parameters["tensor"].array().tobytes())
"""


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent

    def start(folder: str, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / folder), *options], cwd=root)

    log = tmp_path / "killed" / "log.jsonl"
    process = start("killed")
    until = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 5) and time.monotonic() < until:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start("killed", "resume").wait() == 0
    assert start("whole").wait() == 0
    assert (tmp_path / "killed" / "end").read_bytes() == (tmp_path / "whole" / "end").read_bytes()


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(FileError, match=r"log.jsonl"):
        Trainer(classifier(), DATA, settings(), folder=tmp_path)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    Trainer(classifier(), DATA, settings(epochs=1), folder=tmp_path).run()
    path = tmp_path / "checkpoint.zip"
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[:-40], content[:100] + bytes(50) + content[150:]):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="checkpoint"):
            Trainer(classifier(), DATA, settings(epochs=2), folder=tmp_path, resume=True)


@pytest.mark.parametrize("state", [{}, [1]])
def test_checkpoints_of_something_else_are_refused(state: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint.zip", "w") as archive:
        archive.writestr("state.json", json.dumps({"version": 1, "tensors": {}, "state": state}))
    with pytest.raises(FileError, match="checkpoint"):
        Trainer(classifier(), DATA, settings(), folder=tmp_path, resume=True)


# A step as a file


PLAIN = """
import json, sys
import numpy, onnxruntime
assert not {"runtime", "onnx", "onnx_ir"} & set(sys.modules)
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
notes = json.loads(session.get_modelmeta().custom_metadata_map["qmoe.training_step"])
data = numpy.load(sys.argv[2])
state, losses = {}, []
names = [output.name for output in session.get_outputs()]
for rows in data["batches"]:
    feeds = {"x": data["x"][rows], "y": data["y"][rows], "learning_rate": numpy.array(0.01, numpy.float32), **state}
    results = dict(zip(names, session.run(names, feeds)))
    state = {name: results[after] for name, after in notes["carried"]}
    losses.append(float(results["loss"]))
print(json.dumps(losses))
"""


def test_a_step_trains_with_nothing_but_onnx_runtime(tmp_path: Path) -> None:
    chosen = settings(validation=0.0, batch_size=40, shuffle=False, epochs=3, clip_norm=0.5)
    reports: list[Any] = []
    Trainer(classifier(), DATA, chosen, threads=1).run(reports.append)
    step = training_step(classifier(), {"loss": 1.0}, chosen.optimizer, clip_norm=0.5)
    save_step(step, tmp_path / "step.onnx")
    batches = np.arange(120).reshape(3, 40)
    np.savez(tmp_path / "data.npz", x=X, y=Y, batches=np.concatenate([batches] * 3))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "step.onnx"), str(tmp_path / "data.npz")],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    losses = json.loads(done.stdout)
    np.testing.assert_allclose(losses, [report.losses["loss"] for report in reports], rtol=1e-5)


def test_labels_of_a_curve_have_the_same_digits_and_its_legend_wraps() -> None:
    assert axes.labels([2.5, 2.75, 3.0]) == ["2.50", "2.75", "3.00"]
    assert axes.labels([0.0, 5.0]) == ["0", "5"]
    assert [line for _, line in curve._legend([300.0, 300.0, 300.0])] == [0, 0, 1]
