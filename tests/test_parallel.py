"""Training over workers has one machine's losses, whatever the loss; with workers that are not there, but counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qmoe_node.sharding import shard
from runtime import load
from runtime.cluster import Here
from runtime.errors import Finding, GraphError
from runtime.graph import Graph
from runtime.hosting import Host, Opening
from runtime.tensors import Tensor
from runtime.training import parallel
from runtime.training.optimizers import SGD, AdamW
from runtime.training.parallel import ClusterRunner
from runtime.training.trainer import Settings, Trainer
from tests.commands import ROOT

DIGITS = ROOT / "snippets" / "digits_moe.yaml"


def pool_of(graph: Graph, workers: int) -> Here:
    """So many workers, all of them this process."""
    pool = Here({"graph": graph}, Opening())
    pool.workers = workers
    return pool


def digits(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"x": random.random((rows, 64), np.float32), "y": random.integers(0, 10, rows)}


def reduced(how: str, element: str = "float") -> Graph:
    """The loss is the `how` of (x w)^2."""
    graph = Graph()
    weights = np.random.default_rng(0).standard_normal((4, 2)).astype("float16" if element == "float16" else "float32")
    graph.add("Input", "x", parameters={"type": f"tensor({element})", "shape": ["n", 4]})
    graph.add("Initializer", "w", parameters={"tensor": Tensor.from_array(weights)})
    graph.set("w", "training_type", "trainable weight")
    for id, type in (("product", "MatMul"), ("square", "Mul"), ("sum", how)):
        graph.add(type, id)
    graph.set("sum", "keepdims", 0)
    graph.add("Output", "loss")
    for source, target in (
        ("x.value", "product.A"),
        ("w.value", "product.B"),
        ("product.Y", "square.A"),
        ("product.Y", "square.B"),
        ("square.C", "sum.data"),
        ("sum.reduced", "loss.value"),
    ):
        graph.wire(source, target)
    return graph


def compare(graph: Graph, data: dict[str, np.ndarray], workers: int, **options: Any) -> list[str]:
    """Holds the losses to one machine's; returns the warnings."""
    settings = Settings(**{"epochs": 2, **options})
    alone = Trainer(graph, data, settings)
    alone.run()
    events: list[dict[str, Any]] = []
    runner = ClusterRunner(graph, settings, pool_of(graph, workers), tell=events.append)
    spread = Trainer(graph, data, settings, runner=runner)
    spread.run()
    for first, second in zip(alone.history, spread.history, strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-5)
    for id, tensor in alone.weights().items():
        np.testing.assert_allclose(spread.weights()[id].array(), tensor.array(), rtol=1e-3, atol=1e-4)
    return [str(event["message"]) for event in events]


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (2, {"batch_size": 33}),
        (8, {"batch_size": 5}),
        (8, {"batch_size": 1, "clip_norm": 1.0}),
        (3, {"batch_size": 10, "accumulate": 4, "clip_norm": 0.5, "average": 0.9}),
        (3, {"batch_size": 20, "optimizer": AdamW(weight_decay=0.1), "validation": 0.2, "patience": 1}),
    ],
)
def test_losses_are_those_of_one_machine(workers: int, options: dict[str, Any]) -> None:
    assert compare(load(DIGITS), digits(53), workers, **options) == []


def test_a_spread_graph_trains_as_the_whole() -> None:
    assert compare(shard(load(DIGITS), 3), digits(40), 2, batch_size=16, optimizer=SGD()) == []


def test_a_loss_that_is_no_mean_is_computed_as_a_whole() -> None:
    (balance, total) = compare(load(DIGITS), digits(53), 3, batch_size=20, losses={"loss": 1.0, "balance_loss": 0.1})
    assert balance.startswith("balance_loss is no mean over the rows of a batch: ") and total.startswith("total_loss")
    assert balance.endswith("So a batch is not divided: one worker computes it, with one machine's numbers.")
    x = np.random.default_rng(1).standard_normal((50, 4), np.float32)
    for how in ("ReduceSum", "ReduceMax"):
        assert compare(reduced(how), {"x": x}, 3, batch_size=16, optimizer=SGD())
    assert compare(reduced("ReduceMean"), {"x": x}, 3, batch_size=16) == []


def test_a_loss_that_shows_only_later_that_it_is_no_mean_is_found() -> None:
    x = np.random.default_rng(1).standard_normal((48, 4), np.float32)
    x[:16] = 0
    assert compare(reduced("ReduceSum"), {"x": x}, 3, batch_size=16, optimizer=SGD(), shuffle=False)


def test_batches_are_divided_all_the_same_where_that_is_asked_for() -> None:
    graph = reduced("ReduceSum")
    settings = Settings(optimizer=SGD())
    events: list[dict[str, Any]] = []
    runner = ClusterRunner(graph, settings, pool_of(graph, 2), tell=events.append, by_parts=True)
    x = np.ones((4, 4), np.float32)
    first = [runner.run({"x": x}, 0.0)["loss"] for _ in range(3)]
    whole = ClusterRunner(graph, settings, pool_of(graph, 1)).run({"x": x}, 0.0)["loss"]
    assert first == pytest.approx([whole / 2] * 3)
    assert [event["message"].split(".")[-2] for event in events] == [" Training goes by the parts"] * 2


def test_workers_that_join_between_steps_change_no_numbers() -> None:
    x = np.random.default_rng(1).standard_normal((12, 4), np.float32)
    for how in ("ReduceMean", "ReduceSum"):
        graph = reduced(how)
        pool, events = pool_of(graph, 1), []
        runner = ClusterRunner(graph, Settings(), pool, tell=events.append)
        parts = ClusterRunner(graph, Settings(), pool_of(graph, 2), by_parts=True)
        first = runner.run({"x": x}, 0.0)["loss"], parts.run({"x": x}, 0.0)["loss"]
        for workers in (1, 1, 1, 1, 2, 3):
            pool.workers = parts._pool.workers = workers
            assert runner.run({"x": x}, 0.0)["loss"] == pytest.approx(first[0], rel=1e-5)
            assert parts.run({"x": x}, 0.0)["loss"] == pytest.approx(first[1], rel=1e-5)
        assert bool(events) == (how == "ReduceSum")
    graph = load(DIGITS)
    graph.set("x", "shape", [20, 64])
    pool = pool_of(graph, 1)
    fixed = ClusterRunner(graph, Settings(), pool)
    pool.workers = 2
    assert fixed.run(digits(20), 0.01)["loss"] > 0


def test_losses_in_few_bits_are_no_alarm() -> None:
    graph = reduced("ReduceMean", "float16")
    events: list[dict[str, Any]] = []
    runner = ClusterRunner(graph, Settings(), pool_of(graph, 3), tell=events.append)
    x = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float16)
    for first in range(0, 50, 10):
        runner.run({"x": x[first : first + 10]}, 0.01)
    assert events == []


def test_a_batch_of_a_fixed_size_cannot_be_divided() -> None:
    graph = load(DIGITS)
    graph.set("x", "shape", [20, 64])
    with pytest.raises(GraphError, match=r"^x\.shape: x has 20 rows in every batch, and workers get parts of one\."):
        ClusterRunner(graph, Settings(), pool_of(graph, 2))
    assert compare(graph, digits(40), 1, batch_size=20) == []


def test_checkpoints_go_from_one_number_of_workers_to_another(tmp_path: Any) -> None:
    graph, data = load(DIGITS), digits(50)
    settings = Settings(epochs=1, batch_size=16, accumulate=2, average=0.9)
    expected = Trainer(graph, data, replace(settings, epochs=3))
    expected.run()
    for epochs, workers in ((1, 2), (2, 5), (3, 1)):
        own = replace(settings, epochs=epochs)
        trainer = Trainer(
            graph,
            data,
            own,
            folder=tmp_path,
            resume=epochs > 1,
            runner=ClusterRunner(graph, own, pool_of(graph, workers)),
        )
        trainer.run()
    for first, second in zip(expected.history, trainer.history, strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-5)


def test_workers_are_asked_for_when_the_data_are_right() -> None:
    def runner() -> Any:
        raise AssertionError("they take seconds to start")

    with pytest.raises(GraphError, match="There is no data for this input"):
        Trainer(load(DIGITS), {"x": digits(20)["x"]}, Settings(), runner=runner)
    with pytest.raises(GraphError, match="name the folder of the run"):
        Trainer(load(DIGITS), digits(20), Settings(), resume=True, runner=runner)


def test_an_error_names_the_step_and_the_rows() -> None:
    graph = load(DIGITS)
    settings = Settings(epochs=1, batch_size=20, shuffle=False)
    runner = ClusterRunner(graph, settings, pool_of(graph, 2))
    step = runner.run

    def fails(batch: Any, *rest: Any) -> dict[str, float]:
        if len(batch["x"]) < 20:
            raise GraphError(Finding("Something is wrong."))
        return step(batch, *rest)

    runner.run = fails  # type: ignore[method-assign]
    with pytest.raises(GraphError) as error:
        Trainer(graph, digits(45), settings, runner=runner).run()
    first, second = (finding.message for finding in error.value.findings)
    assert first == "Something is wrong."
    assert second == "This came at step 3 (epoch 1), of the rows 40, 41, 42, 43, 44 of the data."


def test_a_worker_with_a_gpu_computes_gradients_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    given: list[Any] = []

    class Runner:
        def __init__(self, *options: Any) -> None:
            given.append(options[-1])

        def run(self, *_: Any) -> None: ...

    monkeypatch.setattr(parallel, "GradientRunner", Runner)
    usual = onnxruntime.get_available_providers()
    for has_it in (False, True):
        there = ["CUDAExecutionProvider", *usual] if has_it else ["CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda there=there: there)
        for use_gpu in (False, True):
            host = Host()
            host.prepare({"graph": load(DIGITS)}, Opening(use_gpu=use_gpu))
            assert host.gradients({}, {}, {"loss": 1.0}) is None
    assert given == [None, None, None, ["CUDAExecutionProvider", "CPUExecutionProvider"]]
